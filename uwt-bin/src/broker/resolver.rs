//! The resolver inside: UDP, port 53 of every address. A name gets the run's virtual address; nothing is asked of
//! anybody unless `dns = "resolve"` says so.

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use uwt_core::dns::{A, PTR, Question, Record};
use uwt_core::handoff::Dns;
use uwt_core::hostname::{self, Hostname, NAME_MAX};
use uwt_core::names::{self, NameTable};

/// The longest question that is read: what UDP carries without EDNS, and room for its OPT record.
const MESSAGE_MAX: usize = 1500;

/// A question as it came.
pub struct Received {
    /// The question.
    pub question: Question,
    /// Who asked.
    pub from: SocketAddr,
    /// The address that was asked.
    pub to: SocketAddr,
}

/// What is to be done about a question.
pub enum Reply {
    /// This address.
    Address(std::net::Ipv4Addr),
    /// This name.
    Name(Vec<u8>),
    /// The name has no such record.
    None,
    /// There is no such name.
    NoName,
    /// Tor is asked for the name's address.
    Forward,
    /// Tor is asked for the address's name.
    Reverse(IpAddr),
}

fn ip_of(a: &SockaddrStorage) -> Option<SocketAddr> {
    let four = a
        .as_sockaddr_in()
        .map(|a| SocketAddr::from((a.ip(), a.port())));
    four.or_else(|| {
        a.as_sockaddr_in6()
            .map(|a| SocketAddr::from((a.ip(), a.port())))
    })
}

/// Reads one question; `Some(None)` for what is none, `None` when there is nothing more.
pub fn receive(socket: &OwnedFd) -> Option<Option<Received>> {
    let mut buf = [0u8; MESSAGE_MAX];
    let mut io = [IoSliceMut::new(&mut buf)];
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut io, Some(&mut space), flags);
    let message = match message {
        Ok(m) => m,
        Err(nix::errno::Errno::EAGAIN) => return None,
        Err(_) => return Some(None),
    };
    let from = message.address.as_ref().and_then(ip_of);
    let mut to = None;
    for c in message.cmsgs().into_iter().flatten() {
        to = match c {
            ControlMessageOwned::Ipv4PacketInfo(i) => {
                Some(IpAddr::from(u32::from_be(i.ipi_addr.s_addr).to_be_bytes()))
            }
            ControlMessageOwned::Ipv6PacketInfo(i) => Some(IpAddr::from(i.ipi6_addr.s6_addr)),
            _ => to,
        };
    }
    let len = message.bytes;
    let (Some(from), Some(to)) = (from, to) else {
        return Some(None);
    };
    let question = Question::parse(&buf[..len]);
    Some(question.map(|question| Received {
        question,
        from,
        to: (to, 53).into(),
    }))
}

impl Received {
    /// Answers it on the socket it came to, from the address that was asked.
    pub fn answer(&self, socket: &OwnedFd, record: Record<'_>) {
        let mut out = [0u8; MESSAGE_MAX];
        let Some(n) = self.question.answer(record, &mut out) else {
            return;
        };
        let io = [IoSlice::new(&out[..n])];
        let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        // An answer that does not go is asked for again.
        match (self.from, self.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(to.ip().octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let c = [ControlMessage::Ipv4PacketInfo(&info)];
                let _ = sendmsg(fd, &io, &c, flags, Some(&SockaddrIn::from(from)));
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: to.ip().octets(),
                    },
                    ipi6_ifindex: 0,
                };
                let c = [ControlMessage::Ipv6PacketInfo(&info)];
                let _ = sendmsg(fd, &io, &c, flags, Some(&SockaddrIn6::from(from)));
            }
            _ => {}
        }
    }
}

/// What is to be done about `q`: the same as the shim does for res_query(3).
pub fn decide(q: &Question, dns: Dns, own_name: &[u8], table: &NameTable<'_>) -> Reply {
    match q.kind {
        A => match hostname::classify(q.name(), own_name) {
            Hostname::Loopback(l) => l.v4().map_or(Reply::None, Reply::Address),
            Hostname::Malformed => Reply::NoName,
            Hostname::Remote(name) => match dns {
                Dns::Refuse => Reply::NoName,
                Dns::Resolve if !hostname::is_onion(name) => Reply::Forward,
                _ => table.address(name).map_or(Reply::NoName, Reply::Address),
            },
        },
        PTR => match q.address() {
            None => Reply::NoName,
            Some(ip) if hostname::is_loopback(ip) && names::virtual_address(ip).is_none() => {
                Reply::Name(b"localhost".to_vec())
            }
            Some(ip) => match names::virtual_address(ip) {
                None if dns == Dns::Refuse => Reply::NoName,
                None => Reply::Reverse(ip),
                Some(address) => {
                    let mut name = [0; NAME_MAX];
                    let name = table.name(address, &mut name);
                    name.map_or(Reply::NoName, |n| Reply::Name(n.to_vec()))
                }
            },
        },
        // The name of a service (RFC 2782): the program goes on with the host.
        _ if q.name().starts_with(b"_") => Reply::NoName,
        _ => Reply::None,
    }
}
