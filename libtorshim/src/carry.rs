//! Carries a TCP socket to Tor: the SOCKS handshake on the program's own descriptor.
//!
//! The descriptor stays the program's, so its options, mode, epoll registrations and copies keep
//! working. A handshake under way is moved on by whatever call the program makes next (connect, poll,
//! epoll_wait, read ...): there is no thread and no helper process.

use crate::addr::{self, Address};
use crate::table::{self, Phase, Table};
use crate::{epoll, log, state, swap, sys, wait};
use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicU64, Ordering};
use sys::Fd;
use uwt_core::errno::Errno;
use uwt_core::handoff::Handoff;
use uwt_core::hostname::NAME_MAX;
use uwt_core::isolation::{self, Connection};
use uwt_core::names;
use uwt_core::route::{Refusal, Socks};
use uwt_core::socks5::{Command, Failure, Handshake, Progress, Request, Target};

/// How many connections this process has asked for.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// What a handshake under way waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// For this event (POLLIN or POLLOUT) on the descriptor.
    Wait(i16),
    /// For nothing: the socket is connected to its destination.
    Done,
    /// For nothing: it failed.
    Failed(Errno),
}

/// A destination for messages: the name if it stands for one.
struct Shown(SocketAddr);

impl core::fmt::Display for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut buf = [0; NAME_MAX];
        match name_of(self.0.ip(), &mut buf) {
            Some(name) => write!(f, "{}:{}", log::Shown(name), self.0.port()),
            None => write!(f, "{}", self.0),
        }
    }
}

fn name_of(ip: IpAddr, buf: &mut [u8; NAME_MAX]) -> Option<&[u8]> {
    let v = names::virtual_address(ip)?;
    state::get().names()?.name(v, buf)
}

/// Connects `fd` to `peer` through Tor. Blocks if the descriptor does; else EINPROGRESS.
pub fn connect(handoff: &Handoff<'static>, fd: Fd, peer: SocketAddr) -> Result<(), Errno> {
    let mut buf = [0; NAME_MAX];
    if names::virtual_address(peer.ip()).is_some() && name_of(peer.ip(), &mut buf).is_none() {
        log::refused!("{peer}: {}", Refusal::UnknownVirtual.message());
        return Err(Refusal::UnknownVirtual.errno());
    }
    if let Some(answer) = table::with(|t| again(t, fd)) {
        return answer;
    }
    let family = sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let swapped = open(handoff, fd, family)?;
    let timeout = i64::from(handoff.timeout_ms);
    let step = table::with(|t| {
        let Some(i) = t.insert(fd, family) else {
            return Err(Errno::ENOMEM);
        };
        if let Some(e) = t.at(i) {
            e.peer = peer;
            e.family = family;
            e.swapped = swapped;
            e.deadline = sys::now_ms() + timeout;
        }
        t.set_phase(i, Phase::Connecting);
        let step = advance(t, i);
        if let Step::Wait(event) = step {
            epoll::hold(t, i, event);
        }
        Ok(step)
    });
    match step {
        Ok(Step::Done) => finish(fd, Ok(())),
        Ok(Step::Failed(e)) => finish(fd, Err(e)),
        Ok(Step::Wait(_)) if sys::is_nonblocking(fd) => Err(Errno(libc::EINPROGRESS)),
        Ok(Step::Wait(_)) => complete(fd, send_timeout(fd)).and_then(|r| finish(fd, r)),
        Err(e) => {
            close_down(fd, swapped);
            Err(e)
        }
    }
}

/// connect(2) on a socket that has been here before; `None` if it is to be connected now.
fn again(t: &mut Table, fd: Fd) -> Option<Result<(), Errno>> {
    let i = t.lookup(fd)?;
    if t.at(i)?.in_progress() {
        advance(t, i);
    }
    match t.at(i)?.phase {
        Phase::Watched => None,
        Phase::Connecting | Phase::Talking => Some(Err(Errno(libc::EALREADY))),
        Phase::Connected { fresh: true } => {
            t.set_phase(i, Phase::Connected { fresh: false });
            Some(Ok(()))
        }
        Phase::Connected { fresh: false } => Some(Err(Errno(libc::EISCONN))),
        Phase::Failed(e) => {
            t.set_phase(i, Phase::Watched);
            Some(Err(e))
        }
    }
}

/// connect(2) once more on a socket that was swapped: it is not connected anew.
pub fn again_only(_handoff: &Handoff<'static>, fd: Fd) -> Result<(), Errno> {
    table::with(|t| again(t, fd)).unwrap_or(Err(Errno::ECONNREFUSED))
}

/// Tells the program, through connect(2)'s result, what the table already knows.
fn finish(fd: Fd, result: Result<(), Errno>) -> Result<(), Errno> {
    table::with(|t| {
        if let Some(i) = t.lookup(fd) {
            match result {
                Ok(()) => t.set_phase(i, Phase::Connected { fresh: false }),
                Err(_) => t.set_phase(i, Phase::Watched),
            }
        }
    });
    result
}

/// Starts the connection to the SOCKS port without waiting for it. Gives whether another socket had
/// to take the program's place (see swap.rs).
fn open(handoff: &Handoff<'static>, fd: Fd, family: i32) -> Result<bool, Errno> {
    let socks = match handoff.policy.socks {
        Socks::Unix(path) => {
            let proxy = Address::unix(path);
            return swap::connect(fd, &proxy)
                .map(|()| true)
                .map_err(|e| unreachable(handoff, e));
        }
        Socks::Ip(addr) => addr,
    };
    if family == libc::AF_INET && socks.is_ipv6() {
        let proxy = Address::new(socks, libc::AF_INET6);
        return swap::connect(fd, &proxy)
            .map(|()| true)
            .map_err(|e| unreachable(handoff, e));
    }
    // Data with the SYN would go before the handshake.
    let _ = sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 0);
    if family == libc::AF_INET6 && socks.is_ipv4() {
        let _ = sys::setsockopt(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0);
    }
    let proxy = Address::new(socks, family);
    match start(fd, &proxy) {
        Ok(()) => Ok(false),
        // Connected, or connecting, without Tor: to a loopback service.
        Err(e @ Errno(libc::EISCONN | libc::EALREADY)) => Err(e),
        Err(e @ Errno::ECONNREFUSED) => Err(unreachable(handoff, e)),
        // Bound to an address or device from which the SOCKS port cannot be reached: the binding has
        // no meaning behind Tor, so a fresh socket takes its place.
        Err(_) => {
            let proxy = Address::new(
                socks,
                if socks.is_ipv4() {
                    libc::AF_INET
                } else {
                    libc::AF_INET6
                },
            );
            swap::connect(fd, &proxy)
                .map(|()| true)
                .map_err(|e| unreachable(handoff, e))
        }
    }
}

/// connect(2) that never blocks: EINPROGRESS counts as success.
pub fn start(fd: Fd, proxy: &Address) -> Result<(), Errno> {
    let flags = sys::fcntl(fd, libc::F_GETFL, 0)?;
    let blocking = flags & libc::O_NONBLOCK == 0;
    if blocking {
        sys::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)?;
    }
    let result = sys::connect(fd, proxy.bytes());
    if blocking {
        let _ = sys::fcntl(fd, libc::F_SETFL, flags);
    }
    match result {
        Err(Errno(libc::EINPROGRESS)) => Ok(()),
        other => other,
    }
}

fn unreachable(handoff: &Handoff<'static>, e: Errno) -> Errno {
    let why = e.name();
    match handoff.policy.socks {
        Socks::Ip(a) => log::refused!(
            "Tor's SOCKS port {a} cannot be reached ({why}, errno {}): is tor running? see uwtctl status",
            e.0
        ),
        Socks::Unix(p) => log::refused!(
            "Tor's SOCKS port unix:{} cannot be reached ({why}, errno {}): is tor running? see uwtctl status",
            log::Shown(p),
            e.0
        ),
    }
    match e {
        // What connect(2) to the destination itself could not give, or what would mislead.
        Errno(libc::ENOENT) | Errno::EACCES | Errno::EAGAIN => Errno::ECONNREFUSED,
        e => e,
    }
}

/// Moves a handshake on as far as it goes without waiting. Success and failure are noted in the table,
/// and the program's epoll registrations put back.
pub fn advance(t: &mut Table, i: u32) -> Step {
    let Some(e) = t.at(i) else {
        return Step::Failed(Errno::ECONNABORTED);
    };
    let (fd, peer, swapped) = (e.fd, e.peer, e.swapped);
    let step = match e.phase {
        Phase::Connecting | Phase::Talking if sys::now_ms() >= e.deadline => {
            log::refused!("{}: no answer from Tor in time", Shown(peer));
            Step::Failed(Errno::ETIMEDOUT)
        }
        Phase::Connecting => match connected(fd) {
            Ok(false) => return Step::Wait(libc::POLLOUT),
            Ok(true) => match talk(fd, e.cookie, peer) {
                Ok(authenticate) => {
                    e.handshake = Handshake::new(authenticate);
                    t.set_phase(i, Phase::Talking);
                    return advance(t, i);
                }
                Err(errno) => Step::Failed(errno),
            },
            Err(errno) => match state::get().handoff() {
                Some(h) => Step::Failed(unreachable(h, errno)),
                None => Step::Failed(errno),
            },
        },
        Phase::Talking => match listen(fd, &mut e.handshake) {
            Progress::Want(_) => return Step::Wait(libc::POLLIN),
            Progress::Done => Step::Done,
            Progress::Failed(f) => {
                match f {
                    Failure::Refused(code) => {
                        log::refused!("{}: {} (SOCKS reply {code:02x})", Shown(peer), f.message());
                    }
                    _ => log::refused!("{}: {}", Shown(peer), f.message()),
                }
                Step::Failed(f.errno())
            }
        },
        Phase::Connected { .. } | Phase::Watched => return Step::Done,
        Phase::Failed(errno) => return Step::Failed(errno),
    };
    match step {
        Step::Failed(errno) => {
            close_down(fd, swapped);
            t.set_phase(i, Phase::Failed(errno));
        }
        _ => {
            log::debug!("{}: connected through Tor", Shown(peer));
            t.set_phase(i, Phase::Connected { fresh: true });
        }
    }
    epoll::let_go(t, i);
    step
}

/// Whether the connection to the SOCKS port stands.
fn connected(fd: Fd) -> Result<bool, Errno> {
    let mut p = [libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    }];
    if sys::poll(&mut p, 0)? == 0 {
        return Ok(false);
    }
    match sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(true),
        e => Err(Errno(e)),
    }
}

/// Sends greeting, authentication and request. Gives whether there were credentials.
fn talk(fd: Fd, cookie: u64, peer: SocketAddr) -> Result<bool, Errno> {
    let handoff = state::get().handoff().ok_or(Errno::ECONNREFUSED)?;
    let (mut name, mut octets) = ([0; NAME_MAX], [0; 16]);
    let ip = addr::canonical(peer).ip();
    let target = match names::virtual_address(ip) {
        Some(_) => Target::Name(name_of(ip, &mut name).ok_or(Errno::EHOSTUNREACH)?),
        None => Target::Ip(ip),
    };
    let host = match target {
        Target::Name(n) => n,
        Target::Ip(ip) => addr::octets(ip, &mut octets),
    };
    let connection = Connection {
        host,
        port: peer.port(),
        // The cookie tells sockets apart, the count the connections of one socket.
        serial: cookie ^ CONNECTIONS.fetch_add(1, Ordering::Relaxed) << 40,
    };
    let credentials = isolation::credentials(&handoff.isolation, state::process(), connection);
    let request = Request::new(credentials.as_ref(), Command::Connect, target, peer.port())
        .ok_or(Errno::EINVAL)?;
    // A fresh connection's buffer takes the whole request; less would be a broken proxy.
    match sys::send(fd, request.bytes(), libc::MSG_DONTWAIT) {
        Ok(n) if n == request.bytes().len() => Ok(credentials.is_some()),
        Ok(_) => Err(Errno(libc::ENOBUFS)),
        Err(_) => Err(Errno::ECONNREFUSED),
    }
}

/// Reads what has come of the proxy's reply, not a byte beyond it.
fn listen(fd: Fd, handshake: &mut Handshake) -> Progress {
    loop {
        let want = match handshake.progress() {
            Progress::Want(n) => n,
            end => return end,
        };
        let mut buf = [0u8; 300];
        let want = want.min(buf.len());
        match sys::recv(fd, &mut buf[..want], libc::MSG_DONTWAIT) {
            Ok(0) => return Progress::Failed(Failure::Closed),
            Ok(n) => {
                handshake.feed(&buf[..n.min(want)]);
            }
            Err(Errno::EAGAIN) => return Progress::Want(want),
            Err(Errno::EINTR) => {}
            Err(_) => return Progress::Failed(Failure::Closed),
        }
    }
}

/// Takes a failed socket back to where connect(2) can be tried again, as after a refused connection.
fn close_down(fd: Fd, swapped: bool) {
    let unspec = [0u8; 16];
    if swapped || sys::connect(fd, &unspec).is_err() {
        let _ = sys::shutdown(fd, libc::SHUT_RDWR);
    }
}

/// SO_SNDTIMEO (socket(7)), which also bounds connect(2), as a time; `None` if it is not set.
fn send_timeout(fd: Fd) -> Option<i64> {
    let mut tv = [0u8; 16];
    let n = sys::getsockopt_bytes(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &mut tv).ok()?;
    if n < 16 {
        return None;
    }
    let (s, us) = tv.split_at(8);
    let s = i64::from_ne_bytes(s.try_into().ok()?);
    let us = i64::from_ne_bytes(us.try_into().ok()?);
    (s != 0 || us != 0).then(|| sys::now_ms() + s * 1000 + us / 1000)
}

/// Waits until a handshake under way has ended; how it did. The outer error is EINTR, or EINPROGRESS
/// once `until` has passed, with the handshake still under way, as connect(2) has it.
pub fn complete(fd: Fd, until: Option<i64>) -> Result<Result<(), Errno>, Errno> {
    loop {
        let next = table::with(|t| {
            let i = t.lookup(fd)?;
            let step = advance(t, i);
            Some((step, t.at(i)?.deadline))
        });
        let (event, deadline) = match next {
            Some((Step::Wait(event), deadline)) => (event, deadline),
            Some((Step::Done, _)) => return Ok(Ok(())),
            Some((Step::Failed(e), _)) => return Ok(Err(e)),
            // Closed by another thread meanwhile.
            None => return Ok(Err(Errno::ECONNABORTED)),
        };
        let now = sys::now_ms();
        if until.is_some_and(|u| now >= u) {
            return Err(Errno(libc::EINPROGRESS));
        }
        let end = until.map_or(deadline, |u| u.min(deadline));
        let mut p = [libc::pollfd {
            fd,
            events: event,
            revents: 0,
        }];
        match wait::for_libc(&mut p, (end - now).max(0), core::ptr::null()) {
            Err(Errno::EINTR) if !restarts() => return Err(Errno::EINTR),
            _ => {}
        }
    }
}

/// Whether every signal handler of the program asks for interrupted calls to be restarted
/// (SA_RESTART, sigaction(2)): connect(2) then goes on, while ppoll(2) never does.
fn restarts() -> bool {
    (1..=64).all(|signal| match sys::signal_action(signal) {
        Ok((handler, flags)) => {
            handler == libc::SIG_DFL
                || handler == libc::SIG_IGN
                || flags & libc::SA_RESTART as u64 != 0
        }
        Err(_) => true,
    })
}

/// Before data moves on `fd`: finishes a handshake under way, or says why it cannot be.
///
/// EAGAIN for a non-blocking descriptor (or `dont_wait`), the connection's own error once.
pub fn settle(fd: Fd, dont_wait: bool) -> Result<(), Errno> {
    if !table::attention() {
        return Ok(());
    }
    let under_way = table::with(|t| {
        let Some(i) = t.lookup(fd) else {
            return Ok(false);
        };
        match advance(t, i) {
            Step::Wait(_) => Ok(true),
            Step::Done => Ok(false),
            Step::Failed(e) => {
                t.set_phase(i, Phase::Watched);
                Err(e)
            }
        }
    })?;
    if !under_way {
        return Ok(());
    }
    if dont_wait || sys::is_nonblocking(fd) {
        return Err(Errno::EAGAIN);
    }
    complete(fd, None)?.inspect_err(|_| {
        table::with(|t| t.reset(fd));
    })
}
