//! Hostnames before they become anything else: which are loopback, which are malformed.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest hostname that fits a SOCKS request (RFC 1928: one length byte).
pub const NAME_MAX: usize = 255;

/// What a hostname that is not an address literal is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hostname<'a> {
    /// Stands for this machine and is answered without asking anybody.
    Loopback(Loopback),
    /// To be carried by Tor under this name: as given, without a final dot.
    Remote(&'a [u8]),
    /// Not a hostname; libc's resolver answers "not known" (EAI_NONAME).
    Malformed,
}

/// Which loopback addresses a loopback name has, as Debian's /etc/hosts gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loopback {
    /// `localhost`, `*.localhost`: ::1 and 127.0.0.1.
    Both,
    /// `ip6-localhost`, `ip6-loopback`: ::1 alone.
    V6,
    /// This machine's own name: 127.0.1.1.
    Own,
}

impl Loopback {
    /// Its IPv4 address, if it has one.
    pub fn v4(self) -> Option<Ipv4Addr> {
        match self {
            Loopback::Both => Some(Ipv4Addr::LOCALHOST),
            Loopback::V6 => None,
            Loopback::Own => Some(Ipv4Addr::new(127, 0, 1, 1)),
        }
    }

    /// Its IPv6 address, if it has one.
    pub fn v6(self) -> Option<Ipv6Addr> {
        match self {
            Loopback::Both | Loopback::V6 => Some(Ipv6Addr::LOCALHOST),
            Loopback::Own => None,
        }
    }
}

fn is(name: &[u8], other: &[u8]) -> bool {
    name.eq_ignore_ascii_case(other)
}

fn ends_with(name: &[u8], suffix: &[u8]) -> bool {
    name.len() > suffix.len() && is(&name[name.len() - suffix.len()..], suffix)
}

/// Whether `name` is an onion service's, which has no address to resolve to (RFC 7686). A final dot is off already.
pub fn is_onion(name: &[u8]) -> bool {
    ends_with(name, b".onion")
}

/// Says what `name` is. `own` is this machine's own name (uname(2)), which must not reach an exit.
///
/// RFC 6761, section 6.3 (`localhost.`), RFC 6762 (`.local` never leaves the link: refused), RFC
/// 1035, section 2.3.4 (labels of 1 to 63 bytes). Internationalised names pass as given. Whether
/// `name` is an address literal is for the caller to find out first.
pub fn classify<'a>(name: &'a [u8], own: &[u8]) -> Hostname<'a> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    if is(name, b"localhost")
        || ends_with(name, b".localhost")
        || is(name, b"localhost.localdomain")
        || is(name, b"localhost4")
        || is(name, b"localhost6.localdomain6")
        || is(name, b"localhost6")
    {
        return Hostname::Loopback(Loopback::Both);
    }
    if is(name, b"ip6-localhost") || is(name, b"ip6-loopback") {
        return Hostname::Loopback(Loopback::V6);
    }
    if !own.is_empty() && is(name, own) {
        return Hostname::Loopback(Loopback::Own);
    }
    if well_formed(name) && !is(name, b"local") && !ends_with(name, b".local") {
        Hostname::Remote(name)
    } else {
        Hostname::Malformed
    }
}

/// Labels of 1 to 63 bytes, at most 255 in all, nothing that cannot stand in a hostname. Bytes above
/// 127 are allowed: names in UTF-8 are carried as given.
fn well_formed(name: &[u8]) -> bool {
    if name.is_empty() || name.len() > NAME_MAX {
        return false;
    }
    let label_ok = |l: &[u8]| !l.is_empty() && l.len() <= 63;
    // What may not stand in a name at all, and what would make it something else: an address with
    // a port or a scope, a path, a user@host.
    let byte_ok =
        |b: &u8| *b > b' ' && *b != 0x7f && !b":/@%\\\"'<>[]{}|^`,;?#&()!*=+$~".contains(b);
    // No top-level domain is a number (RFC 3696, section 2): this is an address gone wrong.
    let last = name.rsplit(|b| *b == b'.').next().unwrap_or(b"");
    let numeric = last.iter().all(u8::is_ascii_digit);
    !numeric && name.split(|b| *b == b'.').all(label_ok) && name.iter().all(byte_ok)
}

/// Whether an address is this machine's own: 127.0.0.0/8, ::1 and their v4-mapped and unspecified
/// forms (connect(2) to 0.0.0.0 or :: reaches loopback).
pub fn is_loopback(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(a) => a.is_loopback() || a.is_unspecified(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unspecified(),
    }
}

/// A v4-mapped IPv6 address (::ffff:a.b.c.d) as the IPv4 address it stands for; others unchanged.
pub fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(a) => a.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_and_names_that_only_look_so() {
        for n in ["localhost", "LOCALHOST", "localhost.", "a.localhost"] {
            let c = classify(n.as_bytes(), b"box");
            assert_eq!(c, Hostname::Loopback(Loopback::Both), "{n}");
        }
        let v6 = Hostname::Loopback(Loopback::V6);
        assert_eq!(classify(b"ip6-localhost", b""), v6);
        let own = Hostname::Loopback(Loopback::Own);
        assert_eq!(classify(b"Box", b"box"), own);
        for n in ["localhost.example.com", "notlocalhost", "box.example"] {
            let c = classify(n.as_bytes(), b"box");
            assert_eq!(c, Hostname::Remote(n.as_bytes()), "{n}");
        }
    }

    #[test]
    fn malformed_names() {
        let long_label = [b'a'; 64];
        let too_long: [u8; 256] = core::array::from_fn(|i| if i % 50 == 49 { b'.' } else { b'a' });
        for n in [
            &b""[..],
            b".",
            b"..",
            b"a..b",
            b".a",
            b"a b",
            b"a:b",
            b"fe80::1%eth0",
            b"user@host",
            b"a/b",
            b"a\nb",
            b"printer.local",
            b"10.0.0.300",
            &long_label,
            &too_long,
        ] {
            assert_eq!(classify(n, b""), Hostname::Malformed, "{n:?}");
        }
        assert_eq!(
            classify(&too_long[..255], b""),
            Hostname::Remote(&too_long[..255])
        );
        assert_eq!(
            classify(b"a_b.example.", b""),
            Hostname::Remote(b"a_b.example")
        );
        let idn = "b\u{fc}cher.example".as_bytes();
        assert_eq!(classify(idn, b""), Hostname::Remote(idn));
    }

    #[test]
    fn loopback_addresses() {
        for a in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
        ] {
            assert!(is_loopback(a.parse().expect(a)), "{a}");
        }
        for a in ["128.0.0.1", "::2", "::ffff:10.0.0.1", "::127.0.0.1"] {
            assert!(!is_loopback(a.parse().expect(a)), "{a}");
        }
    }
}
