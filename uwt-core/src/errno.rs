//! The errno values that programs get from uwt (errno(3), Linux's asm-generic/errno.h).
//!
//! They are the same number on x86_64 and aarch64, the architectures uwt is built for; the crate
//! has no libc to take them from.

/// An error number as a libc call leaves it in `errno`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $n:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Errno = Errno($n);)*

            /// The symbolic name (`ECONNREFUSED`), or `E?` for one that uwt never gives.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($n => stringify!($name),)*
                    _ => "E?",
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1;
    /// Interrupted by a signal.
    EINTR = 4;
    /// Try again.
    EAGAIN = 11;
    /// Out of memory.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// Invalid argument.
    EINVAL = 22;
    /// Function not implemented.
    ENOSYS = 38;
    /// Protocol error.
    EPROTO = 71;
    /// Protocol not supported.
    EPROTONOSUPPORT = 93;
    /// Socket type not supported.
    ESOCKTNOSUPPORT = 94;
    /// Operation not supported on this socket.
    EOPNOTSUPP = 95;
    /// Address family not supported.
    EAFNOSUPPORT = 97;
    /// Network is unreachable.
    ENETUNREACH = 101;
    /// Software caused connection abort.
    ECONNABORTED = 103;
    /// Connection reset by peer.
    ECONNRESET = 104;
    /// Connection timed out.
    ETIMEDOUT = 110;
    /// Connection refused.
    ECONNREFUSED = 111;
    /// No route to host.
    EHOSTUNREACH = 113;
}
