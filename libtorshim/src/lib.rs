//! The LD_PRELOAD shim: takes a program's network calls to Tor's SOCKS port, or refuses them.
//!
//! A hook translates C's calling convention and nothing more; the operation behind it does the work
//! over `uwt-core`. Two files alone touch the system: `real.rs` finds libc's own functions, `sys.rs`
//! makes raw system calls. No threads, no std I/O, no allocation where it can do without: this code
//! lives in every process of a run.

// hook! of redhook catches a panic and then calls the *real* function: it would fail open.
#[cfg(not(any(panic = "abort", doc)))]
compile_error!("libtorshim must be built with panic = \"abort\": redhook fails open under unwind");

mod addr;
mod carry;
mod connect;
mod datagram;
mod dlmopen;
mod dlsym;
mod environment;
mod epoll;
mod exec;
mod fds;
mod hook;
mod hostent;
mod lock;
mod log;
mod lookup;
mod native_proxy;
mod netdb;
mod query;
mod real;
mod resolve;
mod rights;
mod rpc;
mod socket;
mod spawn;
mod state;
mod stream;
mod swap;
mod sys;
mod syscall;
mod table;
mod target;
mod unwind;
mod wait;

/// Runs before the program's main(), with main()'s arguments (glibc passes them to .init_array).
extern "C" fn constructor(
    _argc: libc::c_int,
    _argv: *const *const libc::c_char,
    _envp: *const *const libc::c_char,
) {
    std::panic::set_hook(Box::new(|info| {
        log::panic(info);
    }));
    state::get();
    table::register_fork();
    native_proxy::renew();
    hook::prime_all();
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(
    libc::c_int,
    *const *const libc::c_char,
    *const *const libc::c_char,
) = constructor;

/// Says what this library is, as an ELF note (elf(5)): the launcher reads it before it execs, so that
/// a stale or foreign library is refused.
#[repr(C)]
struct Note {
    name_size: u32,
    description_size: u32,
    kind: u32,
    name: [u8; 4],
    description: [u8; DESCRIPTION.len()],
}

const DESCRIPTION: &[u8] = concat!("uwt-torshim ", env!("CARGO_PKG_VERSION"), "\0\0\0").as_bytes();

#[used]
#[unsafe(link_section = ".note.uwt")]
static NOTE: Note = Note {
    name_size: 4,
    description_size: DESCRIPTION.len() as u32,
    kind: 1,
    name: *b"uwt\0",
    description: {
        let mut d = [0; DESCRIPTION.len()];
        let mut i = 0;
        while i < d.len() {
            d[i] = DESCRIPTION[i];
            i += 1;
        }
        d
    },
};
