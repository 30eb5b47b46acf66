//! How hooks are declared, and the list of files that hold some.

/// Declares hooks through redhook and a `prime()` that resolves each one's real function.
///
/// redhook resolves a real symbol in a `Once` at first use: a signal handler that enters the same hook
/// meanwhile, or a fork(2) while another thread is inside, would wait for ever. The constructor
/// primes them all. A symbol that this libc does not have (`optional`) is left alone: nothing calls it.
macro_rules! hooks {
    ($(
        $(#[$attr:meta])*
        unsafe fn $real:ident ( $($v:ident : $t:ty),* $(,)? ) -> $r:ty => $name:ident $body:block
    )*) => {
        $(redhook::hook! { unsafe fn $real ( $($v : $t),* ) -> $r => $name $body })*

        /// Resolves the real functions behind this file's hooks.
        pub fn prime() {
            $(
                if crate::real::exists(concat!(stringify!($real), "\0")) {
                    redhook::real!($real);
                }
            )*
        }

        /// This file's hooks: the name, and the function that stands in for libc's.
        pub fn hook_for(name: &[u8]) -> Option<*const libc::c_void> {
            $(
                if name == stringify!($real).as_bytes() {
                    return Some($real::$real as *const libc::c_void);
                }
            )*
            None
        }
    };
}
pub(crate) use hooks;

/// Files with hooks: each has `prime` and `hook_for` from [`hooks!`].
macro_rules! families {
    ($($family:ident),* $(,)?) => {
        /// Resolves every real function. Called once, before main().
        pub fn prime_all() {
            $(crate::$family::prime();)*
        }

        /// The hook that stands in for libc's function `name`, if there is one.
        pub fn find(name: &[u8]) -> Option<*const libc::c_void> {
            $(
                if let Some(hook) = crate::$family::hook_for(name) {
                    return Some(hook);
                }
            )*
            None
        }
    };
}

families! {
    connect,
    datagram,
    dlmopen,
    epoll,
    exec,
    fds,
    hostent,
    netdb,
    query,
    resolve,
    rights,
    socket,
    spawn,
    stream,
    syscall,
    wait,
}

/// Sets errno and gives -1, as libc's calls fail.
pub fn fail(errno: uwt_core::errno::Errno) -> libc::c_int {
    set_errno(errno);
    -1
}

/// Sets this thread's errno.
pub fn set_errno(errno: uwt_core::errno::Errno) {
    // SAFETY: __errno_location gives this thread's errno, valid for the thread's life.
    unsafe { *libc::__errno_location() = errno.0 };
}

/// This thread's errno.
pub fn errno() -> uwt_core::errno::Errno {
    // SAFETY: as in [`set_errno`].
    uwt_core::errno::Errno(unsafe { *libc::__errno_location() })
}
