//! A policy as a ruleset: named intentions in reading order. docs/FIREWALL.md says why each stands where it stands.
//!
//! A packet of a connection's own direction is judged by the rules each time, so that what a policy forbids ends at
//! once; "established" lets through answers alone.

mod local;
mod translate;
mod zones;

use super::facts::Facts;
use super::policy::{At, Policy, Profile, Relays};
use super::rule::Action;
use super::ruleset::{self, Class, Ruleset};
use super::words::{Account, HostName, Interface, Net};
use std::collections::HashMap;
use std::fmt::Display;
use std::net::IpAddr;

/// The set of relays that Tor may reach.
pub const RELAYS: [&str; 2] = ["relays4", "relays6"];

/// Sets that a host name's addresses go into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSet {
    /// The name.
    pub name: HostName,
    /// Its sets: `NAME4` and `NAME6`.
    pub set: String,
    /// For rules that drop: everything is dropped there until the name has been resolved once.
    pub bars: bool,
}

/// A set that says, by not being empty, that a rule has not expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The set.
    pub set: String,
    /// When it has, in seconds since 1970.
    pub at: u64,
}

/// What a policy comes to.
#[derive(Debug)]
pub struct Rendered {
    /// The rules.
    pub ruleset: Ruleset,
    /// What could not be done as written, for people.
    pub warnings: Vec<String>,
    /// What must be resolved.
    pub hosts: Vec<HostSet>,
    /// What expires.
    pub expiries: Vec<Expiry>,
    /// Whether relays are to be filled in.
    pub relays: bool,
}

/// Renders `policy` for the host of `facts`. The same policy for the same host gives the same text, at any time.
pub fn render(policy: &Policy, facts: &dyn Facts) -> Rendered {
    let mut r = Render {
        policy,
        facts,
        out: Ruleset::default(),
        warnings: Vec::new(),
        hosts: Vec::new(),
        expiries: Vec::new(),
        host_sets: HashMap::new(),
        orphans: Vec::new(),
    };
    r.input();
    r.output();
    r.forward();
    r.translate();
    r.refuse();
    if policy.raw_packets == Action::Drop {
        r.out
            .base("passed", ruleset::PASSED_HOOK)
            .plain(ruleset::passed());
    }
    Rendered {
        ruleset: r.out,
        warnings: r.warnings,
        hosts: r.hosts,
        expiries: r.expiries,
        relays: policy.profile == Profile::TorHost && *policy.tor.relays.get_ref() != Relays::Any,
    }
}

/// The lines for torrc that go with a policy (tor(1)): Tor must not try what the rules refuse.
pub fn torrc(policy: &Policy) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| out.push_str(&format!("{key} {value}\n"));
    let ports = policy.tor.reachable_ports.get_ref();
    if !ports.is_empty() {
        let any: Vec<String> = ports.iter().map(|p| format!("*:{p}")).collect();
        let numbers: Vec<String> = ports.iter().map(u16::to_string).collect();
        line("ReachableDirAddresses", &any.join(","));
        line("ReachableORAddresses", &any.join(","));
        line("FirewallPorts", &numbers.join(","));
    }
    if !policy.ipv6 {
        line("ClientUseIPv6", "0");
    }
    let t = &policy.transparent;
    let redirected = [&t.tcp_users, &policy.automap.users]
        .iter()
        .any(|u| !u.get_ref().is_empty());
    let gateway = !t.tcp_interfaces.get_ref().is_empty();
    if redirected || gateway {
        let address = if gateway { "0.0.0.0:" } else { "" };
        line("TransPort", &format!("{address}{}", policy.tor.trans_port));
    }
    if !policy.automap.users.get_ref().is_empty() {
        line(
            "VirtualAddrNetworkIPv4",
            &policy.automap.network.to_string(),
        );
        line("AutomapHostsOnResolve", "1");
    }
    let gateway = !t.dns_interfaces.get_ref().is_empty();
    if *policy.dns.redirect.get_ref() || !t.dns_users.get_ref().is_empty() || gateway {
        let address = if gateway { "0.0.0.0:" } else { "" };
        line("DNSPort", &format!("{address}{}", policy.tor.dns_port));
    }
    out
}

/// `{ a, b }`
fn list<T: Display>(of: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = of.into_iter().map(|w| w.to_string()).collect();
    format!("{{ {} }}", words.join(", "))
}

/// `{ "a", "b*" }`
fn interfaces(of: &[Interface]) -> String {
    list(of.iter().map(|i| format!("\"{}\"", i.0)))
}

/// Networks of one family as a set whose intervals do not overlap: nft refuses those that do.
fn ranges(of: &[Net]) -> String {
    let bits = |a: IpAddr| match a {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    let width = |n: &Net| if n.is_v4() { 32 } else { 128 };
    let mut all: Vec<(u128, u128, Net)> = of
        .iter()
        .map(|n| {
            let free = width(n) - u32::from(n.prefix);
            let first = bits(n.address);
            (
                first,
                first | 1u128.checked_shl(free).unwrap_or(0).wrapping_sub(1),
                *n,
            )
        })
        .collect();
    // The wider first: a network is inside another or beside it, never across.
    all.sort_by_key(|(first, last, _)| (*first, std::cmp::Reverse(*last)));
    let mut end = None;
    all.retain(|(_, last, _)| {
        let inside = end.is_some_and(|e| *last <= e);
        end = end.max(Some(*last));
        !inside
    });
    list(all.iter().map(|(.., n)| *n))
}

/// The networks of one family, as `ip daddr { ... }` with this direction (`saddr`, `daddr`); `None`: there are none.
fn nets(of: &[Net], v4: bool, which: &str) -> Option<String> {
    let of: Vec<Net> = of.iter().filter(|n| n.is_v4() == v4).copied().collect();
    let family = if v4 { "ip" } else { "ip6" };
    (!of.is_empty()).then(|| format!("{family} {which} {}", ranges(&of)))
}

/// Both families where nothing is said, else those that are named.
fn from_nets(of: &[Net], which: &str) -> Vec<String> {
    if of.is_empty() {
        return vec![String::new()];
    }
    [true, false]
        .into_iter()
        .filter_map(|v4| nets(of, v4, which).map(|n| n + " "))
        .collect()
}

/// Ranges of ports as a set whose intervals do not overlap.
fn port_ranges(of: impl IntoIterator<Item = (u16, u16)>) -> String {
    let mut all: Vec<(u16, u16)> = of.into_iter().collect();
    all.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for range in all {
        match merged.last_mut() {
            Some(last) if range.0 <= last.1.saturating_add(1) => last.1 = last.1.max(range.1),
            _ => merged.push(range),
        }
    }
    let word = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    match merged.as_slice() {
        [one] => word(one),
        many => list(many.iter().map(word)),
    }
}

struct Render<'a> {
    policy: &'a Policy,
    facts: &'a dyn Facts,
    out: Ruleset,
    warnings: Vec<String>,
    hosts: Vec<HostSet>,
    expiries: Vec<Expiry>,
    host_sets: HashMap<(HostName, bool), String>,
    /// Where packets without a user go, by whose their connection was.
    orphans: Vec<(Class, String)>,
}

impl Render<'_> {
    fn warn(&mut self, what: String) {
        if !self.warnings.contains(&what) {
            self.warnings.push(what);
        }
    }

    fn is_vpn(&self) -> bool {
        self.policy.profile == Profile::Vpn
    }

    fn is_lockdown(&self) -> bool {
        self.policy.profile == Profile::Lockdown
    }

    /// The tunnels, as a set.
    fn tunnels(&self) -> String {
        interfaces(self.policy.vpn.interfaces.get_ref())
    }

    /// The numbers of users; one that does not exist is left out and told.
    fn users(&mut self, accounts: &[Account], origin: &str) -> Vec<u32> {
        let mut out = Vec::new();
        for a in accounts {
            match self.facts.user(a) {
                Some(n) => out.push(n),
                None => self.warn(format!(
                    "{origin}: there is no user {:?}: what is said of it has no effect",
                    a.0
                )),
            }
        }
        out.sort_unstable();
        out.dedup();
        out
    }

    fn users_at(&mut self, at: &At<Vec<Account>>) -> Vec<u32> {
        let origin = self.policy.origin(at);
        self.users(at.get_ref(), &origin)
    }

    /// What no packet of an honest program looks like.
    fn impossible(&mut self, chain: &str) {
        let c = self.out.chain(chain);
        c.rule("ct state invalid", "drop", "stopped: invalid");
        for (flags, value) in [
            ("fin|syn", "fin|syn"),
            ("syn|rst", "syn|rst"),
            ("fin|rst", "fin|rst"),
            ("fin|syn|rst|psh|ack|urg", "0x0"),
            ("fin|syn|rst|psh|ack|urg", "fin|syn|rst|psh|ack|urg"),
            ("fin|syn|rst|psh|ack|urg", "fin|psh|urg"),
        ] {
            let value = if value == "0x0" {
                value.to_owned()
            } else {
                format!("({value})")
            };
            c.rule(
                &format!("tcp flags and ({flags}) == {value}"),
                "drop",
                "stopped: impossible flags",
            );
        }
    }

    /// What happens to what nothing allows: counted by user and destination, logged if asked, refused so that programs
    /// need not wait. What comes in is dropped without a word.
    fn refuse(&mut self) {
        const TRACKED: &str = "flags dynamic,timeout; size 4096; timeout 1d; counter";
        let v6 = self.policy.ipv6.then_some(("6", "ip6", "ipv6_addr"));
        for (family, ip, address) in [("4", "ip", "ipv4_addr")].into_iter().chain(v6) {
            self.out.set(
                &format!("stopped_out{family}"),
                &format!("type uid . {address} . inet_proto . inet_service; {TRACKED};"),
            );
            self.out.chain("refuse").plain(format!(
                "meta l4proto {{ tcp, udp }} update @stopped_out{family} {{ meta skuid . {ip} daddr . meta l4proto . th dport }}"
            ));
            for (set, chain) in [("in", "refuse_in"), ("forward", "refuse_forward")] {
                self.out.set(
                    &format!("stopped_{set}{family}"),
                    &format!("type {address} . {address} . inet_proto . inet_service; {TRACKED};"),
                );
                self.out.chain(chain).plain(format!(
                    "meta l4proto {{ tcp, udp }} update @stopped_{set}{family} {{ {ip} saddr . {ip} daddr . meta l4proto . th dport }}"
                ));
            }
        }
        let log = &self.policy.log;
        for (chain, prefix) in [
            ("refuse", &log.output_prefix),
            ("refuse_in", &log.input_prefix),
            ("refuse_forward", &log.forward_prefix),
        ] {
            let c = self.out.chain(chain);
            if *log.stopped.get_ref() {
                let prefix = super::words::comment(prefix);
                c.plain(format!(
                    "limit rate {}/second log prefix \"{prefix}\" flags skuid",
                    log.rate.max(1)
                ));
            }
            if chain == "refuse_in" {
                c.rule("", "drop", "stopped: nothing lets it in");
            } else {
                c.rule(
                    "meta l4proto tcp",
                    "reject with tcp reset",
                    "stopped: nothing lets it out",
                );
                c.rule(
                    "",
                    "reject with icmpx admin-prohibited",
                    "stopped: nothing lets it out",
                );
            }
        }
    }

    /// What an action comes to, as one short verdict: there may be thousands. What accepts stands in a chain of its own.
    fn outcome(&mut self, action: Action, class: Class, refuse: &str) -> String {
        if action == Action::Drop {
            return format!("goto {refuse}");
        }
        let name = format!("accept_{}", class.name());
        let chain = self.out.chain(&name);
        if chain.is_empty() {
            chain.plain(class.accept());
        }
        format!("goto {name}")
    }
}
