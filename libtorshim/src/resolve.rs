//! getaddrinfo(3), getaddrinfo_a(3), getnameinfo(3).
//!
//! libc's own getaddrinfo does what needs no network: literals, service names, the shape of the result,
//! memory that freeaddrinfo(3) frees. It is never asked for a hostname.

use crate::addr::Address;
use crate::hook::hooks;
use crate::lookup::{self, Found, Missing};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt::Write;
use core::net::IpAddr;
use libc::{addrinfo, sockaddr, socklen_t};
use redhook::real;
use uwt_core::hostname::Loopback;

const EAI_ADDRFAMILY: c_int = -9;
const EAI_OVERFLOW: c_int = -12;
/// AI_IDN and its kin would have libc load libidn2; names travel as given.
const AI_IDN_FLAGS: c_int = 0x40 | 0x80;

/// An address as text, with a final NUL.
struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for b in s.bytes() {
            // The last byte stays NUL.
            if self.len < 63 {
                self.bytes[self.len] = b;
                self.len += 1;
            }
        }
        Ok(())
    }
}

fn text(ip: IpAddr) -> Text {
    let mut t = Text {
        bytes: [0; 64],
        len: 0,
    };
    let _ = write!(t, "{ip}");
    t
}

fn error(m: Missing) -> c_int {
    match m {
        Missing::NoName => libc::EAI_NONAME,
        Missing::Refused => libc::EAI_FAIL,
        Missing::Memory => libc::EAI_MEMORY,
    }
}

/// The addresses to hand out for what was found, in the family that is asked for.
fn addresses(found: Found, family: c_int) -> Result<[Option<IpAddr>; 2], c_int> {
    let v4_wanted = family != libc::AF_INET6;
    let v6_wanted = family != libc::AF_INET;
    let list = match found {
        // An IPv4 address for a program that takes IPv6 only: v4-mapped, which connect(2) understands.
        Found::Ip(IpAddr::V4(a)) if !v4_wanted => [Some(a.to_ipv6_mapped().into()), None],
        Found::Ip(ip @ IpAddr::V4(_)) => [Some(ip), None],
        Found::Ip(ip) => [Some(ip).filter(|_| v6_wanted), None],
        Found::Loopback(Loopback::Own) if !v4_wanted => {
            [Loopback::Own.v4().map(|a| a.to_ipv6_mapped().into()), None]
        }
        Found::Loopback(l) => [
            l.v6().filter(|_| v6_wanted).map(IpAddr::V6),
            l.v4().filter(|_| v4_wanted).map(IpAddr::V4),
        ],
    };
    match list {
        [None, None] => Err(EAI_ADDRFAMILY),
        list => Ok(list),
    }
}

/// Replaces the name that libc put down, the address's text, by what was asked for.
unsafe fn set_canonical_name(first: *mut addrinfo, name: &CStr) {
    // SAFETY: a result of getaddrinfo, whose name is malloc'ed or null and freed by freeaddrinfo.
    unsafe {
        libc::free((*first).ai_canonname.cast());
        (*first).ai_canonname = libc::strdup(name.as_ptr());
    }
}

type Real = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const addrinfo,
    *mut *mut addrinfo,
) -> c_int;

/// getaddrinfo(3); `real` is libc's.
unsafe fn lookup(
    real: Real,
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> c_int {
    // SAFETY: the program's own arguments, as getaddrinfo(3) takes them; `own` outlives each call.
    unsafe {
        if node.is_null() {
            return real(node, service, hints, result);
        }
        // SAFETY (zeroed): struct addrinfo is integers and pointers.
        let mut own: addrinfo = core::mem::zeroed();
        match hints.as_ref() {
            Some(h) => {
                own.ai_flags = h.ai_flags;
                own.ai_family = h.ai_family;
                own.ai_socktype = h.ai_socktype;
                own.ai_protocol = h.ai_protocol;
            }
            // What glibc takes for no hints.
            None => own.ai_flags = libc::AI_V4MAPPED | libc::AI_ADDRCONFIG,
        }
        let asked = own.ai_flags;
        own.ai_flags = (asked | libc::AI_NUMERICHOST) & !(libc::AI_ADDRCONFIG | AI_IDN_FLAGS);
        let literal = real(node, service, &raw const own, result);
        if literal != libc::EAI_NONAME || asked & libc::AI_NUMERICHOST != 0 {
            return literal;
        }
        let name = CStr::from_ptr(node);
        let list = lookup::forward(name.to_bytes()).map_err(error);
        let list = match list.and_then(|found| addresses(found, own.ai_family)) {
            Ok(list) => list,
            Err(e) => return e,
        };
        let mut head: *mut addrinfo = core::ptr::null_mut();
        for ip in list.into_iter().flatten() {
            let mut part = core::ptr::null_mut();
            let error = real(
                text(ip).bytes.as_ptr().cast(),
                service,
                &raw const own,
                &raw mut part,
            );
            if error != 0 {
                if !head.is_null() {
                    libc::freeaddrinfo(head);
                }
                return error;
            }
            if head.is_null() {
                head = part;
            } else {
                let mut last = head;
                while !(*last).ai_next.is_null() {
                    last = (*last).ai_next;
                }
                (*last).ai_next = part;
                libc::free((*part).ai_canonname.cast());
                (*part).ai_canonname = core::ptr::null_mut();
            }
        }
        if asked & libc::AI_CANONNAME != 0 {
            set_canonical_name(head, name);
        }
        *result = head;
        0
    }
}

/// Copies a name with its NUL to where getnameinfo(3) wants it.
unsafe fn put(name: &[u8], to: *mut c_char, len: socklen_t) -> c_int {
    if name.len() >= len as usize {
        return EAI_OVERFLOW;
    }
    // SAFETY: the caller vouches for `len` bytes, more than the name has.
    unsafe {
        core::ptr::copy_nonoverlapping(name.as_ptr(), to.cast(), name.len());
        *to.add(name.len()) = 0;
    }
    0
}

/// struct gaicb (netdb.h, getaddrinfo_a(3)).
#[repr(C)]
pub struct Gaicb {
    name: *const c_char,
    service: *const c_char,
    request: *const addrinfo,
    result: *mut addrinfo,
    status: c_int,
    reserved: [c_int; 5],
}

/// What SIGEV_THREAD asks for.
struct Notice {
    function: unsafe extern "C" fn(libc::sigval),
    value: libc::sigval,
}

extern "C" fn notify_thread(notice: *mut c_void) -> *mut c_void {
    // SAFETY: `notify` malloc'ed and filled it for this thread alone.
    unsafe {
        let n = notice.cast::<Notice>().read();
        libc::free(notice);
        (n.function)(n.value);
    }
    core::ptr::null_mut()
}

/// Tells the program that its lookups are done (sigevent(3type)).
unsafe fn notify(event: *const libc::sigevent) {
    // SAFETY: getaddrinfo_a(3) takes null or a valid sigevent.
    let Some(e) = (unsafe { event.as_ref() }) else {
        return;
    };
    // SAFETY: a signal to ourselves; or the thread that the program asked for, with memory of its own.
    unsafe {
        match e.sigev_notify {
            libc::SIGEV_SIGNAL => {
                libc::sigqueue(libc::getpid(), e.sigev_signo, e.sigev_value);
            }
            libc::SIGEV_THREAD => {
                // The function stands where libc's union has the thread's id.
                let at = (&raw const e.sigev_notify_thread_id).cast::<u8>();
                let at = at
                    .byte_offset(4 - (at as isize & 4))
                    .cast::<*const c_void>();
                let function = at.read_unaligned();
                let memory = libc::malloc(size_of::<Notice>()).cast::<Notice>();
                if function.is_null() || memory.is_null() {
                    libc::free(memory.cast());
                    return;
                }
                memory.write(Notice {
                    function: core::mem::transmute::<
                        *const c_void,
                        unsafe extern "C" fn(libc::sigval),
                    >(function),
                    value: e.sigev_value,
                });
                let mut thread = core::mem::zeroed();
                if libc::pthread_create(
                    &raw mut thread,
                    core::ptr::null(),
                    notify_thread,
                    memory.cast(),
                ) == 0
                {
                    libc::pthread_detach(thread);
                }
            }
            _ => {}
        }
    }
}

hooks! {
    unsafe fn getaddrinfo(node: *const c_char, service: *const c_char, hints: *const addrinfo, result: *mut *mut addrinfo) -> c_int => on_getaddrinfo {
        // SAFETY: the program's own arguments.
        unsafe { lookup(real!(getaddrinfo), node, service, hints, result) }
    }

    unsafe fn getaddrinfo_a(mode: c_int, list: *mut *mut Gaicb, n: c_int, event: *const libc::sigevent) -> c_int => on_getaddrinfo_a {
        if !(0..=1).contains(&mode) || list.is_null() {
            crate::hook::set_errno(uwt_core::errno::Errno::EINVAL);
            return libc::EAI_SYSTEM;
        }
        // SAFETY: `n` pointers, each null or to a valid request. Lookups take no time in mode `virtual`, so
        // both modes are done when the call returns.
        unsafe {
            for i in 0..usize::try_from(n).unwrap_or(0) {
                if let Some(r) = (*list.add(i)).as_mut() {
                    r.status = lookup(real!(getaddrinfo), r.name, r.service, r.request, &raw mut r.result);
                }
            }
            if mode == 1 {
                notify(event);
            }
        }
        0
    }

    unsafe fn getnameinfo(sa: *const sockaddr, len: socklen_t, host: *mut c_char, host_len: socklen_t, service: *mut c_char, service_len: socklen_t, flags: c_int) -> c_int => on_getnameinfo {
        // SAFETY: the program's own arguments.
        unsafe {
            let ip = Address::copy(sa, len).and_then(|a| a.ip());
            let numeric = |host: *mut c_char, host_len| {
                real!(getnameinfo)(sa, len, host, host_len, service, service_len, flags & !libc::NI_NAMEREQD | libc::NI_NUMERICHOST)
            };
            let Some(ip) = ip.filter(|_| flags & libc::NI_NUMERICHOST == 0 && !host.is_null() && host_len > 0) else {
                // No name is asked for, or it is an address that has none in the DNS.
                return real!(getnameinfo)(sa, len, host, host_len, service, service_len, flags);
            };
            match lookup::reverse(ip.ip()) {
                Ok(name) => {
                    if !service.is_null() && service_len > 0 {
                        let error = numeric(core::ptr::null_mut(), 0);
                        if error != 0 {
                            return error;
                        }
                    }
                    put(name.bytes(), host, host_len)
                }
                Err(_) if flags & libc::NI_NAMEREQD != 0 => libc::EAI_NONAME,
                Err(_) => numeric(host, host_len),
            }
        }
    }
}
