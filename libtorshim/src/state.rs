//! What this process knows: the policy it was handed, the run's name table, who it is.
//!
//! The one file with global state. It must be global because a hook gets nothing but what the
//! program passed. It is filled once, by whoever comes first: the constructor, or a hook that another
//! library's constructor calls before. After that it does not change.

use crate::sys;
use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use uwt_core::handoff::{self, Handoff, LogLevel, PORTS_MAX};
use uwt_core::isolation::Process;
use uwt_core::names::{self, NameTable};

/// What this process knows. Fails closed: without a handoff there is no policy, and everything that
/// could reach the network is refused.
pub struct State {
    handoff: Option<Handoff<'static>>,
    names: Option<NameTable<'static>>,
    /// `UWT_HANDOFF=...` with a final NUL, as the environment had it.
    variable: [u8; VARIABLE_MAX],
    variable_len: usize,
    ports: [u8; PORTS_MAX * 2],
    /// Device and inode of the shim's file, to know it again before an exec.
    shim_file: (u64, u64),
    own_name: [u8; 65],
    own_name_len: usize,
}

const PREFIX: &[u8] = b"UWT_HANDOFF=";
const VARIABLE_MAX: usize = PREFIX.len() + handoff::MAX + 1;

struct Global {
    ready: AtomicU32,
    cell: UnsafeCell<MaybeUninit<State>>,
}

// SAFETY: `cell` is written by the one thread that moves `ready` from 0 to 1, and read only once
// `ready` is 2.
unsafe impl Sync for Global {}

static GLOBAL: Global = Global {
    ready: AtomicU32::new(0),
    // Uninitialised, so that it lies in .bss and costs the file nothing.
    cell: UnsafeCell::new(MaybeUninit::uninit()),
};

/// This process's state; reads the environment the first time.
pub fn get() -> &'static State {
    if GLOBAL.ready.load(Ordering::Acquire) != 2 {
        initialise();
    }
    // SAFETY: `ready` is 2: written, and not written again.
    unsafe { (*GLOBAL.cell.get()).assume_init_ref() }
}

fn initialise() {
    let old = sys::block_signals();
    match GLOBAL
        .ready
        .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire)
    {
        Ok(_) => {
            // SAFETY: this thread alone moved `ready` to 1. The reference does not outlive the block,
            // and `fill` calls nothing that comes back here.
            unsafe { (*GLOBAL.cell.get()).write(State::empty()).fill() };
            GLOBAL.ready.store(2, Ordering::Release);
        }
        Err(_) => {
            // Another thread is at it; signals are blocked there, so it will finish.
            while GLOBAL.ready.load(Ordering::Acquire) != 2 {
                core::hint::spin_loop();
            }
        }
    }
    sys::restore_signals(old);
}

impl State {
    const fn empty() -> State {
        State {
            handoff: None,
            names: None,
            variable: [0; VARIABLE_MAX],
            variable_len: 0,
            ports: [0; PORTS_MAX * 2],
            shim_file: (0, 0),
            own_name: [0; 65],
            own_name_len: 0,
        }
    }

    /// `self` is the static in [`GLOBAL`].
    fn fill(&'static mut self) {
        self.own_name_len = sys::nodename(&mut self.own_name);
        // SAFETY: getenv(3) looks through the environment, which no other thread changes this early.
        let value = unsafe { libc::getenv(c"UWT_HANDOFF".as_ptr()) };
        if value.is_null() {
            return;
        }
        // SAFETY: getenv gives a C string.
        let value = unsafe { CStr::from_ptr(value) }.to_bytes();
        let end = PREFIX.len() + value.len();
        if end + 1 > VARIABLE_MAX {
            return;
        }
        // A copy: programs that set their title (setproctitle(3)) overwrite the environment.
        self.variable[..PREFIX.len()].copy_from_slice(PREFIX);
        self.variable[PREFIX.len()..end].copy_from_slice(value);
        self.variable_len = end + 1;
        let text = &self.variable[PREFIX.len()..end];
        let Ok(mut handoff) = Handoff::decode(text, &mut self.ports) else {
            return;
        };
        if handoff.netns != 0 {
            handoff.held_here(sys::stat(c"/proc/self/ns/net").map_or(0, |st| st.st_ino));
        }
        self.names = map_names(&handoff);
        let mut path = [0u8; 4096];
        if let Some(slot) = path.get_mut(..handoff.shim.len()) {
            slot.copy_from_slice(handoff.shim);
            if let Ok(st) = CStr::from_bytes_until_nul(&path)
                .map_err(drop)
                .and_then(|p| sys::stat(p).map_err(drop))
            {
                self.shim_file = (st.st_dev, st.st_ino);
            }
        }
        self.handoff = Some(handoff);
    }

    /// What the launcher handed over; `None` refuses everything.
    pub fn handoff(&self) -> Option<&Handoff<'static>> {
        self.handoff.as_ref()
    }

    /// Whether the kernel holds what this process does past the shim (level `netns`).
    pub fn held(&self) -> bool {
        self.handoff.as_ref().is_some_and(|h| h.policy.held)
    }

    /// The run's name table; `None` refuses every hostname.
    pub fn names(&self) -> Option<&NameTable<'static>> {
        self.names.as_ref()
    }

    /// `UWT_HANDOFF=...` as a C string, for an environment that lost it; `None` if there was none.
    pub fn variable(&'static self) -> Option<&'static CStr> {
        CStr::from_bytes_with_nul(&self.variable[..self.variable_len]).ok()
    }

    /// Device and inode of the shim's file when this process started; (0, 0) if it could not be seen.
    pub fn shim_file(&self) -> (u64, u64) {
        self.shim_file
    }

    /// This machine's own name (uname(2)), as it was when the process started.
    pub fn own_name(&self) -> &[u8] {
        &self.own_name[..self.own_name_len]
    }

    /// How much is logged. Without a handoff: refusals, so that a person sees why nothing works.
    pub fn log_level(&self) -> LogLevel {
        self.handoff.as_ref().map_or(LogLevel::Refusals, |h| h.log)
    }

    /// The log file's absolute path; empty: standard error.
    pub fn log_file(&self) -> &[u8] {
        self.handoff.as_ref().map_or(b"", |h| h.log_file)
    }

    /// The descriptor of the name table, which the program must not close; -1 if there is none.
    pub fn protected_fd(&self) -> sys::Fd {
        match (&self.handoff, &self.names) {
            (Some(h), Some(_)) => h.names.fd,
            _ => -1,
        }
    }
}

fn map_names(handoff: &Handoff<'static>) -> Option<NameTable<'static>> {
    let n = handoff.names;
    let st = sys::fstat(n.fd).ok()?;
    let same = st.st_ino == n.inode && st.st_dev == n.device;
    if !same || st.st_size != names::BYTES as i64 {
        return None;
    }
    let at = sys::map_shared(n.fd, names::BYTES).ok()?;
    // SAFETY: the mapping is BYTES long, page-aligned, never unmapped, and sealed against shrinking by
    // the launcher; every process that writes it does so through atomics.
    let words = unsafe { core::slice::from_raw_parts(at.cast::<AtomicU32>(), names::WORDS) };
    NameTable::open(words, handoff.isolation.run).ok()
}

static PROCESS: AtomicU64 = AtomicU64::new(0);
static PROCESS_BIRTH: AtomicU64 = AtomicU64::new(0);

/// Who this process is. Found out anew after fork(2).
pub fn process() -> Process {
    let pid = sys::getpid();
    if PROCESS.load(Ordering::Acquire) != u64::from(pid) {
        let birth = sys::pidfd_inode(pid).unwrap_or_else(start_time);
        PROCESS_BIRTH.store(birth, Ordering::Release);
        PROCESS.store(u64::from(pid), Ordering::Release);
    }
    Process {
        pid,
        birth: PROCESS_BIRTH.load(Ordering::Acquire),
    }
}

/// In a child, after fork(2): its pid may be one that an ancestor had.
pub fn forked() {
    PROCESS.store(0, Ordering::Release);
}

/// Field 22 of /proc/self/stat (proc(5)). Without /proc: the monotonic clock, which gives this
/// process an identity of its own that does not outlive an exec.
fn start_time() -> u64 {
    let mut buf = [0u8; 1024];
    let read = sys::open(c"/proc/self/stat", libc::O_RDONLY, 0).and_then(|fd| {
        let n = sys::read(fd, &mut buf);
        sys::close(fd);
        n
    });
    let field = read.ok().and_then(|n| {
        // The command's name, in parentheses, may hold anything: start behind the last one.
        let text = &buf[..n];
        let after = text.iter().rposition(|b| *b == b')')?;
        let field = text.get(after + 2..)?.split(|b| *b == b' ').nth(19)?;
        field.iter().try_fold(0u64, |n, b| match b {
            b'0'..=b'9' => Some(n * 10 + u64::from(b - b'0')),
            _ => None,
        })
    });
    field.unwrap_or_else(|| sys::now_ms() as u64 | 1 << 63)
}
