//! poll(2) and select(2): a socket whose handshake is under way must not look connected (see epoll.rs).

use crate::carry::{self, Step};
use crate::hook::{fail, hooks};
use crate::{hook, sys, table};
use libc::{c_int, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};
use redhook::real;
use uwt_core::errno::Errno;

/// Scratch for a call's descriptors: on the stack for few, mapped for many.
struct Scratch {
    few: [pollfd; 64],
    mapped: *mut pollfd,
    len: usize,
}

const NONE: pollfd = pollfd {
    fd: -1,
    events: 0,
    revents: 0,
};

impl Scratch {
    fn new(len: usize) -> Result<Scratch, Errno> {
        let mapped = if len > 64 {
            sys::map_anonymous(len * size_of::<pollfd>())?.cast()
        } else {
            core::ptr::null_mut()
        };
        Ok(Scratch {
            few: [NONE; 64],
            mapped,
            len,
        })
    }

    fn get(&mut self) -> &mut [pollfd] {
        if self.mapped.is_null() {
            let n = self.len.min(64);
            &mut self.few[..n]
        } else {
            // SAFETY: mapped for `len` pollfds, zeroed, and ours alone.
            unsafe { core::slice::from_raw_parts_mut(self.mapped, self.len) }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.mapped.is_null() {
            // SAFETY: nothing refers to the mapping any more.
            unsafe { sys::unmap(self.mapped.cast(), self.len * size_of::<pollfd>()) };
        }
    }
}

/// Stands in `revents` of what is held while the handshake lasts.
const HELD: i16 = -1;

/// ppoll(2) through libc: a wait of the program's is a cancellation point (pthreads(7)), which a raw system
/// call is not. Timeout in milliseconds, negative for none. No lock may be held: it may not come back.
pub fn for_libc(fds: &mut [pollfd], timeout: i64, mask: *const sigset_t) -> Result<usize, Errno> {
    let t = timespec {
        tv_sec: timeout / 1000,
        tv_nsec: timeout % 1000 * 1_000_000,
    };
    let t = match timeout {
        0.. => &raw const t,
        _ => core::ptr::null(),
    };
    // SAFETY: pollfds and a time that live through the call; the mask is null or the program's own. If the
    // thread is cancelled there, libc unwinds through frames that own nothing but mapped memory.
    let n = unsafe { real!(ppoll)(fds.as_mut_ptr(), fds.len() as nfds_t, t, mask) };
    usize::try_from(n).map_err(|_| hook::errno())
}

/// poll with what is held kept from looking connected. Timeout in milliseconds, negative for none.
fn poll_held(fds: &mut [pollfd], timeout: i64, mask: *const sigset_t) -> Result<usize, Errno> {
    let mut scratch = Scratch::new(fds.len())?;
    let end = (timeout >= 0).then(|| sys::now_ms() + timeout);
    loop {
        let shadow = scratch.get();
        let mut due = i64::MAX;
        let mut held = false;
        table::with(|t| {
            for (s, f) in shadow.iter_mut().zip(fds.iter_mut()) {
                *s = *f;
                s.revents = 0;
                f.revents = 0;
                if f.fd < 0 {
                    continue;
                }
                let Some(i) = t.lookup(f.fd) else { continue };
                if let Step::Wait(event) = carry::advance(t, i) {
                    s.events = event;
                    f.revents = HELD;
                    held = true;
                    due = due.min(t.at(i).map_or(i64::MAX, |e| e.deadline));
                }
            }
        });
        let now = sys::now_ms();
        let left = end.map_or(i64::MAX, |e| (e - now).max(0));
        let limit = left.min(if held { (due - now).max(0) } else { i64::MAX });
        let limit = if limit == i64::MAX { -1 } else { limit };
        let n = for_libc(shadow, limit, mask);
        let mut ready = 0;
        for (s, f) in shadow.iter().zip(fds.iter_mut()) {
            if f.revents == HELD {
                f.revents = 0;
            } else {
                f.revents = s.revents;
                ready += usize::from(s.revents != 0);
            }
        }
        let n = n?;
        if ready > 0 || (n == 0 && limit == left) {
            return Ok(ready);
        }
    }
}

fn milliseconds(t: Option<&timespec>) -> i64 {
    t.map_or(-1, |t| {
        let ms = (t.tv_nsec + 999_999) / 1_000_000;
        t.tv_sec.saturating_mul(1000).saturating_add(ms)
    })
}

fn held_or(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: i64,
    mask: *const sigset_t,
    real: impl FnOnce() -> c_int,
) -> c_int {
    if !table::attention() || fds.is_null() || n > 1 << 20 {
        return real();
    }
    // SAFETY: poll(2) takes `n` valid pollfds.
    let fds = unsafe { core::slice::from_raw_parts_mut(fds, n as usize) };
    match poll_held(fds, timeout, mask) {
        Ok(n) => n as c_int,
        Err(e) => fail(e),
    }
}

/// One of select(2)'s three sets; the program's may be larger than libc's fd_set.
#[derive(Clone, Copy)]
struct Set(*mut u64);

impl Set {
    fn has(self, fd: usize) -> bool {
        // SAFETY: select(2) takes null, or a set with room for `nfds` bits, of which `fd` is one.
        !self.0.is_null() && unsafe { *self.0.add(fd / 64) } >> (fd % 64) & 1 == 1
    }

    fn put(self, fd: usize, on: bool) -> usize {
        if self.0.is_null() {
            return 0;
        }
        let bit = 1u64 << (fd % 64);
        // SAFETY: as in `has`.
        let word = unsafe { &mut *self.0.add(fd / 64) };
        let was = *word & bit != 0;
        if was && !on {
            *word &= !bit;
        }
        usize::from(was && on)
    }
}

/// select over poll, for the time that a handshake is under way. `None`: none of these is held.
fn select_held(
    n: usize,
    sets: [Set; 3],
    timeout: i64,
    mask: *const sigset_t,
) -> Option<Result<usize, Errno>> {
    let [read, write, except] = sets;
    let any = |fd: usize| read.has(fd) || write.has(fd) || except.has(fd);
    let held = (0..n).filter(|fd| any(*fd)).any(|fd| {
        table::with(|t| {
            let i = t.lookup(fd as c_int)?;
            t.at(i).filter(|e| e.in_progress()).map(drop)
        })
        .is_some()
    });
    if !held {
        return None;
    }
    let count = (0..n).filter(|fd| any(*fd)).count();
    let mut scratch = match Scratch::new(count) {
        Ok(s) => s,
        Err(e) => return Some(Err(e)),
    };
    let fds = scratch.get();
    for (slot, fd) in fds.iter_mut().zip((0..n).filter(|fd| any(*fd))) {
        let mut events = 0;
        if read.has(fd) {
            events |= libc::POLLIN;
        }
        if write.has(fd) {
            events |= libc::POLLOUT;
        }
        if except.has(fd) {
            events |= libc::POLLPRI;
        }
        *slot = pollfd {
            fd: fd as c_int,
            events,
            revents: 0,
        };
    }
    if let Err(e) = poll_held(fds, timeout, mask) {
        return Some(Err(e));
    }
    if fds.iter().any(|f| f.revents & libc::POLLNVAL != 0) {
        return Some(Err(Errno(libc::EBADF)));
    }
    let mut ready = 0;
    for f in fds.iter() {
        let fd = f.fd as usize;
        let got = |bits: i16| f.revents & bits != 0;
        // What select(2) calls ready, in poll(2)'s words ("Correspondence between select() and poll()").
        ready += read.put(fd, got(libc::POLLIN | libc::POLLHUP | libc::POLLERR));
        ready += write.put(fd, got(libc::POLLOUT | libc::POLLERR));
        ready += except.put(fd, got(libc::POLLPRI));
    }
    Some(Ok(ready))
}

fn select_op(
    n: c_int,
    sets: [*mut fd_set; 3],
    timeout: i64,
    mask: *const sigset_t,
) -> Option<Result<usize, Errno>> {
    if !table::attention() || !(0..=1 << 20).contains(&n) {
        return None;
    }
    select_held(n as usize, sets.map(|s| Set(s.cast())), timeout, mask)
}

fn outcome(r: Result<usize, Errno>) -> c_int {
    match r {
        Ok(n) => n as c_int,
        Err(e) => fail(e),
    }
}

hooks! {
    unsafe fn poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int => on_poll {
        // SAFETY: the program's own call, unchanged.
        held_or(fds, n, i64::from(timeout), core::ptr::null(), || unsafe { real!(poll)(fds, n, timeout) })
    }

    unsafe fn __poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int => on_poll_internal {
        // SAFETY: the program's own call, unchanged.
        held_or(fds, n, i64::from(timeout), core::ptr::null(), || unsafe { real!(__poll)(fds, n, timeout) })
    }

    unsafe fn __poll_chk(fds: *mut pollfd, n: nfds_t, timeout: c_int, len: size_t) -> c_int => on_poll_chk {
        // SAFETY: the program's own call, unchanged.
        held_or(fds, n, i64::from(timeout), core::ptr::null(), || unsafe { real!(__poll_chk)(fds, n, timeout, len) })
    }

    unsafe fn ppoll(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int => on_ppoll {
        // SAFETY: ppoll takes null or a valid timespec.
        let ms = milliseconds(unsafe { timeout.as_ref() });
        // SAFETY: the program's own call, unchanged.
        held_or(fds, n, ms, mask, || unsafe { real!(ppoll)(fds, n, timeout, mask) })
    }

    unsafe fn __ppoll_chk(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t, len: size_t) -> c_int => on_ppoll_chk {
        // SAFETY: ppoll takes null or a valid timespec.
        let ms = milliseconds(unsafe { timeout.as_ref() });
        // SAFETY: the program's own call, unchanged.
        held_or(fds, n, ms, mask, || unsafe { real!(__ppoll_chk)(fds, n, timeout, mask, len) })
    }

    unsafe fn select(n: c_int, r: *mut fd_set, w: *mut fd_set, x: *mut fd_set, timeout: *mut timeval) -> c_int => on_select {
        // SAFETY: select takes null or a valid timeval.
        let ms = unsafe { timeout.as_ref() }.map_or(-1, |t| {
            t.tv_sec.saturating_mul(1000).saturating_add((t.tv_usec + 999) / 1000)
        });
        let begin = sys::now_ms();
        match select_op(n, [r, w, x], ms, core::ptr::null()) {
            // SAFETY: the program's own call, unchanged.
            None => unsafe { real!(select)(n, r, w, x, timeout) },
            Some(result) => {
                // SAFETY: as above. Linux's select leaves the time that was not slept (select(2)).
                if let Some(t) = unsafe { timeout.as_mut() } {
                    let left = (ms - (sys::now_ms() - begin)).max(0);
                    t.tv_sec = left / 1000;
                    t.tv_usec = left % 1000 * 1000;
                }
                outcome(result)
            }
        }
    }

    unsafe fn __select(n: c_int, r: *mut fd_set, w: *mut fd_set, x: *mut fd_set, timeout: *mut timeval) -> c_int => on_select_internal {
        // SAFETY: the same call under its other name.
        unsafe { on_select(n, r, w, x, timeout) }
    }

    unsafe fn pselect(n: c_int, r: *mut fd_set, w: *mut fd_set, x: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int => on_pselect {
        // SAFETY: pselect takes null or a valid timespec.
        let ms = milliseconds(unsafe { timeout.as_ref() });
        match select_op(n, [r, w, x], ms, mask) {
            // SAFETY: the program's own call, unchanged.
            None => unsafe { real!(pselect)(n, r, w, x, timeout, mask) },
            Some(result) => outcome(result),
        }
    }
}
