//! Joins two TCP connections: bytes by splice(2), half-closes and resets passed on.

use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// How much a pipe may hold. An ordinary user's pipes come to 64 MiB in all (pipe(7)); they are lent only while
/// something is in them.
const PIPE_BYTES: libc::c_int = 1 << 20;

/// How often one direction is moved on before the others have their turn.
const TURNS: usize = 16;

/// A pipe that is empty whenever nobody has it.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Pipes that are free.
pub struct Pool {
    free: Vec<Pipe>,
}

fn pipe() -> io::Result<Pipe> {
    let mut fds = [0; 2];
    // SAFETY: pipe2(2) fills two descriptors, which are new; F_SETPIPE_SZ only changes how much fits, and may fail.
    unsafe {
        if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
            return Err(Error::last_os_error());
        }
        libc::fcntl(fds[1], libc::F_SETPIPE_SZ, PIPE_BYTES);
        Ok(Pipe {
            read: OwnedFd::from_raw_fd(fds[0]),
            write: OwnedFd::from_raw_fd(fds[1]),
        })
    }
}

impl Pool {
    /// With one pipe, so that there is one when descriptors have run out.
    ///
    /// # Errors
    /// pipe(2)'s.
    pub fn new() -> io::Result<Pool> {
        Ok(Pool {
            free: vec![pipe()?],
        })
    }

    fn take(&mut self) -> Option<Pipe> {
        self.free.pop().or_else(|| pipe().ok())
    }

    fn give(&mut self, pipe: Pipe) {
        // As many as are in use at once in a busy moment; the rest is closed.
        if self.free.len() < 64 {
            self.free.push(pipe);
        }
    }
}

/// One way.
#[derive(Default)]
struct Direction {
    pipe: Option<Pipe>,
    filled: usize,
    /// The sender has closed its side.
    ended: bool,
    /// The receiver has been told.
    done: bool,
}

/// Both ways.
#[derive(Default)]
pub struct Relay {
    up: Direction,
    down: Direction,
}

/// How a relay stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It waits for its sockets.
    Waiting,
    /// There is more to do at once.
    Busy,
    /// Both sides have closed.
    Ended,
    /// One side was reset: so is the other.
    Broken,
}

fn splice(from: &OwnedFd, to: &OwnedFd, max: usize) -> io::Result<usize> {
    let null = std::ptr::null_mut();
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: splice(2) without offsets, on descriptors that are ours.
    let n = unsafe { libc::splice(from.as_raw_fd(), null, to.as_raw_fd(), null, max, flags) };
    usize::try_from(n).map_err(|_| Error::last_os_error())
}

impl Direction {
    fn pump(&mut self, from: &OwnedFd, to: &OwnedFd, pool: &mut Pool) -> State {
        for _ in 0..TURNS {
            if self.filled > 0 {
                let Some(pipe) = &self.pipe else {
                    return State::Broken;
                };
                match splice(&pipe.read, to, self.filled) {
                    Ok(0) => return State::Broken,
                    Ok(n) => self.filled -= n.min(self.filled),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return State::Waiting,
                    Err(_) => return State::Broken,
                }
                continue;
            }
            if self.done {
                return State::Ended;
            }
            if self.ended {
                // SAFETY: shutdown(2) on a socket that is ours; a peer that is gone is seen when it is read.
                unsafe { libc::shutdown(to.as_raw_fd(), libc::SHUT_WR) };
                self.done = true;
                self.rest(pool);
                return State::Ended;
            }
            if self.pipe.is_none() {
                self.pipe = pool.take();
            }
            let Some(pipe) = &self.pipe else {
                // No descriptor left for a pipe; others will give theirs back.
                return State::Busy;
            };
            match splice(from, &pipe.write, PIPE_BYTES as usize) {
                Ok(0) => self.ended = true,
                Ok(n) => self.filled = n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.rest(pool);
                    return State::Waiting;
                }
                Err(_) => return State::Broken,
            }
        }
        State::Busy
    }

    fn rest(&mut self, pool: &mut Pool) {
        if let Some(pipe) = self.pipe.take() {
            pool.give(pipe);
        }
    }
}

impl Relay {
    /// The descriptors that it holds for what is on its way.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let pipes = [&self.up, &self.down]
            .into_iter()
            .filter_map(|d| d.pipe.as_ref());
        pipes
            .flat_map(|p| [p.read.as_raw_fd(), p.write.as_raw_fd()])
            .collect()
    }

    /// Moves what can be moved; `inside` is the command's socket, `outside` the other.
    pub fn pump(&mut self, inside: &OwnedFd, outside: &OwnedFd, pool: &mut Pool) -> State {
        let up = self.up.pump(inside, outside, pool);
        let down = self.down.pump(outside, inside, pool);
        match (up, down) {
            (State::Broken, _) | (_, State::Broken) => State::Broken,
            (State::Busy, _) | (_, State::Busy) => State::Busy,
            (State::Ended, State::Ended) => State::Ended,
            _ => State::Waiting,
        }
    }
}

/// Has the socket reset when it is closed (SO_LINGER with 0, socket(7)).
pub fn reset_on_close(fd: &OwnedFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let len = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: setsockopt(2) reads a struct that lives through the call.
    unsafe {
        let at = (&raw const linger).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, len);
    }
}
