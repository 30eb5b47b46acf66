//! posix_spawn(3), and what libc starts by itself: system(3), popen(3), wordexp(3).

use crate::environment::{self, Environment};
use crate::exec;
use crate::hook::{hooks, set_errno};
use crate::target::Entry;
use crate::{state, target};
use core::ffi::{CStr, c_char, c_int, c_void};
use libc::pid_t;
use redhook::real;
use uwt_core::errno::Errno;

type Strings = *const *const c_char;

/// Whether libc may start /bin/sh for the program; puts the environment right.
fn shell() -> Result<(), Errno> {
    // SAFETY: no arguments to look at.
    let entry = unsafe { target::check(c"/bin/sh", core::ptr::null()) }?;
    environment::renew_own(match entry {
        Entry::Bare => Entry::Shimmed,
        entry => entry,
    });
    Ok(())
}

/// The operation behind both forms: `spawn` makes the real call with an environment that is whole.
unsafe fn spawn(
    checked: Result<Entry, Errno>,
    envp: Strings,
    spawn: impl FnOnce(Strings) -> c_int,
) -> c_int {
    // posix_spawn gives its error instead of setting errno.
    let entry = match checked {
        Ok(entry) => entry,
        Err(e) => return e.0,
    };
    let mut environment = Environment::new();
    let envp = if envp.is_null() {
        environment::own()
    } else {
        envp
    };
    // SAFETY: the program's own array.
    let whole = unsafe { environment.fill(envp, entry) };
    if whole.is_null() {
        return libc::ENOMEM;
    }
    spawn(whole)
}

hooks! {
    unsafe fn posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, argv: Strings, envp: Strings) -> c_int => on_posix_spawn {
        // SAFETY: the program's own arguments.
        unsafe {
            let checked = match path.is_null() {
                true => Err(Errno(libc::EFAULT)),
                false => target::check(CStr::from_ptr(path), argv),
            };
            spawn(checked, envp, |envp| real!(posix_spawn)(pid, path, actions, attributes, argv, envp))
        }
    }

    unsafe fn posix_spawnp(pid: *mut pid_t, file: *const c_char, actions: *const c_void, attributes: *const c_void, argv: Strings, envp: Strings) -> c_int => on_posix_spawnp {
        // SAFETY: the program's own arguments.
        unsafe {
            let checked = match file.is_null() {
                true => Err(Errno(libc::EFAULT)),
                false => exec::check_along_path(CStr::from_ptr(file)),
            };
            spawn(checked, envp, |envp| real!(posix_spawnp)(pid, file, actions, attributes, argv, envp))
        }
    }

    unsafe fn posix_spawn_file_actions_addclosefrom_np(actions: *mut c_void, from: c_int) -> c_int => on_addclosefrom {
        let keep = state::get().protected_fd();
        // SAFETY: the program's own actions; the numbers below the kept one are closed one by one, as many
        // as can be open, and closing one that is not open is no error here (posix_spawn(3)).
        unsafe {
            if keep < from {
                return real!(posix_spawn_file_actions_addclosefrom_np)(actions, from);
            }
            for fd in from..keep {
                let r = libc::posix_spawn_file_actions_addclose(actions.cast(), fd);
                if r != 0 {
                    return r;
                }
            }
            real!(posix_spawn_file_actions_addclosefrom_np)(actions, keep + 1)
        }
    }

    unsafe fn system(command: *const c_char) -> c_int => on_system {
        if let (false, Err(e)) = (command.is_null(), shell()) {
            set_errno(e);
            return -1;
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(system)(command) }
    }

    unsafe fn __libc_system(command: *const c_char) -> c_int => on_libc_system {
        // SAFETY: the same call under its other name.
        unsafe { on_system(command) }
    }

    unsafe fn popen(command: *const c_char, mode: *const c_char) -> *mut c_void => on_popen {
        if let Err(e) = shell() {
            set_errno(e);
            return core::ptr::null_mut();
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(popen)(command, mode) }
    }

    unsafe fn _IO_popen(command: *const c_char, mode: *const c_char) -> *mut c_void => on_io_popen {
        // SAFETY: the same call under its other name.
        unsafe { on_popen(command, mode) }
    }

    unsafe fn wordexp(words: *const c_char, to: *mut c_void, flags: c_int) -> c_int => on_wordexp {
        const WRDE_NOSPACE: c_int = 1;
        if shell().is_err() {
            return WRDE_NOSPACE;
        }
        // SAFETY: the program's own call, unchanged.
        unsafe { real!(wordexp)(words, to, flags) }
    }
}
