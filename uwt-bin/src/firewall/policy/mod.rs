//! What /etc/uwt/firewall.toml says, and what holds where it says nothing. Everything is checked while it is read; a
//! file with one mistake is no policy.

mod sections;

pub use sections::*;

use crate::config::{line_of, nearest};
use crate::firewall::rule::Action;
use crate::firewall::words::{HostName, ZoneName};
use crate::refusal::{Refusal, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Where the policy stands.
pub const FILE: &str = "/etc/uwt/firewall.toml";

/// Which ruleset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Only Tor gets out.
    #[default]
    TorHost,
    /// Only a VPN's tunnel gets out.
    Vpn,
    /// Nothing but loopback.
    Lockdown,
}

impl Profile {
    /// As the file writes it.
    pub fn name(self) -> &'static str {
        match self {
            Profile::TorHost => "tor-host",
            Profile::Vpn => "vpn",
            Profile::Lockdown => "lockdown",
        }
    }
}

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Contents {
    profile: Profile,
    ipv6: bool,
    fragmentation_needed: bool,
    #[serde(deserialize_with = "action")]
    raw_packets: Action,
    incoming: Vec<At<Incoming>>,
    tor: Tor,
    clearnet: Clearnet,
    lan: Lan,
    dhcp: Dhcp,
    loopback: Loopback,
    automap: Automap,
    dns: Dns,
    transparent: Transparent,
    vpn: Vpn,
    log: Log,
    names: Names,
    zone: BTreeMap<ZoneName, At<Zone>>,
    connect: Vec<At<Connect>>,
    port_forward: Vec<At<PortForward>>,
}

impl Default for Contents {
    fn default() -> Contents {
        Contents {
            raw_packets: Action::Accept,
            profile: Profile::default(),
            ipv6: false,
            fragmentation_needed: false,
            incoming: Vec::new(),
            tor: Tor::default(),
            clearnet: Clearnet::default(),
            lan: Lan::default(),
            dhcp: Dhcp::default(),
            loopback: Loopback::default(),
            automap: Automap::default(),
            dns: Dns::default(),
            transparent: Transparent::default(),
            vpn: Vpn::default(),
            log: Log::default(),
            names: Names::default(),
            zone: BTreeMap::new(),
            connect: Vec::new(),
            port_forward: Vec::new(),
        }
    }
}

/// A policy: what the file says, and where.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The file's name, for messages.
    file: String,
    /// The byte at which each line begins.
    lines: Vec<usize>,
    /// Which ruleset.
    pub profile: Profile,
    /// Whether IPv6 is looked at; without, it is stopped.
    pub ipv6: bool,
    /// Whether ICMP "fragmentation needed" is let in for connections that were let out.
    pub fragmentation_needed: bool,
    /// Whether packets leave that no socket of the inet family sent (packet(7)).
    pub raw_packets: Action,
    /// What may come in.
    pub incoming: Vec<At<Incoming>>,
    /// Tor.
    pub tor: Tor,
    /// Who goes without Tor.
    pub clearnet: Clearnet,
    /// The local network.
    pub lan: Lan,
    /// DHCP.
    pub dhcp: Dhcp,
    /// Services on loopback.
    pub loopback: Loopback,
    /// Tor's mapped addresses.
    pub automap: Automap,
    /// DNS.
    pub dns: Dns,
    /// Transparent proxying.
    pub transparent: Transparent,
    /// Tunnels.
    pub vpn: Vpn,
    /// What the kernel logs.
    pub log: Log,
    /// Names in rules.
    pub names: Names,
    /// Zones, by name.
    pub zones: BTreeMap<ZoneName, At<Zone>>,
    /// What goes from zone to zone.
    pub connect: Vec<At<Connect>>,
    /// What goes in from outside.
    pub port_forward: Vec<At<PortForward>>,
}

impl Policy {
    /// Reads a policy; `file` is its name in messages.
    ///
    /// # Errors
    /// What is wrong, with its line. Nothing is half read.
    pub fn parse(file: &str, text: &str) -> Result<Policy> {
        let c: Contents = toml::from_str(text).map_err(|e| unreadable(file, text, &e))?;
        let starts = text.match_indices('\n').map(|(at, _)| at + 1);
        let policy = Policy {
            file: file.to_owned(),
            lines: std::iter::once(0).chain(starts).collect(),
            profile: c.profile,
            ipv6: c.ipv6,
            fragmentation_needed: c.fragmentation_needed,
            raw_packets: c.raw_packets,
            incoming: c.incoming,
            tor: c.tor,
            clearnet: c.clearnet,
            lan: c.lan,
            dhcp: c.dhcp,
            loopback: c.loopback,
            automap: c.automap,
            dns: c.dns,
            transparent: c.transparent,
            vpn: c.vpn,
            log: c.log,
            names: c.names,
            zones: c.zone,
            connect: c.connect,
            port_forward: c.port_forward,
        };
        policy.whole()?;
        Ok(policy)
    }

    /// Reads the policy of this host.
    ///
    /// # Errors
    /// The file cannot be read, could have been written by others, or is wrong.
    pub fn read(file: &str) -> Result<Policy> {
        let text = crate::config::read_trusted(std::path::Path::new(file))?;
        Policy::parse(file, &text)
    }

    /// Where a value stands: `FILE:LINE`, or `default`.
    pub fn origin<T>(&self, value: &At<T>) -> String {
        if value.span() == (0..0) {
            return "default".into();
        }
        let name = self.file.rsplit('/').next().unwrap_or(&self.file);
        let line = self.lines.partition_point(|l| *l <= value.span().start);
        format!("{name}:{line}")
    }

    fn refuse<T>(&self, at: &At<T>, what: &str, fix: &str) -> Refusal {
        let line = self.lines.partition_point(|l| *l <= at.span().start);
        Refusal::new(format!("{}:{line}: {what}", self.file), "", fix)
    }

    /// What no single value shows.
    fn whole(&self) -> Result<()> {
        let numbers = [
            ("tor.trans_port", self.tor.trans_port),
            ("tor.dns_port", self.tor.dns_port),
            ("tor.socks_port", self.tor.socks_port),
        ];
        for (name, port) in numbers {
            if port == 0 {
                return Err(Refusal::new(
                    format!("{}: {name} is 0", self.file),
                    "a port is 1 to 65535",
                    "",
                ));
            }
        }
        if let Some(at) = self
            .tor
            .reachable_ports
            .get_ref()
            .iter()
            .position(|p| *p == 0)
        {
            return Err(self.refuse(
                &self.tor.reachable_ports,
                &format!("reachable_ports: number {} is 0", at + 1),
                "a port is 1 to 65535",
            ));
        }
        let vpn = &self.vpn;
        if self.profile == Profile::Vpn && vpn.interfaces.get_ref().is_empty() {
            return Err(self.refuse(
                &vpn.interfaces,
                "profile \"vpn\" without a tunnel",
                "name it: [vpn] interfaces = [\"tun0\"], or wg0",
            ));
        }
        let nobody = vpn.users.get_ref().is_empty()
            && vpn.groups.get_ref().is_empty()
            && *vpn.mark.get_ref() == 0;
        if !vpn.servers.get_ref().is_empty() && nobody {
            return Err(self.refuse(
                &vpn.servers,
                "servers without users, groups or mark",
                "say who may reach them: anybody could reach a Tor relay, or anything else, at the same address",
            ));
        }
        if vpn.mark.get_ref() & crate::firewall::ruleset::MARK_MASK != 0 {
            return Err(self.refuse(
                &vpn.mark,
                "mark is above 65535",
                "the upper 16 bits of connections' marks are the firewall's own: use a smaller FwMark",
            ));
        }
        if self.names.refresh == 0 || self.names.keep < self.names.refresh {
            return Err(Refusal::new(
                format!("{}: names.keep is below names.refresh", self.file),
                "every address would time out before it is asked for again",
                "",
            ));
        }
        if self.zones.len() > crate::firewall::ruleset::ZONES_MAX {
            return Err(Refusal::new(
                format!("{}: {} zones", self.file, self.zones.len()),
                format!(
                    "at most {} can be told apart",
                    crate::firewall::ruleset::ZONES_MAX
                ),
                "",
            ));
        }
        for (name, zone) in &self.zones {
            let z = zone.get_ref();
            let kinds = [
                z.user.is_some(),
                z.cgroup.is_some(),
                z.interface.is_some(),
                z.source.is_some(),
            ];
            if kinds.iter().filter(|k| **k).count() != 1 {
                return Err(self.refuse(
                    zone,
                    &format!("zone {:?} is not one thing", name.0),
                    "give it one of user, cgroup, interface and source",
                ));
            }
        }
        for c in &self.connect {
            for name in [&c.get_ref().from, &c.get_ref().to] {
                let Some(zone) = self.zones.get(name) else {
                    return Err(self.refuse(c, &format!("there is no zone {:?}", name.0), ""));
                };
                if zone.get_ref().interface.is_none() && zone.get_ref().source.is_none() {
                    return Err(self.refuse(
                        c,
                        &format!("zone {:?} is on this host", name.0),
                        "what is forwarded goes between zones that are an interface or a source",
                    ));
                }
            }
            if c.get_ref().rule.is_volatile() {
                return Err(self.refuse(
                    c,
                    "a rule between zones has neither dsthost nor expire",
                    "",
                ));
            }
        }
        for i in &self.incoming {
            let icmp = i.get_ref().proto == IncomingProtocol::Icmp;
            if icmp != i.get_ref().ports.is_empty() {
                return Err(self.refuse(
                    i,
                    "what comes in by tcp or udp names its ports, and icmp has none",
                    "",
                ));
            }
        }
        for f in &self.port_forward {
            if f.get_ref().port == 0 || f.get_ref().to_port == 0 {
                return Err(self.refuse(f, "a port is 1 to 65535", ""));
            }
        }
        Ok(())
    }

    /// Every host name in the rules, once.
    pub fn hosts(&self) -> Vec<HostName> {
        let mut hosts: Vec<HostName> = self
            .zones
            .values()
            .flat_map(|z| &z.get_ref().rules)
            .filter_map(|r| match &r.get_ref().destination {
                Some(crate::firewall::rule::Destination::Host(h)) => Some(h.clone()),
                _ => None,
            })
            .collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }
}

/// What the TOML reader says, as this project says it.
fn unreadable(file: &str, text: &str, e: &toml::de::Error) -> Refusal {
    let mut at = e.span().map_or(0, |s| s.start);
    let mut message = e.message();
    if let Some((byte, rest)) = message.split_once(ELEMENT) {
        at = byte.parse().unwrap_or(at);
        message = rest;
    }
    let line = line_of(text, at);
    let mut ticked = message.split('`').skip(1).step_by(2);
    let (what, fix) = match ticked.next().filter(|_| message.starts_with("unknown ")) {
        Some(word) if message.starts_with("unknown variant ") => {
            let known: Vec<String> = ticked.map(|w| format!("{w:?}")).collect();
            (
                format!("{word:?} is not known here"),
                format!("it takes {}", known.join(", ")),
            )
        }
        Some(word) => {
            let near = nearest(word, ticked)
                .map(|n| format!("did you mean {n:?}?"))
                .unwrap_or_default();
            (format!("unknown key {word:?}"), near)
        }
        None => (message.trim().replace('\n', "; "), String::new()),
    };
    Refusal::new(
        format!("{file}:{line}: {what}"),
        "the policy is not used, and what was loaded stays",
        fix,
    )
}
