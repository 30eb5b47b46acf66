//! epoll(7): a socket whose handshake is under way must not look connected.
//!
//! To the kernel it is connected (to the proxy), and it would report it writable at once. So while the
//! handshake lasts, its registrations wait for the proxy's reply instead and carry a mark; epoll_wait
//! takes the marked events out, moves the handshakes on, and when one ends puts the program's own
//! registration back, which the kernel then reports. The event loop never stalls.

use crate::carry::{self, Step};
use crate::hook::{fail, hooks};
use crate::sys::{self, Fd};
use crate::table::{self, REGISTRATIONS, Registration, Table};
use libc::{c_int, epoll_event, sigset_t, timespec};
use redhook::real;
use uwt_core::errno::Errno;

/// Marks an event's data as ours: no pointer and no descriptor looks like this. The low half is an
/// entry's number.
const MARK: u64 = 0x7577_7400_0000_0000;
const MARK_MASK: u64 = 0xffff_ffff_0000_0000;

fn modify(epfd: Fd, fd: Fd, events: u32, data: u64) {
    let mut event = epoll_event { events, u64: data };
    let _ = sys::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, fd, Some(&mut event));
}

/// A handshake on entry `i` has begun, or waits for another event: its epoll sets wait for that.
pub fn hold(t: &mut Table, i: u32, event: i16) {
    let Some(e) = t.at(i) else { return };
    for r in &e.registrations[..e.registered] {
        modify(r.epfd, e.fd, u32::from(event as u16), MARK | u64::from(i));
    }
}

/// The handshake on entry `i` has ended: its epoll sets wait for what the program asked.
pub fn let_go(t: &mut Table, i: u32) {
    let Some(e) = t.at(i) else { return };
    for r in &e.registrations[..e.registered] {
        modify(r.epfd, e.fd, r.events, r.data);
    }
}

/// Takes our marked events out of `events[..n]`, moves their handshakes on, gives how many are left.
fn sift(epfd: Fd, events: &mut [epoll_event]) -> usize {
    let mut left = 0;
    for at in 0..events.len() {
        let event = events[at];
        let data = event.u64;
        if data & MARK_MASK != MARK {
            events[left] = event;
            left += 1;
            continue;
        }
        table::with(|t| {
            let i = data as u32;
            let registered = t.at(i).is_some_and(|e| {
                e.in_progress()
                    && e.registrations[..e.registered]
                        .iter()
                        .any(|r| r.epfd == epfd)
            });
            if registered {
                if let Step::Wait(event) = carry::advance(t, i) {
                    hold(t, i, event);
                }
            }
        });
    }
    left
}

/// Gives up what has waited too long; when the next one is due.
fn overdue() -> Option<i64> {
    table::with(|t| {
        let due = t.earliest_deadline()?;
        if due <= sys::now_ms() {
            let mut i = 1;
            while t.at(i).is_some() {
                if t.at(i).is_some_and(|e| e.in_progress()) {
                    carry::advance(t, i);
                }
                i += 1;
            }
            return t.earliest_deadline();
        }
        Some(due)
    })
}

/// epoll_wait with ours taken out. `wait` is the real call with a timeout in milliseconds.
fn wait(
    epfd: Fd,
    events: *mut epoll_event,
    max: c_int,
    timeout: i64,
    real: impl Fn(c_int) -> c_int,
) -> c_int {
    let clamp = |ms: i64| ms.clamp(0, i64::from(c_int::MAX)) as c_int;
    if !table::attention() {
        // The usual case, without a look at the clock. Marked events are there only if another thread began
        // a handshake meanwhile; if they were all, the wait starts anew.
        let n = real(if timeout < 0 { -1 } else { clamp(timeout) });
        let Ok(count) = usize::try_from(n) else {
            return n;
        };
        let mut left = 0;
        if count > 0 {
            // SAFETY: the kernel has filled `count` of the program's events.
            left = sift(epfd, unsafe {
                core::slice::from_raw_parts_mut(events, count)
            });
        }
        if left > 0 || count == 0 || timeout == 0 {
            return left as c_int;
        }
    }
    let end = (timeout >= 0).then(|| sys::now_ms() + timeout);
    let mut first = true;
    loop {
        let left = match end {
            None => None,
            Some(_) if first => Some(timeout),
            Some(end) => Some((end - sys::now_ms()).max(0)),
        };
        first = false;
        let due = if table::attention() { overdue() } else { None };
        let due = due.map(|d| (d - sys::now_ms()).max(0) + 1);
        let limit = match (left, due) {
            (Some(a), Some(b)) => clamp(a.min(b)),
            (Some(a), None) | (None, Some(a)) => clamp(a),
            (None, None) => -1,
        };
        let n = real(limit);
        if n < 0 {
            return n;
        }
        if n > 0 {
            // SAFETY: the kernel has filled `n` of the program's events.
            let got = unsafe { core::slice::from_raw_parts_mut(events, n as usize) };
            let n = sift(epfd, got);
            if n > 0 {
                return n as c_int;
            }
        } else if left.is_some_and(|l| due.is_none_or(|d| l <= d)) {
            return 0;
        }
        let _ = max;
    }
}

/// Whether `fd` is a TCP socket that is not connected: TCP_INFO's first byte is the state (tcp(7)), 7
/// is TCP_CLOSE.
fn unconnected(fd: Fd) -> bool {
    let mut state = [0u8; 1];
    sys::getsockopt_bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state) == Ok(1)
        && state[0] == 7
}

fn ctl(epfd: Fd, op: c_int, fd: Fd, event: *mut epoll_event) -> Result<(), Errno> {
    let known = table::known(fd);
    if op == libc::EPOLL_CTL_DEL {
        sys::epoll_ctl(epfd, op, fd, None)?;
        if known {
            table::with(|t| {
                if let Some(i) = t.lookup(fd) {
                    if let Some(e) = t.at(i) {
                        forget(&mut e.registrations, &mut e.registered, epfd);
                    }
                }
            });
        }
        return Ok(());
    }
    // SAFETY: ADD and MOD take a valid event; null is EFAULT, left to the kernel.
    let Some(wanted) = (unsafe { event.as_ref() }).copied() else {
        return Err(Errno(libc::EFAULT));
    };
    let mut pass = wanted;
    if !known && !table::attention() && !unconnected(fd) {
        return sys::epoll_ctl(epfd, op, fd, Some(&mut pass));
    }
    let registration = Registration {
        epfd,
        events: wanted.events,
        data: wanted.u64,
    };
    table::with(|t| {
        let i = match t.lookup(fd) {
            Some(i) => i,
            None if unconnected(fd) => match t.insert(fd, libc::AF_INET) {
                Some(i) => i,
                None => return Err(Errno::ENOMEM),
            },
            None => return sys::epoll_ctl(epfd, op, fd, Some(&mut pass)),
        };
        let held = t.at(i).is_some_and(|e| e.in_progress());
        let event = if held {
            match carry::advance(t, i) {
                Step::Wait(event) => Some(event),
                _ => None,
            }
        } else {
            None
        };
        if let Some(event) = event {
            pass = epoll_event {
                events: u32::from(event as u16),
                u64: MARK | u64::from(i),
            };
        }
        sys::epoll_ctl(epfd, op, fd, Some(&mut pass))?;
        if let Some(e) = t.at(i) {
            forget(&mut e.registrations, &mut e.registered, epfd);
            if e.registered < REGISTRATIONS {
                e.registrations[e.registered] = registration;
                e.registered += 1;
            }
        }
        Ok(())
    })
}

fn forget(list: &mut [Registration; REGISTRATIONS], n: &mut usize, epfd: Fd) {
    if let Some(at) = list[..*n].iter().position(|r| r.epfd == epfd) {
        *n -= 1;
        list[at] = list[*n];
    }
}

hooks! {
    unsafe fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int => on_epoll_ctl {
        match ctl(epfd, op, fd, event) {
            Ok(()) => 0,
            Err(e) => fail(e),
        }
    }

    unsafe fn epoll_wait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int => on_epoll_wait {
        wait(epfd, events, max, i64::from(timeout), |ms| {
            // SAFETY: the program's own call but for the timeout.
            unsafe { real!(epoll_wait)(epfd, events, max, ms) }
        })
    }

    unsafe fn epoll_pwait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int => on_epoll_pwait {
        wait(epfd, events, max, i64::from(timeout), |ms| {
            // SAFETY: the program's own call but for the timeout.
            unsafe { real!(epoll_pwait)(epfd, events, max, ms, mask) }
        })
    }

    unsafe fn epoll_pwait2(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int => on_epoll_pwait2 {
        // SAFETY: epoll_pwait2 takes null or a valid timespec.
        let ms = match unsafe { timeout.as_ref() } {
            None => -1,
            Some(t) => t.tv_sec.saturating_mul(1000).saturating_add((t.tv_nsec + 999_999) / 1_000_000),
        };
        wait(epfd, events, max, ms, |limit| {
            if i64::from(limit) == ms || (limit < 0 && ms < 0) {
                // SAFETY: the program's own call, with its own precision.
                return unsafe { real!(epoll_pwait2)(epfd, events, max, timeout, mask) };
            }
            let t = timespec { tv_sec: i64::from(limit) / 1000, tv_nsec: i64::from(limit) % 1000 * 1_000_000 };
            // SAFETY: the program's own call but for the timeout.
            unsafe { real!(epoll_pwait2)(epfd, events, max, &raw const t, mask) }
        })
    }
}
