//! What the process knows of its sockets: which are carried, where to, how far they are.
//!
//! A descriptor's number leads to an entry; the entry is believed only while the socket's cookie
//! (SO_COOKIE) is the entry's, so that numbers that are closed, reused or moved by ways that pass no
//! hook never lead astray. Entries are pooled and numbered; the memory is bounded by the highest
//! number of sockets known at once and is used again.

use crate::lock::Lock;
use crate::sys::{self, Fd};
use core::net::{Ipv4Addr, SocketAddr};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use uwt_core::errno::Errno;
use uwt_core::socks5::Handshake;

/// How far a socket is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Not connected; known because an epoll set watches it.
    Watched,
    /// The connection to the SOCKS port is being made.
    Connecting,
    /// The SOCKS handshake is under way.
    Talking,
    /// Carried. `fresh` until connect(2) has told the program so.
    Connected {
        /// connect(2) has not yet reported the success.
        fresh: bool,
    },
    /// It failed and the program has not been told yet.
    Failed(Errno),
}

/// One registration in an epoll set, as the program made it.
#[derive(Clone, Copy)]
pub struct Registration {
    /// The epoll descriptor.
    pub epfd: Fd,
    /// What the program waits for.
    pub events: u32,
    /// What the program gets back.
    pub data: u64,
}

/// How many epoll sets one unconnected socket may be in. With more, its connect(2) blocks.
pub const REGISTRATIONS: usize = 4;

/// What is known of one socket.
pub struct Entry {
    refs: u32,
    next_free: u32,
    /// SO_COOKIE.
    pub cookie: u64,
    /// A number under which the program has the socket.
    pub fd: Fd,
    /// The destination that the program asked for.
    pub peer: SocketAddr,
    /// The socket's family as the program made it: AF_INET or AF_INET6.
    pub family: i32,
    /// A socket of another kind took the place of the program's (see swap.rs).
    pub swapped: bool,
    /// How far it is.
    pub phase: Phase,
    /// The proxy's side of the handshake.
    pub handshake: Handshake,
    /// When it is given up, in [`sys::now_ms`]'s milliseconds.
    pub deadline: i64,
    /// The epoll sets that watch it.
    pub registrations: [Registration; REGISTRATIONS],
    /// How many of them there are.
    pub registered: usize,
}

impl Entry {
    /// Whether the handshake is still to be finished.
    pub fn in_progress(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Talking)
    }

    /// Whether calls on the socket need looking after.
    fn needs_attention(&self) -> bool {
        self.in_progress() || matches!(self.phase, Phase::Failed(_))
    }
}

const CHUNK: usize = 1024;

/// An array that grows by chunks and never moves; zeroed memory is its empty value.
struct Chunks<T, const N: usize> {
    chunks: [AtomicPtr<T>; N],
}

impl<T, const N: usize> Chunks<T, N> {
    const fn new() -> Chunks<T, N> {
        Chunks {
            chunks: [const { AtomicPtr::new(core::ptr::null_mut()) }; N],
        }
    }

    /// The element's place, if its chunk is there.
    fn find(&self, i: usize) -> Option<*mut T> {
        let chunk = self.chunks.get(i / CHUNK)?.load(Ordering::Acquire);
        if chunk.is_null() {
            return None;
        }
        // SAFETY: a chunk holds CHUNK elements.
        Some(unsafe { chunk.add(i % CHUNK) })
    }

    /// The element's place; makes its chunk. `None` without memory or beyond the end. The lock is held.
    fn grow(&self, i: usize) -> Option<*mut T> {
        let slot = self.chunks.get(i / CHUNK)?;
        if slot.load(Ordering::Acquire).is_null() {
            let memory = sys::map_anonymous(CHUNK * size_of::<T>()).ok()?;
            slot.store(memory.cast(), Ordering::Release);
        }
        self.find(i)
    }
}

/// Number of a descriptor -> number of an entry; 0 for none. Read without the lock, to pass by quickly.
static NUMBERS: Chunks<AtomicU32, 1024> = Chunks::new();

/// How many entries need looking after: handshakes under way, failures not yet reported.
static ATTENTION: AtomicU32 = AtomicU32::new(0);

/// Whether any socket was ever swapped.
static SWAPPED: AtomicU32 = AtomicU32::new(0);

/// The entries. Number 0 is not used.
pub struct Table {
    entries: Chunks<Entry, 1024>,
    free: u32,
    used: u32,
}

static TABLE: Lock<Table> = Lock::new(Table {
    entries: Chunks::new(),
    free: 0,
    used: 0,
});

/// Runs `f` with the table. `f` must not wait.
pub fn with<R>(f: impl FnOnce(&mut Table) -> R) -> R {
    TABLE.with(f)
}

/// Whether any socket needs looking after. When not, calls on descriptors pass at the cost of this.
pub fn attention() -> bool {
    ATTENTION.load(Ordering::Relaxed) != 0
}

/// Whether any socket was swapped, so that its options need translating.
pub fn any_swapped() -> bool {
    SWAPPED.load(Ordering::Relaxed) != 0
}

/// Notes that a socket was swapped.
pub fn note_swapped() {
    SWAPPED.store(1, Ordering::Relaxed);
}

/// Whether something is, or was, known of this number. No lock, no system call.
pub fn known(fd: Fd) -> bool {
    number(fd).is_some_and(|n| n.load(Ordering::Relaxed) != 0)
}

fn number(fd: Fd) -> Option<&'static AtomicU32> {
    let at = NUMBERS.find(usize::try_from(fd).ok()?)?;
    // SAFETY: chunks are never freed or moved, and zeroed memory is a valid AtomicU32.
    Some(unsafe { &*at })
}

/// Forgets what is known of a number that is being closed.
pub fn forget(fd: Fd) {
    if known(fd) {
        with(|t| t.unlink(fd));
    }
}

/// `new` has become a copy of `old` (dup(2)).
pub fn duplicated(old: Fd, new: Fd) {
    if known(old) || known(new) {
        with(|t| {
            t.unlink(new);
            let i = number(old).map_or(0, |n| n.load(Ordering::Relaxed));
            if let (Some(e), true) = (t.at(i), i != 0) {
                e.refs += 1;
                t.link(new, i);
            }
        });
    }
}

impl Table {
    /// The entry of this number, or `None`.
    pub fn at(&mut self, i: u32) -> Option<&mut Entry> {
        if i == 0 || i > self.used {
            return None;
        }
        let at = self.entries.find(i as usize)?;
        // SAFETY: numbers from 1 to `used` have been written by `insert`; the table is borrowed
        // mutably, so this is the only reference.
        Some(unsafe { &mut *at })
    }

    fn link(&mut self, fd: Fd, i: u32) {
        let slot = usize::try_from(fd).ok().and_then(|n| NUMBERS.grow(n));
        if let Some(slot) = slot {
            // SAFETY: as in `number`.
            unsafe { &*slot }.store(i, Ordering::Relaxed);
        }
    }

    fn unlink(&mut self, fd: Fd) {
        let Some(i) = number(fd).map(|n| n.swap(0, Ordering::Relaxed)) else {
            return;
        };
        let free = self.free;
        let mut attention = false;
        let mut freed = false;
        if let Some(e) = self.at(i) {
            e.refs = e.refs.saturating_sub(1);
            if e.refs == 0 {
                attention = e.needs_attention();
                e.phase = Phase::Watched;
                e.cookie = 0;
                e.next_free = free;
                freed = true;
            }
        }
        if freed {
            self.free = i;
        }
        if attention {
            ATTENTION.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The number of the entry of the socket behind `fd`, if it is known and still the same socket.
    pub fn lookup(&mut self, fd: Fd) -> Option<u32> {
        let i = number(fd).map_or(0, |n| n.load(Ordering::Relaxed));
        let cookie = match i {
            // Not known by this number; a copy that passed no hook matters only to what is under way.
            0 if !attention() => return None,
            _ => sys::cookie(fd).ok()?,
        };
        if i != 0 {
            if let Some(e) = self.at(i).filter(|e| e.cookie == cookie) {
                // The number that was used last is one that is still open.
                e.fd = fd;
                return Some(i);
            }
            self.unlink(fd);
        }
        if !attention() {
            return None;
        }
        (1..=self.used).find(|i| {
            self.at(*i)
                .is_some_and(|e| e.cookie == cookie && e.needs_attention())
        })
    }

    /// The number of the entry of the socket behind `fd`, made if there is none. `None` without memory
    /// or if `fd` is no socket.
    pub fn insert(&mut self, fd: Fd, family: i32) -> Option<u32> {
        if let Some(i) = self.lookup(fd) {
            return Some(i);
        }
        let cookie = sys::cookie(fd).ok()?;
        NUMBERS.grow(usize::try_from(fd).ok()?)?;
        let i = if self.free != 0 {
            let i = self.free;
            self.free = self.at(i)?.next_free;
            i
        } else {
            self.entries.grow(self.used as usize + 1)?;
            self.used += 1;
            self.used
        };
        let at = self.entries.find(i as usize)?;
        let none = Registration {
            epfd: -1,
            events: 0,
            data: 0,
        };
        let entry = Entry {
            refs: 1,
            next_free: 0,
            cookie,
            fd,
            peer: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            family,
            swapped: false,
            phase: Phase::Watched,
            handshake: Handshake::new(true),
            deadline: 0,
            registrations: [none; REGISTRATIONS],
            registered: 0,
        };
        // SAFETY: the place is within a chunk, and no reference to it is alive.
        unsafe { at.write(entry) };
        self.link(fd, i);
        Some(i)
    }

    /// Moves an entry to another phase and keeps count of those that need looking after.
    pub fn set_phase(&mut self, i: u32, phase: Phase) {
        let Some(e) = self.at(i) else { return };
        let before = e.needs_attention();
        e.phase = phase;
        match (before, e.needs_attention()) {
            (false, true) => ATTENTION.fetch_add(1, Ordering::Relaxed),
            (true, false) => ATTENTION.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Forgets what is known of `fd` but the epoll sets that watch it.
    pub fn reset(&mut self, fd: Fd) {
        if let Some(i) = self.lookup(fd) {
            self.set_phase(i, Phase::Watched);
        }
    }

    /// The earliest time at which a handshake under way is given up.
    pub fn earliest_deadline(&mut self) -> Option<i64> {
        let mut earliest = None;
        for i in 1..=self.used {
            if let Some(e) = self.at(i).filter(|e| e.in_progress()) {
                earliest = Some(earliest.map_or(e.deadline, |d: i64| d.min(e.deadline)));
            }
        }
        earliest
    }
}

static FORK_MASK: AtomicU64 = AtomicU64::new(0);

extern "C" fn prepare() {
    TABLE.before_fork(&FORK_MASK);
}

extern "C" fn release() {
    TABLE.after_fork(&FORK_MASK);
}

extern "C" fn release_in_child() {
    crate::state::forked();
    release();
}

unsafe extern "C" {
    /// What pthread_atfork(3) is made of; the latter is not in libc.so.
    fn __register_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
        dso: *mut libc::c_void,
    ) -> libc::c_int;
}

/// Has fork(2) take the lock around the copy. Called once, before main().
pub fn register_fork() {
    // SAFETY: the three functions live as long as the process: the shim is never unloaded.
    unsafe {
        __register_atfork(
            Some(prepare),
            Some(release),
            Some(release_in_child),
            core::ptr::null_mut(),
        );
    }
}
