//! The one contract between launcher and shim: an environment variable, versioned.
//!
//! `UWT_HANDOFF` holds `uwt1;` and then fields as `KEY=LENGTH:BYTES;`, so that any byte may stand in
//! a path or a password, and at the end `sum=8:XXXXXXXX;`, FNV-1a over all before it. Every field of
//! the version must be there once, in order; what is cut off, repeated, changed or unknown is an
//! error, and the shim then refuses every connection.

use crate::decimal::Decimal;
use crate::isolation::{Isolation, Scope};
use crate::route::{Bind, Inbound, Localhost, Policy, PortList, Socks};
use crate::siphash::Key;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The environment variable's name.
pub const VARIABLE: &str = "UWT_HANDOFF";

/// How the variable's value starts: the version of the contract.
const MAGIC: &[u8] = b"uwt1;";

/// The longest handoff. Longer ones are refused on both sides.
pub const MAX: usize = 16 * 1024;

/// How hostnames are resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dns {
    /// A virtual address at once; the name travels in the SOCKS request.
    Virtual,
    /// Tor is asked (RESOLVE) for a real address.
    Resolve,
    /// No hostname is resolved.
    Refuse,
}

/// What the shim writes to its log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// Nothing.
    Silent,
    /// What was refused, and why.
    Refusals,
    /// Each connection and lookup as well.
    Debug,
}

/// Where the run's name table is: a memfd that every process of the run inherits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Names {
    /// The descriptor's number, the same in every process.
    pub fd: i32,
    /// st_ino of the memfd (stat(2)): proves that the number still means this memfd.
    pub inode: u64,
    /// st_dev of the memfd.
    pub device: u64,
}

/// The resolved policy that the launcher gives the shim.
#[derive(Clone, Copy)]
pub struct Handoff<'a> {
    /// What is let through, and where Tor is.
    pub policy: Policy<'a>,
    /// What shares circuits. `isolation.run` is also the name table's key.
    pub isolation: Isolation<'a>,
    /// How hostnames are resolved.
    pub dns: Dns,
    /// The run's name table.
    pub names: Names,
    /// The network namespace that holds the run: the inode of /proc/PID/ns/net; 0 if none does. What says so is proved
    /// by looking: see [`Handoff::held_here`].
    pub netns: u64,
    /// Absolute path of libtorshim.so, as LD_PRELOAD names it.
    pub shim: &'a [u8],
    /// Programs that are started without the shim: absolute paths, `:` between, at most [`RELEASE_MAX`].
    pub release: &'a [u8],
    /// How long a connection may take to be made, in milliseconds. Never 0.
    pub timeout_ms: u32,
    /// Whether the program is told its proxy by environment (`ALL_PROXY`), with its own credentials.
    pub native_proxy: bool,
    /// How much is logged.
    pub log: LogLevel,
    /// Absolute path of the log file; empty: standard error.
    pub log_file: &'a [u8],
}

/// Why a handoff is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandoffError {
    /// It does not start with this version's mark.
    Version,
    /// It is cut off, or something was changed or added.
    Malformed,
    /// The checksum is wrong.
    Checksum,
    /// This field's value is not one that the field can have.
    Value(&'static str),
    /// Longer than [`MAX`].
    TooLong,
}

const TABLE_SCOPE: [(&[u8], Scope); 6] = [
    (b"pid", Scope::Pid),
    (b"tree", Scope::Tree),
    (b"app", Scope::App),
    (b"destination", Scope::Destination),
    (b"connection", Scope::Connection),
    (b"none", Scope::None),
];
const TABLE_LOCALHOST: [(&[u8], Localhost); 2] = [
    (b"direct", Localhost::Direct),
    (b"refuse", Localhost::Refuse),
];
const TABLE_INBOUND: [(&[u8], Inbound); 3] = [
    (b"refuse", Inbound::Refuse),
    (b"loopback", Inbound::Loopback),
    (b"allow", Inbound::Allow),
];
const TABLE_BIND: [(&[u8], Bind); 2] = [(b"keep", Bind::Keep), (b"loopback", Bind::Loopback)];
const TABLE_DNS: [(&[u8], Dns); 3] = [
    (b"virtual", Dns::Virtual),
    (b"resolve", Dns::Resolve),
    (b"refuse", Dns::Refuse),
];
const TABLE_LOG: [(&[u8], LogLevel); 3] = [
    (b"silent", LogLevel::Silent),
    (b"refusals", LogLevel::Refusals),
    (b"debug", LogLevel::Debug),
];
const TABLE_BOOL: [(&[u8], bool); 2] = [(b"no", false), (b"yes", true)];

fn word<T: Copy + PartialEq>(table: &'static [(&'static [u8], T)], value: T) -> &'static [u8] {
    table
        .iter()
        .find(|(_, v)| *v == value)
        .map_or(b"", |(w, _)| w)
}

fn value<T: Copy>(
    table: &[(&[u8], T)],
    word: &[u8],
    field: &'static str,
) -> Result<T, HandoffError> {
    table
        .iter()
        .find(|(w, _)| *w == word)
        .map(|(_, v)| *v)
        .ok_or(HandoffError::Value(field))
}

struct Encoder<'o> {
    out: &'o mut [u8],
    len: usize,
    overflow: bool,
}

impl Encoder<'_> {
    fn raw(&mut self, data: &[u8]) {
        match self.out.get_mut(self.len..self.len + data.len()) {
            Some(slot) => {
                slot.copy_from_slice(data);
                self.len += data.len();
            }
            None => self.overflow = true,
        }
    }

    fn decimal(&mut self, n: u64) {
        self.raw(Decimal::new(n).bytes());
    }

    fn field(&mut self, key: &str, data: &[u8]) {
        self.raw(key.as_bytes());
        self.raw(b"=");
        self.decimal(data.len() as u64);
        self.raw(b":");
        self.raw(data);
        self.raw(b";");
    }

    fn number(&mut self, key: &str, n: u64) {
        let mut hex = [0u8; 16];
        self.field(key, hex_of(n, &mut hex));
    }
}

fn hex_of(n: u64, out: &mut [u8; 16]) -> &[u8] {
    for (i, b) in out.iter_mut().enumerate() {
        *b = b"0123456789abcdef"[(n >> (60 - 4 * i)) as usize & 15];
    }
    out
}

fn number_of(hex: &[u8], field: &'static str) -> Result<u64, HandoffError> {
    let bad = HandoffError::Value(field);
    if hex.len() != 16 {
        return Err(bad);
    }
    hex.iter().try_fold(0u64, |n, b| {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            _ => return Err(bad),
        };
        Ok(n << 4 | u64::from(digit))
    })
}

fn fnv1a(data: &[u8]) -> u32 {
    data.iter().fold(0x811c_9dc5, |h, b| {
        (h ^ u32::from(*b)).wrapping_mul(0x0100_0193)
    })
}

fn checksum(data: &[u8], out: &mut [u8; 8]) {
    let mut hex = [0u8; 16];
    hex_of(u64::from(fnv1a(data)), &mut hex);
    out.copy_from_slice(&hex[8..]);
}

struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn field(&mut self, key: &'static str) -> Result<&'a [u8], HandoffError> {
        let bad = HandoffError::Malformed;
        let rest = self.rest.strip_prefix(key.as_bytes()).ok_or(bad)?;
        let rest = rest.strip_prefix(b"=").ok_or(bad)?;
        let colon = rest.iter().take(8).position(|b| *b == b':').ok_or(bad)?;
        let (digits, rest) = rest.split_at(colon);
        let rest = &rest[1..];
        if digits.is_empty() || (digits.len() > 1 && digits[0] == b'0') {
            return Err(bad);
        }
        let len = digits.iter().try_fold(0usize, |n, b| match b {
            b'0'..=b'9' => Ok(n * 10 + usize::from(b - b'0')),
            _ => Err(bad),
        })?;
        if rest.len() <= len || rest[len] != b';' {
            return Err(bad);
        }
        self.rest = &rest[len + 1..];
        Ok(&rest[..len])
    }

    fn number(&mut self, key: &'static str) -> Result<u64, HandoffError> {
        number_of(self.field(key)?, key)
    }

    fn key(&mut self, name: &'static str) -> Result<Key, HandoffError> {
        self.field(name)?
            .try_into()
            .map_err(|_| HandoffError::Value(name))
            .and_then(|hex: &[u8; 32]| {
                let mut key = [0; 16];
                key[..8].copy_from_slice(&number_of(&hex[..16], name)?.to_be_bytes());
                key[8..].copy_from_slice(&number_of(&hex[16..], name)?.to_be_bytes());
                Ok(key)
            })
    }
}

fn key_hex(key: &Key) -> [u8; 32] {
    let mut out = [0; 32];
    for (i, b) in key.iter().enumerate() {
        out[2 * i] = b"0123456789abcdef"[usize::from(b >> 4)];
        out[2 * i + 1] = b"0123456789abcdef"[usize::from(b & 15)];
    }
    out
}

/// SOCKS over TCP: 16 bytes of address (IPv4 as v4-mapped) and 2 of port, in hexadecimal by halves.
fn socks_ip(addr: SocketAddr) -> ([u8; 16], u16) {
    let ip = match addr.ip() {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    };
    (ip.octets(), addr.port())
}

impl<'a> Handoff<'a> {
    /// Writes the variable's value into `out` ([`MAX`] bytes are always enough for what
    /// [`Handoff::decode`] takes) and gives its length; [`HandoffError::TooLong`] if it does not fit,
    /// [`HandoffError::Value`] for a NUL byte, which an environment cannot carry.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, HandoffError> {
        let limit = out.len().min(MAX);
        let mut e = Encoder {
            out: &mut out[..limit],
            len: 0,
            overflow: false,
        };
        e.raw(MAGIC);
        let p = &self.policy;
        match p.socks {
            Socks::Ip(addr) => {
                let (ip, port) = socks_ip(addr);
                e.field("socks", &key_hex(&ip));
                e.number("port", u64::from(port));
                e.field("unix", b"");
            }
            Socks::Unix(path) => {
                e.field("socks", b"");
                e.number("port", 0);
                e.field("unix", path);
            }
        }
        e.field("localhost", word(&TABLE_LOCALHOST, p.localhost));
        // Two bytes a port would put NULs into the environment; hexadecimal does not.
        e.number("ports", p.localhost_ports.0.len() as u64 / 2);
        for port in p.localhost_ports.0.chunks_exact(2) {
            e.number("p", u64::from(u16::from_be_bytes([port[0], port[1]])));
        }
        e.field("inbound", word(&TABLE_INBOUND, p.inbound));
        e.field("bind", word(&TABLE_BIND, p.bind));
        e.field("unixallow", p.unix_allow);
        e.field("scope", word(&TABLE_SCOPE, self.isolation.scope));
        e.field("run", &key_hex(&self.isolation.run));
        e.field("app", &key_hex(&self.isolation.app));
        let (user, pass) = self.isolation.fixed.unwrap_or((b"", b""));
        e.field("user", user);
        e.field("pass", pass);
        e.field("dns", word(&TABLE_DNS, self.dns));
        e.number("fd", self.names.fd as u32 as u64);
        e.number("inode", self.names.inode);
        e.number("device", self.names.device);
        e.number("netns", self.netns);
        e.field("shim", self.shim);
        e.field("release", self.release);
        e.number("timeout", u64::from(self.timeout_ms));
        e.field("native", word(&TABLE_BOOL, self.native_proxy));
        e.field("log", word(&TABLE_LOG, self.log));
        e.field("logfile", self.log_file);
        let mut sum = [0; 8];
        checksum(&e.out[..e.len], &mut sum);
        e.field("sum", &sum);
        if e.overflow {
            return Err(HandoffError::TooLong);
        }
        let len = e.len;
        if out[..len].contains(&0) {
            return Err(HandoffError::Value("a NUL byte"));
        }
        Ok(len)
    }

    /// Reads the variable's value.
    ///
    /// `ports` takes the loopback ports; at most as many as it has room for, two bytes each.
    pub fn decode(
        text: &'a [u8],
        ports: &'a mut [u8; PORTS_MAX * 2],
    ) -> Result<Handoff<'a>, HandoffError> {
        if text.len() > MAX {
            return Err(HandoffError::TooLong);
        }
        // An environment cannot carry one.
        if text.contains(&0) {
            return Err(HandoffError::Malformed);
        }
        let rest = text.strip_prefix(MAGIC).ok_or(HandoffError::Version)?;
        // The checksum comes first in what is checked and last in the text: 15 bytes.
        let body = text.len().checked_sub(15).ok_or(HandoffError::Malformed)?;
        if body < MAGIC.len() {
            return Err(HandoffError::Malformed);
        }
        let mut sum = [0; 8];
        checksum(&text[..body], &mut sum);
        let mut tail = Decoder {
            rest: &text[body..],
        };
        if tail.field("sum")? != sum {
            return Err(HandoffError::Checksum);
        }
        let mut d = Decoder {
            rest: &rest[..body - MAGIC.len()],
        };
        let socks = d.field("socks")?;
        let port = d.number("port")?;
        let unix = d.field("unix")?;
        let socks = match (socks, unix) {
            (b"", [b'/', ..]) if unix.len() <= UNIX_PATH_MAX && port == 0 => Socks::Unix(unix),
            (hex, b"") if hex.len() == 32 => {
                let hi = number_of(&hex[..16], "socks")?;
                let lo = number_of(&hex[16..], "socks")?;
                let ip = Ipv6Addr::from(u128::from(hi) << 64 | u128::from(lo));
                let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
                let port = u16::try_from(port).ok().filter(|p| *p > 0);
                Socks::Ip(SocketAddr::new(
                    ip,
                    port.ok_or(HandoffError::Value("port"))?,
                ))
            }
            _ => return Err(HandoffError::Value("socks")),
        };
        let localhost = value(&TABLE_LOCALHOST, d.field("localhost")?, "localhost")?;
        let count = d.number("ports")? as usize;
        let slots = ports
            .get_mut(..count.saturating_mul(2))
            .ok_or(HandoffError::Value("ports"))?;
        for slot in slots.chunks_exact_mut(2) {
            let port = u16::try_from(d.number("p")?).map_err(|_| HandoffError::Value("p"))?;
            slot.copy_from_slice(&port.to_be_bytes());
        }
        let inbound = value(&TABLE_INBOUND, d.field("inbound")?, "inbound")?;
        let bind = value(&TABLE_BIND, d.field("bind")?, "bind")?;
        let unix_allow = d.field("unixallow")?;
        let scope = value(&TABLE_SCOPE, d.field("scope")?, "scope")?;
        let run = d.key("run")?;
        let app = d.key("app")?;
        let user = d.field("user")?;
        let pass = d.field("pass")?;
        let fixed = match (user.len(), pass.len()) {
            (0, 0) => None,
            (1..=255, 1..=255) => Some((user, pass)),
            _ => return Err(HandoffError::Value("user")),
        };
        let dns = value(&TABLE_DNS, d.field("dns")?, "dns")?;
        let fd = d.number("fd")?;
        let names = Names {
            fd: i32::try_from(fd).map_err(|_| HandoffError::Value("fd"))?,
            inode: d.number("inode")?,
            device: d.number("device")?,
        };
        let netns = d.number("netns")?;
        let shim = d.field("shim")?;
        if shim.first() != Some(&b'/') || shim.iter().any(|b| matches!(b, b':' | b' ')) {
            // LD_PRELOAD separates by either (ld.so(8)).
            return Err(HandoffError::Value("shim"));
        }
        let release = d.field("release")?;
        let paths = || release.split(|b| *b == b':');
        if !release.is_empty()
            && (paths().count() > RELEASE_MAX || paths().any(|p| p.first() != Some(&b'/')))
        {
            return Err(HandoffError::Value("release"));
        }
        let timeout = d.number("timeout")?;
        let timeout_ms = u32::try_from(timeout).ok().filter(|t| *t > 0);
        let native_proxy = value(&TABLE_BOOL, d.field("native")?, "native")?;
        let log = value(&TABLE_LOG, d.field("log")?, "log")?;
        let log_file = d.field("logfile")?;
        if !d.rest.is_empty() {
            return Err(HandoffError::Malformed);
        }
        Ok(Handoff {
            policy: Policy {
                socks,
                localhost,
                localhost_ports: PortList(&ports[..count * 2]),
                inbound,
                bind,
                unix_allow,
                held: false,
            },
            isolation: Isolation {
                scope,
                run,
                app,
                fixed,
            },
            dns,
            names,
            netns,
            shim,
            release,
            timeout_ms: timeout_ms.ok_or(HandoffError::Value("timeout"))?,
            native_proxy,
            log,
            log_file,
        })
    }
}

impl Handoff<'_> {
    /// Tells it in which network namespace the process is (the inode of /proc/self/ns/net, 0 if that cannot be told):
    /// the policy is that of a held run only in the namespace that holds it.
    pub fn held_here(&mut self, namespace: u64) {
        self.policy.held = self.netns != 0 && self.netns == namespace;
    }
}

/// How many loopback ports a handoff can name.
pub const PORTS_MAX: usize = 64;

/// How many programs [`Handoff::release`] may name.
pub const RELEASE_MAX: usize = 16;

/// The longest path of a unix socket: sun_path less the final NUL (unix(7)).
pub const UNIX_PATH_MAX: usize = 107;

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn sample<'a>(ports: &'a [u8]) -> Handoff<'a> {
        Handoff {
            policy: Policy {
                socks: Socks::Ip(SocketAddr::from(([127, 0, 0, 1], 9050))),
                localhost: Localhost::Direct,
                localhost_ports: PortList(ports),
                inbound: Inbound::Loopback,
                bind: Bind::Keep,
                unix_allow: b"/a;b=3:x",
                held: false,
            },
            isolation: Isolation {
                scope: Scope::Pid,
                run: [0xab; 16],
                app: [1; 16],
                fixed: Some((b"u;=", b"p:\n\xff")),
            },
            dns: Dns::Virtual,
            names: Names {
                fd: 1000,
                inode: u64::MAX,
                device: 9,
            },
            shim: b"/usr/lib/x86_64-linux-gnu/uwt/libtorshim.so",
            release: b"/usr/sbin/ldconfig:/usr/bin/systemctl",
            timeout_ms: 120_000,
            netns: 4_026_532_000,
            native_proxy: true,
            log: LogLevel::Refusals,
            log_file: b"",
        }
    }

    fn encode(h: &Handoff<'_>) -> Vec<u8> {
        let mut out = [0; MAX];
        let n = h.encode(&mut out).expect("encode");
        out[..n].to_vec()
    }

    #[test]
    fn round_trip() {
        for socks in [
            Socks::Ip("[::1]:9150".parse().expect("addr")),
            Socks::Unix(b"/run/tor/socks"),
            Socks::Ip("10.152.152.10:9100".parse().expect("addr")),
        ] {
            let mut h = sample(&[0x23, 0x5b, 0, 53]);
            h.policy.socks = socks;
            let text = encode(&h);
            let mut ports = [0; PORTS_MAX * 2];
            let d = Handoff::decode(&text, &mut ports).expect("decode");
            assert_eq!(d.policy.socks, socks);
            assert_eq!(d.isolation.fixed, h.isolation.fixed);
            assert_eq!(d.isolation.run, h.isolation.run);
            assert!(d.policy.localhost_ports.contains(9051));
            assert!(!d.policy.localhost_ports.contains(9052));
            assert_eq!((d.names, d.shim, d.timeout_ms), (h.names, h.shim, 120_000));
            assert_eq!(encode(&d), text);
        }
    }

    #[test]
    fn cut_off_or_changed_anywhere_is_an_error() {
        let text = encode(&sample(&[]));
        let mut ports = [0; PORTS_MAX * 2];
        for cut in 0..text.len() {
            assert!(Handoff::decode(&text[..cut], &mut ports).is_err(), "{cut}");
        }
        for at in 0..text.len() {
            let mut t = text.clone();
            t[at] ^= 1;
            assert!(Handoff::decode(&t, &mut ports).is_err(), "{at}");
        }
        let mut t = text.clone();
        t.push(b' ');
        assert!(Handoff::decode(&t, &mut ports).is_err());
    }

    #[test]
    fn half_set_credentials_relative_shim_and_nul_are_errors() {
        let mut ports = [0; PORTS_MAX * 2];
        let mut h = sample(&[]);
        h.isolation.fixed = Some((b"user", b""));
        assert!(Handoff::decode(&encode(&h), &mut ports).is_err());
        let mut h = sample(&[]);
        h.shim = b"libtorshim.so";
        assert!(Handoff::decode(&encode(&h), &mut ports).is_err());
        let mut h = sample(&[]);
        h.log_file = b"/a\0b";
        assert!(h.encode(&mut [0; MAX]).is_err());
        let mut h = sample(&[]);
        h.timeout_ms = 0;
        assert!(Handoff::decode(&encode(&h), &mut ports).is_err());
    }
}
