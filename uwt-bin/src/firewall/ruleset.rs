//! A ruleset as text for nft(8): chains and sets of the one table `inet uwt`, in reading order. Connections are marked
//! with whose they are, in the upper half of ct mark (the lower is left to others).
//!
//! A packet without a user (its socket is closed already) goes where the mark says. The mark holds a generation too,
//! another one with each other policy, so that what an earlier policy allowed counts for nothing. See docs/FIREWALL.md.

use std::fmt::Write as _;

/// The table.
pub const TABLE: &str = "uwt";

/// The table that closes a host while there is no policy; see [`lockdown`].
pub const LOCKDOWN: &str = "uwt_lockdown";

/// Which bits of ct mark are ours.
pub const MARK_MASK: u32 = 0xffff_0000;

/// Generations are 1 to this.
pub const GENERATIONS: u32 = 63;

const CLASSES: u32 = 1023;

/// Classes that are no zone's: see [`Class`].
const FIXED: u32 = 16;

/// How many zones can be told apart.
pub const ZONES_MAX: usize = (CLASSES - FIXED) as usize;

/// Whose a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Somebody's, to a service on loopback.
    Loopback,
    /// Tor's.
    Tor,
    /// A clearnet user's.
    Clearnet,
    /// The VPN client's.
    Vpn,
    /// Anybody's, to the local network.
    Lan,
    /// Of one zone to another.
    Between,
    /// From outside into a zone.
    PortForward,
    /// Of an interface that is forwarded into the tunnel.
    Forwarded,
    /// A zone's, by number.
    Zone(usize),
}

impl Class {
    fn number(self) -> u32 {
        match self {
            Class::Loopback => 1,
            Class::Tor => 2,
            Class::Clearnet => 3,
            Class::Vpn => 4,
            Class::Lan => 5,
            Class::Between => 6,
            Class::PortForward => 7,
            Class::Forwarded => 8,
            Class::Zone(n) => FIXED + n as u32,
        }
    }

    /// In a chain's name.
    pub fn name(self) -> String {
        match self {
            Class::Zone(n) => format!("zone_{n}"),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    /// Its mark in a rule; the generation comes in by [`Ruleset::text`].
    fn mark(self) -> String {
        format!("%{}%", self.number())
    }

    /// Matches what has this mark.
    pub fn matches(self) -> String {
        format!("ct mark and {MARK_MASK:#010x} == {}", self.mark())
    }

    /// Accepts, and marks.
    pub fn accept(self) -> String {
        format!(
            "ct mark set ct mark and {:#010x} or {} accept",
            !MARK_MASK,
            self.mark()
        )
    }
}

/// One chain.
#[derive(Debug)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// `type filter hook output priority filter; policy drop`, for a base chain.
    hook: Option<&'static str>,
    rules: Vec<String>,
}

impl Chain {
    /// A rule that decides. `why` becomes its comment: whoever lists the rules reads it.
    pub fn rule(&mut self, matches: &str, verdict: &str, why: &str) {
        let space = if matches.is_empty() { "" } else { " " };
        let why = super::words::comment(why);
        self.rules.push(format!(
            "{matches}{space}counter {verdict} comment \"{why}\""
        ));
    }

    /// A rule as it stands.
    pub fn plain(&mut self, rule: impl Into<String>) {
        self.rules.push(rule.into());
    }

    /// How many rules it has.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// The table's contents.
#[derive(Debug, Default)]
pub struct Ruleset {
    sets: Vec<String>,
    chains: Vec<Chain>,
}

impl Ruleset {
    /// The chain of this name, made at its first use.
    pub fn chain(&mut self, name: &str) -> &mut Chain {
        let at = match self.chains.iter().position(|c| c.name == name) {
            Some(at) => at,
            None => {
                self.chains.push(Chain {
                    name: name.to_owned(),
                    hook: None,
                    rules: Vec::new(),
                });
                self.chains.len() - 1
            }
        };
        &mut self.chains[at]
    }

    /// A chain that the kernel calls.
    pub fn base(&mut self, name: &str, hook: &'static str) -> &mut Chain {
        let chain = self.chain(name);
        chain.hook = Some(hook);
        chain
    }

    /// A named set, with what stands between its braces.
    pub fn set(&mut self, name: &str, contents: &str) {
        self.sets.push(format!("set {name} {{ {contents} }}"));
    }

    /// The chains, in reading order.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// The table's text, without what replaces the one before it; `comment` says what policy it is.
    pub fn text(&self, comment: &str, generation: u32) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "table inet {TABLE} {{");
        let _ = writeln!(out, "\tcomment \"{}\"", super::words::comment(comment));
        for s in &self.sets {
            let _ = writeln!(out, "\t{s}");
        }
        for c in &self.chains {
            let _ = writeln!(out, "\tchain {} {{", c.name);
            if let Some(hook) = c.hook {
                let _ = writeln!(out, "\t\t{hook};");
            }
            for r in &c.rules {
                out.push_str("\t\t");
                marked(&mut out, r, generation);
                out.push('\n');
            }
            out.push_str("\t}\n");
        }
        out.push_str("}\n");
        out
    }
}

/// Writes a rule with its marks' numbers in.
fn marked(out: &mut String, rule: &str, generation: u32) {
    for (n, part) in rule.split('%').enumerate() {
        match part.parse::<u32>() {
            Ok(class) if n % 2 == 1 => {
                let _ = write!(out, "{:#010x}", generation << 26 | class << 16);
            }
            _ => out.push_str(part),
        }
    }
}

/// A generation as it can be in a mark; 0: none.
pub fn marks_generation(n: u32) -> u32 {
    if n <= GENERATIONS { n } else { 0 }
}

/// The generation after this one.
pub fn next_generation(n: u32) -> u32 {
    n % GENERATIONS + 1
}

/// What replaces a table in one transaction. nft 1.0.6 has no `destroy`: a table is made so that it can be deleted.
pub fn gone(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// What a packet is marked with, just before it leaves, that these rules have let through. It is taken off again.
const PASSED: u32 = 0x2000_0000;

/// The chain that marks it: after all others of the inet family.
pub const PASSED_HOOK: &str = "type filter hook postrouting priority 350; policy accept";

/// Its rule.
pub fn passed() -> String {
    format!("meta mark set meta mark or {PASSED:#010x}")
}

/// The table that stops what never came by the inet family: packets of packet(7) sockets, on these devices. ARP, EAPOL and
/// PPPoE go, and a DHCP client's questions where they are asked for.
pub fn egress(devices: &[String], dhcp: bool) -> String {
    let mut out = no_egress();
    if devices.is_empty() {
        // The table alone: that it is there says that it has been thought of.
        let _ = writeln!(out, "table netdev {TABLE}");
        return out;
    }
    let devices: Vec<String> = devices.iter().map(|d| format!("\"{d}\"")).collect();
    let _ = writeln!(out, "table netdev {TABLE} {{\n\tchain egress {{");
    let _ = writeln!(
        out,
        "\t\ttype filter hook egress devices = {{ {} }} priority 0; policy drop;",
        devices.join(", ")
    );
    let _ = writeln!(
        out,
        "\t\tmeta mark and {PASSED:#010x} == {PASSED:#010x} meta mark set meta mark and {:#010x} accept",
        !PASSED
    );
    out.push_str("\t\tmeta protocol { arp, 0x888e, 0x8863, 0x8864 } accept\n");
    if dhcp {
        out.push_str("\t\tmeta protocol ip udp sport 68 udp dport 67 accept\n");
    }
    out.push_str("\t\tcounter comment \"stopped: raw packets\"\n\t}\n}\n");
    out
}

/// What takes it away.
pub fn no_egress() -> String {
    format!("table netdev {TABLE}\ndelete table netdev {TABLE}\n")
}

/// The ruleset of a host that has no policy: loopback alone. Its chains come before the policy's, and what they drop
/// no other chain can let through.
pub fn lockdown() -> String {
    let mut out = gone(LOCKDOWN);
    let _ = writeln!(out, "table inet {LOCKDOWN} {{");
    out.push_str("\tcomment \"uwt lockdown: loopback alone; uwtctl firewall apply ends it\"\n");
    for (hook, rule) in [
        ("input", "iifname \"lo\" accept"),
        ("output", "oifname \"lo\" accept"),
        ("forward", ""),
    ] {
        let _ = writeln!(out, "\tchain {hook} {{");
        let _ = writeln!(
            out,
            "\t\ttype filter hook {hook} priority filter - 10; policy drop;"
        );
        if !rule.is_empty() {
            let _ = writeln!(out, "\t\t{rule}");
        }
        out.push_str("\t\tcounter comment \"stopped: lockdown\"\n\t}\n");
    }
    out.push_str("}\n");
    out
}
