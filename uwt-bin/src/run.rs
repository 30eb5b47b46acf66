//! What the processes of a run share: its secret, and the name table.

use crate::refusal::{Refusal, Result};
use std::sync::atomic::AtomicU32;
use uwt_core::handoff::{Handoff, Names, PORTS_MAX, VARIABLE};
use uwt_core::names::{self, NameTable};
use uwt_core::siphash::Key;

/// What the processes of a run share.
#[derive(Clone, Copy)]
pub struct Run {
    /// Random; also the name table's key.
    pub secret: Key,
    /// The name table's memfd, inheritable.
    pub names: Names,
}

fn failed(what: &str) -> Refusal {
    let why = std::io::Error::last_os_error().to_string();
    Refusal::new(
        format!("the run's name table: {what} failed"),
        why,
        "see ulimit -a; nothing was run",
    )
}

fn status(fd: i32) -> Option<libc::stat> {
    // SAFETY: struct stat is plain integers, for which zero is a value.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat(2) fills a struct that lives through the call.
    (unsafe { libc::fstat(fd, &raw mut st) } == 0).then_some(st)
}

/// Starts a run: a fresh secret and an empty name table.
pub fn begin() -> Result<Run> {
    let mut secret = [0u8; 16];
    // SAFETY: getrandom(2) fills 16 bytes that live through the call; short reads do not occur below 256.
    if unsafe { libc::getrandom(secret.as_mut_ptr().cast(), 16, 0) } != 16 {
        return Err(failed("getrandom"));
    }
    // SAFETY: plain system calls on a descriptor that is ours; the name is a C string.
    let fd = unsafe {
        libc::memfd_create(
            c"uwt-names".as_ptr(),
            libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(failed("memfd_create"));
    }
    // SAFETY: as above. Sealed against shrinking: no process of the run can take the memory from under
    // another.
    let sized = unsafe {
        libc::ftruncate(fd, names::BYTES as libc::off_t) == 0
            && libc::fcntl(
                fd,
                libc::F_ADD_SEALS,
                libc::F_SEAL_SHRINK | libc::F_SEAL_GROW,
            ) == 0
    };
    if !sized {
        return Err(failed("sizing"));
    }
    // Only its start is written: the memory stays sparse.
    // SAFETY: pwrite(2) reads bytes that live through the call.
    let written = unsafe { libc::pwrite(fd, names::EMPTY.as_ptr().cast(), names::EMPTY.len(), 0) };
    if written != names::EMPTY.len() as isize {
        return Err(failed("writing"));
    }
    // A high number: programs count on the low ones.
    // SAFETY: getrlimit(2) fills a struct that lives through the call; F_DUPFD gives a new descriptor
    // without FD_CLOEXEC, and the old one is closed once.
    let high = unsafe {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let wanted = limit.rlim_cur.min(1024).saturating_sub(24) as i32;
        let high = libc::fcntl(fd, libc::F_DUPFD, wanted.max(3));
        libc::close(fd);
        high
    };
    if high < 0 {
        return Err(failed("dup"));
    }
    let st = status(high).ok_or_else(|| failed("fstat"))?;
    Ok(Run {
        secret,
        names: Names {
            fd: high,
            inode: st.st_ino,
            device: st.st_dev,
        },
    })
}

/// The run's name table, in memory that stays for as long as the process is there.
///
/// # Errors
/// mmap(2)'s.
pub fn map(handoff: &Handoff<'_>) -> std::io::Result<NameTable<'static>> {
    let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let (none, fd) = (std::ptr::null_mut(), handoff.names.fd);
    // SAFETY: a mapping that is BYTES long, page-aligned, never unmapped, of a memfd that is sealed against shrinking;
    // every process that writes it does so through atomics.
    let words = unsafe {
        let at = libc::mmap(none, names::BYTES, read_write, shared, fd, 0);
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        std::slice::from_raw_parts(at.cast::<AtomicU32>(), names::WORDS)
    };
    NameTable::open(words, handoff.isolation.run)
        .map_err(|_| std::io::ErrorKind::InvalidData.into())
}

/// The run that this process is already part of, with the handoff it was given: a `uwt` inside `uwt`
/// joins it. `f` gets the handoff. `None` if there is none, or if it cannot be joined.
pub fn joined<T>(f: impl FnOnce(&Handoff<'_>) -> T) -> Option<(Run, T)> {
    use std::os::unix::ffi::OsStrExt;
    let text = std::env::var_os(VARIABLE)?;
    let mut ports = [0; PORTS_MAX * 2];
    let mut handoff = Handoff::decode(text.as_bytes(), &mut ports).ok()?;
    if handoff.netns != 0 {
        handoff.held_here(crate::netns::current());
    }
    let names = handoff.names;
    let st = status(names.fd)?;
    let same = st.st_ino == names.inode && st.st_dev == names.device;
    // SAFETY: reading the descriptor's flags.
    let kept = unsafe { libc::fcntl(names.fd, libc::F_GETFD) } & libc::FD_CLOEXEC == 0;
    let run = Run {
        secret: handoff.isolation.run,
        names,
    };
    (same && kept).then(|| (run, f(&handoff)))
}
