//! DNS messages (RFC 1035, section 4): reads a query's question, writes an answer.
//!
//! For programs that speak DNS themselves (res_query(3)): what they ask is answered from the same place as
//! getaddrinfo(3), and no query ever leaves.

use crate::hostname::NAME_MAX;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// QTYPE A: an IPv4 address.
pub const A: u16 = 1;
/// QTYPE PTR: a name.
pub const PTR: u16 = 12;
/// QTYPE AAAA: an IPv6 address.
pub const AAAA: u16 = 28;

const HEADER: usize = 12;

/// What is asked.
#[derive(Clone)]
pub struct Question {
    id: u16,
    name: [u8; NAME_MAX],
    len: usize,
    /// QTYPE.
    pub kind: u16,
}

/// What is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// An address.
    A(Ipv4Addr),
    /// A name, without a final dot.
    Ptr(&'a [u8]),
    /// The name exists, and has no such record.
    None,
    /// The name does not exist (NXDOMAIN).
    NoName,
}

impl Question {
    /// A question as res_query(3) takes it; `None` if the name is longer than 255 bytes.
    pub fn new(name: &[u8], kind: u16) -> Option<Question> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        let mut q = Question {
            id: 0,
            name: [0; NAME_MAX],
            len: name.len(),
            kind,
        };
        q.name.get_mut(..name.len())?.copy_from_slice(name);
        Some(q)
    }

    /// The question of a query message: one question, class IN, no compression.
    pub fn parse(message: &[u8]) -> Option<Question> {
        let word = |at: usize| {
            Some(u16::from_be_bytes([
                *message.get(at)?,
                *message.get(at + 1)?,
            ]))
        };
        // A response, or another opcode than QUERY, is no question.
        if word(2)? & 0xf800 != 0 || word(4)? != 1 {
            return None;
        }
        let mut q = Question {
            id: word(0)?,
            name: [0; NAME_MAX],
            len: 0,
            kind: 0,
        };
        let mut at = HEADER;
        loop {
            let n = usize::from(*message.get(at)?);
            at += 1;
            if n == 0 {
                break;
            }
            if n > 63 {
                return None;
            }
            let label = message.get(at..at + n)?;
            at += n;
            if q.len > 0 {
                *q.name.get_mut(q.len)? = b'.';
                q.len += 1;
            }
            q.name.get_mut(q.len..q.len + n)?.copy_from_slice(label);
            q.len += n;
        }
        q.kind = word(at)?;
        (word(at + 2)? == 1).then_some(q)
    }

    /// The name that is asked for, without a final dot.
    pub fn name(&self) -> &[u8] {
        &self.name[..self.len]
    }

    /// The address that a PTR question is about: `4.3.2.1.in-addr.arpa`, 32 nibbles `.ip6.arpa`
    /// (RFC 1035, section 3.5; RFC 3596, section 2.5).
    pub fn address(&self) -> Option<IpAddr> {
        let strip = |suffix: &[u8]| {
            let cut = self.len.checked_sub(suffix.len())?;
            let (head, tail) = self.name().split_at(cut);
            tail.eq_ignore_ascii_case(suffix).then_some(head)
        };
        if let Some(head) = strip(b".in-addr.arpa") {
            let mut octets = [0u8; 4];
            let mut labels = head.split(|b| *b == b'.');
            for octet in octets.iter_mut().rev() {
                *octet = core::str::from_utf8(labels.next()?).ok()?.parse().ok()?;
            }
            return labels
                .next()
                .is_none()
                .then(|| Ipv4Addr::from(octets).into());
        }
        let head = strip(b".ip6.arpa")?;
        let mut bits = 0u128;
        let mut count = 0;
        for label in head.split(|b| *b == b'.') {
            let [digit] = label else { return None };
            let nibble = char::from(*digit).to_digit(16)?;
            if count == 32 {
                return None;
            }
            bits |= u128::from(nibble) << (4 * count);
            count += 1;
        }
        (count == 32).then(|| Ipv6Addr::from(bits).into())
    }

    /// Writes the answer; gives its length, or `None` if `out` is too short or a name is malformed.
    pub fn answer(&self, record: Record<'_>, out: &mut [u8]) -> Option<usize> {
        let mut w = Writer { out, len: 0 };
        let found = matches!(record, Record::A(_) | Record::Ptr(_));
        let rcode = if record == Record::NoName { 3 } else { 0 };
        w.word(self.id)?;
        // QR, RD, RA.
        w.word(0x8180 | rcode)?;
        w.word(1)?;
        w.word(u16::from(found))?;
        w.word(0)?;
        w.word(0)?;
        w.name(self.name())?;
        w.word(self.kind)?;
        w.word(1)?;
        if found {
            // The name again, as a pointer to the question's; class IN; a minute to live.
            w.word(0xc000 | HEADER as u16)?;
            w.word(if matches!(record, Record::A(_)) {
                A
            } else {
                PTR
            })?;
            w.word(1)?;
            w.word(0)?;
            w.word(60)?;
        }
        match record {
            Record::A(ip) => {
                w.word(4)?;
                w.bytes(&ip.octets())?;
            }
            Record::Ptr(name) => {
                let name = name.strip_suffix(b".").unwrap_or(name);
                let len = if name.is_empty() { 1 } else { name.len() + 2 };
                w.word(len as u16)?;
                w.name(name)?;
            }
            Record::None | Record::NoName => {}
        }
        Some(w.len)
    }
}

struct Writer<'o> {
    out: &'o mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, data: &[u8]) -> Option<()> {
        self.out
            .get_mut(self.len..self.len + data.len())?
            .copy_from_slice(data);
        self.len += data.len();
        Some(())
    }

    fn word(&mut self, w: u16) -> Option<()> {
        self.bytes(&w.to_be_bytes())
    }

    fn name(&mut self, name: &[u8]) -> Option<()> {
        for label in name.split(|b| *b == b'.') {
            if name.is_empty() {
                break;
            }
            let n = u8::try_from(label.len())
                .ok()
                .filter(|n| (1..=63).contains(n))?;
            self.bytes(&[n])?;
            self.bytes(label)?;
        }
        self.bytes(&[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\0\0\x01\0\x01";

    #[test]
    fn question_and_answer() {
        let q = Question::parse(QUERY).expect("parse");
        assert_eq!((q.name(), q.kind), (&b"www.example"[..], A));
        let mut out = [0; 512];
        let n = q
            .answer(Record::A(Ipv4Addr::new(127, 128, 0, 9)), &mut out)
            .expect("answer");
        assert_eq!(&out[..2], b"\x12\x34");
        assert_eq!(&out[n - 6..n], b"\0\x04\x7f\x80\0\x09");
        assert_eq!(out[7], 1);
        let n = q.answer(Record::None, &mut out).expect("answer");
        assert_eq!((out[3] & 15, out[7], n), (0, 0, QUERY.len()));
        q.answer(Record::NoName, &mut out).expect("answer");
        assert_eq!(out[3] & 15, 3);
        assert!(q.answer(Record::None, &mut out[..20]).is_none());
    }

    #[test]
    fn reverse_names() {
        let q = |n: &[u8]| Question::new(n, PTR).expect("q").address();
        assert_eq!(
            q(b"4.3.128.127.in-addr.arpa."),
            Some(Ipv4Addr::new(127, 128, 3, 4).into())
        );
        assert_eq!(q(b"3.128.127.in-addr.arpa"), None);
        assert_eq!(q(b"5.4.3.128.127.in-addr.arpa"), None);
        assert_eq!(q(b"www.example"), None);
        let mut v6 = [0u8; 72];
        for (i, c) in b"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa"
            .iter()
            .enumerate()
        {
            v6[i] = *c;
        }
        assert_eq!(q(&v6), Some(Ipv6Addr::LOCALHOST.into()));
    }

    #[test]
    fn malformed_messages() {
        for cut in 0..QUERY.len() {
            assert!(Question::parse(&QUERY[..cut]).is_none(), "{cut}");
        }
        let mut response = [0u8; 29];
        response[..QUERY.len()].copy_from_slice(QUERY);
        response[2] |= 0x80;
        assert!(Question::parse(&response).is_none());
        assert!(Question::new(&[b'a'; 300], A).is_none());
    }
}
