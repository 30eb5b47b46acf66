//! The client side of SOCKS 5 as Tor speaks it: RFC 1928, RFC 1929, Tor's RESOLVE (F0), RESOLVE_PTR
//! (F1) and extended reply codes (F0-F7; socks-extensions in Tor's specifications).
//!
//! The whole client side goes out in one write ([`Request`]): greeting, authentication, request; one
//! round trip to the proxy instead of three. When they arrive together, tor leaves out its method
//! reply (`05 02`) and starts with the authentication reply (`01 00`); sent apart, both come.
//! [`Handshake`] accepts both and nothing else. It says how many bytes it can still take without
//! reading past the proxy's reply: what follows belongs to the program.
//!
//! Only method 02 (username/password) is offered when there are credentials, so that a proxy that
//! would ignore them, and with them isolation, is refused rather than used.

use crate::errno::Errno;
use crate::isolation::Credentials;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest request: greeting 3, authentication 3 + 255 + 255, request 4 + 1 + 255 + 2.
pub const REQUEST_MAX: usize = 3 + 513 + 262;

/// The longest reply: method 2, authentication 2, reply 4 + 1 + 255 + 2.
const REPLY_MAX: usize = 266;

/// What is asked of the proxy (RFC 1928, section 4; Tor's extensions).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// 01: a TCP connection.
    Connect,
    /// F0, Tor: the address of a hostname.
    Resolve,
    /// F1, Tor: the hostname of an address.
    ResolvePtr,
}

/// Where to: an address, or a hostname of 1 to 255 bytes that the proxy resolves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target<'a> {
    /// ATYP 01 or 04.
    Ip(IpAddr),
    /// ATYP 03: as given, never resolved here.
    Name(&'a [u8]),
}

/// The bytes that the client sends, all of them.
pub struct Request {
    len: usize,
    bytes: [u8; REQUEST_MAX],
}

impl Request {
    /// Encodes greeting, authentication (if there are credentials) and request.
    ///
    /// `None` if a hostname is empty or longer than 255 bytes.
    pub fn new(
        credentials: Option<&Credentials>,
        command: Command,
        target: Target<'_>,
        port: u16,
    ) -> Option<Request> {
        let mut r = Request {
            len: 0,
            bytes: [0; REQUEST_MAX],
        };
        match credentials {
            Some(c) => {
                r.push(&[5, 1, 2]);
                r.push(&[1, c.user().len() as u8]);
                r.push(c.user());
                r.push(&[c.pass().len() as u8]);
                r.push(c.pass());
            }
            None => r.push(&[5, 1, 0]),
        }
        let cmd = match command {
            Command::Connect => 0x01,
            Command::Resolve => 0xf0,
            Command::ResolvePtr => 0xf1,
        };
        r.push(&[5, cmd, 0]);
        match target {
            Target::Ip(IpAddr::V4(a)) => {
                r.push(&[1]);
                r.push(&a.octets());
            }
            Target::Ip(IpAddr::V6(a)) => {
                r.push(&[4]);
                r.push(&a.octets());
            }
            Target::Name(n) => {
                let len = u8::try_from(n.len()).ok().filter(|l| *l > 0)?;
                r.push(&[3, len]);
                r.push(n);
            }
        }
        r.push(&port.to_be_bytes());
        Some(r)
    }

    fn push(&mut self, data: &[u8]) {
        for b in data {
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = *b;
                self.len += 1;
            }
        }
    }

    /// What to send, in one write if the socket takes it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Why a handshake failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The first bytes are not SOCKS 5.
    NotSocks(u8),
    /// The proxy chose a method that was not offered: it would ignore the credentials (00), or
    /// accepts none of ours (FF).
    Method(u8),
    /// RFC 1929 status other than 0.
    Authentication(u8),
    /// A reply that RFC 1928 does not allow.
    Malformed,
    /// The proxy closed the connection within the handshake.
    Closed,
    /// A reply code other than 0.
    Refused(u8),
}

impl Failure {
    /// The errno that the program gets.
    pub fn errno(self) -> Errno {
        match self {
            Failure::Refused(code) => match code {
                0x02 | 0xf4 | 0xf5 => Errno::EACCES,
                0x03 => Errno::ENETUNREACH,
                0x04 | 0xf0 | 0xf1 | 0xf6 => Errno::EHOSTUNREACH,
                0x06 | 0xf3 | 0xf7 => Errno::ETIMEDOUT,
                0x07 => Errno::EOPNOTSUPP,
                0x08 => Errno::EAFNOSUPPORT,
                _ => Errno::ECONNREFUSED,
            },
            _ => Errno::ECONNREFUSED,
        }
    }

    /// One line for a person: what happened and, where there is something to do, what.
    pub fn message(self) -> &'static str {
        match self {
            Failure::NotSocks(_) => {
                "the SOCKS address does not speak SOCKS 5; check --address and --port"
            }
            Failure::Method(0) => {
                "the proxy ignores username and password, so it cannot isolate; use Tor's SocksPort"
            }
            Failure::Method(_) => {
                "the proxy does not take username and password; use Tor's SocksPort"
            }
            Failure::Authentication(_) => "the proxy refused username and password",
            Failure::Malformed => "the proxy's reply is not a SOCKS 5 reply",
            Failure::Closed => "the proxy closed the connection within the handshake",
            Failure::Refused(code) => match code {
                0x01 => "general SOCKS server failure",
                0x02 => "connection not allowed by Tor's rules",
                0x03 => "network unreachable",
                0x04 => "host unreachable",
                0x05 => "connection refused",
                0x06 => "TTL expired (Tor: the connection timed out)",
                0x07 => "command not supported",
                0x08 => "address type not supported",
                0xf0 => "onion service descriptor can not be found",
                0xf1 => "onion service descriptor is invalid",
                0xf2 => "onion service introduction failed",
                0xf3 => "onion service rendezvous failed",
                0xf4 => "onion service needs client authorization",
                0xf5 => "onion service: wrong client authorization",
                0xf6 => "invalid onion address",
                0xf7 => "onion service introduction timed out",
                _ => "the proxy refused with a code that is not known",
            },
        }
    }
}

/// What a successful reply says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<'a> {
    /// BND.ADDR, or for RESOLVE the address asked for.
    Ip(IpAddr),
    /// For RESOLVE_PTR: the hostname asked for.
    Name(&'a [u8]),
}

/// Where a handshake stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Read at most this many bytes more (never 0), and [`Handshake::feed`] what came.
    Want(usize),
    /// The proxy said yes; the next byte on the connection is the program's.
    Done,
    /// It did not, or this is not a proxy.
    Failed(Failure),
}

/// The proxy's side of the handshake, fed as it arrives.
#[derive(Clone)]
pub struct Handshake {
    authenticate: bool,
    len: u16,
    bytes: [u8; REPLY_MAX],
}

impl Handshake {
    /// `authenticate`: whether the [`Request`] carried credentials.
    pub fn new(authenticate: bool) -> Handshake {
        Handshake {
            authenticate,
            len: 0,
            bytes: [0; REPLY_MAX],
        }
    }

    fn seen(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    /// Takes bytes that the proxy sent, at most as many as the last [`Progress::Want`] allowed.
    ///
    /// More than that is [`Failure::Malformed`]: the excess would have been the program's.
    pub fn feed(&mut self, data: &[u8]) -> Progress {
        if let Progress::Want(n) = self.progress() {
            if data.len() > n {
                return Progress::Failed(Failure::Malformed);
            }
            let at = self.len as usize;
            for (slot, b) in self.bytes[at..].iter_mut().zip(data) {
                *slot = *b;
            }
            self.len += data.len() as u16;
        }
        self.progress()
    }

    /// The offset at which the reply proper starts, or what to do before it can be known.
    fn reply_at(&self) -> Result<usize, Progress> {
        // The shortest reply there is: one with a name of no length.
        const REPLY: usize = 7;
        let s = self.seen();
        let fail = |f| Err(Progress::Failed(f));
        if !self.authenticate {
            return match *s {
                [] => Err(Progress::Want(2 + REPLY)),
                [5] => Err(Progress::Want(1 + REPLY)),
                [5, 0, ..] => Ok(2),
                [5, m, ..] => fail(Failure::Method(m)),
                [v, ..] => fail(Failure::NotSocks(v)),
            };
        }
        match *s {
            [] => Err(Progress::Want(2 + REPLY)),
            [5 | 1] => Err(Progress::Want(1 + REPLY)),
            [1, 0, ..] => Ok(2),
            [1, status, ..] => fail(Failure::Authentication(status)),
            [5, 2] => Err(Progress::Want(2 + REPLY)),
            [5, 2, 1] => Err(Progress::Want(1 + REPLY)),
            [5, 2, 1, 0, ..] => Ok(4),
            [5, 2, 1, status, ..] => fail(Failure::Authentication(status)),
            [5, 2, _, ..] => fail(Failure::Malformed),
            [5, m, ..] => fail(Failure::Method(m)),
            [v, ..] => fail(Failure::NotSocks(v)),
        }
    }

    /// Where the handshake stands now.
    pub fn progress(&self) -> Progress {
        let at = match self.reply_at() {
            Ok(at) => at,
            Err(p) => return p,
        };
        let reply = &self.seen()[at..];
        // Refusals may be cut short by a proxy that closes at once: the code is enough.
        match *reply {
            [v, ..] if v != 5 => return Progress::Failed(Failure::Malformed),
            [_, code, ..] if code != 0 => return Progress::Failed(Failure::Refused(code)),
            [_, _, _, a, ..] if !matches!(a, 1 | 3 | 4) => {
                return Progress::Failed(Failure::Malformed);
            }
            _ => {}
        }
        let total = match *reply {
            [_, _, _, 4, ..] => 22,
            [_, _, _, 3, n, ..] => 7 + n as usize,
            [_, _, _, 1, ..] => 10,
            // The type of address or a name's length is not known yet: the shortest reply there is.
            _ => 7,
        };
        if reply.len() < total {
            Progress::Want(total - reply.len())
        } else {
            Progress::Done
        }
    }

    /// What the proxy answered, once [`Progress::Done`].
    pub fn answer(&self) -> Option<Answer<'_>> {
        if self.progress() != Progress::Done {
            return None;
        }
        let reply = self.seen().get(self.reply_at().ok()?..)?;
        match *reply {
            [_, _, _, 1, a, b, c, d, ..] => Some(Answer::Ip(Ipv4Addr::new(a, b, c, d).into())),
            [_, _, _, 4, ref rest @ ..] => {
                let octets: [u8; 16] = rest.get(..16)?.try_into().ok()?;
                Some(Answer::Ip(Ipv6Addr::from(octets).into()))
            }
            [_, _, _, 3, n, ref rest @ ..] => Some(Answer::Name(rest.get(..n as usize)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn creds() -> Credentials {
        Credentials::fixed(b"user", b"pw").expect("creds")
    }

    /// Feeds `stream` in pieces of at most `step`, reading only what is wanted; gives the end and
    /// how many bytes were taken.
    fn run(authenticate: bool, stream: &[u8], step: usize) -> (Handshake, Progress, usize) {
        let mut h = Handshake::new(authenticate);
        let mut at = 0;
        loop {
            match h.progress() {
                Progress::Want(n) => {
                    assert!(n > 0);
                    let take = n.min(step).min(stream.len() - at);
                    if take == 0 {
                        return (h, Progress::Failed(Failure::Closed), at);
                    }
                    h.feed(&stream[at..at + take]);
                    at += take;
                }
                p => return (h, p, at),
            }
        }
    }

    #[test]
    fn the_request_is_what_the_rfcs_say() {
        let c = creds();
        let r = Request::new(Some(&c), Command::Connect, Target::Name(b"a.b"), 443).expect("r");
        assert_eq!(
            r.bytes(),
            b"\x05\x01\x02\x01\x04user\x02pw\x05\x01\x00\x03\x03a.b\x01\xbb"
        );
        let r = Request::new(
            None,
            Command::ResolvePtr,
            Target::Ip(Ipv4Addr::new(1, 2, 3, 4).into()),
            0,
        )
        .expect("r");
        assert_eq!(
            r.bytes(),
            b"\x05\x01\x00\x05\xf1\x00\x01\x01\x02\x03\x04\0\0"
        );
        assert!(Request::new(None, Command::Connect, Target::Name(b""), 1).is_none());
        assert!(Request::new(None, Command::Connect, Target::Name(&[b'a'; 256]), 1).is_none());
        let c = Credentials::fixed(&[b'u'; 255], &[b'p'; 255]).expect("c");
        let r = Request::new(Some(&c), Command::Resolve, Target::Name(&[b'n'; 255]), 1).expect("r");
        assert_eq!(r.bytes().len(), REQUEST_MAX);
    }

    #[test]
    fn both_forms_of_tors_reply_and_never_a_byte_too_many() {
        let replies: [&[u8]; 3] = [
            b"\x05\0\0\x01\x7f\0\0\x01\0\x50",
            b"\x05\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x50",
            b"\x05\0\0\x03\x05a.b.c\0\0",
        ];
        for reply in replies {
            for (auth, prefix) in [
                (true, &b"\x05\x02\x01\0"[..]),
                (true, b"\x01\0"),
                (false, b"\x05\0"),
            ] {
                let mut stream: Vec<u8> = prefix.to_vec();
                stream.extend_from_slice(reply);
                let end = stream.len();
                stream.extend_from_slice(b"the program's own bytes");
                for step in [1, 2, 3, 5, 7, 300] {
                    let (h, p, at) = run(auth, &stream, step);
                    assert_eq!((p, at), (Progress::Done, end), "{prefix:?} {step}");
                    match h.answer().expect("answer") {
                        Answer::Name(n) => assert_eq!(n, b"a.b.c"),
                        Answer::Ip(ip) => assert!(ip.is_loopback()),
                    }
                }
            }
        }
    }

    #[test]
    fn a_proxy_that_would_not_isolate_is_refused() {
        assert_eq!(
            run(true, b"\x05\0\x05\0\0\x01\0\0\0\0\0\0", 300).1,
            Progress::Failed(Failure::Method(0))
        );
        assert_eq!(
            run(true, b"\x05\xff", 300).1,
            Progress::Failed(Failure::Method(0xff))
        );
        assert_eq!(
            run(true, b"\x01\x01", 300).1,
            Progress::Failed(Failure::Authentication(1))
        );
        assert_eq!(
            run(false, b"\x05\x02", 300).1,
            Progress::Failed(Failure::Method(2))
        );
        assert_eq!(
            run(true, b"HTTP/1.1 400", 300).1,
            Progress::Failed(Failure::NotSocks(b'H'))
        );
    }

    #[test]
    fn every_truncation_is_closed_and_every_code_refused() {
        let whole = b"\x05\x02\x01\0\x05\0\0\x01\x7f\0\0\x01\0\x50";
        for cut in 0..whole.len() {
            let (_, p, _) = run(true, &whole[..cut], 300);
            assert_eq!(p, Progress::Failed(Failure::Closed), "{cut}");
        }
        for code in 1..=255u8 {
            let stream = [1, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0];
            let (_, p, _) = run(true, &stream, 300);
            assert_eq!(p, Progress::Failed(Failure::Refused(code)));
            assert!(Failure::Refused(code).errno().0 > 0);
        }
    }

    #[test]
    fn more_than_was_wanted_is_malformed() {
        let mut h = Handshake::new(true);
        assert_eq!(h.progress(), Progress::Want(9));
        assert_eq!(h.feed(&[1; 10]), Progress::Failed(Failure::Malformed));
    }
}
