//! res_query(3) and its kin: programs that speak DNS through libc. A and PTR are answered from the same
//! place as getaddrinfo(3); AAAA has no record, since the A record's virtual address stands for the name
//! whichever way Tor reaches it; everything else (SRV, SSHFP, MX ...) has none either. No query leaves.

use crate::hook::hooks;
use crate::hostent::{h_errno_of, set_h_errno};
use crate::log;
use crate::lookup::{self, Found, Missing};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::net::IpAddr;
use uwt_core::dns::{A, AAAA, PTR, Question, Record};

const NO_DATA: c_int = 4;

/// Writes the answer to a question; its length, or the h_errno.
fn answer(q: &Question, out: &mut [u8]) -> Result<usize, c_int> {
    let no_data = Err(NO_DATA);
    let record = match q.kind {
        A => match lookup::forward(q.name()).map_err(h_errno_of)? {
            Found::Ip(IpAddr::V4(a)) => Record::A(a),
            Found::Loopback(l) => Record::A(l.v4().ok_or(NO_DATA)?),
            Found::Ip(IpAddr::V6(_)) => return no_data,
        },
        PTR => {
            let ip = q.address().ok_or(NO_DATA)?;
            let name = lookup::reverse(ip).map_err(h_errno_of)?;
            return q.answer(Record::Ptr(name.bytes()), out).ok_or(3);
        }
        AAAA => return no_data,
        // The name of a service (RFC 2782): none is there, so that the program goes on with the host.
        // dirmngr takes "no data" for a failure.
        _ if q.name().starts_with(b"_") => return Err(h_errno_of(Missing::NoName)),
        kind => {
            log::debug!(
                "{}: DNS records of type {kind} are not asked for",
                log::Shown(q.name())
            );
            return no_data;
        }
    };
    q.answer(record, out).ok_or(h_errno_of(Missing::Refused))
}

/// The caller's buffer.
unsafe fn buffer<'a>(at: *mut u8, len: c_int) -> &'a mut [u8] {
    match usize::try_from(len) {
        // SAFETY: the program vouches for `len` bytes.
        Ok(n) if !at.is_null() => unsafe { core::slice::from_raw_parts_mut(at, n) },
        _ => &mut [],
    }
}

fn failed(h_error: c_int) -> c_int {
    set_h_errno(h_error);
    -1
}

/// res_query(3).
unsafe fn query(name: *const c_char, kind: c_int, out: *mut u8, len: c_int) -> c_int {
    if name.is_null() {
        return failed(1);
    }
    // SAFETY: the program's own arguments.
    let (name, out) = unsafe { (CStr::from_ptr(name), buffer(out, len)) };
    let q = u16::try_from(kind)
        .ok()
        .and_then(|k| Question::new(name.to_bytes(), k));
    match q.ok_or(1).and_then(|q| answer(&q, out)) {
        Ok(n) => n as c_int,
        Err(e) => failed(e),
    }
}

/// res_querydomain(3): the name and the domain, a dot between.
unsafe fn query_domain(
    name: *const c_char,
    domain: *const c_char,
    kind: c_int,
    out: *mut u8,
    len: c_int,
) -> c_int {
    if name.is_null() || domain.is_null() {
        // SAFETY: the program's own arguments.
        return unsafe { query(name, kind, out, len) };
    }
    let mut both = [0u8; 512];
    // SAFETY: both are C strings.
    let (name, domain) = unsafe {
        (
            CStr::from_ptr(name).to_bytes(),
            CStr::from_ptr(domain).to_bytes(),
        )
    };
    let parts = [name, b".", domain];
    let mut at = 0;
    for part in parts {
        let Some(slot) = both.get_mut(at..at + part.len()) else {
            return failed(1);
        };
        slot.copy_from_slice(part);
        at += part.len();
    }
    if at >= both.len() {
        return failed(1);
    }
    // SAFETY: `both` ends with a NUL.
    unsafe { query(both.as_ptr().cast(), kind, out, len) }
}

/// res_send(3): a message that the program made; the answer is a message too.
unsafe fn send(message: *const u8, message_len: c_int, out: *mut u8, len: c_int) -> c_int {
    // SAFETY: the program's own arguments.
    let (message, out) = unsafe { (buffer(message.cast_mut(), message_len), buffer(out, len)) };
    let Some(q) = Question::parse(message) else {
        return failed(3);
    };
    let n = match answer(&q, out) {
        Ok(n) => Some(n),
        Err(NO_DATA) => q.answer(Record::None, out),
        Err(1) => q.answer(Record::NoName, out),
        Err(_) => None,
    };
    n.map_or_else(|| failed(3), |n| n as c_int)
}

/// Hooks for one call of the resolver under its several names.
macro_rules! queries {
    ($( $real:ident ( $($v:ident : $t:ty),* ) = $operation:expr => $name:ident; )*) => {
        hooks! {
            $(
                unsafe fn $real($($v: $t),*) -> c_int => $name {
                    // SAFETY: the program's own arguments.
                    unsafe { $operation }
                }
            )*
        }
    };
}

queries! {
    res_query(name: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query(name, kind, out, len) => on_res_query;
    __res_query(name: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query(name, kind, out, len) => on_internal_res_query;
    res_search(name: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query(name, kind, out, len) => on_res_search;
    __res_search(name: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query(name, kind, out, len) => on_internal_res_search;
    res_querydomain(name: *const c_char, domain: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query_domain(name, domain, kind, out, len) => on_res_querydomain;
    __res_querydomain(name: *const c_char, domain: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query_domain(name, domain, kind, out, len) => on_internal_res_querydomain;
    res_send(message: *const u8, n: c_int, out: *mut u8, len: c_int) = send(message, n, out, len) => on_res_send;
    __res_send(message: *const u8, n: c_int, out: *mut u8, len: c_int) = send(message, n, out, len) => on_internal_res_send;
    res_nquery(_state: *mut c_void, name: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query(name, kind, out, len) => on_res_nquery;
    __res_nquery(_state: *mut c_void, name: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query(name, kind, out, len) => on_internal_res_nquery;
    res_nsearch(_state: *mut c_void, name: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query(name, kind, out, len) => on_res_nsearch;
    __res_nsearch(_state: *mut c_void, name: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query(name, kind, out, len) => on_internal_res_nsearch;
    res_nquerydomain(_state: *mut c_void, name: *const c_char, domain: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query_domain(name, domain, kind, out, len) => on_res_nquerydomain;
    __res_nquerydomain(_state: *mut c_void, name: *const c_char, domain: *const c_char, _class: c_int, kind: c_int, out: *mut u8, len: c_int) = query_domain(name, domain, kind, out, len) => on_internal_res_nquerydomain;
    res_nsend(_state: *mut c_void, message: *const u8, n: c_int, out: *mut u8, len: c_int) = send(message, n, out, len) => on_res_nsend;
    __res_nsend(_state: *mut c_void, message: *const u8, n: c_int, out: *mut u8, len: c_int) = send(message, n, out, len) => on_internal_res_nsend;
}
