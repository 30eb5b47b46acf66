//! Looking names up: the operation behind getaddrinfo(3), gethostbyname(3), res_query(3) and their kin.

use crate::addr::Address;
use crate::{addr, log, state, sys};
use core::net::{IpAddr, SocketAddr};
use uwt_core::errno::Errno;
use uwt_core::handoff::{Dns, Handoff};
use uwt_core::hostname::{self, Hostname, Loopback, NAME_MAX, is_loopback};
use uwt_core::isolation::{self, Connection};
use uwt_core::names::{self, TableError};
use uwt_core::route::Socks;
use uwt_core::socks5::{Answer, Command, Failure, Handshake, Progress, Request, Target};

/// What a hostname leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// This address: virtual, or real in mode `resolve`.
    Ip(IpAddr),
    /// This machine.
    Loopback(Loopback),
}

/// Why a lookup gives nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// There is no such name.
    NoName,
    /// It is refused, or Tor cannot be asked.
    Refused,
    /// No memory for another name.
    Memory,
}

/// A name that a lookup gave, 1 to 255 bytes.
pub struct Name {
    bytes: [u8; NAME_MAX],
    len: usize,
}

impl Name {
    fn new(name: &[u8]) -> Option<Name> {
        let mut n = Name {
            bytes: [0; NAME_MAX],
            len: name.len(),
        };
        n.bytes.get_mut(..name.len())?.copy_from_slice(name);
        (!name.is_empty()).then_some(n)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The address of a hostname that is not an address literal.
pub fn forward(name: &[u8]) -> Result<Found, Missing> {
    let state = state::get();
    let name = match hostname::classify(name, state.own_name()) {
        Hostname::Loopback(l) => return Ok(Found::Loopback(l)),
        Hostname::Malformed => return Err(Missing::NoName),
        Hostname::Remote(name) => name,
    };
    let Some(handoff) = state.handoff() else {
        log::refused!(
            "{}: no valid handoff from uwt: start the program with uwt",
            log::Shown(name)
        );
        return Err(Missing::Refused);
    };
    match handoff.dns {
        Dns::Refuse => {
            log::refused!(
                "{}: names are not resolved (dns = \"refuse\")",
                log::Shown(name)
            );
            return Err(Missing::Refused);
        }
        Dns::Resolve if !hostname::is_onion(name) => {
            return match ask(handoff, Command::Resolve, Target::Name(name))? {
                Reply::Ip(ip) if !ip.is_unspecified() => Ok(Found::Ip(ip)),
                _ => Err(Missing::NoName),
            };
        }
        Dns::Virtual | Dns::Resolve => {}
    }
    let Some(table) = state.names() else {
        log::refused!(
            "{}: the run's name table is gone (something closed descriptor {})",
            log::Shown(name),
            handoff.names.fd
        );
        return Err(Missing::Refused);
    };
    match table.address(name) {
        Ok(ip) => {
            log::debug!("{}: {ip}", log::Shown(name));
            Ok(Found::Ip(ip.into()))
        }
        Err(TableError::BadName) => Err(Missing::NoName),
        Err(_) => {
            log::refused!("{}: the run's name table is full", log::Shown(name));
            Err(Missing::Memory)
        }
    }
}

/// The name of an address: a virtual one's own, loopback's, or what Tor says.
pub fn reverse(ip: IpAddr) -> Result<Name, Missing> {
    let state = state::get();
    if let Some(v) = names::virtual_address(ip) {
        let mut buf = [0; NAME_MAX];
        let name = state.names().and_then(|t| t.name(v, &mut buf));
        return name.and_then(Name::new).ok_or(Missing::NoName);
    }
    let ip = hostname::canonical(ip);
    if is_loopback(ip) {
        let own = Loopback::Own.v4().is_some_and(|a| ip == IpAddr::V4(a));
        let name = if own { state.own_name() } else { b"localhost" };
        return Name::new(name).ok_or(Missing::NoName);
    }
    let handoff = state.handoff().ok_or(Missing::Refused)?;
    if handoff.dns == Dns::Refuse {
        return Err(Missing::Refused);
    }
    match ask(handoff, Command::ResolvePtr, Target::Ip(ip))? {
        Reply::Name(n) => Ok(n),
        Reply::Ip(_) => Err(Missing::NoName),
    }
}

/// What Tor answered.
// It lives on the stack for a moment: no allocation in the shim.
#[allow(clippy::large_enum_variant)]
enum Reply {
    Ip(IpAddr),
    Name(Name),
}

/// Asks Tor (RESOLVE, RESOLVE_PTR) over a socket of its own; waits at most the policy's time.
fn ask(handoff: &Handoff<'static>, command: Command, target: Target<'_>) -> Result<Reply, Missing> {
    let proxy = match handoff.policy.socks {
        Socks::Unix(path) => Address::unix(path),
        Socks::Ip(a @ SocketAddr::V4(_)) => Address::new(a, libc::AF_INET),
        Socks::Ip(a) => Address::new(a, libc::AF_INET6),
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let fd = sys::socket(proxy.family(), kind, 0).map_err(|_| Missing::Memory)?;
    let reply = exchange(fd, &proxy, handoff, command, target);
    sys::close(fd);
    reply
}

fn exchange(
    fd: sys::Fd,
    proxy: &Address,
    handoff: &Handoff<'static>,
    command: Command,
    target: Target<'_>,
) -> Result<Reply, Missing> {
    let unreachable = |e: Errno| {
        log::refused!(
            "Tor's SOCKS port cannot be reached to resolve a name ({}): is tor running? see uwtctl status",
            e.name()
        );
        Missing::Refused
    };
    match sys::connect(fd, proxy.bytes()) {
        Ok(()) | Err(Errno(libc::EINPROGRESS)) => {}
        Err(e) => return Err(unreachable(e)),
    }
    let deadline = sys::now_ms() + i64::from(handoff.timeout_ms);
    wait(fd, libc::POLLOUT, deadline)?;
    match sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR) {
        Ok(0) => {}
        Ok(e) | Err(Errno(e)) => return Err(unreachable(Errno(e))),
    }
    let mut octets = [0; 16];
    let host = match target {
        Target::Name(n) => n,
        Target::Ip(ip) => addr::octets(ip, &mut octets),
    };
    let connection = Connection {
        host,
        port: 0,
        serial: sys::cookie(fd).unwrap_or(0),
    };
    let credentials = isolation::credentials(&handoff.isolation, state::process(), connection);
    let request = Request::new(credentials.as_ref(), command, target, 0).ok_or(Missing::NoName)?;
    if sys::send(fd, request.bytes(), 0) != Ok(request.bytes().len()) {
        return Err(Missing::Refused);
    }
    let mut handshake = Handshake::new(credentials.is_some());
    loop {
        match handshake.progress() {
            Progress::Done => break,
            Progress::Failed(Failure::Refused(_)) => return Err(Missing::NoName),
            Progress::Failed(f) => {
                log::refused!("{}", f.message());
                return Err(Missing::Refused);
            }
            Progress::Want(n) => {
                let mut buf = [0u8; 300];
                let n = n.min(buf.len());
                match sys::recv(fd, &mut buf[..n], 0) {
                    Ok(0) => return Err(Missing::Refused),
                    Ok(got) => {
                        handshake.feed(&buf[..got.min(n)]);
                    }
                    Err(Errno::EAGAIN | Errno::EINTR) => wait(fd, libc::POLLIN, deadline)?,
                    Err(_) => return Err(Missing::Refused),
                }
            }
        }
    }
    match handshake.answer() {
        Some(Answer::Ip(ip)) => Ok(Reply::Ip(ip)),
        Some(Answer::Name(n)) => Name::new(n).map(Reply::Name).ok_or(Missing::NoName),
        None => Err(Missing::Refused),
    }
}

fn wait(fd: sys::Fd, events: i16, deadline: i64) -> Result<(), Missing> {
    loop {
        let left = deadline - sys::now_ms();
        if left <= 0 {
            log::refused!("no answer from Tor in time");
            return Err(Missing::Refused);
        }
        let mut p = [libc::pollfd {
            fd,
            events,
            revents: 0,
        }];
        match crate::wait::for_libc(&mut p, left, core::ptr::null()) {
            Ok(0) | Err(Errno::EINTR) => {}
            _ => return Ok(()),
        }
    }
}
