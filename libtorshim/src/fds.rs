//! Descriptors: keeps the name table's from being closed or covered by programs that close whatever
//! they did not open, and tells the table of sockets which numbers go and which are copied.

use crate::hook::{fail, hooks};
use crate::{state, table};
use libc::{c_int, c_uint};
use redhook::real;
use uwt_core::errno::Errno;

fn is_protected(fd: c_int) -> bool {
    fd >= 0 && fd == state::get().protected_fd()
}

/// Notes that `new`, if it is a descriptor, has become a copy of `old`.
fn copied(old: c_int, new: c_int) -> c_int {
    if new >= 0 && new != old {
        table::duplicated(old, new);
    }
    new
}

/// Calls `f` for the parts of `first..=last` that lie on either side of the protected descriptor.
fn around(first: c_uint, last: c_uint, mut f: impl FnMut(c_uint, c_uint) -> c_int) -> c_int {
    let keep = state::get().protected_fd();
    let Some(keep) = c_uint::try_from(keep)
        .ok()
        .filter(|k| (first..=last).contains(k))
    else {
        return f(first, last);
    };
    if first < keep && f(first, keep - 1) != 0 {
        return -1;
    }
    if keep < last { f(keep + 1, last) } else { 0 }
}

hooks! {
    unsafe fn close(fd: c_int) -> c_int => on_close {
        if is_protected(fd) {
            // As if it had been closed: the program never opened it.
            return 0;
        }
        table::forget(fd);
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(close)(fd) }
    }

    unsafe fn __close(fd: c_int) -> c_int => on_close_internal {
        // SAFETY: the same call under its other name.
        unsafe { on_close(fd) }
    }

    unsafe fn dup(old: c_int) -> c_int => on_dup {
        // SAFETY: the program's own call, unchanged.
        copied(old, unsafe { real!(dup)(old) })
    }

    unsafe fn dup2(old: c_int, new: c_int) -> c_int => on_dup2 {
        if is_protected(new) && old != new {
            return fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own call, unchanged.
        copied(old, unsafe { real!(dup2)(old, new) })
    }

    unsafe fn __dup2(old: c_int, new: c_int) -> c_int => on_dup2_internal {
        // SAFETY: the same call under its other name.
        unsafe { on_dup2(old, new) }
    }

    unsafe fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int => on_dup3 {
        if is_protected(new) {
            return fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own call, unchanged.
        copied(old, unsafe { real!(dup3)(old, new, flags) })
    }

    unsafe fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int => on_close_range {
        // SAFETY: the program's own call but for the descriptor that is left out.
        around(first, last, |a, b| unsafe { real!(close_range)(a, b, flags) })
    }

    unsafe fn closefrom(first: c_int) -> () => on_closefrom {
        let first = c_uint::try_from(first).unwrap_or(0);
        // SAFETY: closefrom(3) is close_range(2) to the end.
        unsafe { on_close_range(first, c_uint::MAX, 0) };
    }

    unsafe fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int => on_fcntl {
        if is_protected(fd) && command == libc::F_SETFD {
            // It must outlive the next exec.
            return 0;
        }
        // SAFETY: the program's own call; fcntl(2) takes no more than one argument of a word's size.
        let r = unsafe { real!(fcntl)(fd, command, argument) };
        match command {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => copied(fd, r),
            _ => r,
        }
    }

    unsafe fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int => on_fcntl64 {
        // SAFETY: the same call under its other name.
        unsafe { on_fcntl(fd, command, argument) }
    }

    unsafe fn __fcntl(fd: c_int, command: c_int, argument: usize) -> c_int => on_fcntl_internal {
        // SAFETY: the same call under its other name.
        unsafe { on_fcntl(fd, command, argument) }
    }
}
