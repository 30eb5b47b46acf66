//! Zones: ordered rules for a user, a cgroup, an interface or a source, and what goes between them.

use super::{Expiry, HostSet, Render, from_nets, interfaces, list, port_ranges, ranges};
use crate::firewall::policy::{At, Zone};
use crate::firewall::rule::{Action, Destination, Protocol, Rule};
use crate::firewall::ruleset::Class;
use crate::firewall::words::{HostName, Net, ZoneName, family};
use std::collections::BTreeMap;

/// A run of rules that say the same of different places: their order among each other does not matter.
type Places = BTreeMap<(bool, &'static str, (u16, u16)), Vec<(Net, String)>>;

/// Places that stand alone, with ports and the lines that ask for them.
type Alone<'a> = BTreeMap<(Net, &'a str), Vec<((u16, u16), String)>>;

/// A rule that names a network and, perhaps, ports, and nothing that can change.
fn plain(r: &Rule) -> Option<(Net, &'static str, (u16, u16))> {
    let Some(Destination::Net(net)) = r.destination else {
        return None;
    };
    let protocol = match r.protocol {
        Some(Protocol::Tcp) => "tcp",
        Some(Protocol::Udp) => "udp",
        None => "",
        Some(Protocol::Icmp) => return None,
    };
    if r.is_volatile() {
        return None;
    }
    Some((net, protocol, r.ports.unwrap_or((0, u16::MAX))))
}

/// `tcp dport 80`, `meta l4proto tcp`, or nothing.
fn to_ports(protocol: &str, ports: &str) -> String {
    match (protocol, ports) {
        ("", _) => String::new(),
        (p, "0-65535") => format!(" meta l4proto {p}"),
        (p, ports) => format!(" {p} dport {ports}"),
    }
}

impl Render<'_> {
    /// What users and cgroups of this host send.
    pub(super) fn zones_out(&mut self) {
        let policy = self.policy;
        for (n, (name, zone)) in policy.zones.iter().enumerate() {
            let z = zone.get_ref();
            let chain = format!("zone_{}", name.0);
            let who = if let Some(user) = &z.user {
                let origin = policy.origin(user);
                let users = self.users(std::slice::from_ref(user.get_ref()), &origin);
                match users.first() {
                    Some(u) => format!("meta skuid {u}"),
                    None => continue,
                }
            } else if let Some(cgroup) = &z.cgroup {
                if !self.facts.cgroup(cgroup.get_ref()) {
                    self.warn(format!(
                        "{}: there is no cgroup {}: zone {} gets nothing until there is",
                        policy.origin(cgroup),
                        cgroup.get_ref().0,
                        name.0
                    ));
                    continue;
                }
                let path = &cgroup.get_ref().0;
                let level = path.split('/').count();
                format!("socket cgroupv2 level {level} \"{path}\"")
            } else {
                continue;
            };
            self.out
                .chain("output")
                .plain(format!("{who} goto {chain}"));
            self.orphans.push((Class::Zone(n), format!("goto {chain}")));
            if self.is_vpn() {
                let tunnels = self.tunnels();
                self.out.chain(&chain).rule(
                    &format!("oifname != {tunnels}"),
                    "goto refuse",
                    "stopped: beside the tunnel",
                );
            }
            self.zone(&chain, n, name, zone, "refuse");
        }
    }

    /// A zone's own rules, and its default.
    fn zone(&mut self, chain: &str, n: usize, name: &ZoneName, zone: &At<Zone>, refuse: &str) {
        let z = zone.get_ref();
        let class = Class::Zone(n);
        if !z.rules.iter().any(|r| r.get_ref().is_volatile()) {
            self.out.chain(chain).rule(
                &format!("ct state established {}", class.matches()),
                "accept",
                &format!("let through: zone {}, begun under these rules", name.0),
            );
        }
        let mut run = Places::new();
        let mut action = None;
        let mut at = 0;
        // Up to here it is known that a map is not worth it.
        let mut looked = 0;
        while let Some(r) = z.rules.get(at) {
            let (exact, worth) = match at < looked {
                true => (0, false),
                false => exact_run(&z.rules[at..]),
            };
            looked = looked.max(at + exact);
            if worth {
                self.places(chain, action, &mut run, class, refuse);
                action = None;
                self.map(chain, &z.rules[at..at + exact], class, refuse, name);
                at += exact;
                continue;
            }
            at += 1;
            let why = self.why(r, name);
            let rule = r.get_ref();
            match plain(rule) {
                Some((net, protocol, ports)) => {
                    if action != Some(rule.action) {
                        self.places(chain, action, &mut run, class, refuse);
                        action = Some(rule.action);
                    }
                    run.entry((net.is_v4(), protocol, ports))
                        .or_default()
                        .push((net, why));
                }
                None => {
                    self.places(chain, action, &mut run, class, refuse);
                    action = None;
                    self.rule(chain, rule, class, refuse, &why);
                }
            }
        }
        self.places(chain, action, &mut run, class, refuse);
        let verdict = self.outcome(z.default, class, refuse);
        let word = match z.default {
            Action::Accept => "let through",
            Action::Drop => "stopped",
        };
        let why = format!(
            "{word}: zone {}, {} default",
            name.0,
            self.policy.origin(zone)
        );
        self.out.chain(chain).rule("", &verdict, &why);
    }

    fn why(&self, r: &At<Rule>, name: &ZoneName) -> String {
        let word = match r.get_ref().action {
            Action::Accept => "let through",
            Action::Drop => "stopped",
        };
        let comment = match &r.get_ref().comment {
            Some(c) => format!(": {c}"),
            None => String::new(),
        };
        format!(
            "{word}: zone {}, {}{comment}",
            name.0,
            self.policy.origin(r)
        )
    }

    /// Writes rules of single places as one map, whose order does not matter: of two about the same place the first counts.
    fn map(
        &mut self,
        chain: &str,
        rules: &[At<Rule>],
        class: Class,
        refuse: &str,
        name: &ZoneName,
    ) {
        let mut elements: [BTreeMap<(Net, &str, u16), String>; 2] = Default::default();
        for r in rules {
            let Some((net, protocol, (port, _))) = plain(r.get_ref()) else {
                continue;
            };
            let verdict = self.outcome(r.get_ref().action, class, refuse);
            let why = crate::firewall::words::comment(&self.why(r, name));
            elements[usize::from(!net.is_v4())]
                .entry((net, protocol, port))
                .or_insert_with(|| {
                    format!("{net} . {protocol} . {port} comment \"{why}\" : {verdict}")
                });
        }
        for (family, elements) in ["ip", "ip6"].into_iter().zip(elements) {
            if elements.is_empty() {
                continue;
            }
            let set = list(elements.into_values());
            self.out.chain(chain).plain(format!(
                "{family} daddr . meta l4proto . th dport vmap {set}"
            ));
        }
    }

    /// Writes a run of rules of one action: what says the same of many places becomes one rule with a set.
    fn places(
        &mut self,
        chain: &str,
        action: Option<Action>,
        run: &mut Places,
        class: Class,
        refuse: &str,
    ) {
        let Some(action) = action else {
            return;
        };
        let verdict = self.outcome(action, class, refuse);
        // Places that stand alone with their ports: those with the same place are put together by ports instead.
        let mut alone = Alone::new();
        for ((v4, protocol, ports), places) in std::mem::take(run) {
            if let [(net, why)] = places.as_slice() {
                alone
                    .entry((*net, protocol))
                    .or_default()
                    .push((ports, why.clone()));
                continue;
            }
            let family = if v4 { "ip" } else { "ip6" };
            let nets: Vec<Net> = places.iter().map(|p| p.0).collect();
            let matches = format!(
                "{family} daddr {}{}",
                ranges(&nets),
                to_ports(protocol, &port_ranges([ports]))
            );
            let why = together(places.iter().map(|p| p.1.as_str()));
            self.out.chain(chain).rule(&matches, &verdict, &why);
        }
        for ((net, protocol), mut ports) in alone {
            ports.sort();
            let why = together(ports.iter().map(|p| p.1.as_str()));
            let ports = port_ranges(ports.iter().map(|p| p.0));
            let family = net.family();
            let matches = format!("{family} daddr {net}{}", to_ports(protocol, &ports));
            self.out.chain(chain).rule(&matches, &verdict, &why);
        }
    }

    /// One rule that stands for itself.
    fn rule(&mut self, chain: &str, r: &Rule, class: Class, refuse: &str, why: &str) {
        let verdict = self.outcome(r.action, class, refuse);
        let mut time = String::new();
        if let Some(at) = r.expire {
            time = format!("meta time < {at} ");
            if r.action == Action::Accept {
                // By time that passes, too: the clock may be set back.
                let set = format!("alive_{}", self.expiries.len());
                self.out.set(&set, "type nf_proto; flags timeout;");
                time += &format!("meta nfproto @{set} ");
                self.expiries.push(Expiry { set, at });
            }
        }
        for place in self.place(chain, r, refuse, why) {
            for what in self.what(r, &place) {
                let matches = all([&time, &place, &what]);
                self.out.chain(chain).rule(&matches, &verdict, why);
            }
        }
    }

    /// Where to, as matches; each is a rule of its own.
    fn place(&mut self, chain: &str, r: &Rule, refuse: &str, why: &str) -> Vec<String> {
        match &r.destination {
            None => vec![String::new()],
            Some(Destination::Net(n)) => {
                let family = n.family();
                vec![format!("{family} daddr {n} ")]
            }
            Some(Destination::Host(name)) => {
                let set = self.host_set(name, r.action == Action::Drop);
                if r.action == Action::Drop {
                    // What is not known cannot be told from the rest: until then, nothing.
                    self.out.chain(chain).rule(
                        &format!("meta nfproto @{set}_unknown"),
                        &format!("goto {refuse}"),
                        &format!("{why}: not resolved yet"),
                    );
                }
                vec![
                    format!("ip daddr @{set}_4 "),
                    format!("ip6 daddr @{set}_6 "),
                ]
            }
            Some(Destination::Dns) => {
                let servers: Vec<Net> = self
                    .policy
                    .dns
                    .servers
                    .get_ref()
                    .iter()
                    .map(|a| Net::host(*a))
                    .collect();
                if servers.is_empty() && r.action == Action::Drop {
                    return vec![String::new()];
                }
                if servers.is_empty() {
                    self.warn(format!(
                        "{why}: specialtarget=dns lets nothing through while [dns] servers is empty"
                    ));
                    return Vec::new();
                }
                from_nets(&servers, "daddr")
            }
        }
    }

    /// By what, as matches; each is a rule of its own.
    fn what(&self, r: &Rule, place: &str) -> Vec<String> {
        if r.destination == Some(Destination::Dns) {
            return vec![match r.protocol {
                Some(p) => format!("{} dport 53", p.name()),
                None => "meta l4proto { tcp, udp } th dport 53".into(),
            }];
        }
        match (r.protocol, r.ports, r.icmp_type) {
            (None, ..) => vec![String::new()],
            (Some(Protocol::Icmp), _, kind) => [("icmp", "ip "), ("icmpv6", "ip6 ")]
                .into_iter()
                .filter(|(_, family)| place.is_empty() || place.starts_with(family))
                .map(|(p, _)| match kind {
                    Some(k) => format!("{p} type {k}"),
                    None => format!("meta l4proto {p}"),
                })
                .collect(),
            (Some(p), None, _) => vec![format!("meta l4proto {}", p.name())],
            (Some(p), Some(ports), _) => {
                vec![format!("{} dport {}", p.name(), port_ranges([ports]))]
            }
        }
    }

    /// The sets of a host's addresses, made at its first use.
    fn host_set(&mut self, name: &HostName, bars: bool) -> String {
        let key = (name.clone(), bars);
        if let Some(set) = self.host_sets.get(&key) {
            return set.clone();
        }
        let set = format!("host_{}", self.hosts.len());
        let flags = if bars { "" } else { " flags timeout;" };
        let comment = super::super::words::comment(&name.0);
        for (family, kind) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
            self.out.set(
                &format!("{set}_{family}"),
                &format!("type {kind};{flags} comment \"{comment}\";"),
            );
        }
        if bars {
            self.out.set(
                &format!("{set}_unknown"),
                "type nf_proto; elements = { ipv4, ipv6 };",
            );
        }
        self.hosts.push(HostSet {
            name: name.clone(),
            set: set.clone(),
            bars,
        });
        self.host_sets.insert(key, set.clone());
        set
    }

    /// What is forwarded.
    pub(super) fn forward(&mut self) {
        let policy = self.policy;
        self.out.base(
            "forward",
            "type filter hook forward priority filter; policy drop",
        );
        if self.is_lockdown() {
            self.out.chain("forward").plain("goto refuse_forward");
            return;
        }
        self.impossible("forward");
        self.forward_ipv6();
        self.out
            .chain("forward")
            .plain("ct state established ct direction reply goto forwarded_answers");
        for f in &policy.port_forward {
            let why = format!("let through: {} port_forward", policy.origin(f));
            let f = f.get_ref();
            let family = family(f.to);
            self.out.chain("forward").rule(
                &format!(
                    "iifname \"{}\" ct status dnat {family} daddr {} {} dport {}",
                    f.interface.0,
                    f.to,
                    f.proto.name(),
                    f.to_port
                ),
                &Class::PortForward.accept(),
                &why,
            );
        }
        // Between the zones first: what is for another zone is no business of a zone's own rules.
        for (n, (name, zone)) in policy.zones.iter().enumerate() {
            let Some(from) = from_zone(zone.get_ref(), "iifname", "saddr") else {
                continue;
            };
            let chain = format!("forward_{}", name.0);
            self.out
                .chain("forward")
                .plain(format!("{from} goto {chain}"));
            self.connections(&chain, name);
            if self.is_vpn() {
                let tunnels = self.tunnels();
                self.out.chain(&chain).rule(
                    &format!("oifname != {tunnels}"),
                    "goto refuse_forward",
                    "stopped: beside the tunnel",
                );
            }
            self.zone(&chain, n, name, zone, "refuse_forward");
        }
        if self.is_vpn() && !policy.vpn.forward.get_ref().is_empty() {
            let tunnels = self.tunnels();
            let from = interfaces(policy.vpn.forward.get_ref());
            let why = format!(
                "let through: into the tunnel, {} vpn.forward",
                policy.origin(&policy.vpn.forward)
            );
            self.out.chain("forward").rule(
                &format!("iifname {from} oifname {tunnels}"),
                &Class::Forwarded.accept(),
                &why,
            );
        }
        self.out.chain("forward").plain("goto refuse_forward");
        self.forwarded_answers();
    }

    fn forward_ipv6(&mut self) {
        if !self.policy.ipv6 {
            self.out.chain("forward").rule(
                "meta nfproto ipv6",
                "reject with icmpx admin-prohibited",
                "stopped: IPv6",
            );
        }
    }

    /// What a zone may send to others; all else between zones is refused.
    fn connections(&mut self, chain: &str, from: &ZoneName) {
        let policy = self.policy;
        for c in policy.connect.iter().filter(|c| c.get_ref().from == *from) {
            let why = format!(
                "let through: to zone {}, {} connect",
                c.get_ref().to.0,
                policy.origin(c)
            );
            let Some(to) = policy
                .zones
                .get(&c.get_ref().to)
                .and_then(|z| from_zone(z.get_ref(), "oifname", "daddr"))
            else {
                continue;
            };
            let rule = &c.get_ref().rule;
            for place in self.place(chain, rule, "refuse_forward", &why) {
                for what in self.what(rule, &place) {
                    let matches = all([&to, &place, &what]);
                    let verdict = self.outcome(rule.action, Class::Between, "refuse_forward");
                    self.out.chain(chain).rule(&matches, &verdict, &why);
                }
            }
        }
        for (name, zone) in &policy.zones {
            if let Some(to) = from_zone(zone.get_ref(), "oifname", "daddr") {
                self.out.chain(chain).rule(
                    &to,
                    "goto refuse_forward",
                    &format!("stopped: zone {} is another", name.0),
                );
            }
        }
    }

    /// Answers to what was forwarded. Those to a zone do no harm; those that leave one must belong to a connection that
    /// these rules let in.
    fn forwarded_answers(&mut self) {
        let policy = self.policy;
        const CHAIN: &str = "forwarded_answers";
        // The way back alone, whatever way there is now: the other end's interface may be gone.
        for c in &policy.connect {
            let end = |name, interface, address| {
                let zone: &At<Zone> = policy.zones.get(name)?;
                from_zone(zone.get_ref(), interface, address)
            };
            let back = end(&c.get_ref().to, "iifname", "saddr").zip(end(
                &c.get_ref().from,
                "oifname",
                "daddr",
            ));
            if let Some((from, to)) = back {
                self.out.chain(CHAIN).rule(
                    &format!("{from} {to} {}", Class::Between.matches()),
                    "accept",
                    &format!("let through: answers, {} connect", policy.origin(c)),
                );
            }
        }
        for f in &policy.port_forward {
            self.out.chain(CHAIN).rule(
                &format!(
                    "oifname \"{}\" {}",
                    f.get_ref().interface.0,
                    Class::PortForward.matches()
                ),
                "accept",
                &format!("let through: answers, {} port_forward", policy.origin(f)),
            );
        }
        for zone in policy.zones.values() {
            if let Some(away) = from_zone(zone.get_ref(), "iifname", "saddr") {
                self.out.chain(CHAIN).rule(
                    &away,
                    "goto refuse_forward",
                    "stopped: answers to what is not let in",
                );
            }
        }
        let by = if self.is_vpn() {
            format!("iifname {} ", self.tunnels())
        } else {
            String::new()
        };
        for zone in policy.zones.values() {
            if let Some(to) = from_zone(zone.get_ref(), "oifname", "daddr") {
                self.out
                    .chain(CHAIN)
                    .rule(&format!("{by}{to}"), "accept", "let through: answers");
            }
        }
        if self.is_vpn() && !policy.vpn.forward.get_ref().is_empty() {
            let to = interfaces(policy.vpn.forward.get_ref());
            self.out.chain(CHAIN).rule(
                &format!("{by}oifname {to}"),
                "accept",
                "let through: answers",
            );
        }
        self.out.chain(CHAIN).plain("goto refuse_forward");
    }
}

/// A zone that is forwarded, as a match with these words for interface and address; `None`: it is on this host.
pub(super) fn from_zone(z: &Zone, interface: &str, address: &str) -> Option<String> {
    if let Some(i) = &z.interface {
        return Some(format!("{interface} \"{}\"", i.get_ref().0));
    }
    let source = z.source.as_ref()?.get_ref();
    let family = source.family();
    Some(format!("{family} {address} {source}"))
}

/// Matches that must all hold.
fn all(matches: [&String; 3]) -> String {
    let matches: Vec<&str> = matches
        .into_iter()
        .map(|m| m.trim_end())
        .filter(|m| !m.is_empty())
        .collect();
    matches.join(" ")
}

/// How many rules from here on name a single address, a protocol and a single port; and whether they are worth a map:
/// many, and not all of one action.
fn exact_run(rules: &[At<Rule>]) -> (usize, bool) {
    const WORTH: usize = 8;
    let single = |r: &&At<Rule>| {
        plain(r.get_ref()).is_some_and(|(net, protocol, ports)| {
            net == Net::host(net.address) && !protocol.is_empty() && ports.0 == ports.1
        })
    };
    let run = rules.iter().take_while(single).count();
    let of_one = rules[..run]
        .windows(2)
        .all(|w| w[0].get_ref().action == w[1].get_ref().action);
    (run, run >= WORTH && !of_one)
}

/// The comment of a rule that several lines asked for: the first and the last.
fn together<'a>(why: impl Iterator<Item = &'a str> + Clone) -> String {
    let mut all = why.clone();
    let first = all.next().unwrap_or_default();
    match why.count() {
        1 => first.to_owned(),
        n => format!("{first} and {} more", n - 1),
    }
}
