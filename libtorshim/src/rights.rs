//! Descriptors that come in from another process (SCM_RIGHTS, unix(7); pidfd_getfd(2)): a socket that
//! is connected to the network beside Tor is not taken.

use crate::addr::Address;
use crate::carry::settle;
use crate::connect::kind;
use crate::hook::{fail, hooks, set_errno};
use crate::{log, sys, table};
use core::ffi::c_int;
use libc::{c_uint, mmsghdr, msghdr, ssize_t, timespec};
use redhook::real;
use sys::Fd;
use uwt_core::hostname::is_loopback;
use uwt_core::route::{Refusal, SocketUse};

/// Whether a descriptor leads to the network beside Tor: a socket of a kind that is refused, or one
/// that is connected to an address that is not loopback.
pub fn is_foreign(fd: Fd) -> bool {
    match kind(fd) {
        Err(_) | Ok(SocketUse::Local) => false,
        Ok(SocketUse::Refuse(_)) => true,
        Ok(SocketUse::Tcp | SocketUse::Udp) => {
            let mut name = [0u8; 128];
            let Ok(n) = sys::getpeername(fd, &mut name) else {
                return false;
            };
            let peer = name.get(..n).and_then(Address::from_bytes);
            peer.and_then(|a| a.ip())
                .is_none_or(|a| !is_loopback(a.ip()))
        }
    }
}

/// Runs `f` on each descriptor that came with a message.
fn each(m: &msghdr, mut f: impl FnMut(Fd)) {
    if m.msg_control.is_null() || m.msg_controllen == 0 {
        return;
    }
    // SAFETY: the kernel has filled `msg_controllen` bytes of control data; libc's macros stay within.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(m);
        while let Some(header) = c.as_ref() {
            if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = header.cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(c).cast::<Fd>();
                for i in 0..bytes / size_of::<Fd>() {
                    f(data.add(i).read_unaligned());
                }
            }
            c = libc::CMSG_NXTHDR(m, c);
        }
    }
}

/// Takes a received message, or closes every descriptor that came with it and refuses it.
fn admit(m: &msghdr) -> bool {
    let mut foreign = false;
    each(m, |fd| {
        table::forget(fd);
        foreign |= is_foreign(fd);
    });
    if foreign {
        let r = Refusal::ForeignSocket;
        log::refused!("recvmsg: {}", r.message());
        each(m, sys::close);
        set_errno(r.errno());
    }
    !foreign
}

hooks! {
    unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t => on_recvmsg {
        if let Err(e) = settle(fd, flags & libc::MSG_DONTWAIT != 0) {
            return fail(e) as ssize_t;
        }
        // SAFETY: the program's own call, unchanged.
        let n = unsafe { real!(recvmsg)(fd, message, flags) };
        // SAFETY: the call succeeded, so the message is valid and filled.
        if n >= 0 && !unsafe { message.as_ref() }.is_none_or(admit) {
            return -1;
        }
        n
    }

    unsafe fn recvmmsg(fd: c_int, messages: *mut mmsghdr, n: c_uint, flags: c_int, timeout: *mut timespec) -> c_int => on_recvmmsg {
        if let Err(e) = settle(fd, flags & libc::MSG_DONTWAIT != 0) {
            return fail(e);
        }
        // SAFETY: the program's own call, unchanged.
        let got = unsafe { real!(recvmmsg)(fd, messages, n, flags, timeout) };
        if got > 0 {
            // SAFETY: the kernel has filled `got` messages.
            let all = unsafe { core::slice::from_raw_parts(messages, got as usize) };
            let mut foreign = false;
            for m in all {
                foreign |= !admit(&m.msg_hdr);
            }
            if foreign {
                for m in all {
                    each(&m.msg_hdr, sys::close);
                }
                return fail(Refusal::ForeignSocket.errno());
            }
        }
        got
    }
}
