//! Whether the shim can enter the program that is about to be executed.
//!
//! ld.so ignores LD_PRELOAD for setuid programs, a static one has no ld.so, a 32-bit one cannot load us:
//! such a program would run unheld, so it is not started; in a run that the kernel holds (level `netns`) it is started
//! without the shim. A file that changes between the look and the
//! exec is not caught: a program is not an adversary at this level.

use crate::{log, state, sys};
use core::ffi::CStr;
use sys::Fd;
use uwt_core::decimal::Decimal;
use uwt_core::elf::{self, Executable};
use uwt_core::errno::Errno;

/// The longest path, with its NUL (PATH_MAX).
pub const PATH_MAX: usize = 4096;

/// The package's prerm script leaves it when uwt is removed by a command that runs under the shim (`apt-get remove uwt`
/// with a wrapped apt-get): what dpkg has still to start after the shim's file is gone runs without it. It holds the
/// inode of that run's name table, in decimal: every other run stays held, and starts nothing more.
const REMOVED: &CStr = c"/run/uwt/removed";

/// How deep `#!` lines may nest (Linux).
const SHEBANG_DEPTH: usize = 5;

/// A path built on the stack.
pub struct Path {
    bytes: [u8; PATH_MAX],
}

impl Path {
    /// `parts` one after the other; `None` if too long or if one holds a NUL.
    pub fn join(parts: &[&[u8]]) -> Option<Path> {
        let mut p = Path {
            bytes: [0; PATH_MAX],
        };
        let mut len = 0;
        for part in parts {
            let to = p.bytes.get_mut(len..len + part.len())?;
            to.copy_from_slice(part);
            len += part.len();
        }
        // The last byte stays NUL.
        (len < PATH_MAX && !p.bytes[..len].contains(&0)).then_some(p)
    }

    /// The path as a C string.
    pub fn get(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

/// How a program is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// With the shim.
    Shimmed,
    /// Without: it could not be loaded, and the kernel holds the program.
    Bare,
    /// Without, and without the handoff: the configuration names it (`release`), or uwt is being removed.
    Released,
}

/// The shim cannot enter, for this reason: the program is not started, unless the kernel holds it.
fn cannot(path: &[u8], why: &str) -> Result<Entry, Errno> {
    if state::get().held() {
        log::debug!("{}: {why}; held by the kernel alone", log::Shown(path));
        return Ok(Entry::Bare);
    }
    log::refused!(
        "{} is not started: {why}; level netns holds such programs",
        log::Shown(path)
    );
    Err(Errno::EPERM)
}

/// The program would change who it is (setuid, setgid). In a user namespace the bit has no effect, and the program would
/// only fail in its own words.
fn cannot_elevate(path: &[u8], why: &str) -> Result<Entry, Errno> {
    if !state::get().held() {
        return cannot(path, why);
    }
    log::refused!(
        "{} is not started: {why}, which has no effect at level netns; sudo uwt starts all of it as root",
        log::Shown(path)
    );
    Err(Errno::EPERM)
}

/// Whether starting the file changes who the process is (AT_SECURE, getauxval(3)).
fn elevation(fd: Fd) -> Option<&'static str> {
    // Root keeps being root, in a namespace too; file capabilities count for nothing in a user namespace.
    if sys::no_new_privs() {
        return None;
    }
    let Ok(st) = sys::fstat(fd) else {
        return Some("it cannot be looked at");
    };
    if st.st_mode & 0o4000 != 0 && st.st_uid != sys::geteuid() {
        Some("it is setuid")
    } else if st.st_mode & 0o2010 == 0o2010 && st.st_gid != sys::getegid() {
        Some("it is setgid")
    } else if sys::geteuid() != 0
        && !state::get().held()
        && sys::has_xattr(fd, c"security.capability")
    {
        Some("it has file capabilities")
    } else {
        None
    }
}

/// What a file is.
enum Judged {
    /// A program that is started so.
    Program(Entry),
    /// A script whose first bytes, so many, are in the buffer.
    Script(usize),
}

/// Looks at an open file.
fn judge(fd: Fd, path: &[u8], head: &mut [u8; 256]) -> Result<Judged, Errno> {
    let kind = elf::inspect(|at, buf| sys::pread(fd, buf, at).unwrap_or(0));
    match kind {
        Executable::Script => return Ok(Judged::Script(sys::pread(fd, head, 0).unwrap_or(0))),
        // The kernel says ENOEXEC, and shells run it as a script; the shell is held. A handler of
        // binfmt_misc(5) could run it by other means, unheld.
        Executable::Unknown if binfmt_handlers() => {
            return cannot(path, "it is no program, and binfmt_misc might run it")
                .map(Judged::Program);
        }
        _ => {}
    }
    match elevation(fd) {
        Some(why) if kind != Executable::Unknown => {
            return cannot_elevate(path, why).map(Judged::Program);
        }
        _ => {}
    }
    let entry = match kind.objection() {
        Some(why) => cannot(path, why)?,
        None => Entry::Shimmed,
    };
    Ok(Judged::Program(entry))
}

/// Whether any handler of binfmt_misc is switched on: its folder holds more than `register` and `status`.
fn binfmt_handlers() -> bool {
    let Ok(fd) = sys::open(
        c"/proc/sys/fs/binfmt_misc",
        libc::O_RDONLY | libc::O_DIRECTORY,
        0,
    ) else {
        return false;
    };
    let mut buf = [0u8; 1024];
    let n = sys::getdents(fd, &mut buf).unwrap_or(0);
    sys::close(fd);
    // ".", "..", "register" and "status" take 24 + 24 + 32 + 32 bytes.
    n > 112
}

/// The shim's own file must be there for the new program's ld.so: it is not in a chroot or a container.
fn shim_in_sight() -> Result<Entry, Errno> {
    let state = state::get();
    let Some(handoff) = state.handoff() else {
        return Ok(Entry::Shimmed);
    };
    let seen = Path::join(&[handoff.shim]).and_then(|p| sys::stat(p.get()).ok());
    let same = seen.is_some_and(|st| (st.st_dev, st.st_ino) == state.shim_file());
    if same {
        return Ok(Entry::Shimmed);
    }
    // A new version installed meanwhile is not the same file and serves as well.
    let replaced =
        seen.is_some_and(|st| st.st_mode & libc::S_IFMT == libc::S_IFREG && st.st_uid == 0);
    if replaced {
        return Ok(Entry::Shimmed);
    }
    if state.held() {
        return Ok(Entry::Bare);
    }
    if removed_by(handoff.names.inode) {
        return Ok(Entry::Released);
    }
    log::refused!(
        "nothing is started: {} cannot be seen from here (chroot, container?), so programs would run without it",
        log::Shown(handoff.shim)
    );
    Err(Errno::EPERM)
}

/// Whether the run whose name table has this inode has removed uwt: root's word in [`REMOVED`].
fn removed_by(inode: u64) -> bool {
    let Ok(fd) = sys::open(REMOVED, libc::O_RDONLY | libc::O_NOFOLLOW, 0) else {
        return false;
    };
    let roots = sys::fstat(fd)
        .is_ok_and(|st| st.st_uid == 0 && st.st_mode & (libc::S_IFMT | 0o022) == libc::S_IFREG);
    let mut buf = [0u8; 32];
    let n = sys::pread(fd, &mut buf, 0).unwrap_or(0);
    sys::close(fd);
    roots && buf[..n].trim_ascii() == Decimal::new(inode).bytes()
}

/// Looks at an open descriptor that is to be executed (fexecve(3)), `#!` lines included.
pub fn check_fd(fd: Fd, shown: &[u8]) -> Result<Entry, Errno> {
    let sight = shim_in_sight()?;
    if sight == Entry::Released {
        return Ok(sight);
    }
    let mut head = [0u8; 256];
    let entry = match judge(fd, shown, &mut head)? {
        Judged::Script(n) => check_interpreter(&head, n, shown, 1)?,
        Judged::Program(entry) => entry,
    };
    Ok(both(sight, entry))
}

fn both(a: Entry, b: Entry) -> Entry {
    if a == Entry::Shimmed { b } else { a }
}

/// Whether the handoff names this program as one that is started without the shim: the same name and the same file, by
/// whatever path. One program under many names (busybox) is released under that name alone.
fn released(path: &CStr) -> bool {
    let state = state::get();
    let list = state.handoff().map_or(&b""[..], |h| h.release);
    if list.is_empty() || state.held() {
        return false;
    }
    fn name(path: &[u8]) -> &[u8] {
        path.rsplit(|b| *b == b'/').next().unwrap_or(path)
    }
    list.split(|b| *b == b':').any(|listed| {
        if name(listed) != name(path.to_bytes()) {
            return false;
        }
        let file = |p: &CStr| sys::stat(p).map(|st| (st.st_dev, st.st_ino)).ok();
        let there = Path::join(&[listed]).and_then(|p| file(p.get()));
        there.is_some() && there == file(path)
    })
}

fn check_interpreter(
    head: &[u8; 256],
    n: usize,
    shown: &[u8],
    depth: usize,
) -> Result<Entry, Errno> {
    // No interpreter: the kernel says ENOEXEC.
    let Some((interpreter, _)) = elf::shebang(&head[..n.min(256)]) else {
        return Ok(Entry::Shimmed);
    };
    if depth > SHEBANG_DEPTH {
        // The kernel says ELOOP.
        return Ok(Entry::Shimmed);
    }
    match Path::join(&[interpreter]) {
        Some(path) => check_at(path.get(), depth),
        None => cannot(shown, "its #! line is too long"),
    }
}

fn check_at(path: &CStr, depth: usize) -> Result<Entry, Errno> {
    let fd = match sys::open(path, libc::O_RDONLY | libc::O_NONBLOCK, 0) {
        Ok(fd) => fd,
        // It is not there: the kernel says so. Executable but not readable: nobody can look at it.
        Err(Errno::EACCES) => {
            return match sys::may_execute(path) {
                true => cannot(path.to_bytes(), "it cannot be read"),
                false => Ok(Entry::Shimmed),
            };
        }
        Err(_) => return Ok(Entry::Shimmed),
    };
    let mut head = [0u8; 256];
    let regular = sys::fstat(fd).is_ok_and(|st| st.st_mode & libc::S_IFMT == libc::S_IFREG);
    let verdict = if regular {
        judge(fd, path.to_bytes(), &mut head)
    } else {
        // A folder, a device: the kernel says EACCES.
        Ok(Judged::Program(Entry::Shimmed))
    };
    sys::close(fd);
    match verdict? {
        Judged::Script(n) => check_interpreter(&head, n, path.to_bytes(), depth + 1),
        Judged::Program(entry) => Ok(entry),
    }
}

/// Looks at the file at `path`, which is about to be executed with `argv`.
///
/// # Safety
/// `argv` must be null or an array of C strings that ends with null.
pub unsafe fn check(path: &CStr, argv: *const *const libc::c_char) -> Result<Entry, Errno> {
    if released(path) {
        return Ok(Entry::Released);
    }
    let sight = shim_in_sight()?;
    if sight == Entry::Released {
        return Ok(sight);
    }
    let mut entry = check_at(path, 0)?;
    if elf::is_glibc_loader(path.to_bytes()) {
        // SAFETY: the caller's.
        if let Some(program) = unsafe { loaders_program(argv) } {
            entry = both(entry, check_at(program, 0)?);
        }
    }
    Ok(both(sight, entry))
}

/// The program that ld.so is asked to run (ld.so(8)).
unsafe fn loaders_program<'a>(argv: *const *const libc::c_char) -> Option<&'a CStr> {
    const TAKES_VALUE: [&[u8]; 7] = [
        b"--library-path",
        b"--preload",
        b"--argv0",
        b"--audit",
        b"--inhibit-rpath",
        b"--glibc-hwcaps-prepend",
        b"--glibc-hwcaps-mask",
    ];
    if argv.is_null() {
        return None;
    }
    let mut i = 1;
    loop {
        // SAFETY: the caller vouches for an array of C strings that ends with null, which has not been
        // reached.
        let argument = unsafe {
            let at = *argv.add(i);
            if at.is_null() {
                return None;
            }
            CStr::from_ptr(at)
        };
        let bytes = argument.to_bytes();
        if TAKES_VALUE.contains(&bytes) {
            i += 2;
            // SAFETY: as above: the value's place may be the terminating null.
            if unsafe { *argv.add(i - 1) }.is_null() {
                return None;
            }
        } else if bytes.starts_with(b"--") {
            i += 1;
        } else {
            return Some(argument);
        }
    }
}
