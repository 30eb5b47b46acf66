//! What is sent elsewhere than where it was going: to Tor's TransPort and DNSPort, into a zone, behind an address.

use super::zones::from_zone;
use super::{Render, from_nets, interfaces, list, ranges};
use crate::firewall::words::Net;

const DNS: &str = "meta l4proto { tcp, udp } th dport 53";

impl Render<'_> {
    /// Whose connections are redirected to TransPort.
    fn trans_users(&mut self) -> Vec<u32> {
        let p = self.policy;
        let mut users = self.users_at(&p.transparent.tcp_users);
        users.extend(self.users_at(&p.automap.users));
        users.sort_unstable();
        users.dedup();
        users
    }

    /// TransPort and DNSPort are for those whose traffic goes there.
    pub(super) fn redirected_loopback(&mut self) {
        let p = self.policy;
        let asked = !p.transparent.tcp_users.get_ref().is_empty()
            || !p.automap.users.get_ref().is_empty()
            || !p.transparent.tcp_interfaces.get_ref().is_empty();
        if asked && !self.is_lockdown() {
            let users = self.trans_users();
            let to = format!("tcp dport {}", p.tor.trans_port);
            self.only(
                &to,
                &users,
                "TransPort, transparent.tcp_users and automap.users",
            );
            // Where Tor maps names to; nobody else has anything there.
            let network = p.automap.network;
            let family = network.family();
            self.only(
                &format!("{family} daddr {network}"),
                &[],
                "mapped addresses, automap.users",
            );
        }
        let dns = !p.transparent.dns_users.get_ref().is_empty()
            || !p.transparent.dns_interfaces.get_ref().is_empty();
        if dns && !*p.dns.redirect.get_ref() && !self.is_lockdown() {
            let users = self.users_at(&p.transparent.dns_users);
            for t in ["tcp", "udp"] {
                let to = format!("{t} dport {}", p.tor.dns_port);
                self.only(&to, &users, "DNSPort, transparent.dns_users");
            }
        }
    }

    /// What interfaces send to TransPort and DNSPort comes in.
    pub(super) fn redirected_in(&mut self) {
        let p = self.policy;
        let t = &p.transparent;
        for (at, what, port) in [
            (&t.tcp_interfaces, "tcp", p.tor.trans_port),
            (&t.dns_interfaces, "tcp", p.tor.dns_port),
            (&t.dns_interfaces, "udp", p.tor.dns_port),
        ] {
            if at.get_ref().is_empty() {
                continue;
            }
            let by = interfaces(at.get_ref());
            let origin = p.origin(at);
            self.out.chain("input").rule(
                &format!("iifname {by} ct status dnat {what} dport {port}"),
                "accept",
                &format!("let in: to Tor, {origin} transparent"),
            );
            self.out.chain("answers").rule(
                &format!("oifname {by} ct status dnat {what} sport {port}"),
                "accept",
                &format!("let out: answers of Tor, {origin} transparent"),
            );
        }
    }

    pub(super) fn translate(&mut self) {
        if self.is_lockdown() {
            return;
        }
        self.translate_out();
        self.translate_in();
        self.masquerade();
    }

    fn translate_out(&mut self) {
        let p = self.policy;
        let t = &p.transparent;
        let automap = self.users_at(&p.automap.users);
        let tcp = self.users_at(&t.tcp_users);
        let dns = self.users_at(&t.dns_users);
        let redirect = *p.dns.redirect.get_ref();
        if automap.is_empty() && tcp.is_empty() && dns.is_empty() && !redirect {
            return;
        }
        let mut exempt = self.users_at(&p.tor.users);
        exempt.extend(self.users_at(&p.clearnet.users));
        exempt.extend(self.users_at(&p.vpn.users));
        for z in p.zones.values() {
            if let Some(user) = &z.get_ref().user {
                exempt.extend(self.facts.user(user.get_ref()));
            }
        }
        exempt.retain(|u| !tcp.contains(u) && !dns.contains(u) && !automap.contains(u));
        exempt.sort_unstable();
        exempt.dedup();
        let c = self.out.base(
            "translate_out",
            "type nat hook output priority -100; policy accept",
        );
        if !exempt.is_empty() {
            c.plain(format!("meta skuid {} return", list(exempt)));
        }
        let (dns_port, trans_port) = (p.tor.dns_port, p.tor.trans_port);
        if redirect {
            let why = format!("to Tor: DNS, {} dns.redirect", p.origin(&p.dns.redirect));
            c.rule(DNS, &format!("redirect to :{dns_port}"), &why);
        }
        if !dns.is_empty() {
            let why = format!(
                "to Tor: DNS, {} transparent.dns_users",
                p.origin(&t.dns_users)
            );
            c.rule(
                &format!("meta skuid {} {DNS}", list(dns)),
                &format!("redirect to :{dns_port}"),
                &why,
            );
        }
        if !automap.is_empty() {
            let why = format!(
                "to Tor: mapped, {} automap.users",
                p.origin(&p.automap.users)
            );
            let network = p.automap.network;
            let family = network.family();
            c.rule(
                &format!(
                    "{family} daddr {network} meta l4proto tcp meta skuid {}",
                    list(automap)
                ),
                &format!("redirect to :{trans_port}"),
                &why,
            );
        }
        if !tcp.is_empty() {
            let why = format!(
                "to Tor: TCP, {} transparent.tcp_users",
                p.origin(&t.tcp_users)
            );
            c.rule(
                &format!(
                    "meta skuid {} meta l4proto tcp fib daddr type != local",
                    list(tcp)
                ),
                &format!("redirect to :{trans_port}"),
                &why,
            );
        }
    }

    fn translate_in(&mut self) {
        let p = self.policy;
        let t = &p.transparent;
        let (tcp, dns) = (t.tcp_interfaces.get_ref(), t.dns_interfaces.get_ref());
        if tcp.is_empty() && dns.is_empty() && p.port_forward.is_empty() {
            return;
        }
        let c = self.out.base(
            "translate_in",
            "type nat hook prerouting priority dstnat; policy accept",
        );
        if !dns.is_empty() {
            c.rule(
                &format!("iifname {} {DNS}", interfaces(dns)),
                &format!("redirect to :{}", p.tor.dns_port),
                &format!("to Tor: DNS, {} transparent", p.origin(&t.dns_interfaces)),
            );
        }
        if !tcp.is_empty() {
            c.rule(
                &format!(
                    "iifname {} meta l4proto tcp fib daddr type != local",
                    interfaces(tcp)
                ),
                &format!("redirect to :{}", p.tor.trans_port),
                &format!("to Tor: TCP, {} transparent", p.origin(&t.tcp_interfaces)),
            );
        }
        for f in &p.port_forward {
            let why = format!("to {}: {} port_forward", f.get_ref().to, p.origin(f));
            let f = f.get_ref();
            let (family, to) = match f.to.is_ipv4() {
                true => ("ip", format!("{}:{}", f.to, f.to_port)),
                false => ("ip6", format!("[{}]:{}", f.to, f.to_port)),
            };
            for from in from_nets(&f.from, "saddr") {
                // Addresses of the other family have nowhere to go.
                if !from.is_empty() && !from.starts_with(&format!("{family} ")) {
                    continue;
                }
                c.rule(
                    &format!(
                        "iifname \"{}\" meta nfproto {} {from}{} dport {} fib daddr type local",
                        f.interface.0,
                        if f.to.is_ipv4() { "ipv4" } else { "ipv6" },
                        f.proto.name(),
                        f.port
                    ),
                    &format!("dnat {family} to {to}"),
                    &why,
                );
            }
        }
    }

    fn masquerade(&mut self) {
        let p = self.policy;
        let tunnels = self.tunnels();
        let mut rules = Vec::new();
        if self.is_vpn() && p.vpn.masquerade && !p.vpn.forward.get_ref().is_empty() {
            rules.push((
                format!(
                    "iifname {} oifname {tunnels}",
                    interfaces(p.vpn.forward.get_ref())
                ),
                format!("masquerade: {} vpn.forward", p.origin(&p.vpn.forward)),
            ));
        }
        for (name, zone) in p.zones.iter().filter(|(_, z)| z.get_ref().masquerade) {
            let Some(from) = from_zone(zone.get_ref(), "iifname", "saddr") else {
                continue;
            };
            // Zones see each other's own addresses.
            let others: Vec<String> = p
                .zones
                .values()
                .filter_map(|z| z.get_ref().interface.as_ref())
                .map(|i| format!("\"{}\"", i.get_ref().0))
                .collect();
            let sources: Vec<Net> = p
                .zones
                .values()
                .filter_map(|z| z.get_ref().source.as_ref())
                .map(|n| *n.get_ref())
                .filter(Net::is_v4)
                .collect();
            let mut matches = from;
            if !others.is_empty() {
                matches += &format!(" oifname != {}", list(others));
            }
            if !sources.is_empty() {
                matches += &format!(" ip daddr != {}", ranges(&sources));
            }
            rules.push((
                matches + " oifname != \"lo\"",
                format!("masquerade: zone {}, {}", name.0, p.origin(zone)),
            ));
        }
        if rules.is_empty() {
            return;
        }
        let c = self.out.base(
            "translate_after",
            "type nat hook postrouting priority srcnat; policy accept",
        );
        for (matches, why) in rules {
            c.rule(&matches, "masquerade", &why);
        }
    }
}
