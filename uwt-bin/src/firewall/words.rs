//! The words of a policy that end up in a ruleset: each is checked once, here, where it is read. Nothing that nft
//! would take for its own syntax gets past these.

use serde::Deserialize;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

macro_rules! from_string {
    ($($name:ident),*) => { $(
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(s: String) -> Result<Self, String> {
                s.parse()
            }
        }
    )* };
}
from_string!(Account, Interface, Net, Server, Cgroup, HostName, ZoneName);

/// A user or a group: a name, or a number (passwd(5)).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Account(pub String);

impl FromStr for Account {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "_.-$".contains(c);
        if s.is_empty() || s.len() > 32 || s.starts_with('-') || !s.chars().all(fine) {
            return Err(format!("{s:?} is no user's or group's name or number"));
        }
        Ok(Account(s.to_owned()))
    }
}

/// A network interface, by name; a `*` at its end stands for anything (`tun*`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Interface(pub String);

impl FromStr for Interface {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        // IFNAMSIZ is 16 with the final NUL.
        let stem = s.strip_suffix('*').unwrap_or(s);
        let fine = |c: char| c.is_ascii_alphanumeric() || "_.-@".contains(c);
        if stem.is_empty() || s.len() > 15 || !stem.chars().all(fine) {
            return Err(format!(
                "{s:?} is no interface's name: 1 to 15 letters, digits and _.-@, and at the end perhaps *"
            ));
        }
        if s == "lo" {
            return Err("lo is loopback, which has a section of its own".into());
        }
        Ok(Interface(s.to_owned()))
    }
}

/// What nft calls an address's family.
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// An address or a network in CIDR notation (RFC 4632, RFC 4291).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Net {
    /// Its first address.
    pub address: IpAddr,
    /// How many bits of it count.
    pub prefix: u8,
}

impl Net {
    /// One address.
    pub fn host(address: IpAddr) -> Net {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Net { address, prefix }
    }

    /// As [`family`].
    pub fn family(&self) -> &'static str {
        family(self.address)
    }

    /// Whether it is of IPv4.
    pub fn is_v4(&self) -> bool {
        self.address.is_ipv4()
    }
}

impl FromStr for Net {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is no address, nor a network such as 192.0.2.0/24");
        let (address, prefix) = match s.split_once('/') {
            Some((a, p)) => (a, Some(p)),
            None => (s, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(p) if p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit()) => return Err(bad()),
            Some(p) => p.parse().ok().filter(|p| *p <= most).ok_or_else(bad)?,
        };
        // What is beyond the prefix counts for nothing; nft would refuse it.
        let address = match address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Ipv4Addr::from_bits(a.to_bits() & mask).into()
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Ipv6Addr::from_bits(a.to_bits() & mask).into()
            }
        };
        Ok(Net { address, prefix })
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.is_v4() { 32 } else { 128 };
        match self.prefix {
            p if p == whole => write!(f, "{}", self.address),
            p => write!(f, "{}/{p}", self.address),
        }
    }
}

/// A protocol with ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// As nft and /etc/protocols write it.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// A VPN's server: `ADDRESS[:PORT][/tcp|/udp]`, an IPv6 address with a port in brackets.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Server {
    /// Where.
    pub address: IpAddr,
    /// Which port; `None`: any.
    pub port: Option<u16>,
    /// By what; `None`: TCP or UDP.
    pub transport: Option<Transport>,
}

impl FromStr for Server {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{s:?} is no server: it takes ADDRESS, ADDRESS:PORT or ADDRESS:PORT/udp, the address in numbers"
            )
        };
        let (place, transport) = match s.split_once('/') {
            None => (s, None),
            Some((p, "tcp")) => (p, Some(Transport::Tcp)),
            Some((p, "udp")) => (p, Some(Transport::Udp)),
            Some(_) => return Err(bad()),
        };
        let (address, port) = match place.parse::<std::net::SocketAddr>() {
            Ok(a) if a.port() != 0 => (a.ip(), Some(a.port())),
            _ => (place.parse().map_err(|_| bad())?, None),
        };
        Ok(Server {
            address,
            port,
            transport,
        })
    }
}

/// A cgroup's path below /sys/fs/cgroup (cgroups(7), version 2): `system.slice/cups.service`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Cgroup(pub String);

impl FromStr for Cgroup {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let path = s.trim_matches('/');
        let fine = |c: char| c.is_ascii_alphanumeric() || "_.-@:/\\".contains(c);
        let part = |p: &str| !p.is_empty() && p != "." && p != "..";
        if path.len() > 200 || !path.chars().all(fine) || !path.split('/').all(part) {
            return Err(format!("{s:?} is no cgroup's path below /sys/fs/cgroup"));
        }
        Ok(Cgroup(path.to_owned()))
    }
}

/// A host's name (RFC 1123), which is resolved again and again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct HostName(pub String);

impl FromStr for HostName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let name = s.strip_suffix('.').unwrap_or(s);
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let label = |l: &str| (1..=63).contains(&l.len()) && l.chars().all(fine);
        if name.len() > 253 || !name.split('.').all(label) || name.parse::<IpAddr>().is_ok() {
            return Err(format!("{s:?} is no host's name"));
        }
        Ok(HostName(name.to_ascii_lowercase()))
    }
}

/// A zone's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct ZoneName(pub String);

impl FromStr for ZoneName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if s.is_empty() || s.len() > 31 || !s.chars().all(fine) {
            return Err(format!(
                "{s:?} is no zone's name: 1 to 31 letters, digits, - and _"
            ));
        }
        Ok(ZoneName(s.to_owned()))
    }
}

/// What a policy says is kept as a comment in the ruleset: without what nft would take for its own.
pub fn comment(text: &str) -> String {
    // NFTNL_UDATA_COMMENT_MAXLEN is 128 with the final NUL.
    text.chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || " _.,:;/=+*@()[]<>!#-".contains(c) => c,
            _ => '?',
        })
        .take(127)
        .collect()
}
