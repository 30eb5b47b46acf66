//! Gives the command the SIGPIPE disposition that the launcher was started with.
//!
//! Rust's runtime ignores SIGPIPE before main(), and an ignored signal stays ignored over execve(2):
//! `uwt yes | head -1` would then not end quietly. Rust 1.85 has no stable way to ask for another, so
//! what was set is read before the runtime runs, from .init_array (elf(5)).

use std::sync::atomic::{AtomicBool, Ordering};

static IGNORED: AtomicBool = AtomicBool::new(false);

extern "C" fn read() {
    // SAFETY: sigaction(2) only reads the disposition into a struct that lives through the call.
    let ignored = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut old) == 0
            && old.sa_sigaction == libc::SIG_IGN
    };
    IGNORED.store(ignored, Ordering::Relaxed);
}

#[used]
#[unsafe(link_section = ".init_array")]
static READ: extern "C" fn() = read;

/// Puts it back; called just before execve(2).
pub fn restore() {
    if !IGNORED.load(Ordering::Relaxed) {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
}
