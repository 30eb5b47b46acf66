//! `uwtctl firewall test`: the rules, loaded into a network namespace that is made for it, with interfaces of the same
//! names, and real packets sent against them. Each promise gets a verdict; before the rules, each probe must be seen.

mod network;

use crate::firewall::load::Prepared;
use crate::firewall::nft::{self, Where};
use crate::firewall::policy::{Profile, Relays};
use crate::firewall::ruleset::TABLE;
use crate::firewall::words::Account;
use crate::refusal::{Refusal, Result};
use network::*;
use serde::Serialize;
use std::io::{self, Error};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

/// What became of a promise.
#[derive(Serialize, Debug)]
pub struct Verdict {
    /// The promise.
    pub promise: String,
    /// Whether it is kept.
    pub kept: bool,
    /// What was seen.
    pub seen: String,
}

/// An address that is nowhere (RFC 5737, TEST-NET-2).
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const ANYWHERE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));
const NOBODY: u32 = 65_534;

struct Bed<'a> {
    prepared: &'a Prepared,
    tap: Tap,
    verdicts: Vec<Verdict>,
}

impl Bed<'_> {
    /// By which interface a probe leaves; `None`: by none.
    fn leaves(&mut self, uid: u32, what: What, to: SocketAddr) -> io::Result<Option<String>> {
        let _before = self.tap.left()?;
        let _socket = send(uid, what, to)?;
        let frames = self.tap.left()?;
        Ok(frames
            .into_iter()
            .find(|f| carries(f, what, to))
            .map(|f| f.interface))
    }

    fn promise(&mut self, promise: &str, kept: bool, seen: impl Into<String>) {
        self.verdicts.push(Verdict {
            promise: promise.to_owned(),
            kept,
            seen: seen.into(),
        });
    }

    /// A probe that must, or must not, leave by this interface.
    fn probe(
        &mut self,
        promise: &str,
        (uid, what, to): (u32, What, SocketAddr),
        by: Option<&str>,
    ) -> io::Result<()> {
        let left = self.leaves(uid, what, to)?;
        let seen = match &left {
            Some(i) => format!("{} to {to} left by {i}", what.name()),
            None => format!("{} to {to} did not leave", what.name()),
        };
        self.promise(promise, left.as_deref() == by, seen);
        Ok(())
    }
}

fn tunnels(p: &Prepared) -> Vec<String> {
    let mut names: Vec<String> = p
        .policy
        .vpn
        .interfaces
        .get_ref()
        .iter()
        .chain(p.policy.tor.interfaces.get_ref())
        .map(|i| i.0.replace('*', "0"))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The network that the rules are tried in.
fn build(p: &Prepared) -> Result<()> {
    for (name, value) in [("accept_dad", "0"), ("router_solicitations", "0")] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{name}"), value);
    }
    let mut batch = format!(
        "link set lo up\nlink add {UPLINK} type veth peer name {FAR}\nlink set {FAR} arp off up\nlink set {UPLINK} arp off up\n\
         addr add 192.0.2.2/24 dev {UPLINK}\nroute add default dev {UPLINK} metric 200\n"
    );
    for (n, t) in tunnels(p).iter().enumerate() {
        batch += &format!(
            "link add {t} type veth peer name uwt-t{n}\nlink set uwt-t{n} arp off up\nlink set {t} arp off up\naddr add 10.250.{n}.2/24 dev {t}\n\
             route add default dev {t} metric 10{n}\n"
        );
    }
    // VPN clients route their servers past the tunnel.
    for s in p.policy.vpn.servers.get_ref() {
        if s.address.is_ipv4() {
            batch += &format!("route replace {} dev {UPLINK}\n", s.address);
        }
    }
    ip(&batch)?;
    // A kernel without IPv6 has nothing to try.
    let _ = ip(&format!(
        "-6 addr add 2001:db8::2/64 dev {UPLINK} nodad\n-6 route add default dev {UPLINK}\n"
    ));
    Ok(())
}

fn uids(accounts: &[Account]) -> Vec<u32> {
    use crate::firewall::facts::{Facts, Host};
    accounts.iter().filter_map(|a| Host.user(a)).collect()
}

/// Tries the rules; each promise with its verdict.
///
/// # Errors
/// The namespace or its network cannot be made, or the probes are not seen where nothing stops them.
pub fn test(prepared: &Prepared) -> Result<Vec<Verdict>> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Refusal::new(
            "test: this needs root",
            "packets are sent as the users that the policy names",
            "sudo uwtctl firewall test",
        ));
    }
    // A namespace of this thread's own, and of what it starts; gone with it.
    std::thread::scope(|s| {
        s.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(|e| Refusal::new("test: no network namespace", e.to_string(), ""))?;
            inside(prepared)
        })
        .join()
        .unwrap_or_else(|_| Err(Refusal::new("test: it broke off", "", "")))
    })
}

fn inside(p: &Prepared) -> Result<Vec<Verdict>> {
    build(p)?;
    let broken = setup("the network of the test");
    let mut bed = Bed {
        prepared: p,
        tap: Tap::open().map_err(&broken)?,
        verdicts: Vec::new(),
    };
    let web = SocketAddr::new(ANYWHERE, 443);
    // Controls: without the rules each probe is seen.
    for what in [What::Tcp, What::Udp, What::Ping] {
        if bed.leaves(NOBODY, what, web).map_err(&broken)?.is_none() {
            return Err(Refusal::new(
                format!("test: {} is not seen though no rule is loaded", what.name()),
                "what is not seen proves nothing",
                "",
            ));
        }
    }
    // A flow from before the rules.
    let old = send(NOBODY, What::Udp, SocketAddr::new(ANYWHERE, 4000)).map_err(&broken)?;
    nft::load(&p.transaction(1, ""), Where::Here)?;
    let run = |bed: &mut Bed<'_>| -> io::Result<()> {
        bed.tap.left()?;
        let _ = nix::unistd::write(&old, b"later");
        let left = bed.tap.left()?;
        let to = SocketAddr::new(ANYWHERE, 4000);
        let tunnels = tunnels(p);
        let escaped = left
            .iter()
            .find(|f| carries(f, What::Udp, to) && !tunnels.contains(&f.interface));
        let seen = match escaped {
            Some(f) => format!("it goes on by {}", f.interface),
            None => "it ended".to_owned(),
        };
        bed.promise(
            "what was open before the rules ends",
            escaped.is_none(),
            seen,
        );
        nobody(bed)?;
        match p.policy.profile {
            Profile::TorHost => tor_host(bed)?,
            Profile::Vpn => vpn(bed)?,
            Profile::Lockdown => {}
        }
        incoming(bed)?;
        transparent(bed)
    };
    run(&mut bed).map_err(&broken)?;
    Ok(bed.verdicts)
}

/// What nobody may, in any profile.
fn nobody(bed: &mut Bed<'_>) -> io::Result<()> {
    let p = &bed.prepared.policy;
    let tunnel = (p.profile == Profile::Vpn)
        .then(|| tunnels(bed.prepared).first().cloned())
        .flatten();
    let way = tunnel.as_deref();
    let other = match way {
        Some(_) => "other users leave by the tunnel alone",
        None => "other users do not get out",
    };
    let redirected = *p.dns.redirect.get_ref();
    for (what, port) in [
        (What::Tcp, 443),
        (What::Udp, 443),
        (What::Udp, 53),
        (What::Ping, 0),
    ] {
        let by = way.filter(|_| !(redirected && port == 53));
        let to = SocketAddr::new(ANYWHERE, port);
        bed.probe(&format!("{other}: {}", what.name()), (NOBODY, what, to), by)?;
        bed.probe(
            &format!("root no more than they: {}", what.name()),
            (0, what, to),
            by,
        )?;
    }
    let lan = p
        .lan
        .networks
        .get_ref()
        .iter()
        .find(|n| n.is_v4())
        .map_or(Ipv4Addr::new(192, 168, 0, 9).into(), |n| n.address);
    if way.is_none() {
        let by = (*p.lan.out.get_ref() && p.profile != Profile::Lockdown).then_some(UPLINK);
        let promise = match by {
            Some(_) => "the local network is reached",
            None => "the local network is not reached",
        };
        bed.probe(promise, (NOBODY, What::Tcp, SocketAddr::new(lan, 445)), by)?;
        for port in [53, 137, 853, 5353] {
            bed.probe(
                &format!("its name services are not: port {port}"),
                (NOBODY, What::Udp, SocketAddr::new(lan, port)),
                None,
            )?;
        }
    }
    if !p.ipv6 && index(UPLINK) != 0 {
        for uid in [NOBODY, 0].into_iter().chain(uids(p.tor.users.get_ref())) {
            let to = SocketAddr::new(ANYWHERE6, 443);
            bed.probe(
                &format!("IPv6 does not get out: uid {uid}"),
                (uid, What::Tcp, to),
                None,
            )?;
        }
    }
    Ok(())
}

fn tor_host(bed: &mut Bed<'_>) -> io::Result<()> {
    let p = bed.prepared;
    let t = &p.policy.tor;
    let port = t.reachable_ports.get_ref().first().copied().unwrap_or(443);
    let relay = SocketAddr::new(ANYWHERE, port);
    let way = match t.interfaces.get_ref().first() {
        Some(i) => i.0.replace('*', "0"),
        None => UPLINK.to_owned(),
    };
    let tor = uids(t.users.get_ref());
    for uid in tor.iter().copied() {
        if *t.relays.get_ref() != Relays::Any {
            bed.probe(
                "Tor reaches no address that is no relay",
                (uid, What::Tcp, relay),
                None,
            )?;
            let add =
                format!("add element inet {TABLE} relays4 {{ {ANYWHERE} . {port} timeout 60s }}\n");
            nft::load(&add, Where::Here).map_err(|e| Error::other(e.to_string()))?;
        }
        bed.probe(
            &format!("Tor gets out: uid {uid}"),
            (uid, What::Tcp, relay),
            Some(&way),
        )?;
        bed.probe("Tor sends no UDP", (uid, What::Udp, relay), None)?;
        bed.probe("Tor sends no ICMP", (uid, What::Ping, relay), None)?;
        if !t.reachable_ports.get_ref().is_empty() {
            let other = (1..).find(|p| !t.reachable_ports.get_ref().contains(p));
            let other = SocketAddr::new(ANYWHERE, other.unwrap_or(1));
            bed.probe("Tor reaches no other port", (uid, What::Tcp, other), None)?;
        }
        if !t.interfaces.get_ref().is_empty() {
            ip(&format!("link set {way} down\n")).map_err(|e| Error::other(e.to_string()))?;
            bed.probe(
                "the tunnel down, Tor is down",
                (uid, What::Tcp, relay),
                None,
            )?;
            ip(&format!(
                "link set {way} up\nroute replace default dev {way} metric 100\n"
            ))
            .map_err(|e| Error::other(e.to_string()))?;
        }
    }
    for uid in uids(p.policy.clearnet.users.get_ref()) {
        let way = bed.leaves(uid, What::Udp, SocketAddr::new(ANYWHERE, 443))?;
        bed.promise(
            &format!("clearnet users get out: uid {uid}"),
            way.is_some(),
            format!("left by {way:?}"),
        );
        let local = TcpListener::bind("127.0.0.1:0")?;
        let reached = reaches(uid, local.local_addr()?)?;
        bed.promise(
            &format!("clearnet users have no loopback: uid {uid}"),
            !reached,
            if reached { "connected" } else { "refused" },
        );
    }
    Ok(())
}

fn vpn(bed: &mut Bed<'_>) -> io::Result<()> {
    let p = bed.prepared;
    let v = &p.policy.vpn;
    let failed = |e: Refusal| Error::other(e.to_string());
    let clients = uids(v.users.get_ref());
    for s in v.servers.get_ref().iter().filter(|s| s.address.is_ipv4()) {
        let to = SocketAddr::new(s.address, s.port.unwrap_or(1194));
        let what = match s.transport {
            Some(crate::firewall::words::Transport::Tcp) => What::Tcp,
            _ => What::Udp,
        };
        for uid in clients.iter().copied() {
            bed.probe(
                &format!("the VPN client reaches its server {to}: uid {uid}"),
                (uid, what, to),
                Some(UPLINK),
            )?;
        }
        bed.probe("nobody else does", (NOBODY, what, to), None)?;
        for uid in uids(p.policy.tor.users.get_ref()) {
            let to = SocketAddr::new(s.address, 443);
            bed.probe(
                "nor Tor, to a guard at the same address",
                (uid, What::Tcp, to),
                None,
            )?;
        }
    }
    let names = tunnels(p);
    // A flow through the tunnel, and then the tunnel is gone: routes lead past it.
    let to = SocketAddr::new(ANYWHERE, 4433);
    let flow = send(NOBODY, What::Udp, to)?;
    let down: String = names
        .iter()
        .map(|t| format!("link set {t} down\n"))
        .collect();
    ip(&down).map_err(failed)?;
    bed.tap.left()?;
    let _ = nix::unistd::write(&flow, b"on");
    let left = bed.tap.left()?;
    let escaped = left.iter().find(|f| carries(f, What::Udp, to));
    let seen = escaped.map_or("nothing left".to_owned(), |f| {
        format!("it left by {}", f.interface)
    });
    bed.promise(
        "the tunnel down, open connections are down",
        escaped.is_none(),
        seen,
    );
    bed.probe(
        "the tunnel down, new ones are refused",
        (NOBODY, What::Tcp, to),
        None,
    )?;
    for uid in clients {
        bed.probe(
            "nor does the VPN client get elsewhere",
            (uid, What::Tcp, to),
            None,
        )?;
    }
    Ok(())
}

fn incoming(bed: &mut Bed<'_>) -> io::Result<()> {
    let p = &bed.prepared.policy;
    // The peer's hardware address is the destination: the uplink takes what is for it alone.
    let mac =
        std::fs::read_to_string(format!("/sys/class/net/{UPLINK}/address")).unwrap_or_default();
    let mac: Vec<u8> = match mac.trim() {
        // /sys shows the namespace that it was mounted in.
        "" => own_mac()?,
        text => text
            .split(':')
            .filter_map(|b| u8::from_str_radix(b, 16).ok())
            .collect(),
    };
    let ask = |bed: &mut Bed<'_>, port: u16| -> io::Result<bool> {
        let _listener = TcpListener::bind(("0.0.0.0", port))?;
        bed.tap.left()?;
        let mut frame = syn(port);
        frame[..6].copy_from_slice(&mac);
        bed.tap.send(FAR, &frame)?;
        let to = SocketAddr::from(([198, 51, 100, 9], 0x9c40));
        Ok(bed.tap.left()?.iter().any(|f| carries(f, What::Tcp, to)))
    };
    let closed = (1024..).find(|port| {
        !p.incoming
            .iter()
            .any(|i| i.get_ref().ports.iter().any(|r| (r.0..=r.1).contains(port)))
    });
    let closed = closed.unwrap_or(1024);
    let answered = ask(bed, closed)?;
    bed.promise(
        &format!("nothing comes in: TCP {closed}"),
        !answered,
        if answered { "answered" } else { "no answer" },
    );
    for i in &p.incoming {
        let i = i.get_ref();
        let anywhere = i.from.is_empty() && i.interfaces.is_empty();
        let (true, crate::firewall::policy::IncomingProtocol::Tcp, Some(port)) =
            (anywhere, i.proto, i.ports.first())
        else {
            continue;
        };
        let answered = ask(bed, port.0)?;
        bed.promise(
            &format!("{} comes in: TCP {}", i.name, port.0),
            answered && p.profile != Profile::Lockdown,
            if answered { "answered" } else { "no answer" },
        );
    }
    Ok(())
}

/// The three questions of Whonix's page on stream isolation, and who is redirected.
fn transparent(bed: &mut Bed<'_>) -> io::Result<()> {
    let p = &bed.prepared.policy;
    let t = &p.transparent;
    let trans = TcpListener::bind(("127.0.0.1", p.tor.trans_port))?;
    trans.set_nonblocking(true)?;
    let dns = UdpSocket::bind(("127.0.0.1", p.tor.dns_port))?;
    dns.set_read_timeout(Some(Duration::from_millis(1)))?;
    let redirected =
        |bed: &mut Bed<'_>, uid: u32, what: What, to: SocketAddr| -> io::Result<bool> {
            let mut buf = [0; 64];
            while dns.recv(&mut buf).is_ok() {}
            if what == What::Tcp {
                let reached = reaches(uid, to)?;
                return Ok(reached && trans.accept().is_ok());
            }
            let _socket = send(uid, what, to)?;
            bed.tap.left()?;
            Ok(dns.recv(&mut buf).is_ok())
        };
    let resolver = SocketAddr::new(ANYWHERE, 53);
    let web = SocketAddr::new(ANYWHERE, 80);
    let live = p.profile != Profile::Lockdown;
    let seen = |on: bool| if on { "it reaches Tor" } else { "it does not" };
    let wanted_dns = live && *p.dns.redirect.get_ref();
    let on_dns = redirected(bed, NOBODY, What::Udp, resolver)?;
    let word = if wanted_dns { "on" } else { "off" };
    bed.promise(
        &format!("transparent DNS is {word}"),
        on_dns == wanted_dns,
        seen(on_dns),
    );
    let on_tcp = redirected(bed, NOBODY, What::Tcp, web)?;
    bed.promise("transparent TCP is off", !on_tcp, seen(on_tcp));
    let word = if wanted_dns {
        "on for DNS alone"
    } else {
        "off"
    };
    bed.promise(
        &format!("transparent proxying is {word}"),
        !on_tcp && on_dns == wanted_dns,
        seen(on_tcp || on_dns),
    );
    if !live {
        return Ok(());
    }
    for uid in uids(t.tcp_users.get_ref()) {
        let on = redirected(bed, uid, What::Tcp, web)?;
        bed.promise(&format!("TCP of uid {uid} goes to TransPort"), on, seen(on));
    }
    for uid in uids(t.dns_users.get_ref()) {
        let on = redirected(bed, uid, What::Udp, resolver)?;
        bed.promise(&format!("DNS of uid {uid} goes to DNSPort"), on, seen(on));
    }
    let IpAddr::V4(mapped) = p.automap.network.address else {
        return Ok(());
    };
    let mapped = SocketAddr::from((Ipv4Addr::from_bits(mapped.to_bits() + 10), 80));
    for uid in uids(p.automap.users.get_ref()) {
        let on = redirected(bed, uid, What::Tcp, mapped)?;
        bed.promise(
            &format!("mapped addresses of uid {uid} go to TransPort"),
            on,
            seen(on),
        );
    }
    if !p.automap.users.get_ref().is_empty() {
        let on = redirected(bed, NOBODY, What::Tcp, mapped)?;
        bed.promise("mapped addresses are nobody else's", !on, seen(on));
    }
    Ok(())
}
