//! One connection of the command's, or one question, on its way: asked for outside first, let go inside when the
//! answer is there.

use super::packet::Ends;
use super::relay::Relay;
use super::resolver::Received;
use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;
use uwt_core::errno::Errno;
use uwt_core::route::Socks;
use uwt_core::socks5::{Handshake, Progress, Request};

/// What a flow is for.
pub enum Purpose {
    /// To carry a connection, whose SYN waits under this number in the queue.
    Carry {
        /// The packet's number.
        packet: u32,
    },
    /// To answer a question that came to the resolver.
    Answer {
        /// Which of the resolver's sockets it came to.
        socket: usize,
        /// The question.
        asked: Box<Received>,
    },
}

/// How far it is.
pub enum Stage {
    /// The outer connection is being made, and Tor is being asked if it is Tor's.
    Asking(Option<Box<Socks5>>),
    /// The SYN has been let go; the connection arrives at the relay.
    Arriving,
    /// Bytes go both ways; the command's socket.
    Joined(OwnedFd, Relay),
}

/// A SOCKS handshake under way.
pub struct Socks5 {
    request: Request,
    sent: usize,
    /// The proxy's side.
    pub handshake: Handshake,
}

/// A connection or a question.
pub struct Flow {
    /// Tells it from an earlier one in the same place.
    pub generation: u32,
    /// The command's connection; `None` for a question.
    pub ends: Option<Ends>,
    /// The SYN's sequence number: tells it from a later one between the same ends.
    pub sequence: u32,
    /// What it is for.
    pub purpose: Purpose,
    /// How far it is.
    pub stage: Stage,
    /// The socket outside.
    pub outside: OwnedFd,
    /// When it is given up, unless it is joined.
    pub deadline: Instant,
    /// It is in the list of those that have more to do.
    pub busy: bool,
}

/// What became of a step.
pub enum Stepped {
    /// It waits.
    Wait,
    /// The way is open, or the answer is there.
    Open,
    /// It failed; whether the outer connection itself did.
    Failed(Errno, bool),
}

impl Socks5 {
    /// Asks `request`.
    pub fn new(request: Request, authenticate: bool) -> Socks5 {
        Socks5 {
            request,
            sent: 0,
            handshake: Handshake::new(authenticate),
        }
    }
}

fn would_block(e: &Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock
}

impl Flow {
    /// Goes on as far as the outer socket lets it.
    pub fn step(&mut self) -> Stepped {
        let fd = self.outside.as_raw_fd();
        let Stage::Asking(socks) = &mut self.stage else {
            return Stepped::Wait;
        };
        match connected(&self.outside) {
            Ok(true) => {}
            Ok(false) => return Stepped::Wait,
            Err(e) => return Stepped::Failed(errno_of(&e), true),
        }
        let Some(socks) = socks else {
            return Stepped::Open;
        };
        let rest = &socks.request.bytes()[socks.sent..];
        if !rest.is_empty() {
            // SAFETY: the bytes live through the call.
            let n = unsafe { libc::send(fd, rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL) };
            match usize::try_from(n) {
                Ok(n) => socks.sent += n,
                Err(_) => {
                    let e = Error::last_os_error();
                    if !would_block(&e) {
                        return Stepped::Failed(Errno::ECONNREFUSED, true);
                    }
                }
            }
        }
        loop {
            let want = match socks.handshake.progress() {
                Progress::Want(n) => n,
                Progress::Done => return Stepped::Open,
                Progress::Failed(f) => return Stepped::Failed(f.errno(), false),
            };
            let mut buf = [0u8; 300];
            let len = want.min(buf.len());
            // SAFETY: the buffer lives through the call.
            let n = unsafe { libc::recv(fd, buf.as_mut_ptr().cast(), len, 0) };
            match usize::try_from(n) {
                // The proxy closed within the handshake.
                Ok(0) => return Stepped::Failed(Errno::ECONNREFUSED, false),
                Ok(n) => {
                    socks.handshake.feed(&buf[..n]);
                }
                Err(_) => {
                    let e = Error::last_os_error();
                    return match would_block(&e) {
                        true => Stepped::Wait,
                        false => Stepped::Failed(Errno::ECONNREFUSED, false),
                    };
                }
            }
        }
    }
}

/// The errno that the command gets for an error of the outer connection.
pub fn errno_of(e: &Error) -> Errno {
    Errno(e.raw_os_error().unwrap_or(libc::ECONNREFUSED))
}

/// Whether a connection that is being made has been made.
fn connected(fd: &OwnedFd) -> io::Result<bool> {
    let mut code: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let mut p = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: poll(2) and getsockopt(2) on values that live through the calls.
    unsafe {
        if libc::poll(&raw mut p, 1, 0) == 0 {
            return Ok(false);
        }
        let at = (&raw mut code).cast();
        if libc::getsockopt(p.fd, libc::SOL_SOCKET, libc::SO_ERROR, at, &raw mut len) != 0 {
            return Err(Error::last_os_error());
        }
    }
    match code {
        0 => Ok(true),
        e => Err(Error::from_raw_os_error(e)),
    }
}

/// Begins a connection, which is made when the socket becomes writable.
///
/// # Errors
/// socket(2)'s and connect(2)'s.
pub fn connect(to: &Socks<'_>) -> io::Result<OwnedFd> {
    use nix::sys::socket::{SockaddrLike, SockaddrStorage, UnixAddr};
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let open = |family: i32| {
        // SAFETY: socket(2) with plain numbers; the descriptor is new.
        unsafe {
            let fd = libc::socket(family, kind, 0);
            if fd < 0 {
                return Err(Error::last_os_error());
            }
            Ok(OwnedFd::from_raw_fd(fd))
        }
    };
    let begin = |fd: &OwnedFd, address: &dyn SockaddrLike| {
        // SAFETY: an address that lives through the call, with its length.
        let r = unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr(), address.len()) };
        let e = Error::last_os_error();
        match r {
            0 => Ok(()),
            _ if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
            _ => Err(e),
        }
    };
    match to {
        Socks::Ip(address) => {
            let fd = open(if address.is_ipv4() {
                libc::AF_INET
            } else {
                libc::AF_INET6
            })?;
            no_delay(&fd);
            begin(&fd, &SockaddrStorage::from(*address))?;
            Ok(fd)
        }
        Socks::Unix(path) => {
            let fd = open(libc::AF_UNIX)?;
            begin(&fd, &UnixAddr::new(*path)?)?;
            Ok(fd)
        }
    }
}

/// Bytes go when they come: the command's own Nagle has waited already.
pub fn no_delay(fd: &OwnedFd) {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: setsockopt(2) reads one int that lives through the call.
    unsafe {
        let at = (&raw const on).cast();
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            at,
            len,
        );
    }
}
