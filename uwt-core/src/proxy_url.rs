//! The proxy as a URL, for programs that take their proxy natively: `socks5h://USER:PASS@HOST:PORT`.
//!
//! curl 8 refuses `.onion` by itself (RFC 7686), so the shim never sees the name; told its proxy by
//! `ALL_PROXY`, it hands the name to Tor. Launcher and shim write the same form, so that the shim can
//! know the launcher's again and give each process credentials of its own.

use crate::isolation::Credentials;
use crate::route::Socks;
use core::fmt::Write;
use core::net::IpAddr;

/// The longest URL: scheme, two fields of 255 bytes and a path of 107 percent-encoded, and separators.
pub const MAX: usize = 2048;

/// How every URL that uwt writes starts (the percent-encoded form of `<torS0X>0` and a colon), which
/// nobody writes by hand.
pub const OURS: &str = "socks5h://%3CtorS0X%3E0:";

/// A URL under construction.
pub struct Url {
    bytes: [u8; MAX],
    len: usize,
}

impl Write for Url {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let to = self.bytes.get_mut(self.len..self.len + s.len());
        to.ok_or(core::fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len += s.len();
        Ok(())
    }
}

impl Url {
    /// Percent-encodes all but the unreserved characters (RFC 3986, section 2.3), and `keep`.
    fn encoded(&mut self, data: &[u8], keep: u8) -> core::fmt::Result {
        for b in data {
            if b.is_ascii_alphanumeric() || b"-._~".contains(b) || *b == keep {
                self.write_char(char::from(*b))?;
            } else {
                write!(self, "%{b:02X}")?;
            }
        }
        Ok(())
    }

    /// The URL, in ASCII.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The URL of `socks` with `credentials`, if there are any. `None` if it would be longer than [`MAX`].
    ///
    /// A unix socket is written as curl has it: `socks5h://USER:PASS@localhost/PATH`.
    pub fn new(socks: &Socks<'_>, credentials: Option<&Credentials>) -> Option<Url> {
        let mut url = Url {
            bytes: [0; MAX],
            len: 0,
        };
        url.write(socks, credentials).ok()?;
        Some(url)
    }

    fn write(&mut self, socks: &Socks<'_>, credentials: Option<&Credentials>) -> core::fmt::Result {
        self.write_str("socks5h://")?;
        if let Some(c) = credentials {
            self.encoded(c.user(), b'-')?;
            self.write_char(':')?;
            self.encoded(c.pass(), b'-')?;
            self.write_char('@')?;
        }
        match socks {
            Socks::Ip(a) => match a.ip() {
                IpAddr::V4(ip) => write!(self, "{ip}:{}", a.port()),
                IpAddr::V6(ip) => write!(self, "[{ip}]:{}", a.port()),
            },
            Socks::Unix(path) => {
                self.write_str("localhost")?;
                self.encoded(path, b'/')
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let c = Credentials::fixed(b"<torS0X>0", b"uwt:a.b").expect("c");
        let v4 = Socks::Ip("127.0.0.1:9050".parse().expect("a"));
        let url = Url::new(&v4, Some(&c)).expect("url");
        assert_eq!(
            url.bytes(),
            b"socks5h://%3CtorS0X%3E0:uwt%3Aa.b@127.0.0.1:9050"
        );
        assert!(url.bytes().starts_with(OURS.as_bytes()));
        let v6 = Socks::Ip("[::1]:9150".parse().expect("a"));
        assert_eq!(
            Url::new(&v6, None).expect("url").bytes(),
            b"socks5h://[::1]:9150"
        );
        let unix = Socks::Unix(b"/run/tor/so cks");
        assert_eq!(
            Url::new(&unix, None).expect("url").bytes(),
            b"socks5h://localhost/run/tor/so%20cks"
        );
        let long = Credentials::fixed(&[b'<'; 255], &[b'>'; 255]).expect("c");
        let deep = Socks::Unix(&[b' '; 107]);
        assert!(Url::new(&deep, Some(&long)).is_some());
    }
}
