//! What /etc/uwt/firewall.toml says, and what holds where it says nothing. Everything is checked while it is read; a
//! file with one mistake is no policy.

use super::rule::{Action, Rule};
use super::words::{Account, Cgroup, HostName, Interface, Net, Server, Transport, ZoneName};
use crate::config::{line_of, nearest};
use crate::refusal::{Refusal, Result};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use toml::Spanned;

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

/// A value and where it stands; see [`Policy::origin`].
pub type At<T> = Spanned<T>;

/// A value that stands nowhere: the default.
fn nowhere<T>(value: T) -> At<T> {
    Spanned::new(0..0, value)
}

/// Where in the file an error of a list's element stands: serde knows of the list alone. See [`unreadable`].
const ELEMENT: char = '\u{1}';

fn rule<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<At<Rule>>, D::Error> {
    let rules: Vec<At<String>> = Deserialize::deserialize(d)?;
    rules
        .into_iter()
        .map(|text| {
            let span = text.span();
            match text.get_ref().parse() {
                Ok(rule) => Ok(Spanned::new(span, rule)),
                Err(why) => Err(serde::de::Error::custom(format!(
                    "{}{ELEMENT}{:?}: {why}",
                    span.start,
                    text.get_ref()
                ))),
            }
        })
        .collect()
}

fn action<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Action, D::Error> {
    let name = String::deserialize(d)?;
    Action::parse(&name).ok_or_else(|| serde::de::Error::custom("it takes \"accept\" or \"drop\""))
}

/// Ports: numbers, or `"FIRST-LAST"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "PortsText")]
pub struct Ports(pub u16, pub u16);

#[derive(Deserialize)]
#[serde(untagged)]
enum PortsText {
    One(u16),
    Range(String),
}

impl TryFrom<PortsText> for Ports {
    type Error = String;
    fn try_from(t: PortsText) -> std::result::Result<Self, String> {
        match t {
            PortsText::One(n) if n > 0 => Ok(Ports(n, n)),
            PortsText::Range(s) => s
                .split_once('-')
                .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))
                .filter(|(a, b): &(u16, u16)| a <= b && *a > 0)
                .map(|(a, b)| Ports(a, b))
                .ok_or_else(|| format!("{s:?} is no range of ports such as \"6881-6889\"")),
            PortsText::One(_) => Err("a port is 1 to 65535".into()),
        }
    }
}

/// `[tor]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tor {
    /// Who Tor runs as.
    pub users: At<Vec<Account>>,
    /// Which ports of relays; empty: any.
    pub reachable_ports: At<Vec<u16>>,
    /// By which interfaces; empty: any.
    pub interfaces: At<Vec<Interface>>,
    /// Which relays.
    pub relays: At<Relays>,
    /// What else may be reached when only relays may: bridges, directory authorities.
    pub addresses: At<Vec<Server>>,
    /// Where Tor's control port is: `ADDRESS:PORT`, or a socket's path.
    pub control_port: String,
    /// Tor's DataDirectory, where the consensus is when no control port answers.
    pub data_directory: String,
    /// Tor's TransPort.
    pub trans_port: u16,
    /// Tor's DNSPort.
    pub dns_port: u16,
    /// Tor's SocksPort, for resolving `dsthost` names.
    pub socks_port: u16,
}

impl Default for Tor {
    fn default() -> Tor {
        Tor {
            users: nowhere(vec![Account("debian-tor".into())]),
            reachable_ports: nowhere(Vec::new()),
            interfaces: nowhere(Vec::new()),
            relays: nowhere(Relays::Any),
            addresses: nowhere(Vec::new()),
            control_port: "/run/tor/control".into(),
            data_directory: "/var/lib/tor".into(),
            trans_port: 9040,
            dns_port: 5353,
            socks_port: 9050,
        }
    }
}

/// Which addresses the Tor user may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relays {
    /// Every address.
    #[default]
    Any,
    /// Those in Tor's consensus.
    Consensus,
    /// Those of them that are guards or directory mirrors.
    Guards,
}

/// `[clearnet]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clearnet {
    /// Who has the network without Tor, and no loopback.
    pub users: At<Vec<Account>>,
}

impl Default for Clearnet {
    fn default() -> Clearnet {
        Clearnet {
            users: nowhere(Vec::new()),
        }
    }
}

/// `[lan]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lan {
    /// Whether everybody may reach the local network, but not its name servers.
    pub out: At<bool>,
    /// What is local.
    pub networks: At<Vec<Net>>,
}

impl Default for Lan {
    fn default() -> Lan {
        // RFC 1918, RFC 3927, and multicast and broadcast on the link are not among them.
        let net = |a: [u8; 4], prefix| Net {
            address: IpAddr::from(a),
            prefix,
        };
        Lan {
            out: nowhere(false),
            networks: nowhere(vec![
                net([10, 0, 0, 0], 8),
                net([172, 16, 0, 0], 12),
                net([192, 168, 0, 0], 16),
                net([169, 254, 0, 0], 16),
            ]),
        }
    }
}

/// `[dhcp]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dhcp {
    /// Whether a DHCP client may ask.
    pub out: At<bool>,
    /// Who runs it.
    pub users: At<Vec<Account>>,
}

impl Default for Dhcp {
    fn default() -> Dhcp {
        Dhcp {
            out: nowhere(false),
            users: nowhere(vec![Account("root".into())]),
        }
    }
}

/// `[loopback]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loopback {
    /// What becomes of services that no `service` names.
    #[serde(deserialize_with = "action")]
    pub others: Action,
    /// Services that only some may use.
    pub service: Vec<At<Service>>,
}

impl Default for Loopback {
    fn default() -> Loopback {
        Loopback {
            others: Action::Accept,
            service: Vec::new(),
        }
    }
}

fn tcp() -> Transport {
    Transport::Tcp
}

/// `[[loopback.service]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What it is, for people.
    pub name: String,
    /// TCP or UDP.
    #[serde(default = "tcp")]
    pub proto: Transport,
    /// Its ports.
    pub ports: Vec<Ports>,
    /// At this address; `None`: at any.
    pub address: Option<Net>,
    /// Who may.
    pub users: Vec<Account>,
}

/// `[automap]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Automap {
    /// Who may.
    pub users: At<Vec<Account>>,
    /// Tor's VirtualAddrNetworkIPv4.
    pub network: Net,
}

impl Default for Automap {
    fn default() -> Automap {
        Automap {
            users: nowhere(Vec::new()),
            network: Net {
                address: IpAddr::from([127, 192, 0, 0]),
                prefix: 10,
            },
        }
    }
}

/// `[dns]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Whether all DNS of the host goes to Tor's DNSPort.
    pub redirect: At<bool>,
    /// What `specialtarget=dns` stands for.
    pub servers: At<Vec<IpAddr>>,
}

impl Default for Dns {
    fn default() -> Dns {
        Dns {
            redirect: nowhere(false),
            servers: nowhere(Vec::new()),
        }
    }
}

/// `[transparent]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transparent {
    /// Whose TCP goes to TransPort.
    pub tcp_users: At<Vec<Account>>,
    /// Whose DNS goes to DNSPort.
    pub dns_users: At<Vec<Account>>,
    /// From where TCP goes to TransPort.
    pub tcp_interfaces: At<Vec<Interface>>,
    /// From where DNS goes to DNSPort.
    pub dns_interfaces: At<Vec<Interface>>,
}

impl Default for Transparent {
    fn default() -> Transparent {
        Transparent {
            tcp_users: nowhere(Vec::new()),
            dns_users: nowhere(Vec::new()),
            tcp_interfaces: nowhere(Vec::new()),
            dns_interfaces: nowhere(Vec::new()),
        }
    }
}

/// `[vpn]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vpn {
    /// The tunnels.
    pub interfaces: At<Vec<Interface>>,
    /// Where the tunnel itself goes.
    pub servers: At<Vec<Server>>,
    /// Who runs it.
    pub users: At<Vec<Account>>,
    /// The same by group.
    pub groups: At<Vec<Account>>,
    /// WireGuard's FwMark: what the kernel's own tunnel sends has no user.
    pub mark: At<u32>,
    /// From where is forwarded into the tunnel.
    pub forward: At<Vec<Interface>>,
    /// Whether what is forwarded gets the tunnel's address.
    pub masquerade: bool,
}

impl Default for Vpn {
    fn default() -> Vpn {
        Vpn {
            interfaces: nowhere(Vec::new()),
            servers: nowhere(Vec::new()),
            users: nowhere(Vec::new()),
            groups: nowhere(Vec::new()),
            mark: nowhere(0),
            forward: nowhere(Vec::new()),
            masquerade: true,
        }
    }
}

/// What may come in by `[[incoming]]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IncomingProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests (ping).
    Icmp,
}

fn incoming_tcp() -> IncomingProtocol {
    IncomingProtocol::Tcp
}

/// `[[incoming]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incoming {
    /// What it is, for people.
    pub name: String,
    /// By what.
    #[serde(default = "incoming_tcp")]
    pub proto: IncomingProtocol,
    /// To which ports of this host.
    #[serde(default)]
    pub ports: Vec<Ports>,
    /// By which interfaces; empty: any.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// From where; empty: anywhere.
    #[serde(default)]
    pub from: Vec<Net>,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Whether what is stopped is logged by the kernel.
    pub stopped: At<bool>,
    /// How many lines a second at most.
    pub rate: u16,
    /// What a line begins with, by direction.
    pub output_prefix: String,
    /// See [`Log::output_prefix`].
    pub input_prefix: String,
    /// See [`Log::output_prefix`].
    pub forward_prefix: String,
}

impl Default for Log {
    fn default() -> Log {
        Log {
            stopped: nowhere(false),
            rate: 10,
            output_prefix: "uwt out: ".into(),
            input_prefix: "uwt in: ".into(),
            forward_prefix: "uwt forward: ".into(),
        }
    }
}

/// `[names]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// By what `dsthost` is resolved.
    pub resolver: Resolver,
    /// How often, in seconds.
    pub refresh: u32,
    /// How long, in seconds, an address counts that no answer names any more.
    pub keep: u32,
}

impl Default for Names {
    fn default() -> Names {
        Names {
            resolver: Resolver::Tor,
            refresh: 300,
            keep: 900,
        }
    }
}

/// By what names are resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolver {
    /// Tor's SocksPort (RESOLVE).
    Tor,
    /// The host's own (getaddrinfo).
    System,
}

fn drop_action() -> Action {
    Action::Drop
}

/// `[zone.NAME]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zone {
    /// It is what this user sends.
    pub user: Option<At<Account>>,
    /// It is what the processes of this cgroup send.
    pub cgroup: Option<At<Cgroup>>,
    /// It is what comes in by this interface.
    pub interface: Option<At<Interface>>,
    /// It is what comes from these addresses.
    pub source: Option<At<Net>>,
    /// What becomes of what no rule names.
    #[serde(default = "drop_action", deserialize_with = "action")]
    pub default: Action,
    /// The first that matches decides.
    #[serde(default, deserialize_with = "rule")]
    pub rules: Vec<At<Rule>>,
    /// Whether what is forwarded gets this host's address.
    #[serde(default)]
    pub masquerade: bool,
}

/// `connect = [{ from = "a", to = "b", rule = "accept proto=tcp dstports=80" }]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// From this zone.
    pub from: ZoneName,
    /// To this.
    pub to: ZoneName,
    /// What.
    #[serde(deserialize_with = "one_rule")]
    pub rule: Rule,
}

fn one_rule<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Rule, D::Error> {
    let text = String::deserialize(d)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// `port_forward = [{ interface = "eth0", port = 8080, to = "10.1.0.5", to_port = 80 }]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortForward {
    /// What comes in here,
    pub interface: Interface,
    /// by this,
    #[serde(default = "tcp")]
    pub proto: Transport,
    /// for this port,
    pub port: u16,
    /// from here (empty: anywhere),
    #[serde(default)]
    pub from: Vec<Net>,
    /// goes to this address,
    pub to: IpAddr,
    /// and this port.
    pub to_port: u16,
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
        if vpn.mark.get_ref() & super::ruleset::MARK_MASK != 0 {
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
        if self.zones.len() > super::ruleset::ZONES_MAX {
            return Err(Refusal::new(
                format!("{}: {} zones", self.file, self.zones.len()),
                format!("at most {} can be told apart", super::ruleset::ZONES_MAX),
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
                Some(super::rule::Destination::Host(h)) => Some(h.clone()),
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
