//! Destination + policy -> Tor, direct or refused. What goes to Tor and what does not is decided here
//! and nowhere else.
//!
//! Everything is refused but what a line here lets through; a refusal says why ([`Refusal`]).

use crate::errno::Errno;
use crate::hostname::{canonical, is_loopback};
use crate::names;
use core::net::{IpAddr, SocketAddr};

/// Where Tor's SOCKS port is (tor(1), SocksPort).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Socks<'a> {
    /// TCP.
    Ip(SocketAddr),
    /// A unix domain socket's absolute path.
    Unix(&'a [u8]),
}

/// What becomes of loopback destinations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Localhost {
    /// They are reached directly.
    Direct,
    /// They are refused.
    Refuse,
}

/// Which connections may come in (listen(2), accept(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inbound {
    /// None.
    Refuse,
    /// Those from this machine, on a loopback address.
    Loopback,
    /// Any: the answers go out beside Tor. For what is reached by an onion service on another host.
    Allow,
}

/// What bind(2) does with an address that is not loopback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bind {
    /// It is bound as given.
    Keep,
    /// The loopback address of its family takes its place.
    Loopback,
}

/// What is let through, for one command.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// Tor's SOCKS port: always reachable, a program may speak SOCKS itself.
    pub socks: Socks<'a>,
    /// Loopback destinations.
    pub localhost: Localhost,
    /// Loopback ports that are reached although [`DENIED_PORTS`] names them.
    pub localhost_ports: PortList<'a>,
    /// Connections that come in.
    pub inbound: Inbound,
    /// Where servers bind.
    pub bind: Bind,
    /// Unix sockets that are reached although [`DENIED_UNIX`] names them: absolute paths, `:` between.
    pub unix_allow: &'a [u8],
    /// Whether the kernel holds what the shim does not (level `netns`): there a resolver answers UDP port 53 of every
    /// address, and what is not carried by the shim is carried, or refused, outside the program.
    pub held: bool,
}

/// Ports, two bytes each, most significant first: the form in which the handoff carries them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortList<'a>(pub &'a [u8]);

impl PortList<'_> {
    /// Whether `port` is among them.
    pub fn contains(self, port: u16) -> bool {
        self.0.chunks_exact(2).any(|p| p == port.to_be_bytes())
    }
}

/// Loopback ports that are never reached unless the configuration names them. Behind them sits a
/// daemon that does what its client may not: a DNS resolver (53, 853, mDNS 5353, LLMNR 5355), or
/// Tor's ControlPort (9051, Tor Browser's 9151, onion-grater's 951).
pub const DENIED_PORTS: [u16; 7] = [53, 853, 5353, 5355, 9051, 9151, 951];

/// Unix sockets of daemons that resolve names or open connections for their clients: the name service
/// cache, systemd-resolved's varlink sockets, Avahi, the system bus (org.freedesktop.resolve1); and of those that
/// start containers, virtual machines and downloads with a network of their own. An entry that ends in `/` stands
/// for all beneath it.
pub const DENIED_UNIX: [&[u8]; 9] = [
    b"/run/nscd/socket",
    b"/run/systemd/resolve/",
    b"/run/avahi-daemon/socket",
    b"/run/dbus/system_bus_socket",
    b"/run/docker.sock",
    b"/run/containerd/containerd.sock",
    b"/run/podman/podman.sock",
    b"/run/snapd.socket",
    b"/run/libvirt/",
];

/// Why something is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No policy reached this process, or a malformed one.
    NoPolicy,
    /// UDP, ICMP and whatever is not TCP: Tor does not carry it.
    NotTcp,
    /// A socket family, type or protocol that reaches the network beside TCP.
    SocketKind(Errno),
    /// Loopback, and `localhost.passthrough` is off.
    LoopbackOff,
    /// A loopback port that leads on to the network.
    DeniedPort(u16),
    /// A unix socket whose daemon reaches the network.
    DeniedUnix,
    /// A unix socket whose daemon reaches the network and was there before this run.
    DaemonOutside,
    /// Multicast, broadcast, link-local: nothing that Tor could reach.
    NoTorAddress,
    /// A virtual address that stands for no name of this run.
    UnknownVirtual,
    /// Data with the SYN (MSG_FASTOPEN): the handshake must come first.
    FastOpen,
    /// Listening, or accepting, beyond what `inbound` lets in.
    Inbound,
    /// A network socket that another process made and handed over.
    ForeignSocket,
    /// A system call that could reach the network and that uwt does not know.
    UnknownSyscall,
}

impl Refusal {
    /// The errno that the program gets.
    pub fn errno(self) -> Errno {
        match self {
            Refusal::NoPolicy => Errno::ECONNREFUSED,
            Refusal::NotTcp | Refusal::Inbound => Errno::EPERM,
            Refusal::SocketKind(e) => e,
            Refusal::LoopbackOff
            | Refusal::DeniedPort(_)
            | Refusal::DeniedUnix
            | Refusal::DaemonOutside => Errno::ECONNREFUSED,
            Refusal::NoTorAddress => Errno::ENETUNREACH,
            Refusal::UnknownVirtual => Errno::EHOSTUNREACH,
            Refusal::FastOpen => Errno::EOPNOTSUPP,
            Refusal::ForeignSocket => Errno::EACCES,
            Refusal::UnknownSyscall => Errno::ENOSYS,
        }
    }

    /// One line for a person.
    pub fn message(self) -> &'static str {
        match self {
            Refusal::NoPolicy => "no valid handoff from uwt: start the program with uwt",
            Refusal::NotTcp => "not TCP: Tor does not carry it",
            Refusal::SocketKind(_) => "this kind of socket could reach the network beside Tor",
            Refusal::LoopbackOff => "loopback, and localhost.passthrough is off",
            Refusal::DeniedPort(_) => {
                "a resolver's or Tor's control port on loopback; localhost.ports can allow it"
            }
            Refusal::DeniedUnix => {
                "this daemon resolves or connects for its clients; unix.allow can allow it"
            }
            Refusal::DaemonOutside => {
                "this daemon was started outside uwt and reaches the network beside Tor; end it (gpgconf --kill dirmngr), uwt starts one of its own"
            }
            Refusal::NoTorAddress => "not an address that Tor can reach",
            Refusal::UnknownVirtual => "a virtual address that stands for no name of this run",
            Refusal::FastOpen => "TCP fast open would send data before the SOCKS handshake",
            Refusal::Inbound => "listening beyond loopback; inbound = \"allow\" permits it",
            Refusal::ForeignSocket => "a network socket that came from outside this run",
            Refusal::UnknownSyscall => "a system call that could reach the network",
        }
    }
}

/// What becomes of a connection or a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Through Tor's SOCKS port.
    Tor,
    /// As the program asked, beside Tor: loopback only.
    Direct,
    /// Not at all.
    Refuse(Refusal),
}

/// What travels on a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP (and MPTCP, which falls back to it on loopback).
    Tcp,
    /// UDP.
    Udp,
}

/// Where a connect(2), or a datagram with an address, goes.
///
/// A virtual address goes to Tor for TCP; whether a name stands behind it is for the caller to find
/// out ([`Refusal::UnknownVirtual`] if not).
pub fn outbound(policy: &Policy<'_>, transport: Transport, to: SocketAddr) -> Route {
    let ip = canonical(to.ip());
    let virtual_address = names::virtual_address(ip).is_some();
    if policy.held && transport == Transport::Udp && to.port() == 53 {
        return Route::Direct;
    }
    if !virtual_address {
        if let Socks::Ip(socks) = policy.socks {
            let same = canonical(socks.ip()) == ip && socks.port() == to.port();
            if same && transport == Transport::Tcp {
                return Route::Direct;
            }
        }
        if is_loopback(ip) {
            return loopback(policy, to.port());
        }
    }
    if transport != Transport::Tcp {
        return Route::Refuse(Refusal::NotTcp);
    }
    let reachable = match ip {
        IpAddr::V4(a) => !(a.is_multicast() || a.is_broadcast() || a.is_link_local()),
        IpAddr::V6(a) => !(a.is_multicast() || (a.segments()[0] & 0xffc0) == 0xfe80),
    };
    if reachable {
        Route::Tor
    } else {
        Route::Refuse(Refusal::NoTorAddress)
    }
}

fn loopback(policy: &Policy<'_>, port: u16) -> Route {
    let named = policy.localhost_ports.contains(port);
    if policy.localhost == Localhost::Refuse {
        Route::Refuse(Refusal::LoopbackOff)
    } else if DENIED_PORTS.contains(&port) && !named {
        Route::Refuse(Refusal::DeniedPort(port))
    } else {
        Route::Direct
    }
}

/// What becomes of a connection to a unix domain socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnixRoute {
    /// As the program asked.
    Direct,
    /// Only if the daemon behind it was started within this run, which holds it: GnuPG's dirmngr, which
    /// gpg starts when there is none.
    OfThisRun,
    /// Not at all.
    Refuse(Refusal),
}

/// Where a connect(2) to a unix domain socket goes. `path` is absolute and without symbolic links.
pub fn unix(policy: &Policy<'_>, path: &[u8]) -> UnixRoute {
    // /var/run is /run on every Debian.
    let path = path.strip_prefix(b"/var").map_or(path, |rest| {
        if rest.starts_with(b"/run/") {
            rest
        } else {
            path
        }
    });
    let denied = DENIED_UNIX
        .iter()
        .any(|d| path == *d || (d.ends_with(b"/") && path.starts_with(d)));
    let dirmngr = path.ends_with(b"/S.dirmngr");
    if policy.unix_allow.split(|b| *b == b':').any(|a| a == path) {
        UnixRoute::Direct
    } else if denied {
        UnixRoute::Refuse(Refusal::DeniedUnix)
    } else if dirmngr {
        UnixRoute::OfThisRun
    } else {
        UnixRoute::Direct
    }
}

/// Whether a server may listen on `on` (listen(2)): direct, or refused.
pub fn listen(policy: &Policy<'_>, on: SocketAddr) -> Route {
    let ip = canonical(on.ip());
    match policy.inbound {
        Inbound::Allow => Route::Direct,
        Inbound::Loopback if is_loopback(ip) && !ip.is_unspecified() => Route::Direct,
        _ => Route::Refuse(Refusal::Inbound),
    }
}

/// Whether a connection that came in from `from` may be used (accept(2)): direct, or refused.
pub fn accepted(policy: &Policy<'_>, from: SocketAddr) -> Route {
    listen(policy, from)
}

/// What a socket that socket(2) is asked for may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketUse {
    /// TCP over IPv4 or IPv6: subject to [`outbound`].
    Tcp,
    /// UDP over IPv4 or IPv6: subject to [`outbound`].
    Udp,
    /// Stays on this machine: AF_UNIX, AF_NETLINK, AF_ALG.
    Local,
    /// Could reach the network in a way that uwt does not hold.
    Refuse(Refusal),
}

/// Says what socket(2) may be asked for. The numbers are Linux's (socket(2), bits/socket.h).
pub fn socket(domain: i32, kind: i32, protocol: i32) -> SocketUse {
    const AF_UNIX: i32 = 1;
    const AF_INET: i32 = 2;
    const AF_INET6: i32 = 10;
    const AF_NETLINK: i32 = 16;
    const AF_PACKET: i32 = 17;
    const AF_ALG: i32 = 38;
    const SOCK_STREAM: i32 = 1;
    const SOCK_DGRAM: i32 = 2;
    const SOCK_RAW: i32 = 3;
    const SOCK_PACKET: i32 = 10;
    const IPPROTO_IP: i32 = 0;
    const IPPROTO_ICMP: i32 = 1;
    const IPPROTO_TCP: i32 = 6;
    const IPPROTO_UDP: i32 = 17;
    const IPPROTO_ICMPV6: i32 = 58;
    const IPPROTO_MPTCP: i32 = 262;
    let refuse = |e| SocketUse::Refuse(Refusal::SocketKind(e));
    // SOCK_NONBLOCK and SOCK_CLOEXEC are or-ed in above the type.
    let kind = kind & 0xf;
    match domain {
        AF_UNIX | AF_NETLINK | AF_ALG => SocketUse::Local,
        AF_INET | AF_INET6 => match (kind, protocol) {
            (SOCK_STREAM, IPPROTO_IP | IPPROTO_TCP | IPPROTO_MPTCP) => SocketUse::Tcp,
            (SOCK_DGRAM, IPPROTO_IP | IPPROTO_UDP) => SocketUse::Udp,
            // What an unprivileged program is told about raw and ping sockets: its fallbacks fit.
            (SOCK_DGRAM, IPPROTO_ICMP | IPPROTO_ICMPV6) => refuse(Errno::EACCES),
            (SOCK_RAW | SOCK_PACKET, _) => refuse(Errno::EPERM),
            (SOCK_STREAM | SOCK_DGRAM, _) => refuse(Errno::EPROTONOSUPPORT),
            _ => refuse(Errno::ESOCKTNOSUPPORT),
        },
        AF_PACKET => refuse(Errno::EPERM),
        _ => refuse(Errno::EAFNOSUPPORT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy<'static> {
        Policy {
            socks: Socks::Ip(SocketAddr::from(([127, 0, 0, 1], 9050))),
            localhost: Localhost::Direct,
            localhost_ports: PortList(&[]),
            inbound: Inbound::Loopback,
            bind: Bind::Keep,
            unix_allow: b"",
            held: false,
        }
    }

    fn to(s: &str) -> SocketAddr {
        s.parse().expect("address")
    }

    #[test]
    fn what_goes_where() {
        use Route::{Direct, Tor};
        let no = Route::Refuse;
        let p = policy();
        for (dst, tcp, udp) in [
            ("192.0.2.1:80", Tor, no(Refusal::NotTcp)),
            ("[2001:db8::1]:80", Tor, no(Refusal::NotTcp)),
            ("[::ffff:192.0.2.1]:80", Tor, no(Refusal::NotTcp)),
            ("10.0.0.1:80", Tor, no(Refusal::NotTcp)),
            ("127.128.0.9:80", Tor, no(Refusal::NotTcp)),
            ("[::ffff:127.128.0.9]:53", Tor, no(Refusal::NotTcp)),
            ("127.0.0.1:8080", Direct, Direct),
            ("[::1]:8080", Direct, Direct),
            ("0.0.0.0:8080", Direct, Direct),
            ("127.0.0.1:9050", Direct, Direct),
            ("[::ffff:127.0.0.1]:9050", Direct, Direct),
            (
                "127.0.0.53:53",
                no(Refusal::DeniedPort(53)),
                no(Refusal::DeniedPort(53)),
            ),
            (
                "127.0.0.1:9051",
                no(Refusal::DeniedPort(9051)),
                no(Refusal::DeniedPort(9051)),
            ),
            (
                "224.0.0.251:5353",
                no(Refusal::NoTorAddress),
                no(Refusal::NotTcp),
            ),
            (
                "255.255.255.255:1",
                no(Refusal::NoTorAddress),
                no(Refusal::NotTcp),
            ),
            (
                "[fe80::1]:80",
                no(Refusal::NoTorAddress),
                no(Refusal::NotTcp),
            ),
            (
                "[ff02::1]:80",
                no(Refusal::NoTorAddress),
                no(Refusal::NotTcp),
            ),
        ] {
            assert_eq!(outbound(&p, Transport::Tcp, to(dst)), tcp, "{dst}");
            assert_eq!(outbound(&p, Transport::Udp, to(dst)), udp, "{dst}");
        }
    }

    #[test]
    fn a_held_run_asks_its_own_resolver() {
        let p = Policy {
            held: true,
            ..policy()
        };
        for dst in ["127.0.0.53:53", "192.0.2.1:53", "[2001:db8::1]:53"] {
            assert_eq!(outbound(&p, Transport::Udp, to(dst)), Route::Direct);
            assert_ne!(outbound(&p, Transport::Tcp, to(dst)), Route::Direct);
        }
        assert_ne!(
            outbound(&p, Transport::Udp, to("192.0.2.1:54")),
            Route::Direct
        );
    }

    #[test]
    fn loopback_off_still_reaches_the_socks_port_and_nothing_else() {
        let p = Policy {
            localhost: Localhost::Refuse,
            ..policy()
        };
        let tcp = |d| outbound(&p, Transport::Tcp, to(d));
        assert_eq!(tcp("127.0.0.1:9050"), Route::Direct);
        assert_eq!(tcp("127.0.0.1:80"), Route::Refuse(Refusal::LoopbackOff));
        assert_eq!(tcp("127.128.0.1:80"), Route::Tor);
        assert_eq!(
            outbound(&p, Transport::Udp, to("127.0.0.1:9050")),
            Route::Refuse(Refusal::LoopbackOff)
        );
    }

    #[test]
    fn a_denied_port_can_be_named() {
        let ports = [0x23, 0x5b];
        let p = Policy {
            localhost_ports: PortList(&ports),
            ..policy()
        };
        assert_eq!(
            outbound(&p, Transport::Tcp, to("127.0.0.1:9051")),
            Route::Direct
        );
        assert_ne!(
            outbound(&p, Transport::Tcp, to("127.0.0.1:53")),
            Route::Direct
        );
    }

    #[test]
    fn a_socks_port_elsewhere_is_reached_directly_and_only_it() {
        let p = Policy {
            socks: Socks::Ip(to("10.152.152.10:9050")),
            ..policy()
        };
        assert_eq!(
            outbound(&p, Transport::Tcp, to("10.152.152.10:9050")),
            Route::Direct
        );
        assert_eq!(
            outbound(&p, Transport::Tcp, to("10.152.152.10:9051")),
            Route::Tor
        );
    }

    #[test]
    fn daemons_behind_unix_sockets() {
        let p = policy();
        let denied = UnixRoute::Refuse(Refusal::DeniedUnix);
        assert_eq!(unix(&p, b"/var/run/nscd/socket"), denied);
        assert_eq!(unix(&p, b"/run/systemd/resolve/io.systemd.Resolve"), denied);
        assert_eq!(unix(&p, b"/run/dbus/system_bus_socket"), denied);
        assert_eq!(unix(&p, b"/tmp/.X11-unix/X0"), UnixRoute::Direct);
        let dirmngr = unix(&p, b"/run/user/1000/gnupg/d.x/S.dirmngr");
        assert_eq!(dirmngr, UnixRoute::OfThisRun);
        let p = Policy {
            unix_allow: b"/x:/run/dbus/system_bus_socket",
            ..p
        };
        assert_eq!(unix(&p, b"/run/dbus/system_bus_socket"), UnixRoute::Direct);
        assert_eq!(unix(&p, b"/run/nscd/socket"), denied);
    }

    #[test]
    fn listening() {
        let p = policy();
        assert_eq!(listen(&p, to("127.0.0.1:0")), Route::Direct);
        assert_eq!(
            listen(&p, to("0.0.0.0:80")),
            Route::Refuse(Refusal::Inbound)
        );
        assert_eq!(
            accepted(&p, to("192.0.2.9:5")),
            Route::Refuse(Refusal::Inbound)
        );
        let p = Policy {
            inbound: Inbound::Refuse,
            ..p
        };
        assert_eq!(
            listen(&p, to("127.0.0.1:0")),
            Route::Refuse(Refusal::Inbound)
        );
    }

    #[test]
    fn kinds_of_sockets() {
        assert_eq!(socket(2, 1 | 0o4000, 0), SocketUse::Tcp);
        assert_eq!(socket(10, 1, 262), SocketUse::Tcp);
        assert_eq!(socket(2, 2, 17), SocketUse::Udp);
        assert_eq!(socket(1, 5, 0), SocketUse::Local);
        for (d, k, p) in [
            (2, 3, 1),
            (2, 2, 1),
            (2, 2, 136),
            (2, 1, 132),
            (2, 5, 132),
            (2, 6, 33),
            (17, 3, 0),
            (40, 1, 0),
            (43, 1, 0),
            (30, 4, 0),
            (99, 1, 0),
        ] {
            assert!(
                matches!(socket(d, k, p), SocketUse::Refuse(_)),
                "{d} {k} {p}"
            );
        }
    }
}
