//! What the kernel hands the broker: SYNs from the queue, questions about sockets answered. What is in a packet was
//! written by the command; nothing of it is trusted.

use crate::netns::netlink::{Messages, attributes, split};
use crate::netns::rules::Mark;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SUBSYSTEM_QUEUE: u16 = 3;
const PACKET: u16 = SUBSYSTEM_QUEUE << 8;
const VERDICT: u16 = SUBSYSTEM_QUEUE << 8 | 1;

/// A connection that is being made: its two ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ends {
    /// The command's.
    pub from: SocketAddr,
    /// Where it wants to go.
    pub to: SocketAddr,
}

/// A SYN that waits for a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syn {
    /// The packet's number in the queue.
    pub id: u32,
    /// Whose it is; `None` if it cannot be read.
    pub ends: Option<Ends>,
    /// Its sequence number.
    pub sequence: u32,
}

fn port(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The ends and the sequence number of a TCP packet: IPv4, or IPv6 with TCP right behind its header.
pub fn ends(packet: &[u8]) -> Option<(Ends, u32)> {
    const TCP: u8 = 6;
    let (from, to, header): (IpAddr, IpAddr, usize) = match packet.first()? >> 4 {
        4 if *packet.get(9)? == TCP => {
            let at = |i: usize| -> Option<[u8; 4]> { packet.get(i..i + 4)?.try_into().ok() };
            let header = usize::from(packet[0] & 15) * 4;
            let (from, to) = (Ipv4Addr::from(at(12)?), Ipv4Addr::from(at(16)?));
            (from.into(), to.into(), header.max(20))
        }
        6 if *packet.get(6)? == TCP => {
            let at = |i: usize| -> Option<[u8; 16]> { packet.get(i..i + 16)?.try_into().ok() };
            let (from, to) = (Ipv6Addr::from(at(8)?), Ipv6Addr::from(at(24)?));
            (from.into(), to.into(), 40)
        }
        _ => return None,
    };
    let sequence = packet.get(header + 4..header + 8)?.try_into().ok()?;
    let ends = Ends {
        from: SocketAddr::new(from, port(packet, header)?),
        to: SocketAddr::new(to, port(packet, header + 2)?),
    };
    Some((ends, u32::from_be_bytes(sequence)))
}

/// The SYNs in what was read from the queue.
pub fn syns(bytes: &[u8]) -> impl Iterator<Item = Syn> {
    const HEADER: u16 = 1;
    const PAYLOAD: u16 = 10;
    split(bytes).filter_map(|(kind, _, body)| {
        if kind != PACKET {
            return None;
        }
        let (mut id, mut found) = (None, None);
        // Behind struct nfgenmsg.
        for (kind, value) in attributes(body.get(4..)?) {
            match kind {
                HEADER => id = value.get(..4).and_then(|v| v.try_into().ok()),
                PAYLOAD => found = ends(value),
                _ => {}
            }
        }
        let id = u32::from_be_bytes(id?);
        Some(Syn {
            id,
            ends: found.map(|f| f.0),
            sequence: found.map_or(0, |f| f.1),
        })
    })
}

/// Adds a verdict: let through with a mark, or dropped without one.
pub fn verdict(messages: &mut Messages, id: u32, mark: Option<Mark>) {
    const DROP: u32 = 0;
    const ACCEPT: u32 = 1;
    const HEADER: u16 = 2;
    const MARK: u16 = 3;
    let code = mark.map_or(DROP, |_| ACCEPT);
    let header = [libc::AF_UNSPEC as u8, 0, 0, 0];
    messages.add(VERDICT, 0, &header, |b| {
        b.attribute(HEADER, &[code.to_be_bytes(), id.to_be_bytes()].concat());
        if let Some(mark) = mark {
            b.number(MARK, mark.value());
        }
    });
}

/// What the kernel knows of a socket (inet_diag, sock_diag(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its state: 10 is LISTEN.
    pub state: u8,
    /// Its inode, as /proc/PID/fd shows it; 0: none.
    pub inode: u32,
}

/// TCP_LISTEN.
pub const LISTEN: u8 = 10;

/// The question for the socket at `ends.from` that is connected, or connecting, to `ends.to`; or for one that listens
/// at `ends.from`.
pub fn question(ends: Ends) -> Messages {
    let address = |ip: IpAddr| -> [u8; 16] {
        match ip {
            IpAddr::V4(a) => {
                let mut b = [0; 16];
                b[..4].copy_from_slice(&a.octets());
                b
            }
            IpAddr::V6(a) => a.octets(),
        }
    };
    let family = if ends.from.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // struct inet_diag_req_v2: family, protocol, extensions, pad, states; then struct inet_diag_sockid: ports,
    // addresses, interface, cookie (all ones: any).
    let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&ends.from.port().to_be_bytes());
    request.extend_from_slice(&ends.to.port().to_be_bytes());
    request.extend_from_slice(&address(ends.from.ip()));
    request.extend_from_slice(&address(ends.to.ip()));
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&[0xff; 8]);
    let mut m = Messages::default();
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    m.add(SOCK_DIAG_BY_FAMILY, 0, &request, |_| {});
    m
}

/// The answer; `None`: there is no such socket.
pub fn found(bytes: &[u8]) -> Option<Found> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    let (kind, _, body) = split(bytes).next()?;
    if kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    // struct inet_diag_msg: state at 1, inode at 68.
    let inode = body.get(68..72)?.try_into().ok()?;
    Some(Found {
        state: body[1],
        inode: u32::from_ne_bytes(inode),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_from_both_families_and_nothing_else() {
        let mut four = vec![
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7,
        ];
        four.extend_from_slice(&[0x30, 0x39, 0, 80, 0, 0, 1, 2]);
        let (e, sequence) = ends(&four).expect("IPv4");
        assert_eq!(sequence, 258);
        assert_eq!(e.from.to_string(), "192.0.2.1:12345");
        assert_eq!(e.to.to_string(), "198.51.100.7:80");
        let mut six = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
        six.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
        six.extend_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().expect("address").octets());
        six.extend_from_slice(&[0x30, 0x39, 1, 187, 0, 0, 0, 0]);
        assert_eq!(
            ends(&six).expect("IPv6").0.to.to_string(),
            "[2001:db8::7]:443"
        );
        for len in 0..four.len() {
            assert_eq!(ends(&four[..len]), None, "{len}");
        }
        for len in 0..six.len() {
            assert_eq!(ends(&six[..len]), None, "{len}");
        }
        four[9] = 17;
        assert_eq!(ends(&four), None);
    }
}
