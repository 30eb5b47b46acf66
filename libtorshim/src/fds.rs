//! Descriptors: keeps the name table's from being closed or covered by programs that close whatever
//! they did not open, and forgets what was known of a socket when its last number goes.

use crate::hook::{fail, hooks};
use crate::state;
use libc::{c_int, c_uint};
use redhook::real;
use uwt_core::errno::Errno;

hooks! {
    unsafe fn close(fd: c_int) -> c_int => on_close {
        if fd >= 0 && fd == state::get().protected_fd() {
            // As if it had been closed: the program never opened it.
            return 0;
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(close)(fd) }
    }

    unsafe fn dup2(old: c_int, new: c_int) -> c_int => on_dup2 {
        if new >= 0 && new == state::get().protected_fd() && old != new {
            return fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(dup2)(old, new) }
    }

    unsafe fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int => on_close_range {
        // SAFETY: the program's own call; see `around`.
        around(first, last, |a, b| unsafe { real!(close_range)(a, b, flags) })
    }
}

/// Calls `f` for the parts of `first..=last` that lie on either side of the protected descriptor.
fn around(first: c_uint, last: c_uint, mut f: impl FnMut(c_uint, c_uint) -> c_int) -> c_int {
    let Ok(keep) = c_uint::try_from(state::get().protected_fd()) else {
        return f(first, last);
    };
    if !(first..=last).contains(&keep) {
        return f(first, last);
    }
    if first < keep && f(first, keep - 1) != 0 {
        return -1;
    }
    if keep < last { f(keep + 1, last) } else { 0 }
}
