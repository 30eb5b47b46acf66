//! Scope + process -> SOCKS username and password.
//!
//! Tor gives streams with different SOCKS credentials different circuits (`IsolateSOCKSAuth`, on by
//! default; tor(1)). The username is exactly `<torS0X>0`, Tor's reserved form for credentials that
//! mean isolation and nothing else (tor-spec, socks-extensions, "Extended isolation"); tor closes
//! the connection on `<torS0X>0` with anything behind it. What tells identities apart is the password.

use crate::decimal::Decimal;
use crate::siphash::{self, Key};

/// Tor's reserved username for stream isolation (socks-extensions, format 0).
pub const TOR_USERNAME: &[u8] = b"<torS0X>0";

/// What shares a circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Each process its own (the default).
    Pid,
    /// All processes of one run of `uwt`.
    Tree,
    /// All runs of the same application by the same user since boot.
    App,
    /// Within one run, connections to the same host and port.
    Destination,
    /// Nothing: each connection its own.
    Connection,
    /// No credentials at all: whatever else uses Tor without isolation.
    None,
}

impl Scope {
    /// Every scope with its name in configuration and on the command line.
    pub const ALL: [(&'static str, Scope); 6] = [
        ("pid", Scope::Pid),
        ("tree", Scope::Tree),
        ("app", Scope::App),
        ("destination", Scope::Destination),
        ("connection", Scope::Connection),
        ("none", Scope::None),
    ];

    /// The scope called `name`, or `None`.
    pub fn parse(name: &str) -> Option<Scope> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, s)| *s)
    }

    /// The name that [`Scope::parse`] takes.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, s)| *s == self)
            .map_or("pid", |(n, _)| n)
    }
}

/// What tells this process from every other since boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    /// The process id (getpid(2)).
    pub pid: u32,
    /// What no earlier process with this pid had, and what stays the same over execve(2): the inode of its
    /// pidfd, which Linux never gives twice since boot (6.9 and later, pidfd_open(2)); on older kernels when
    /// it started, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)).
    pub birth: u64,
}

/// A username and password for RFC 1929, each 1 to 255 bytes. Held inline: the shim does not allocate.
#[derive(Clone)]
pub struct Credentials {
    user: Field,
    pass: Field,
}

#[derive(Clone)]
struct Field {
    len: u8,
    bytes: [u8; 255],
}

impl Field {
    fn new() -> Field {
        Field {
            len: 0,
            bytes: [0; 255],
        }
    }

    fn push(&mut self, data: &[u8]) {
        for b in data {
            if let Some(slot) = self.bytes.get_mut(self.len as usize) {
                *slot = *b;
                self.len += 1;
            }
        }
    }

    fn push_hex(&mut self, data: &[u8]) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        for b in data {
            self.push(&[HEX[(b >> 4) as usize], HEX[(b & 15) as usize]]);
        }
    }

    fn push_decimal(&mut self, n: u64) {
        self.push(Decimal::new(n).bytes());
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl Credentials {
    /// A username and password fixed by the user (`-u`, `-p`).
    ///
    /// `None` unless both are 1 to 255 bytes (RFC 1929, section 2): a half-set pair would silently
    /// turn authentication, and with it isolation, off.
    pub fn fixed(user: &[u8], pass: &[u8]) -> Option<Credentials> {
        if user.is_empty() || pass.is_empty() || user.len() > 255 || pass.len() > 255 {
            return None;
        }
        let mut c = Credentials {
            user: Field::new(),
            pass: Field::new(),
        };
        c.user.push(user);
        c.pass.push(pass);
        Some(c)
    }

    /// The username, 1 to 255 bytes.
    pub fn user(&self) -> &[u8] {
        self.user.get()
    }

    /// The password, 1 to 255 bytes.
    pub fn pass(&self) -> &[u8] {
        self.pass.get()
    }
}

/// How a run isolates: what the handoff says about it.
#[derive(Clone, Copy)]
pub struct Isolation<'a> {
    /// What shares a circuit. Ignored when `fixed` is set.
    pub scope: Scope,
    /// This run's random secret (getrandom(2)).
    pub run: Key,
    /// For [`Scope::App`]: stands for boot, user and application; the same in each such run.
    pub app: Key,
    /// A username and password fixed by the user.
    pub fixed: Option<(&'a [u8], &'a [u8])>,
}

/// Which connection the credentials are for, for the scopes that tell connections apart.
#[derive(Clone, Copy)]
pub struct Connection<'a> {
    /// The host as it will stand in the SOCKS request: a name, or an address's bytes.
    pub host: &'a [u8],
    /// The destination port.
    pub port: u16,
    /// A number that this process gives to no other connection.
    pub serial: u64,
}

/// The credentials for one connection of one process, or `None` for [`Scope::None`] (method 00).
///
/// Two calls give the same password exactly when the scope says that their circuits may be shared.
/// The password reads `uwt:RUN:SCOPE...` so that the control port's `circuit-status` tells a person
/// which run and process a circuit belongs to.
pub fn credentials(
    iso: &Isolation<'_>,
    process: Process,
    connection: Connection<'_>,
) -> Option<Credentials> {
    if let Some((user, pass)) = iso.fixed {
        return Credentials::fixed(user, pass);
    }
    let mut c = Credentials {
        user: Field::new(),
        pass: Field::new(),
    };
    c.user.push(TOR_USERNAME);
    let p = &mut c.pass;
    p.push(b"uwt:");
    match iso.scope {
        Scope::None => return None,
        Scope::App => {
            p.push(b"app:");
            p.push_hex(&iso.app);
            return Some(c);
        }
        _ => p.push_hex(&iso.run),
    }
    match iso.scope {
        Scope::Pid | Scope::Connection => {
            p.push(b":pid:");
            p.push_decimal(u64::from(process.pid));
            p.push(b".");
            p.push_decimal(process.birth);
            if iso.scope == Scope::Connection {
                p.push(b":");
                p.push_decimal(connection.serial);
            }
        }
        Scope::Destination => {
            // A name may be longer than a password can be, so it goes in as a keyed hash.
            p.push(b":dest:");
            p.push_hex(&siphash::hash128(&iso.run, connection.host));
            p.push(b".");
            p.push_decimal(u64::from(connection.port));
        }
        Scope::Tree | Scope::App | Scope::None => p.push(b":tree"),
    }
    Some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iso(scope: Scope) -> Isolation<'static> {
        Isolation {
            scope,
            run: [7; 16],
            app: [9; 16],
            fixed: None,
        }
    }

    const P: Process = Process { pid: 12, birth: 34 };
    const C: Connection<'static> = Connection {
        host: b"a.example",
        port: 80,
        serial: 1,
    };

    fn pass(i: &Isolation<'_>, p: Process, c: Connection<'_>) -> [u8; 255] {
        let c = credentials(i, p, c).expect("credentials");
        assert_eq!(c.user(), b"<torS0X>0");
        let mut out = [0; 255];
        out[..c.pass().len()].copy_from_slice(c.pass());
        out
    }

    #[test]
    fn each_scope_shares_what_it_says() {
        let other_pid = Process { pid: 13, ..P };
        let reused = Process { birth: 35, ..P };
        let other_dest = Connection {
            host: b"b.example",
            ..C
        };
        let other_port = Connection { port: 443, ..C };
        let second = Connection { serial: 2, ..C };
        for (scope, pid, reuse, dest, port, conn) in [
            (Scope::Pid, false, false, true, true, true),
            (Scope::Tree, true, true, true, true, true),
            (Scope::App, true, true, true, true, true),
            (Scope::Destination, true, true, false, false, true),
            (Scope::Connection, false, false, true, true, false),
        ] {
            let i = iso(scope);
            let base = pass(&i, P, C);
            assert_eq!(base == pass(&i, other_pid, C), pid, "{scope:?}");
            assert_eq!(base == pass(&i, reused, C), reuse, "{scope:?}");
            assert_eq!(base == pass(&i, P, other_dest), dest, "{scope:?}");
            assert_eq!(base == pass(&i, P, other_port), port, "{scope:?}");
            assert_eq!(base == pass(&i, P, second), conn, "{scope:?}");
            let other_run = Isolation { run: [8; 16], ..i };
            assert_eq!(base == pass(&other_run, P, C), scope == Scope::App);
        }
    }

    #[test]
    fn none_means_no_credentials_and_fixed_wins() {
        assert!(credentials(&iso(Scope::None), P, C).is_none());
        let fixed = Isolation {
            fixed: Some((b"me", b"secret")),
            ..iso(Scope::None)
        };
        let c = credentials(&fixed, P, C).expect("fixed");
        assert_eq!((c.user(), c.pass()), (&b"me"[..], &b"secret"[..]));
    }

    #[test]
    fn half_set_or_oversized_fixed_credentials_are_refused() {
        assert!(Credentials::fixed(b"u", b"").is_none());
        assert!(Credentials::fixed(b"", b"p").is_none());
        assert!(Credentials::fixed(&[b'a'; 256], b"p").is_none());
        assert!(Credentials::fixed(&[b'a'; 255], &[b'b'; 255]).is_some());
    }

    #[test]
    fn names_of_scopes_round_trip() {
        for (name, scope) in Scope::ALL {
            assert_eq!(Scope::parse(name), Some(scope));
            assert_eq!(scope.name(), name);
        }
        assert_eq!(Scope::parse("process"), None);
    }
}
