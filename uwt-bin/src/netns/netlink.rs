//! Netlink messages by hand (netlink(7), rtnetlink(7), linux/netfilter/nf_tables.h): starting ip and nft
//! would cost more than the command.

use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The longest answer to one request that is read.
const ANSWER_MAX: usize = 64 * 1024;

/// One message, or several behind one another.
#[derive(Default)]
pub struct Messages {
    bytes: Vec<u8>,
    sequence: u32,
}

/// A message or an attribute that is being written; its length is put in when it ends.
pub struct Body<'m> {
    bytes: &'m mut Vec<u8>,
}

impl Messages {
    /// Adds a message: its type, its flags besides `NLM_F_REQUEST`, its fixed header, and its attributes.
    pub fn add(&mut self, kind: u16, flags: i32, header: &[u8], f: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        let flags = flags as u16 | libc::NLM_F_REQUEST as u16;
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        let mut body = Body {
            bytes: &mut self.bytes,
        };
        body.raw(header);
        f(&mut body);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// The sequence number of the message added last; the first has 1.
    pub fn last(&self) -> u32 {
        self.sequence
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Body<'_> {
    fn raw(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        let end = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(end, 0);
    }

    /// An attribute.
    pub fn attribute(&mut self, kind: u16, data: &[u8]) {
        let len = (data.len() + 4) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(data);
    }

    /// A number in network byte order, as netfilter has them.
    pub fn number(&mut self, kind: u16, n: u32) {
        self.attribute(kind, &n.to_be_bytes());
    }

    /// A string with its NUL.
    pub fn string(&mut self, kind: u16, s: &str) {
        self.attribute(kind, &[s.as_bytes(), b"\0"].concat());
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, f: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        let kind = kind | libc::NLA_F_NESTED as u16;
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        f(self);
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

/// A netlink socket of the caller's network namespace.
pub struct Socket(pub OwnedFd);

impl Socket {
    /// Opens one: `NETLINK_ROUTE`, `NETLINK_NETFILTER`, `NETLINK_SOCK_DIAG`.
    ///
    /// # Errors
    /// socket(2)'s.
    pub fn open(protocol: i32) -> io::Result<Socket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) with plain numbers; the descriptor is new and nobody else's.
        unsafe {
            let fd = libc::socket(libc::AF_NETLINK, kind, protocol);
            if fd < 0 {
                return Err(Error::last_os_error());
            }
            Ok(Socket(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Sends messages to the kernel.
    ///
    /// # Errors
    /// send(2)'s.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the bytes live through the call.
        let n = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if n < 0 {
            return Err(Error::last_os_error());
        }
        Ok(())
    }

    /// Reads what the kernel has to say; how many bytes.
    ///
    /// # Errors
    /// recv(2)'s.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer lives through the call.
        let n = unsafe { libc::recv(self.0.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) };
        usize::try_from(n).map_err(|_| Error::last_os_error())
    }

    /// Sends messages of which the last asks for an acknowledgement, and waits for it.
    ///
    /// # Errors
    /// What the kernel says to the first message that it does not take.
    pub fn ask(&self, messages: &Messages) -> io::Result<()> {
        self.ask_until(messages, messages.last())
    }

    /// The same where the message of number `last` is the last that is acknowledged.
    ///
    /// # Errors
    /// As [`Socket::ask`].
    pub fn ask_until(&self, messages: &Messages, last: u32) -> io::Result<()> {
        self.send(messages.bytes())?;
        let mut buf = vec![0; ANSWER_MAX];
        loop {
            let n = self.receive(&mut buf)?;
            for (kind, sequence, body) in split(&buf[..n]) {
                if kind != libc::NLMSG_ERROR as u16 {
                    continue;
                }
                let code = body.get(..4).and_then(|b| b.try_into().ok());
                match code.map_or(-libc::EBADMSG, i32::from_ne_bytes) {
                    0 if sequence == last => return Ok(()),
                    0 => {}
                    e => return Err(Error::from_raw_os_error(-e)),
                }
            }
        }
    }
}

/// The messages in a datagram: type, sequence number, what is behind the header.
pub fn split(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        let body = bytes.get(16..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, sequence, body))
    })
}

/// The attributes in a message's body: type without flags, and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & libc::NLA_TYPE_MASK as u16, value))
    })
}
