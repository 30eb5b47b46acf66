//! What else of libc would ask the DNS or connect by itself, past every hook: refused.

use crate::hook::{fail, hooks};
use crate::hostent::set_h_errno;
use crate::log;
use core::ffi::{c_char, c_int, c_long, c_void};
use libc::size_t;
use uwt_core::errno::Errno;

const HOST_NOT_FOUND: c_int = 1;

/// Networks have names in the DNS too (nsswitch.conf(5)); nobody asks for them.
fn no_network() -> *mut c_void {
    set_h_errno(HOST_NOT_FOUND);
    core::ptr::null_mut()
}

unsafe fn no_network_r(result: *mut *mut c_void, h_error: *mut c_int) -> c_int {
    // SAFETY: the program's own pointers (getnetbyname_r(3)).
    unsafe {
        *result = core::ptr::null_mut();
        *h_error = HOST_NOT_FOUND;
    }
    0
}

/// rcmd(3) and its kin connect from inside libc.
fn refused(what: &str) -> c_int {
    log::refused!("{what}: connects from inside libc, beside Tor");
    fail(Errno::EPERM)
}

hooks! {
    unsafe fn getnetbyname(_name: *const c_char) -> *mut c_void => on_getnetbyname {
        no_network()
    }

    unsafe fn getnetbyaddr(_net: u32, _family: c_int) -> *mut c_void => on_getnetbyaddr {
        no_network()
    }

    unsafe fn getnetbyname_r(_name: *const c_char, _to: *mut c_void, _buf: *mut c_char, _len: size_t, result: *mut *mut c_void, h_error: *mut c_int) -> c_int => on_getnetbyname_r {
        // SAFETY: the program's own pointers.
        unsafe { no_network_r(result, h_error) }
    }

    unsafe fn getnetbyaddr_r(_net: u32, _family: c_int, _to: *mut c_void, _buf: *mut c_char, _len: size_t, result: *mut *mut c_void, h_error: *mut c_int) -> c_int => on_getnetbyaddr_r {
        // SAFETY: the program's own pointers.
        unsafe { no_network_r(result, h_error) }
    }

    unsafe fn gethostid() -> c_long => on_gethostid {
        // libc would look this machine's own name up in the DNS. What it makes of Debian's 127.0.1.1.
        0x007f_0101
    }

    unsafe fn rcmd(_host: *mut *mut c_char, _port: c_int, _local: *const c_char, _remote: *const c_char, _command: *const c_char, _error: *mut c_int) -> c_int => on_rcmd {
        refused("rcmd")
    }

    unsafe fn rcmd_af(_host: *mut *mut c_char, _port: c_int, _local: *const c_char, _remote: *const c_char, _command: *const c_char, _error: *mut c_int, _family: c_int) -> c_int => on_rcmd_af {
        refused("rcmd_af")
    }

    unsafe fn rexec(_host: *mut *mut c_char, _port: c_int, _user: *const c_char, _pass: *const c_char, _command: *const c_char, _error: *mut c_int) -> c_int => on_rexec {
        refused("rexec")
    }

    unsafe fn rexec_af(_host: *mut *mut c_char, _port: c_int, _user: *const c_char, _pass: *const c_char, _command: *const c_char, _error: *mut c_int, _family: c_int) -> c_int => on_rexec_af {
        refused("rexec_af")
    }

    unsafe fn ruserok(_host: *const c_char, _superuser: c_int, _remote: *const c_char, _local: *const c_char) -> c_int => on_ruserok {
        refused("ruserok")
    }

    unsafe fn ruserok_af(_host: *const c_char, _superuser: c_int, _remote: *const c_char, _local: *const c_char, _family: c_int) -> c_int => on_ruserok_af {
        refused("ruserok_af")
    }

    unsafe fn iruserok(_host: u32, _superuser: c_int, _remote: *const c_char, _local: *const c_char) -> c_int => on_iruserok {
        refused("iruserok")
    }

    unsafe fn iruserok_af(_host: *const c_void, _superuser: c_int, _remote: *const c_char, _local: *const c_char, _family: c_int) -> c_int => on_iruserok_af {
        refused("iruserok_af")
    }
}
