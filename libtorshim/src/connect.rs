//! connect(2): where it goes, and what the kernel would have said.

use crate::addr::Address;
use crate::hook::{fail, hooks};
use crate::{addr, carry, log, state, sys, table};
use core::ffi::CStr;
use libc::{c_int, sockaddr, socklen_t};
use redhook::real;
use sys::Fd;
use uwt_core::errno::Errno;
use uwt_core::route::{self, Refusal, Route, SocketUse, Transport, UnixRoute};

/// What is to happen with a call.
pub enum Verdict {
    /// It goes to the kernel, with our copy of the address.
    Pass,
    /// It has been dealt with.
    Done(Result<(), Errno>),
}

fn refuse(what: core::fmt::Arguments<'_>, r: Refusal) -> Verdict {
    log::refused!("{what}: {}", r.message());
    Verdict::Done(Err(r.errno()))
}

/// What kind of socket a descriptor is; the kernel's own error if it is none.
pub fn kind(fd: Fd) -> Result<SocketUse, Errno> {
    let get = |name| sys::getsockopt(fd, libc::SOL_SOCKET, name);
    let (domain, kind) = (get(libc::SO_DOMAIN)?, get(libc::SO_TYPE)?);
    Ok(route::socket(domain, kind, get(libc::SO_PROTOCOL)?))
}

/// Decides about connect(2) of `fd` to `to`, and does it if it goes to Tor.
pub fn decide(fd: Fd, to: &Address) -> Verdict {
    let kind = match kind(fd) {
        Ok(kind) => kind,
        // Not a socket, or not open: the kernel says so.
        Err(_) => return Verdict::Pass,
    };
    let transport = match kind {
        SocketUse::Tcp => Transport::Tcp,
        SocketUse::Udp => Transport::Udp,
        SocketUse::Local => return swapped_or_local(fd, to),
        SocketUse::Refuse(r) => return refuse(format_args!("connect"), r),
    };
    if to.family() == libc::AF_UNSPEC {
        // Takes the connection apart; what comes next is a new one.
        table::with(|t| t.reset(fd));
        return Verdict::Pass;
    }
    let Some(dst) = to.ip() else {
        // Too short, or a family that is not the socket's: EINVAL or EAFNOSUPPORT, nothing sent.
        return match to.family() {
            libc::AF_INET | libc::AF_INET6 => Verdict::Done(Err(Errno::EINVAL)),
            _ => Verdict::Done(Err(Errno::EAFNOSUPPORT)),
        };
    };
    let Some(handoff) = state::get().handoff() else {
        return refuse(format_args!("{dst}"), Refusal::NoPolicy);
    };
    match route::outbound(&handoff.policy, transport, dst) {
        Route::Tor => Verdict::Done(carry::connect(handoff, fd, addr::canonical(dst))),
        Route::Direct => {
            log::debug!("{dst}: directly, on loopback");
            Verdict::Pass
        }
        Route::Refuse(r) => refuse(format_args!("{dst}"), r),
    }
}

/// connect(2) on AF_UNIX and other local sockets; a swapped socket is one too.
fn swapped_or_local(fd: Fd, to: &Address) -> Verdict {
    if table::any_swapped() && matches!(to.family(), libc::AF_INET | libc::AF_INET6) {
        let carried = table::with(|t| {
            let i = t.lookup(fd)?;
            t.at(i).filter(|e| e.swapped).map(drop)
        });
        if carried.is_some() {
            return Verdict::Done(match state::get().handoff() {
                Some(h) => carry::again_only(h, fd),
                None => Err(Errno::ECONNREFUSED),
            });
        }
    }
    if to.family() != libc::AF_UNIX {
        return Verdict::Pass;
    }
    local(to)
}

/// The path of a socket's file without links, `.`, `..` and what the working directory adds; `path` itself, and
/// false, where there is no such file.
fn canonical<'a>(path: &'a [u8], buf: &'a mut [u8; 4096]) -> Result<(&'a [u8], bool), Errno> {
    let mut name = [0u8; 109];
    if let Some(slot) = name.get_mut(..path.len()) {
        slot.copy_from_slice(path);
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| Errno::EINVAL)?;
    let Ok(fd) = sys::open(name, libc::O_PATH, 0) else {
        return Ok((path, false));
    };
    // proc(5): the link's text is the file's path, whatever way led there.
    let found = sys::descriptor_path(fd, buf);
    sys::close(fd);
    // Without /proc it cannot be told: fail closed.
    found.map(|n| (&buf[..n], true))
}

/// Whether the file of a socket was there before this run began: its daemon is not held by it.
fn older_than_run(path: &[u8], names_fd: Fd) -> bool {
    let mut name = [0u8; 4096];
    if let Some(slot) = name.get_mut(..path.len()) {
        slot.copy_from_slice(path);
    }
    let socket = CStr::from_bytes_until_nul(&name).map_err(|_| Errno::EINVAL);
    let (socket, run) = (socket.and_then(sys::stat), sys::fstat(names_fd));
    match (socket, run) {
        (Ok(s), Ok(r)) => (s.st_ctime, s.st_ctime_nsec) < (r.st_mtime, r.st_mtime_nsec),
        // No such socket: the program will start its daemon, in this run.
        (Err(_), Ok(_)) => false,
        _ => true,
    }
}

/// Whether a unix socket may be reached.
pub fn local(to: &Address) -> Verdict {
    let path = to.unix_path();
    if path.is_empty() {
        // Abstract and unnamed sockets: on this machine, and none of the daemons that resolve has one.
        return Verdict::Pass;
    }
    let refuse = |r| refuse(format_args!("unix:{}", log::Shown(path)), r);
    let mut buf = [0; 4096];
    let Ok((real, there)) = canonical(path, &mut buf) else {
        return refuse(Refusal::DeniedUnix);
    };
    let Some(handoff) = state::get().handoff() else {
        // Without a policy only the network is refused; the program's own sockets still work.
        return match route::DENIED_UNIX.iter().any(|d| real.starts_with(d)) {
            true => refuse(Refusal::NoPolicy),
            false => Verdict::Pass,
        };
    };
    match route::unix(&handoff.policy, real) {
        // Programs ask whether there is a bus; where there is none, nothing was kept from them.
        UnixRoute::Refuse(_) if !there => Verdict::Done(Err(Errno(libc::ENOENT))),
        UnixRoute::Refuse(r) => refuse(r),
        UnixRoute::OfThisRun if older_than_run(real, handoff.names.fd) => {
            refuse(Refusal::DaemonOutside)
        }
        UnixRoute::OfThisRun | UnixRoute::Direct => Verdict::Pass,
    }
}

/// The operation behind both names of connect(2). `real` makes the call with the address it is given.
///
/// # Safety
/// `to` must be null or readable for `len` bytes.
unsafe fn operate(
    fd: Fd,
    to: *const sockaddr,
    len: socklen_t,
    real: impl FnOnce(*const sockaddr, socklen_t) -> c_int,
) -> c_int {
    // SAFETY: the caller's.
    let Some(copy) = (unsafe { Address::copy(to, len) }) else {
        // Null, or a length that no address has: the kernel says EFAULT or EINVAL.
        return real(to, len);
    };
    match decide(fd, &copy) {
        Verdict::Pass => real(copy.bytes().as_ptr().cast(), len),
        Verdict::Done(Ok(())) => 0,
        Verdict::Done(Err(e)) => fail(e),
    }
}

hooks! {
    unsafe fn connect(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int => on_connect {
        // SAFETY: connect(2) takes an address of `len` bytes; the real call gets our copy of it.
        unsafe { operate(fd, to, len, |to, len| real!(connect)(fd, to, len)) }
    }

    unsafe fn __connect(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int => on_connect_internal {
        // SAFETY: as above.
        unsafe { operate(fd, to, len, |to, len| real!(__connect)(fd, to, len)) }
    }
}
