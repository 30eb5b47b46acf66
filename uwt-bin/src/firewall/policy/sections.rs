//! The sections of the file, each with its defaults.

use crate::firewall::rule::{Action, Rule};
use crate::firewall::words::{Account, Cgroup, Interface, Net, Server, Transport, ZoneName};
use serde::{Deserialize, Deserializer};
use std::net::IpAddr;
use toml::Spanned;

/// A value and where it stands; see [`super::Policy::origin`].
pub type At<T> = Spanned<T>;

/// A value that stands nowhere: the default.
fn nowhere<T>(value: T) -> At<T> {
    Spanned::new(0..0, value)
}

/// Where in the file an error of a list's element stands: serde knows of the list alone. See [`super::Policy::parse`].
pub(super) const ELEMENT: char = '\u{1}';

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

pub(super) fn action<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Action, D::Error> {
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
