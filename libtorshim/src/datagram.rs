//! Sending with an address: sendto(2), sendmsg(2), sendmmsg(2). What is not TCP stays on loopback, and
//! data never goes with the SYN.

use crate::addr::Address;
use crate::carry::settle;
use crate::connect::{self, Verdict, kind};
use crate::hook::{hooks, set_errno};
use crate::{log, state};
use libc::{c_int, c_uint, c_void, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use redhook::real;
use uwt_core::errno::Errno;
use uwt_core::route::{self, Refusal, Route, SocketUse, Transport};

fn refuse(what: core::fmt::Arguments<'_>, r: Refusal) -> Errno {
    log::refused!("{what}: {}", r.message());
    r.errno()
}

/// Whether data may be sent on `fd` to `to` with `flags`.
fn may_send(fd: c_int, to: &Address, flags: c_int) -> Result<(), Errno> {
    let kind = match kind(fd) {
        Ok(kind) => kind,
        // Not a socket: the kernel says so.
        Err(_) => return Ok(()),
    };
    match kind {
        SocketUse::Local if to.family() == libc::AF_UNIX => match connect::local(to) {
            Verdict::Done(r) => r,
            Verdict::Pass => Ok(()),
        },
        SocketUse::Local => Ok(()),
        SocketUse::Refuse(r) => Err(refuse(format_args!("sendto"), r)),
        SocketUse::Tcp if flags & libc::MSG_FASTOPEN == 0 => Ok(()),
        SocketUse::Tcp | SocketUse::Udp => {
            // AF_UNSPEC counts as AF_INET here for the kernel (udp_sendmsg): it is not let through.
            let Some(dst) = to.ip() else {
                return Err(Errno::EAFNOSUPPORT);
            };
            let Some(handoff) = state::get().handoff() else {
                return Err(refuse(format_args!("{dst}"), Refusal::NoPolicy));
            };
            let transport = if kind == SocketUse::Tcp {
                Transport::Tcp
            } else {
                Transport::Udp
            };
            match route::outbound(&handoff.policy, transport, dst) {
                Route::Direct => Ok(()),
                // The kernel's own handshake leads to the broker, which carries it.
                Route::Tor if handoff.policy.held => Ok(()),
                Route::Tor => Err(refuse(format_args!("{dst}"), Refusal::FastOpen)),
                Route::Refuse(r) => Err(refuse(format_args!("{dst}"), r)),
            }
        }
    }
}

/// Whether a message's ancillary data leads it elsewhere than its address says: a source address or
/// device (IP_PKTINFO, IPV6_PKTINFO), a source route.
fn diverts(m: &msghdr) -> bool {
    const IP_RETOPTS: c_int = 7;
    if m.msg_control.is_null() {
        return false;
    }
    // SAFETY: a msghdr's control data is `msg_controllen` bytes long; libc's macros stay within it.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(m);
        while let Some(header) = c.as_ref() {
            match (header.cmsg_level, header.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO | IP_RETOPTS) => return true,
                // Everything but the hop limit (52) and the traffic class (67).
                (libc::IPPROTO_IPV6, t) if t != 52 && t != 67 => return true,
                _ => {}
            }
            c = libc::CMSG_NXTHDR(m, c);
        }
    }
    false
}

/// Whether one message may be sent. Gives our copy of its address, which is what is to be used.
fn may_send_message(fd: c_int, m: &msghdr, flags: c_int) -> Result<Option<Address>, Errno> {
    if diverts(m) && kind(fd) != Ok(SocketUse::Local) {
        let r = Refusal::SocketKind(Errno::EPERM);
        return Err(refuse(format_args!("sendmsg with a source or route"), r));
    }
    if m.msg_name.is_null() || m.msg_namelen == 0 {
        return Ok(None);
    }
    // SAFETY: a msghdr's name is `msg_namelen` bytes long.
    let copy = unsafe { Address::copy(m.msg_name.cast(), m.msg_namelen) };
    let copy = copy.ok_or(Errno::EINVAL)?;
    may_send(fd, &copy, flags)?;
    Ok(Some(copy))
}

/// What a sending call gives for an error.
fn failed(e: Errno) -> ssize_t {
    set_errno(e);
    -1
}

hooks! {
    unsafe fn send(fd: c_int, buf: *const c_void, n: size_t, flags: c_int) -> ssize_t => on_send {
        if let Err(e) = settle(fd, flags & libc::MSG_DONTWAIT != 0) {
            return failed(e);
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(send)(fd, buf, n, flags) }
    }

    unsafe fn __send(fd: c_int, buf: *const c_void, n: size_t, flags: c_int) -> ssize_t => on_send_internal {
        // SAFETY: the same call under its other name.
        unsafe { on_send(fd, buf, n, flags) }
    }

    unsafe fn sendto(fd: c_int, buf: *const c_void, n: size_t, flags: c_int, to: *const sockaddr, len: socklen_t) -> ssize_t => on_sendto {
        if let Err(e) = settle(fd, flags & libc::MSG_DONTWAIT != 0) {
            return failed(e);
        }
        if to.is_null() || len == 0 {
            // SAFETY: the program's own call, unchanged.
            return unsafe { real!(sendto)(fd, buf, n, flags, to, len) };
        }
        // SAFETY: sendto(2) takes an address of `len` bytes.
        let Some(copy) = (unsafe { Address::copy(to, len) }) else {
            return failed(Errno::EINVAL);
        };
        match may_send(fd, &copy, flags) {
            // SAFETY: the program's own call with our copy of the address.
            Ok(()) => unsafe { real!(sendto)(fd, buf, n, flags, copy.bytes().as_ptr().cast(), len) },
            Err(e) => failed(e),
        }
    }

    unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t => on_sendmsg {
        if let Err(e) = settle(fd, flags & libc::MSG_DONTWAIT != 0) {
            return failed(e);
        }
        // SAFETY: sendmsg(2) takes a valid msghdr; null is EFAULT.
        let Some(m) = (unsafe { message.as_ref() }) else {
            return failed(Errno(libc::EFAULT));
        };
        match may_send_message(fd, m, flags) {
            Ok(None) => {
                // SAFETY: the program's own call, unchanged.
                unsafe { real!(sendmsg)(fd, message, flags) }
            }
            Ok(Some(copy)) => {
                let mut own = *m;
                own.msg_name = copy.bytes().as_ptr().cast_mut().cast();
                // SAFETY: the program's own message with our copy of the address.
                unsafe { real!(sendmsg)(fd, &raw const own, flags) }
            }
            Err(e) => failed(e),
        }
    }

    unsafe fn sendmmsg(fd: c_int, messages: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int => on_sendmmsg {
        if let Err(e) = settle(fd, flags & libc::MSG_DONTWAIT != 0) {
            return failed(e) as c_int;
        }
        if messages.is_null() {
            return failed(Errno(libc::EFAULT)) as c_int;
        }
        // SAFETY: sendmmsg(2) takes `n` valid messages; the kernel looks at 1024 at most.
        let all = unsafe { core::slice::from_raw_parts(messages, (n as usize).min(1024)) };
        let mut good = 0;
        for m in all {
            match may_send_message(fd, &m.msg_hdr, flags) {
                Ok(_) => good += 1,
                // As the kernel has it: what came before the error is sent, and the error comes next time.
                Err(e) if good == 0 => return failed(e) as c_int,
                Err(_) => break,
            }
        }
        // SAFETY: the program's own call for the first `good` messages.
        unsafe { real!(sendmmsg)(fd, messages, good, flags) }
    }

    unsafe fn __sendmmsg(fd: c_int, messages: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int => on_sendmmsg_internal {
        // SAFETY: the same call under its other name.
        unsafe { on_sendmmsg(fd, messages, n, flags) }
    }
}
