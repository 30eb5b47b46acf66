//! Network descriptors that the launcher was started with: connected beside Tor, by somebody else.

use crate::refusal::{Refusal, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getpeername};
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, RawFd};
use uwt_core::hostname::is_loopback;

/// Whether the descriptor is a socket connected to an address that is not loopback.
fn is_connected_beside_tor(fd: RawFd) -> bool {
    let Ok(peer) = getpeername::<SockaddrStorage>(fd) else {
        return false;
    };
    let ip = match peer.family() {
        Some(nix::sys::socket::AddressFamily::Inet) => {
            peer.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()))
        }
        Some(nix::sys::socket::AddressFamily::Inet6) => {
            peer.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()))
        }
        _ => return false,
    };
    ip.is_none_or(|ip| !is_loopback(ip))
}

/// The open descriptors above standard error.
fn others() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        // Without /proc: those that programs use.
        return (3..1024).collect();
    };
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect()
}

/// Whether the descriptor is a socket of the network that this process is in, connected or not.
fn is_of_the_network(fd: RawFd) -> bool {
    let mut domain: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: getsockopt(2) fills one int that lives through the call; what is no socket it says so.
    let r = unsafe {
        let at = (&raw mut domain).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, at, &raw mut len)
    };
    r == 0 && domain != libc::AF_UNIX
}

/// Has sockets that are connected beside Tor closed when the command starts; refuses if one of them is
/// standard input, output or error. For a command that goes into a namespace: every socket of the network that it
/// leaves, since one could be connected anew.
pub fn close(namespace: bool) -> Result<()> {
    let beside = if namespace {
        is_of_the_network
    } else {
        is_connected_beside_tor
    };
    for fd in 0..=2 {
        if beside(fd) {
            return Err(Refusal::new(
                format!("descriptor {fd} is a network connection beside Tor"),
                "the command would talk over it directly",
                "redirect it, for example through a pipe; nothing was run",
            ));
        }
    }
    for fd in others() {
        if beside(fd) {
            // SAFETY: getpeername has just found the number to be an open socket; it is used for one
            // fcntl(2) and not kept.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let flags = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
            fcntl(fd, flags).map_err(|e| {
                Refusal::new(
                    "an inherited connection cannot be closed",
                    e.to_string(),
                    "",
                )
            })?;
        }
    }
    Ok(())
}
