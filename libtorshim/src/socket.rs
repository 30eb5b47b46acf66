//! socket(2) and what is asked of sockets: bind, listen, accept, names, options.

use crate::addr::Address;
use crate::connect::kind;
use crate::hook::{fail, hooks, set_errno};
use crate::table::{self, Phase};
use crate::{carry, log, state, sys};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use libc::{c_int, c_void, sockaddr, socklen_t};
use redhook::real;
use sys::Fd;
use uwt_core::errno::Errno;
use uwt_core::route::{self, Bind, Refusal, Route, SocketUse};

fn refuse(what: &str, r: Refusal) -> c_int {
    log::refused!("{what}: {}", r.message());
    fail(r.errno())
}

/// The loopback address of a socket's family, with port `port`.
fn loopback(family: i32, port: u16) -> Address {
    let ip = match family {
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    Address::new(SocketAddr::new(ip, port), family)
}

/// The address that bind(2) is to use instead of `to`, if the policy moves servers to loopback.
fn moved(fd: Fd, to: &Address) -> Option<Address> {
    let policy = &state::get().handoff()?.policy;
    let addr = to.ip()?;
    let movable = policy.bind == Bind::Loopback
        && (addr.ip().is_unspecified() || !uwt_core::hostname::is_loopback(addr.ip()));
    (movable && kind(fd) == Ok(SocketUse::Tcp)).then(|| loopback(to.family(), addr.port()))
}

/// Whether `fd` may listen; binds it to loopback first where the policy says so.
fn may_listen(fd: Fd) -> Result<(), Refusal> {
    if kind(fd) != Ok(SocketUse::Tcp) {
        return Ok(());
    }
    let handoff = state::get().handoff().ok_or(Refusal::NoPolicy)?;
    let mut name = [0u8; 128];
    let bound = sys::getsockname(fd, &mut name)
        .ok()
        .and_then(|n| Address::from_bytes(name.get(..n)?));
    let Some((bound, on)) = bound.and_then(|b| Some((b, b.ip()?))) else {
        return Err(Refusal::Inbound);
    };
    if on.port() == 0 && handoff.policy.bind == Bind::Loopback {
        // listen(2) without bind(2) would take every address.
        return match sys::bind(fd, loopback(bound.family(), 0).bytes()) {
            Ok(()) => Ok(()),
            Err(_) => Err(Refusal::Inbound),
        };
    }
    match route::listen(&handoff.policy, on) {
        Route::Refuse(r) => Err(r),
        _ => Ok(()),
    }
}

/// Looks at who came in on `fd`; a connection that may not be used is closed.
fn admit(fd: Fd) -> Result<Fd, Errno> {
    let mut name = [0u8; 128];
    let Ok(n) = sys::getpeername(fd, &mut name) else {
        return Ok(fd);
    };
    let Some(from) = name
        .get(..n)
        .and_then(Address::from_bytes)
        .and_then(|a| a.ip())
    else {
        return Ok(fd);
    };
    let refusal = match state::get().handoff() {
        None => Refusal::NoPolicy,
        Some(h) => match route::accepted(&h.policy, from) {
            Route::Refuse(r) => r,
            _ => return Ok(fd),
        },
    };
    log::refused!("connection from {from}: {}", refusal.message());
    sys::close(fd);
    Err(Errno::ECONNABORTED)
}

/// Passes an accepted descriptor on, if it may be used.
fn admitted(fd: c_int) -> c_int {
    if fd < 0 {
        return fd;
    }
    table::forget(fd);
    match admit(fd) {
        Ok(fd) => fd,
        Err(e) => fail(e),
    }
}

/// The destination that a carried socket was connected to, or why there is none; `None` if the
/// socket is not carried.
fn peer(fd: Fd) -> Option<Result<Address, Errno>> {
    if !table::known(fd) && !table::attention() {
        return None;
    }
    table::with(|t| {
        let i = t.lookup(fd)?;
        if t.at(i)?.in_progress() {
            carry::advance(t, i);
        }
        let e = t.at(i)?;
        match e.phase {
            Phase::Watched => None,
            Phase::Connected { .. } => Some(Ok(Address::new(e.peer, e.family))),
            _ => Some(Err(Errno(libc::ENOTCONN))),
        }
    })
}

/// SO_ERROR of a socket whose handshake is under way or has failed; `None` for others.
fn pending_error(fd: Fd) -> Option<c_int> {
    if !table::attention() {
        return None;
    }
    table::with(|t| {
        let i = t.lookup(fd)?;
        if t.at(i)?.in_progress() {
            carry::advance(t, i);
        }
        match t.at(i)?.phase {
            Phase::Connecting | Phase::Talking => Some(0),
            Phase::Failed(e) => {
                t.set_phase(i, Phase::Watched);
                Some(e.0)
            }
            Phase::Connected { .. } | Phase::Watched => None,
        }
    })
}

/// The family of a socket that was swapped; `None` for others.
fn swapped(fd: Fd) -> Option<i32> {
    if !table::any_swapped() || !table::known(fd) {
        return None;
    }
    table::with(|t| {
        let i = t.lookup(fd)?;
        t.at(i).filter(|e| e.swapped).map(|e| e.family)
    })
}

/// Puts an int where getsockopt(2) wants its value.
///
/// # Safety
/// `len` must be valid and `to` writable for `*len` bytes.
unsafe fn put_int(to: *mut c_void, len: *mut socklen_t, value: c_int) -> c_int {
    let bytes = value.to_ne_bytes();
    // SAFETY: the caller's.
    unsafe {
        let n = (*len as usize).min(4);
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), n);
        *len = n as socklen_t;
    }
    0
}

/// What setsockopt(2) is not to do.
enum OptionUse {
    Pass,
    /// Has no meaning behind Tor: success, and nothing is done.
    Ignore,
    Refuse(Refusal),
}

/// Options that would send packets (joining a group), or lead them elsewhere than their address says
/// (a device, a source route).
fn option_use(level: c_int, name: c_int, len: usize) -> OptionUse {
    const MCAST_JOIN_GROUP: c_int = 42;
    const MCAST_JOIN_SOURCE_GROUP: c_int = 46;
    const SO_BINDTOIFINDEX: c_int = 62;
    const IP_UNICAST_IF: c_int = 50;
    const IPV6_UNICAST_IF: c_int = 76;
    const IPV6_RTHDR: c_int = 57;
    const IPV6_2292RTHDR: c_int = 5;
    const IPV6_2292PKTOPTIONS: c_int = 6;
    const IPV6_PKTINFO: c_int = 50;
    const IPV6_JOIN_ANYCAST: c_int = 27;
    let refuse = OptionUse::Refuse(Refusal::SocketKind(Errno::EPERM));
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_BINDTODEVICE | SO_BINDTOIFINDEX)
        | (libc::IPPROTO_IP, IP_UNICAST_IF)
        | (libc::IPPROTO_IPV6, IPV6_UNICAST_IF) => OptionUse::Ignore,
        (libc::IPPROTO_IP, libc::IP_OPTIONS)
        | (libc::IPPROTO_IPV6, IPV6_RTHDR | IPV6_2292RTHDR | IPV6_2292PKTOPTIONS)
            if len > 0 =>
        {
            refuse
        }
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | libc::IP_ADD_SOURCE_MEMBERSHIP)
        | (libc::IPPROTO_IP | libc::IPPROTO_IPV6, MCAST_JOIN_GROUP | MCAST_JOIN_SOURCE_GROUP)
        | (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | IPV6_JOIN_ANYCAST | IPV6_PKTINFO) => {
            refuse
        }
        // Would have the kernel connect later, past the handshake.
        (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT) => OptionUse::Ignore,
        _ => OptionUse::Pass,
    }
}

hooks! {
    unsafe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int => on_socket {
        if let SocketUse::Refuse(r) = route::socket(domain, kind, protocol) {
            log::refused!("socket({domain}, {}, {protocol}): {}", kind & 0xf, r.message());
            return fail(r.errno());
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(socket)(domain, kind, protocol) }
    }

    unsafe fn __socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int => on_socket_internal {
        // SAFETY: the same call under its other name.
        unsafe { on_socket(domain, kind, protocol) }
    }

    unsafe fn bind(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int => on_bind {
        // SAFETY: bind(2) takes an address of `len` bytes.
        match unsafe { Address::copy(to, len) }.and_then(|a| moved(fd, &a)) {
            // SAFETY: a valid address takes the program's place.
            Some(a) => unsafe { real!(bind)(fd, a.bytes().as_ptr().cast(), a.bytes().len() as socklen_t) },
            // SAFETY: the program's own call, unchanged.
            None => unsafe { real!(bind)(fd, to, len) },
        }
    }

    unsafe fn listen(fd: c_int, backlog: c_int) -> c_int => on_listen {
        if let Err(r) = may_listen(fd) {
            return refuse("listen", r);
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(listen)(fd, backlog) }
    }

    unsafe fn accept(fd: c_int, from: *mut sockaddr, len: *mut socklen_t) -> c_int => on_accept {
        // SAFETY: the program's own call, unchanged.
        admitted(unsafe { real!(accept)(fd, from, len) })
    }

    unsafe fn accept4(fd: c_int, from: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int => on_accept4 {
        // SAFETY: the program's own call, unchanged.
        admitted(unsafe { real!(accept4)(fd, from, len, flags) })
    }

    unsafe fn getpeername(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int => on_getpeername {
        match peer(fd) {
            Some(Ok(a)) if !to.is_null() && !len.is_null() => {
                // SAFETY: getpeername(2) takes a buffer of `*len` bytes.
                unsafe { a.store(to, len) };
                0
            }
            Some(Err(e)) => fail(e),
            // SAFETY: the program's own call, unchanged.
            _ => unsafe { real!(getpeername)(fd, to, len) },
        }
    }

    unsafe fn getsockname(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int => on_getsockname {
        match swapped(fd) {
            Some(family) if !to.is_null() && !len.is_null() => {
                // SAFETY: getsockname(2) takes a buffer of `*len` bytes.
                unsafe { loopback(family, 0).store(to, len) };
                0
            }
            // SAFETY: the program's own call, unchanged.
            _ => unsafe { real!(getsockname)(fd, to, len) },
        }
    }

    unsafe fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int => on_getsockopt {
        if !value.is_null() && !len.is_null() {
            if (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR) {
                if let Some(error) = pending_error(fd) {
                    // SAFETY: getsockopt(2) takes a buffer of `*len` bytes.
                    return unsafe { put_int(value, len, error) };
                }
            }
            if let Some(family) = swapped(fd) {
                let answer = match (level, name) {
                    (libc::SOL_SOCKET, libc::SO_DOMAIN) => Some(family),
                    (libc::SOL_SOCKET, libc::SO_PROTOCOL) => Some(libc::IPPROTO_TCP),
                    (libc::SOL_SOCKET, _) => None,
                    _ => Some(0),
                };
                if let Some(answer) = answer {
                    // SAFETY: as above.
                    return unsafe { put_int(value, len, answer) };
                }
            }
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(getsockopt)(fd, level, name, value, len) }
    }

    unsafe fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int => on_setsockopt {
        match option_use(level, name, len as usize) {
            OptionUse::Pass => {}
            OptionUse::Ignore => return 0,
            OptionUse::Refuse(r) => return refuse("setsockopt", r),
        }
        if level != libc::SOL_SOCKET && swapped(fd).is_some() {
            // TCP's and IP's options have no place on the socket that stands in; none changes what is sent.
            return 0;
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(setsockopt)(fd, level, name, value, len) }
    }

    unsafe fn shutdown(fd: c_int, how: c_int) -> c_int => on_shutdown {
        if let Err(e) = carry::settle(fd, false) {
            set_errno(if e == Errno::EAGAIN { Errno(libc::ENOTCONN) } else { e });
            return -1;
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(shutdown)(fd, how) }
    }
}
