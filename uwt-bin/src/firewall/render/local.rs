//! What this host itself sends and receives.

use super::zones::from_zone;
use super::{Render, from_nets, interfaces, list, nets, port_ranges};
use crate::firewall::policy::{IncomingProtocol, Ports, Relays};
use crate::firewall::rule::Action;
use crate::firewall::ruleset::Class;
use crate::firewall::words::{Server, Transport, family};

fn ports(of: &[Ports]) -> String {
    port_ranges(of.iter().map(|p| (p.0, p.1)))
}

/// Where a server is, as matches: one for each protocol that it may speak.
fn server(s: &Server) -> Vec<String> {
    let family = family(s.address);
    let transports = match s.transport {
        Some(t) => vec![t],
        None => vec![Transport::Tcp, Transport::Udp],
    };
    transports
        .into_iter()
        .map(|t| {
            let port = match s.port {
                Some(p) => format!("{} dport {p}", t.name()),
                None => format!("meta l4proto {}", t.name()),
            };
            format!("{family} daddr {} {port}", s.address)
        })
        .collect()
}

/// ICMPv6 without which IPv6 finds nobody (RFC 4890, 4.4.1).
const NEIGHBOURS: &str = "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255";

/// Name services of a local network: DNS, DNS over TLS and QUIC, mDNS, LLMNR, NetBIOS.
const NAME_SERVICES: &str = "meta l4proto { tcp, udp } th dport { 53, 137-139, 853, 5353, 5355 }";

impl Render<'_> {
    /// What stops IPv6, or what it needs.
    fn ipv6(&mut self, chain: &str, stop: &str) {
        let on = self.policy.ipv6;
        let c = self.out.chain(chain);
        if on {
            c.rule(
                NEIGHBOURS,
                "accept",
                "let through: IPv6 neighbours, ipv6 = true",
            );
        } else {
            c.rule("meta nfproto ipv6", stop, "stopped: IPv6");
        }
    }

    pub(super) fn input(&mut self) {
        let p = self.policy;
        let c = self.out.base(
            "input",
            "type filter hook input priority filter; policy drop",
        );
        c.rule("iifname \"lo\"", "accept", "let in: loopback, see output");
        if self.is_lockdown() {
            self.out.chain("input").plain("goto refuse_in");
            return;
        }
        self.impossible("input");
        self.ipv6("input", "drop");
        if self.is_vpn() {
            // CVE-2019-14899: somebody on the link asks for the tunnel's address.
            self.out.chain("input").rule(
                "fib daddr . iif type != { local, broadcast, multicast }",
                "drop",
                "stopped: for another interface's address",
            );
        }
        self.answers_in();
        if p.fragmentation_needed {
            self.out.chain("input").rule(
                "ct state related icmp type destination-unreachable icmp code 4",
                "accept",
                "let in: fragmentation_needed = true",
            );
        }
        if *p.dhcp.out.get_ref() {
            let why = format!("let in: DHCP, {} dhcp.out", p.origin(&p.dhcp.out));
            self.out
                .chain("input")
                .rule("udp sport 67 udp dport 68", "accept", &why);
        }
        for i in &p.incoming {
            let name = format!("{}, {} incoming", i.get_ref().name, p.origin(i));
            let i = i.get_ref();
            let by = |which: &str| match i.interfaces.as_slice() {
                [] => String::new(),
                some => format!("{which} {} ", interfaces(some)),
            };
            let ported = |name: &str| {
                let ports = ports(&i.ports);
                (
                    format!("{name} dport {ports}"),
                    format!("{name} sport {ports}"),
                )
            };
            let (to, answer) = match i.proto {
                IncomingProtocol::Tcp => ported("tcp"),
                IncomingProtocol::Udp => ported("udp"),
                IncomingProtocol::Icmp => (
                    "icmp type echo-request".to_owned(),
                    "icmp type echo-reply".to_owned(),
                ),
            };
            for from in from_nets(&i.from, "saddr") {
                self.out.chain("input").rule(
                    &format!("{}{from}{to}", by("iifname")),
                    "accept",
                    &format!("let in: {name}"),
                );
            }
            for from in from_nets(&i.from, "daddr") {
                self.out.chain("answers").rule(
                    &format!("{}{from}{answer}", by("oifname")),
                    "accept",
                    &format!("let out: answers of {name}"),
                );
            }
        }
        self.redirected_in();
        self.out.chain("input").plain("goto refuse_in");
    }

    /// Answers to what this host asked. In profile `vpn` those that came the right way.
    fn answers_in(&mut self) {
        const ANSWERS: &str = "ct state established ct direction reply";
        const WHY: &str = "let in: answers";
        if !self.is_vpn() {
            self.out.chain("input").rule(ANSWERS, "accept", WHY);
            return;
        }
        let tunnels = self.tunnels();
        self.out
            .chain("input")
            .rule(&format!("iifname {tunnels} {ANSWERS}"), "accept", WHY);
        self.out.chain("input").rule(
            &format!("{ANSWERS} {}", Class::Vpn.matches()),
            "accept",
            "let in: answers of the VPN's server",
        );
        self.out.chain("input").rule(
            &format!("{ANSWERS} {}", Class::Lan.matches()),
            "accept",
            "let in: answers of the local network",
        );
    }

    pub(super) fn output(&mut self) {
        let p = self.policy;
        let c = self.out.base(
            "output",
            "type filter hook output priority filter; policy drop",
        );
        // What has been redirected still has its old interface here.
        c.plain("ip daddr 127.0.0.0/8 goto loopback");
        c.plain("oifname \"lo\" goto loopback");
        self.loopback();
        if self.is_lockdown() {
            self.out.chain("output").plain("goto refuse");
            return;
        }
        self.impossible("output");
        self.ipv6("output", "reject with icmpx admin-prohibited");
        self.out
            .chain("output")
            .plain("ct state established ct direction reply goto answers");
        if *p.dhcp.out.get_ref() {
            let users = self.users_at(&p.dhcp.users);
            if !users.is_empty() {
                let why = format!("let out: DHCP, {} dhcp.out", p.origin(&p.dhcp.out));
                self.out.chain("output").rule(
                    &format!("udp sport 68 udp dport 67 meta skuid {}", list(users)),
                    "accept",
                    &why,
                );
            }
        }
        self.refusals_to_zones();
        // First by whom a packet is from. One that is from somebody goes no further than `anybody`, whatever its
        // connection is marked with: addresses and ports can be used again by somebody else.
        self.vpn_client();
        if !self.is_vpn() {
            self.tor();
            self.clearnet();
        }
        self.zones_out();
        self.out
            .chain("output")
            .plain("meta skuid >= 0 goto anybody");
        // Then by whose the connection was: the last packets of a closed socket are from nobody.
        for (class, verdict) in std::mem::take(&mut self.orphans) {
            self.out
                .chain("output")
                .plain(format!("{} {verdict}", class.matches()));
        }
        self.out.chain("output").plain("goto anybody");
        if self.is_vpn() {
            let tunnels = self.tunnels();
            let why = format!(
                "let out: tunnel, {} vpn.interfaces",
                p.origin(&p.vpn.interfaces)
            );
            // Whatever it is that was let out: the tunnel gone, it is judged by the way that it would take now.
            self.out
                .chain("anybody")
                .rule(&format!("oifname {tunnels}"), "accept", &why);
        }
        self.lan();
        self.out.chain("anybody").plain("goto refuse");
        // Answers of what may come in; all other answers end here.
        self.out.chain("answers").plain("goto refuse");
    }

    /// What a zone sends is refused by packets that this host sends.
    fn refusals_to_zones(&mut self) {
        let p = self.policy;
        let mut to: Vec<String> = p
            .zones
            .values()
            .filter_map(|z| from_zone(z.get_ref(), "oifname", "daddr"))
            .collect();
        if self.is_vpn() && !p.vpn.forward.get_ref().is_empty() {
            to.push(format!("oifname {}", interfaces(p.vpn.forward.get_ref())));
        }
        for to in to {
            for what in ["tcp flags and rst == rst", "meta l4proto { icmp, icmpv6 }"] {
                self.out.chain("output").rule(
                    &format!("ct state related {to} {what}"),
                    "accept",
                    "let out: refusals to a zone",
                );
            }
        }
    }

    /// What a VPN's client sends to its servers.
    fn vpn_client(&mut self) {
        let p = self.policy;
        let v = &p.vpn;
        if v.servers.get_ref().is_empty() {
            return;
        }
        let why = format!("let out: VPN client, {} vpn.servers", p.origin(&v.servers));
        for s in v.servers.get_ref() {
            if !s.address.is_ipv4() && !p.ipv6 {
                let origin = p.origin(&v.servers);
                self.warn(format!(
                    "{origin}: {} is not reached: ipv6 = false",
                    s.address
                ));
            }
            for m in server(s) {
                self.out
                    .chain("from_vpn_client")
                    .rule(&m, &Class::Vpn.accept(), &why);
            }
        }
        let users = self.users_at(&v.users);
        let origin = p.origin(&v.groups);
        let mut groups = Vec::new();
        for g in v.groups.get_ref() {
            match self.facts.group(g) {
                Some(n) => groups.push(n),
                None => self.warn(format!(
                    "{origin}: there is no group {:?}: what is said of it has no effect",
                    g.0
                )),
            }
        }
        let c = self.out.chain("output");
        if !users.is_empty() {
            c.plain(format!("meta skuid {} jump from_vpn_client", list(users)));
        }
        if !groups.is_empty() {
            c.plain(format!("meta skgid {} jump from_vpn_client", list(groups)));
        }
        if *v.mark.get_ref() != 0 {
            c.plain(format!(
                "meta mark {:#x} jump from_vpn_client",
                v.mark.get_ref()
            ));
        }
        self.orphans
            .push((Class::Vpn, "jump from_vpn_client".into()));
    }

    fn tor(&mut self) {
        let p = self.policy;
        let t = &p.tor;
        let users = self.users_at(&t.users);
        if users.is_empty() {
            self.warn(format!(
                "{}: no Tor user exists on this host: nothing gets out",
                p.origin(&t.users)
            ));
            return;
        }
        let mut matches = "meta l4proto tcp".to_owned();
        let mut why = format!("let out: Tor, {} tor.users", p.origin(&t.users));
        if !t.interfaces.get_ref().is_empty() {
            matches = format!("oifname {} {matches}", interfaces(t.interfaces.get_ref()));
            why += &format!(", {} tor.interfaces", p.origin(&t.interfaces));
        }
        if !t.reachable_ports.get_ref().is_empty() {
            matches += &format!(
                " tcp dport {}",
                port_ranges(t.reachable_ports.get_ref().iter().map(|p| (*p, *p)))
            );
            why += &format!(", {} tor.reachable_ports", p.origin(&t.reachable_ports));
        }
        let accept = Class::Tor.accept();
        let c = self.out.chain("from_tor");
        if *t.relays.get_ref() == Relays::Any {
            c.rule(&matches, &accept, &why);
        } else {
            let name = p.origin(&t.relays);
            c.rule(
                &format!("{matches} ip daddr . tcp dport @{}", super::RELAYS[0]),
                &accept,
                &format!("{why}, {name} tor.relays"),
            );
            c.rule(
                &format!("{matches} ip6 daddr . tcp dport @{}", super::RELAYS[1]),
                &accept,
                &format!("{why}, {name} tor.relays"),
            );
            for s in t.addresses.get_ref() {
                let why = format!("let out: Tor, {} tor.addresses", p.origin(&t.addresses));
                for m in server(s).into_iter().filter(|m| !m.contains("udp")) {
                    self.out
                        .chain("from_tor")
                        .rule(&format!("{matches} {m}"), &accept, &why);
                }
            }
            for (set, kind) in super::RELAYS.into_iter().zip(["ipv4_addr", "ipv6_addr"]) {
                self.out
                    .set(set, &format!("type {kind} . inet_service; flags timeout;"));
            }
        }
        self.out.chain("from_tor").plain("goto refuse");
        let c = self.out.chain("output");
        c.plain(format!("meta skuid {} goto from_tor", list(users)));
        self.orphans.push((Class::Tor, "goto from_tor".into()));
    }

    fn clearnet(&mut self) {
        let p = self.policy;
        let users = self.users_at(&p.clearnet.users);
        if users.is_empty() {
            return;
        }
        let why = format!(
            "let out: clearnet, {} clearnet.users",
            p.origin(&p.clearnet.users)
        );
        let c = self.out.chain("from_clearnet");
        c.rule("", &Class::Clearnet.accept(), &why);
        let c = self.out.chain("output");
        c.plain(format!("meta skuid {} goto from_clearnet", list(users)));
        self.orphans
            .push((Class::Clearnet, "goto from_clearnet".into()));
    }

    fn lan(&mut self) {
        let p = self.policy;
        if !*p.lan.out.get_ref() {
            return;
        }
        let why = format!("let out: local network, {} lan.out", p.origin(&p.lan.out));
        for v4 in [true, false] {
            let Some(m) = nets(p.lan.networks.get_ref(), v4, "daddr") else {
                continue;
            };
            let c = self.out.chain("anybody");
            c.rule(
                &format!("{m} {NAME_SERVICES}"),
                "goto refuse",
                "stopped: name services of the local network",
            );
            c.rule(&m, &Class::Lan.accept(), &why);
        }
    }

    /// Loopback: each service that is named only for its users; and never for clearnet users.
    fn loopback(&mut self) {
        let p = self.policy;
        let clearnet = self.users_at(&p.clearnet.users);
        let c = self.out.chain("loopback");
        // What `reject` answers comes this way too: without these, programs would wait.
        c.rule(
            "tcp flags and rst == rst",
            "accept",
            "let through: refusals on loopback",
        );
        c.rule(
            "ct state related meta l4proto { icmp, icmpv6 }",
            "accept",
            "let through: ICMP errors on loopback",
        );
        c.rule(
            "ct state established ct direction reply",
            "accept",
            "let through: answers on loopback",
        );
        if !clearnet.is_empty() && !self.is_lockdown() {
            let why = format!(
                "stopped: loopback for clearnet users, {}",
                p.origin(&p.clearnet.users)
            );
            self.out.chain("loopback").rule(
                &format!("meta skuid {}", list(clearnet)),
                "goto refuse",
                &why,
            );
        }
        self.redirected_loopback();
        for s in &p.loopback.service {
            let origin = p.origin(s);
            let service = s.get_ref();
            let users = self.users(&service.users, &origin);
            let at = match &service.address {
                Some(n) => format!("{} daddr {n} ", n.family()),
                None => String::new(),
            };
            let to = format!(
                "{at}{} dport {}",
                service.proto.name(),
                ports(&service.ports)
            );
            self.only(
                &to,
                &users,
                &format!("{}, {origin} loopback.service", service.name),
            );
        }
        let verdict = self.outcome(p.loopback.others, Class::Loopback, "refuse");
        let why = match p.loopback.others {
            Action::Accept => "let through: loopback, loopback.others",
            Action::Drop => "stopped: loopback, loopback.others",
        };
        self.out.chain("loopback").rule("", &verdict, why);
    }

    /// A service on loopback is for these users alone.
    pub(super) fn only(&mut self, to: &str, users: &[u32], what: &str) {
        let c = self.out.chain("loopback");
        if !users.is_empty() {
            c.rule(
                &format!("{to} meta skuid {}", list(users)),
                &Class::Loopback.accept(),
                &format!("let through: {what}"),
            );
            // The last packets of a connection whose socket is closed have no user.
            c.rule(
                &format!("{to} ct state established {}", Class::Loopback.matches()),
                "accept",
                &format!("let through: {what}"),
            );
        }
        c.rule(
            to,
            "goto refuse",
            &format!("stopped: not for this user: {what}"),
        );
    }
}
