//! One rule of a zone, in the words of qvm-firewall(1): `accept proto=tcp dsthost=example.org dstports=443`.

use super::words::{HostName, Net};
use std::fmt;
use std::str::FromStr;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It goes.
    Accept,
    /// It does not.
    Drop,
}

impl Action {
    /// The action called `name`.
    pub fn parse(name: &str) -> Option<Action> {
        match name {
            "accept" => Some(Action::Accept),
            "drop" => Some(Action::Drop),
            _ => None,
        }
    }

    /// As nft and qvm-firewall write it.
    pub fn name(self) -> &'static str {
        match self {
            Action::Accept => "accept",
            Action::Drop => "drop",
        }
    }
}

/// `proto=`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, or ICMPv6 where the destination is of IPv6.
    Icmp,
}

impl Protocol {
    /// As qvm-firewall writes it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        }
    }
}

/// Where to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// `dst4=` or `dst6=`.
    Net(Net),
    /// `dsthost=`
    Host(HostName),
    /// `specialtarget=dns`: port 53 of the resolvers that [`super::policy::Dns::servers`] names.
    Dns,
}

/// One rule; the first that matches decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// What becomes of what matches.
    pub action: Action,
    /// By what; `None`: anything.
    pub protocol: Option<Protocol>,
    /// Where to; `None`: anywhere.
    pub destination: Option<Destination>,
    /// `dstports=`: first and last.
    pub ports: Option<(u16, u16)>,
    /// `icmptype=`
    pub icmp_type: Option<u8>,
    /// `expire=`: seconds since 1970, after which the rule is not there.
    pub expire: Option<u64>,
    /// `comment=`: everything behind it, to the end.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule that says the same of everything.
    pub fn everything(action: Action) -> Rule {
        Rule {
            action,
            protocol: None,
            destination: None,
            ports: None,
            icmp_type: None,
            expire: None,
            comment: None,
        }
    }

    /// Whether it can change while it is loaded.
    pub fn is_volatile(&self) -> bool {
        self.expire.is_some() || matches!(self.destination, Some(Destination::Host(_)))
    }

    /// Reads a rule; `now` (seconds since 1970) is what `expire=+SECONDS` counts from. Without it, that is refused: in a
    /// file it would never come to an end.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(text: &str, now: Option<u64>) -> Result<Rule, String> {
        let (text, comment) = match text.find("comment=") {
            Some(at) if at == 0 || text[..at].ends_with([' ', '\t']) => {
                (&text[..at], Some(text[at + 8..].trim().to_owned()))
            }
            _ => (text, None),
        };
        if comment
            .as_ref()
            .is_some_and(|c| c.contains(|c: char| c.is_control()))
        {
            return Err("a comment is one line of text".into());
        }
        let mut action = None;
        let mut rule = Rule::everything(Action::Drop);
        rule.comment = comment;
        let mut set = std::collections::HashSet::new();
        for word in text.split_whitespace() {
            let (key, value) = match word.split_once('=') {
                Some(pair) => pair,
                None => ("action", word),
            };
            if !set.insert(key) {
                return Err(format!("{key} is said twice"));
            }
            let bad = |takes: &str| format!("{word:?}: {key} takes {takes}");
            let known = match key {
                "action" => {
                    action =
                        Some(Action::parse(value).ok_or_else(|| bad("\"accept\" or \"drop\""))?);
                    true
                }
                "proto" => {
                    rule.protocol = Some(match value {
                        "tcp" => Protocol::Tcp,
                        "udp" => Protocol::Udp,
                        "icmp" => Protocol::Icmp,
                        _ => return Err(bad("tcp, udp or icmp")),
                    });
                    true
                }
                "dst4" | "dst6" => {
                    let net: Net = value.parse()?;
                    if net.is_v4() != (key == "dst4") {
                        return Err(bad("an address or network of its own family"));
                    }
                    rule.destination = Some(Destination::Net(net));
                    true
                }
                "dsthost" => {
                    // As qvm-firewall: an address is an address wherever it is written.
                    rule.destination = Some(match value.parse::<Net>() {
                        Ok(net) => Destination::Net(net),
                        Err(_) => Destination::Host(value.parse()?),
                    });
                    true
                }
                "dstports" => {
                    let (first, last) = value.split_once('-').unwrap_or((value, value));
                    let port = |s: &str| {
                        let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
                        s.parse::<u16>().ok().filter(|_| digits)
                    };
                    rule.ports = Some(
                        port(first)
                            .zip(port(last))
                            .filter(|(a, b)| a <= b)
                            .ok_or_else(|| bad("a port, or FIRST-LAST"))?,
                    );
                    true
                }
                "icmptype" => {
                    rule.icmp_type = Some(value.parse().map_err(|_| bad("0 to 255"))?);
                    true
                }
                "specialtarget" => {
                    if value != "dns" {
                        return Err(bad("dns"));
                    }
                    rule.destination = Some(Destination::Dns);
                    true
                }
                "expire" => {
                    let number = |s: &str| s.parse::<u64>().ok().filter(|n| *n < 1 << 40);
                    rule.expire = Some(match (value.strip_prefix('+'), now) {
                        (Some(s), Some(now)) => {
                            now + number(s).ok_or_else(|| bad("seconds, from 1970 or +now"))?
                        }
                        (Some(_), None) => {
                            return Err(bad(
                                "seconds since 1970 in a file (date +%s); + is for the command line",
                            ));
                        }
                        (None, _) => {
                            number(value).ok_or_else(|| bad("seconds, from 1970 or +now"))?
                        }
                    });
                    true
                }
                _ => false,
            };
            if !known {
                const KEYS: [&str; 9] = [
                    "action",
                    "proto",
                    "dst4",
                    "dst6",
                    "dsthost",
                    "dstports",
                    "icmptype",
                    "specialtarget",
                    "expire",
                ];
                let near = crate::config::nearest(key, KEYS.into_iter()).unwrap_or("action");
                return Err(format!("{word:?}: unknown key; did you mean {near:?}?"));
            }
        }
        rule.action = action.ok_or("a rule begins with accept or drop")?;
        let places = ["dst4", "dst6", "dsthost", "specialtarget"];
        if places.iter().filter(|k| set.contains(*k)).count() > 1 {
            return Err("one of dst4, dst6, dsthost and specialtarget".into());
        }
        if rule.ports.is_some() && !matches!(rule.protocol, Some(Protocol::Tcp | Protocol::Udp)) {
            return Err("dstports needs proto=tcp or proto=udp".into());
        }
        if rule.icmp_type.is_some() && rule.protocol != Some(Protocol::Icmp) {
            return Err("icmptype needs proto=icmp".into());
        }
        if rule.destination == Some(Destination::Dns)
            && (rule.ports.is_some() || rule.protocol == Some(Protocol::Icmp))
        {
            return Err("specialtarget=dns is port 53 of TCP and UDP".into());
        }
        Ok(rule)
    }
}

impl FromStr for Rule {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Rule::parse(s, None)
    }
}

impl fmt::Display for Rule {
    /// What [`Rule::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action.name())?;
        if let Some(p) = self.protocol {
            write!(f, " proto={}", p.name())?;
        }
        match &self.destination {
            Some(Destination::Net(n)) if n.is_v4() => write!(f, " dst4={n}")?,
            Some(Destination::Net(n)) => write!(f, " dst6={n}")?,
            Some(Destination::Host(h)) => write!(f, " dsthost={}", h.0)?,
            Some(Destination::Dns) => write!(f, " specialtarget=dns")?,
            None => {}
        }
        match self.ports {
            Some((a, b)) if a == b => write!(f, " dstports={a}")?,
            Some((a, b)) => write!(f, " dstports={a}-{b}")?,
            None => {}
        }
        if let Some(t) = self.icmp_type {
            write!(f, " icmptype={t}")?;
        }
        if let Some(e) = self.expire {
            write!(f, " expire={e}")?;
        }
        if let Some(c) = &self.comment {
            write!(f, " comment={c}")?;
        }
        Ok(())
    }
}
