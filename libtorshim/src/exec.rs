//! execve(2) and its family: what is started stays held. The target is looked at (target.rs), the
//! environment put back (environment.rs).

use crate::environment::{self, Environment};
use crate::hook::{fail, hooks};
use crate::sys;
use crate::target::{self, Entry, Path};
use core::arch::global_asm;
use core::ffi::{CStr, c_char, c_int};
use uwt_core::errno::Errno;

type Strings = *const *const c_char;

/// execve(2): gives only the error.
///
/// # Safety
/// As execve(2): a C string and two arrays of C strings that end with null.
unsafe fn execute(path: *const c_char, argv: Strings, envp: Strings) -> Errno {
    if path.is_null() {
        return Errno(libc::EFAULT);
    }
    // SAFETY: the caller's.
    unsafe {
        let entry = match target::check(CStr::from_ptr(path), argv) {
            Ok(entry) => entry,
            Err(e) => return e,
        };
        let mut environment = Environment::new();
        let envp = environment.fill(envp, entry);
        if envp.is_null() {
            return Errno::ENOMEM;
        }
        sys::execve(path, argv, envp)
    }
}

/// How many arguments are in `argv`.
unsafe fn count(argv: Strings) -> usize {
    let mut n = 0;
    // SAFETY: the caller vouches for an array that ends with null.
    while !argv.is_null() && !unsafe { *argv.add(n) }.is_null() {
        n += 1;
    }
    n
}

/// /bin/sh with the script at `path`, as execvp(3) does on ENOEXEC.
unsafe fn shell(path: &CStr, argv: Strings, envp: Strings) -> Errno {
    // SAFETY: the caller's array, copied behind the shell's own two arguments.
    unsafe {
        let n = count(argv);
        let bytes = (n + 3) * size_of::<*const c_char>();
        let Ok(memory) = sys::map_anonymous(bytes) else {
            return Errno::ENOMEM;
        };
        let list: *mut *const c_char = memory.cast();
        *list = c"/bin/sh".as_ptr();
        *list.add(1) = path.as_ptr();
        for i in 1..n {
            *list.add(i + 1) = *argv.add(i);
        }
        let e = execute(c"/bin/sh".as_ptr(), list, envp);
        sys::unmap(memory, bytes);
        e
    }
}

/// PATH of the program's own environment; glibc's default without one (execvp(3)).
fn search_path() -> &'static [u8] {
    // SAFETY: getenv(3) reads the environment; the program's own threads are its own to keep apart.
    let path = unsafe { libc::getenv(c"PATH".as_ptr()) };
    if path.is_null() {
        return b"/bin:/usr/bin";
    }
    // SAFETY: getenv gives a C string.
    unsafe { CStr::from_ptr(path) }.to_bytes()
}

/// Runs `f` on each place where execvp(3) looks for `file`, until it gives something other than "not
/// there"; gives the error.
fn along_path(file: &CStr, mut f: impl FnMut(&CStr) -> Errno) -> Errno {
    let name = file.to_bytes();
    if name.is_empty() {
        return Errno(libc::ENOENT);
    }
    if name.contains(&b'/') {
        return f(file);
    }
    let mut denied = false;
    for folder in search_path().split(|b| *b == b':') {
        let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        let Some(path) = Path::join(&[folder, slash, name]) else {
            continue;
        };
        match f(path.get()) {
            Errno::EACCES => denied = true,
            Errno(libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT) => {
            }
            e => return e,
        }
    }
    Errno(if denied { libc::EACCES } else { libc::ENOENT })
}

/// execvpe(3): gives only the error.
unsafe fn search(file: *const c_char, argv: Strings, envp: Strings) -> Errno {
    if file.is_null() {
        return Errno(libc::EFAULT);
    }
    // SAFETY: the caller's.
    let file = unsafe { CStr::from_ptr(file) };
    along_path(file, |path| {
        // SAFETY: the caller's.
        unsafe {
            match execute(path.as_ptr(), argv, envp) {
                Errno(libc::ENOEXEC) => shell(path, argv, envp),
                e => e,
            }
        }
    })
}

/// execveat(2): gives only the error.
unsafe fn execute_at(
    dir: c_int,
    path: *const c_char,
    argv: Strings,
    envp: Strings,
    flags: c_int,
) -> Errno {
    if path.is_null() {
        return Errno(libc::EFAULT);
    }
    // SAFETY: the caller's.
    let path = unsafe { CStr::from_ptr(path) };
    let checked = if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
        target::check_fd(dir, b"the open file")
    } else if path.to_bytes().starts_with(b"/") || dir == libc::AT_FDCWD {
        // SAFETY: the caller's.
        unsafe { target::check(path, argv) }
    } else {
        match sys::openat(dir, path, libc::O_RDONLY | libc::O_NONBLOCK) {
            Ok(fd) => {
                let checked = target::check_fd(fd, path.to_bytes());
                sys::close(fd);
                checked
            }
            Err(e) => Err(e),
        }
    };
    let entry = match checked {
        Ok(entry) => entry,
        Err(e) => return e,
    };
    let mut environment = Environment::new();
    // SAFETY: the caller's.
    unsafe {
        let envp = environment.fill(envp, entry);
        if envp.is_null() {
            return Errno::ENOMEM;
        }
        sys::execveat(dir, path.as_ptr(), argv, envp, flags)
    }
}

/// Where posix_spawnp(3) will find `file`, for a look at it before.
pub fn check_along_path(file: &CStr) -> Result<Entry, Errno> {
    let mut verdict = Ok(Entry::Shimmed);
    along_path(file, |path| {
        if !sys::may_execute(path) {
            return Errno(libc::ENOENT);
        }
        // SAFETY: no arguments to look at: ld.so by name is not on PATH.
        verdict = unsafe { target::check(path, core::ptr::null()) };
        Errno(0)
    });
    verdict
}

hooks! {
    unsafe fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int => on_execve {
        // SAFETY: the program's own arguments.
        fail(unsafe { execute(path, argv, envp) })
    }

    unsafe fn execv(path: *const c_char, argv: Strings) -> c_int => on_execv {
        // SAFETY: the program's own arguments.
        fail(unsafe { execute(path, argv, environment::own()) })
    }

    unsafe fn execvp(file: *const c_char, argv: Strings) -> c_int => on_execvp {
        // SAFETY: the program's own arguments.
        fail(unsafe { search(file, argv, environment::own()) })
    }

    unsafe fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int => on_execvpe {
        // SAFETY: the program's own arguments.
        fail(unsafe { search(file, argv, envp) })
    }

    unsafe fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int => on_fexecve {
        if fd < 0 || argv.is_null() || envp.is_null() {
            return fail(Errno::EINVAL);
        }
        // SAFETY: the program's own arguments.
        fail(unsafe { execute_at(fd, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH) })
    }

    unsafe fn execveat(dir: c_int, path: *const c_char, argv: Strings, envp: Strings, flags: c_int) -> c_int => on_execveat {
        // SAFETY: the program's own arguments.
        fail(unsafe { execute_at(dir, path, argv, envp, flags) })
    }
}

/// What the variadic forms pass on: the registers that may hold arguments, in order, and the stack
/// behind them.
#[repr(C)]
struct Arguments {
    registers: *const *const c_char,
    count: usize,
    stack: *const *const c_char,
}

impl Arguments {
    /// The `i`th argument.
    unsafe fn at(&self, i: usize) -> *const c_char {
        // SAFETY: the caller asks for no more than were passed, of which a null is the last.
        unsafe {
            match i.checked_sub(self.count) {
                None => *self.registers.add(i),
                Some(beyond) => *self.stack.add(beyond),
            }
        }
    }
}

/// execl (0), execlp (1), execle (2): collects the arguments and goes on as the forms with arrays.
unsafe extern "C" fn collect(
    form: usize,
    registers: *const *const c_char,
    count: usize,
    stack: *const *const c_char,
) -> c_int {
    let arguments = Arguments {
        registers,
        count,
        stack,
    };
    // SAFETY: the list ends with a null pointer (exec(3)); execle's environment stands behind it.
    unsafe {
        let file = arguments.at(0);
        let mut n = 0;
        while !arguments.at(n + 1).is_null() {
            n += 1;
        }
        let bytes = (n + 1) * size_of::<*const c_char>();
        let Ok(memory) = sys::map_anonymous(bytes) else {
            return fail(Errno::ENOMEM);
        };
        let argv: *mut *const c_char = memory.cast();
        for i in 0..=n {
            *argv.add(i) = arguments.at(i + 1);
        }
        let e = match form {
            0 => execute(file, argv, environment::own()),
            1 => search(file, argv, environment::own()),
            _ => execute(file, argv, arguments.at(n + 2).cast()),
        };
        sys::unmap(memory, bytes);
        fail(e)
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! variadic {
    ($name:literal, $form:literal) => {
        // Six argument registers, pushed so that they lie in order; behind them the caller's return address
        // and then its stack arguments. Six pushes and the return address make 56 bytes: 8 more align.
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ",@function"),
            concat!($name, ":"),
            "push r9", "push r8", "push rcx", "push rdx", "push rsi", "push rdi",
            "mov rsi, rsp",
            "lea rcx, [rsp + 56]",
            "mov edx, 6",
            concat!("mov edi, ", $form),
            "sub rsp, 8",
            "call {collect}",
            "add rsp, 56",
            "ret",
            collect = sym collect,
        );
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! variadic {
    ($name:literal, $form:literal) => {
        // Eight argument registers, stored in order; the caller's stack arguments lie behind the frame.
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ",%function"),
            concat!($name, ":"),
            "stp x29, x30, [sp, #-80]!",
            "stp x0, x1, [sp, #16]",
            "stp x2, x3, [sp, #32]",
            "stp x4, x5, [sp, #48]",
            "stp x6, x7, [sp, #64]",
            concat!("mov x0, #", $form),
            "add x1, sp, #16",
            "mov x2, #8",
            "add x3, sp, #80",
            "bl {collect}",
            "ldp x29, x30, [sp], #80",
            "ret",
            collect = sym collect,
        );
    };
}

variadic!("execl", "0");
variadic!("execlp", "1");
variadic!("execle", "2");
