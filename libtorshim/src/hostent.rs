//! gethostbyname(3) and its kin: struct hostent in a buffer, libc's or the caller's.

use crate::hook::hooks;
use crate::lookup::{self, Found, Missing};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use libc::{hostent, size_t, socklen_t};

const HOST_NOT_FOUND: c_int = 1;
const NO_RECOVERY: c_int = 3;
const NETDB_INTERNAL: c_int = -1;

unsafe extern "C" {
    /// Where this thread's h_errno is (netdb.h).
    fn __h_errno_location() -> *mut c_int;
}

/// Sets h_errno.
pub fn set_h_errno(e: c_int) {
    // SAFETY: valid for the thread's life.
    unsafe { *__h_errno_location() = e };
}

/// The h_errno for a lookup that gives nothing.
pub fn h_errno_of(m: Missing) -> c_int {
    match m {
        Missing::NoName => HOST_NOT_FOUND,
        Missing::Refused | Missing::Memory => NO_RECOVERY,
    }
}

/// Room for the calls that give a pointer to memory of libc's.
struct Shared(UnsafeCell<(hostent, [u8; 1024])>);

// SAFETY: gethostbyname(3) and gethostbyaddr(3) are documented as not thread-safe: a program that calls
// them from two threads races in libc too.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared(UnsafeCell::new((
    hostent {
        h_name: core::ptr::null_mut(),
        h_aliases: core::ptr::null_mut(),
        h_addrtype: 0,
        h_length: 0,
        h_addr_list: core::ptr::null_mut(),
    },
    [0; 1024],
)));

/// Fills `to`, with names and addresses in `buf`. ERANGE if they do not fit.
unsafe fn fill(
    to: *mut hostent,
    buf: *mut c_char,
    len: usize,
    name: &[u8],
    ip: IpAddr,
) -> Result<(), c_int> {
    // Three pointers (no alias; one address and the end), 16 bytes of address, the name.
    let start = buf.align_offset(align_of::<*mut c_char>());
    let need = start + 3 * size_of::<*mut c_char>() + 16 + name.len() + 1;
    if buf.is_null() || len < need {
        return Err(libc::ERANGE);
    }
    // SAFETY: `need` bytes are there, aligned for pointers from `start` on; `to` is the caller's to fill.
    unsafe {
        let pointers: *mut *mut c_char = buf.add(start).cast();
        let address = pointers.add(3).cast::<u8>();
        let text = address.add(16);
        let (family, length) = match ip {
            IpAddr::V4(a) => {
                core::ptr::copy_nonoverlapping(a.octets().as_ptr(), address, 4);
                (libc::AF_INET, 4)
            }
            IpAddr::V6(a) => {
                core::ptr::copy_nonoverlapping(a.octets().as_ptr(), address, 16);
                (libc::AF_INET6, 16)
            }
        };
        core::ptr::copy_nonoverlapping(name.as_ptr(), text, name.len());
        *text.add(name.len()) = 0;
        *pointers = core::ptr::null_mut();
        *pointers.add(1) = address.cast();
        *pointers.add(2) = core::ptr::null_mut();
        to.write(hostent {
            h_name: text.cast(),
            h_aliases: pointers,
            h_addrtype: family,
            h_length: length,
            h_addr_list: pointers.add(1),
        });
    }
    Ok(())
}

/// An address literal as gethostbyname(3) takes it: inet_aton(3)'s forms, or IPv6.
fn literal(name: &CStr, family: c_int) -> Option<IpAddr> {
    if family == libc::AF_INET6 {
        let text = name.to_str().ok()?;
        return text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let mut a = libc::in_addr { s_addr: 0 };
    // SAFETY: inet_aton reads a C string and fills a struct that lives through the call.
    let ok = unsafe { inet_aton(name.as_ptr(), &raw mut a) } != 0;
    ok.then(|| IpAddr::V4(Ipv4Addr::from(u32::from_be(a.s_addr))))
}

unsafe extern "C" {
    fn inet_aton(text: *const c_char, to: *mut libc::in_addr) -> c_int;
}

/// The one address of `name` in `family`.
fn address(name: &CStr, family: c_int) -> Result<IpAddr, c_int> {
    if let Some(ip) = literal(name, family) {
        return Ok(ip);
    }
    if family == libc::AF_INET6 {
        if let Some(IpAddr::V4(a)) = literal(name, libc::AF_INET) {
            return Ok(a.to_ipv6_mapped().into());
        }
    }
    let found = lookup::forward(name.to_bytes()).map_err(h_errno_of)?;
    let ip = match (found, family) {
        (Found::Ip(IpAddr::V4(a)), libc::AF_INET6) => Some(a.to_ipv6_mapped().into()),
        (Found::Ip(ip @ IpAddr::V4(_)), _) | (Found::Ip(ip @ IpAddr::V6(_)), libc::AF_INET6) => {
            Some(ip)
        }
        (Found::Ip(IpAddr::V6(_)), _) => None,
        (Found::Loopback(l), libc::AF_INET6) => l.v6().map(IpAddr::V6),
        (Found::Loopback(l), _) => l.v4().map(IpAddr::V4),
    };
    ip.ok_or(4 /* NO_DATA */)
}

/// Where the caller of an `_r` form wants the answer.
#[derive(Clone, Copy)]
struct Out {
    to: *mut hostent,
    buf: *mut c_char,
    len: usize,
    result: *mut *mut hostent,
    h_error: *mut c_int,
}

/// The operation behind gethostbyname2_r(3).
unsafe fn by_name(name: *const c_char, family: c_int, out: Out) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe {
        let Out {
            result, h_error, ..
        } = out;
        *result = core::ptr::null_mut();
        if name.is_null() || (family != libc::AF_INET && family != libc::AF_INET6) {
            *h_error = HOST_NOT_FOUND;
            return libc::EINVAL;
        }
        let name = CStr::from_ptr(name);
        match address(name, family) {
            Ok(ip) => out.fill(name.to_bytes(), ip),
            Err(e) => {
                *h_error = e;
                set_h_errno(e);
                // Not found is no error here: 0, and no result (gethostbyname_r(3)).
                if e == NO_RECOVERY { libc::EAGAIN } else { 0 }
            }
        }
    }
}

impl Out {
    unsafe fn fill(self, name: &[u8], ip: IpAddr) -> c_int {
        // SAFETY: the program's own pointers.
        unsafe {
            match fill(self.to, self.buf, self.len, name, ip) {
                Ok(()) => {
                    *self.result = self.to;
                    *self.h_error = 0;
                    0
                }
                Err(e) => {
                    *self.h_error = NETDB_INTERNAL;
                    e
                }
            }
        }
    }
}

/// The operation behind gethostbyaddr_r(3).
unsafe fn by_address(addr: *const c_void, addr_len: socklen_t, family: c_int, out: Out) -> c_int {
    // SAFETY: the program's own arguments; an address is 4 or 16 bytes, as its family says.
    unsafe {
        let Out {
            result, h_error, ..
        } = out;
        *result = core::ptr::null_mut();
        let ip: IpAddr = match (family, addr_len) {
            (libc::AF_INET, 4) => Ipv4Addr::from(addr.cast::<[u8; 4]>().read()).into(),
            (libc::AF_INET6, 16) => Ipv6Addr::from(addr.cast::<[u8; 16]>().read()).into(),
            _ => {
                *h_error = HOST_NOT_FOUND;
                return libc::EINVAL;
            }
        };
        match lookup::reverse(ip) {
            Ok(name) => out.fill(name.bytes(), ip),
            Err(_) => {
                *h_error = HOST_NOT_FOUND;
                set_h_errno(HOST_NOT_FOUND);
                0
            }
        }
    }
}

/// Runs an `_r` form with libc-like memory; gives what the plain form gives.
fn shared(f: impl FnOnce(Out) -> c_int) -> *mut hostent {
    let at = SHARED.0.get();
    let (mut result, mut h_error) = (core::ptr::null_mut(), 0);
    // SAFETY: pointers into a static; see `Shared`.
    let (to, buf) = unsafe { (&raw mut (*at).0, &raw mut (*at).1) };
    f(Out {
        to,
        buf: buf.cast(),
        len: 1024,
        result: &raw mut result,
        h_error: &raw mut h_error,
    });
    if result.is_null() {
        set_h_errno(h_error);
    }
    result
}

hooks! {
    unsafe fn gethostbyname(name: *const c_char) -> *mut hostent => on_gethostbyname {
        // SAFETY: the program's own argument.
        shared(|out| unsafe { by_name(name, libc::AF_INET, out) })
    }

    unsafe fn gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent => on_gethostbyname2 {
        // SAFETY: the program's own arguments.
        shared(|out| unsafe { by_name(name, family, out) })
    }

    unsafe fn gethostbyname_r(name: *const c_char, to: *mut hostent, buf: *mut c_char, len: size_t, result: *mut *mut hostent, h_error: *mut c_int) -> c_int => on_gethostbyname_r {
        // SAFETY: the program's own arguments.
        unsafe { by_name(name, libc::AF_INET, Out { to, buf, len, result, h_error }) }
    }

    unsafe fn gethostbyname2_r(name: *const c_char, family: c_int, to: *mut hostent, buf: *mut c_char, len: size_t, result: *mut *mut hostent, h_error: *mut c_int) -> c_int => on_gethostbyname2_r {
        // SAFETY: the program's own arguments.
        unsafe { by_name(name, family, Out { to, buf, len, result, h_error }) }
    }

    unsafe fn gethostbyaddr(addr: *const c_void, addr_len: socklen_t, family: c_int) -> *mut hostent => on_gethostbyaddr {
        // SAFETY: the program's own arguments.
        shared(|out| unsafe { by_address(addr, addr_len, family, out) })
    }

    unsafe fn gethostbyaddr_r(addr: *const c_void, addr_len: socklen_t, family: c_int, to: *mut hostent, buf: *mut c_char, len: size_t, result: *mut *mut hostent, h_error: *mut c_int) -> c_int => on_gethostbyaddr_r {
        // SAFETY: the program's own arguments.
        unsafe { by_address(addr, addr_len, family, Out { to, buf, len, result, h_error }) }
    }
}
