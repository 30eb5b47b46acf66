//! How the host stands, in words: what is let through and why, what was stopped, what differs from the file.

use super::load;
use super::nft::{self, Where};
use super::policy::{IncomingProtocol, Policy};
use super::ruleset::{LOCKDOWN, TABLE};
use super::state;
use crate::refusal::{Refusal, Result};
use nix::unistd::{Uid, User};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::UNIX_EPOCH;

/// What rules with one comment did.
#[derive(Serialize, Default, Debug)]
pub struct Count {
    /// Why they are there.
    pub why: String,
    /// In which chains.
    pub chain: String,
    /// Packets that they decided.
    pub packets: u64,
}

/// What was stopped, by where it went.
#[derive(Serialize, Debug)]
pub struct Stopped {
    /// `out`, `in` or `forward`.
    pub direction: String,
    /// Who sent it: a user, or an address.
    pub from: String,
    /// Where to.
    pub to: String,
    /// By what, and to which port.
    pub port: String,
    /// How often.
    pub packets: u64,
}

/// A socket that waits for others, and the rules would let in.
#[derive(Serialize, Debug)]
pub struct OpenPort {
    /// `tcp` or `udp`.
    pub proto: String,
    /// The port.
    pub port: u16,
    /// Whose it is.
    pub user: String,
    /// Which line lets it in.
    pub because: String,
}

/// Everything.
#[derive(Serialize, Default, Debug)]
pub struct Status {
    /// `tor-host`, `vpn`, `lockdown`, `off`.
    pub profile: String,
    /// Since when, in seconds since 1970.
    pub since: Option<u64>,
    /// What is let through, and what was stopped by which rule.
    pub rules: Vec<Count>,
    /// What was stopped, most often first.
    pub stopped: Vec<Stopped>,
    /// What the rules would let in.
    pub open_ports: Vec<OpenPort>,
    /// How file, boot and kernel differ.
    pub drift: Vec<String>,
    /// What could not be done as written.
    pub warnings: Vec<String>,
    /// What is known of relays.
    pub relays: Option<String>,
    /// Each time that somebody else took the rules away: when, and for how many milliseconds.
    pub opened: Vec<(u64, u64)>,
}

/// `3 h 20 min`
pub fn duration(seconds: u64) -> String {
    match seconds {
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

fn ago(at: u64) -> String {
    let now = super::state::clock();
    format!("{} ago", duration(now.saturating_sub(at)))
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(u)) => u.name,
        _ => format!("uid {uid}"),
    }
}

/// A number or an address, as nft's JSON has it.
fn word(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        v => v.to_string(),
    }
}

fn counts(listing: &Value, status: &mut Status) {
    let mut by_why: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut order = Vec::new();
    let objects = listing["nftables"].as_array().cloned().unwrap_or_default();
    for o in &objects {
        if let Some(rule) = o.get("rule") {
            let Some(why) = rule["comment"].as_str() else {
                continue;
            };
            let chain = rule["chain"].as_str().unwrap_or_default().to_owned();
            let packets = rule["expr"]
                .as_array()
                .into_iter()
                .flatten()
                .find_map(|e| e["counter"]["packets"].as_u64())
                .unwrap_or(0);
            let key = (chain, why.to_owned());
            if !by_why.contains_key(&key) {
                order.push(key.clone());
            }
            *by_why.entry(key).or_default() += packets;
        }
        let Some(set) = o.get("set") else { continue };
        let name = set["name"].as_str().unwrap_or_default();
        let Some(direction) = name.strip_prefix("stopped_") else {
            continue;
        };
        let direction = direction.trim_end_matches(['4', '6']);
        for e in set["elem"].as_array().into_iter().flatten() {
            let e = &e["elem"];
            let Some([from, to, proto, port]) = e["val"]["concat"].as_array().map(Vec::as_slice)
            else {
                continue;
            };
            let from = match (direction, from.as_u64()) {
                ("out", Some(uid)) => user_name(uid as u32),
                _ => word(from),
            };
            let proto = match word(proto).as_str() {
                "6" => "tcp".to_owned(),
                "17" => "udp".to_owned(),
                other => other.to_owned(),
            };
            status.stopped.push(Stopped {
                direction: direction.to_owned(),
                from,
                to: word(to),
                port: format!("{proto} {}", word(port)),
                packets: e["counter"]["packets"].as_u64().unwrap_or(1),
            });
        }
    }
    status.stopped.sort_by_key(|s| std::cmp::Reverse(s.packets));
    status.rules = order
        .into_iter()
        .map(|key| Count {
            packets: by_why.get(&key).copied().unwrap_or(0),
            chain: key.0,
            why: key.1,
        })
        .collect();
}

/// Sockets that wait for others (proc(5), /proc/net/tcp): protocol, port, user; not those of loopback.
fn listening() -> Vec<(&'static str, u16, u32)> {
    let mut out = Vec::new();
    for (file, proto, state) in [
        ("tcp", "tcp", "0A"),
        ("tcp6", "tcp", "0A"),
        ("udp", "udp", "07"),
        ("udp6", "udp", "07"),
    ] {
        let text = fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, st, _, _, _, uid, ..] = words.as_slice() else {
                continue;
            };
            let Some((address, port)) = local.split_once(':') else {
                continue;
            };
            // 127.0.0.0/8 in the host's order, and ::1.
            let loopback = (address.len() == 8 && address.ends_with("7F"))
                || address == "00000000000000000000000001000000";
            let port = u16::from_str_radix(port, 16);
            if let (true, false, Ok(port), Ok(uid)) = (*st == state, loopback, port, uid.parse()) {
                out.push((proto, port, uid));
            }
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

fn open_ports(policy: &Policy) -> Vec<OpenPort> {
    let mut out = Vec::new();
    for (proto, port, uid) in listening() {
        for i in &policy.incoming {
            let rule = i.get_ref();
            let same = matches!(
                (rule.proto, proto),
                (IncomingProtocol::Tcp, "tcp") | (IncomingProtocol::Udp, "udp")
            );
            if same && rule.ports.iter().any(|p| (p.0..=p.1).contains(&port)) {
                out.push(OpenPort {
                    proto: proto.to_owned(),
                    port,
                    user: user_name(uid),
                    because: format!("{}, {} incoming", rule.name, policy.origin(i)),
                });
            }
        }
    }
    out
}

/// How the host stands; `file` is the policy's.
///
/// # Errors
/// The kernel does not say.
pub fn status(file: &str) -> Result<Status> {
    let mut status = Status::default();
    let table = nft::loaded(TABLE)?;
    let locked = nft::table_of(LOCKDOWN)?.is_some();
    let running = state::running();
    status.profile = match (&table, locked) {
        (_, true) => "lockdown".into(),
        (Some(t), _) => t.profile().unwrap_or("unknown").to_owned(),
        (None, _) => "off".into(),
    };
    status.since = fs::metadata(state::SINCE)
        .and_then(|m| m.modified())
        .ok()
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .map(|d| d.as_secs())
        .filter(|_| status.profile != "off");
    let prepared = load::prepare(file);
    match &prepared {
        Err(e) => status
            .drift
            .push(format!("the file is no policy: {}", e.what)),
        Ok(p) => {
            status.open_ports = open_ports(&p.policy);
            if let Some(t) = table
                .as_ref()
                .filter(|t| t.policy() != Some(p.hash.as_str()))
            {
                status.drift.push(format!(
                    "{file} has changed since it was loaded (loaded {}, file {}): `uwtctl firewall apply`",
                    t.policy().unwrap_or("unknown"),
                    p.hash
                ));
            }
        }
    }
    let boot = fs::read_to_string(state::BOOT).ok();
    match (&table, boot) {
        (Some(t), Some(b)) if !locked && !b.contains(&t.comment) => status.drift.push(format!(
            "{} holds another policy: a boot would load that",
            state::BOOT
        )),
        (Some(_), None) => status.drift.push(format!(
            "{} is gone: a boot would load no policy",
            state::BOOT
        )),
        (None, Some(_)) if !locked => status
            .drift
            .push("nothing is loaded, though it should be: this host is OPEN".into()),
        _ => {}
    }
    if table.is_some() {
        let text = nft::run(
            &["-j", "-n", "list", "table", "inet", TABLE],
            "",
            Where::Here,
        )?;
        let listing: Value = serde_json::from_str(&text)
            .map_err(|e| Refusal::new("nft's listing cannot be read", e.to_string(), ""))?;
        counts(&listing, &mut status);
        let now = table.as_ref().map(|t| t.digest.as_str());
        if !running.digest.is_empty() && now != Some(running.digest.as_str()) {
            status.drift.push(
                "somebody has changed the rules in the kernel: `uwtctl firewall apply`".into(),
            );
        }
    }
    status.warnings = running.warnings;
    for name in running.unresolved {
        status
            .warnings
            .push(format!("{name} could not be resolved"));
    }
    let behind = state::now().saturating_sub(state::clock());
    if behind > 60 && status.profile != "off" {
        status.warnings.push(format!(
            "the clock shows {} less than was seen before: what has an end counts as if it did not. Was the later time wrong, \
             remove {}/kept.json and apply again",
            duration(behind),
            state::FOLDER
        ));
    }
    status.relays = running.relays;
    status.opened = running.opened;
    Ok(status)
}

impl Status {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let since = self
            .since
            .map_or(String::new(), |s| format!(", loaded {}", ago(s)));
        let words = match self.profile.as_str() {
            "off" => "off: this host has no firewall of uwt's",
            "lockdown" => "lockdown: nothing but loopback",
            "tor-host" => {
                "tor-host: what leaves this host leaves by Tor, but for what is listed here"
            }
            "vpn" => "vpn: what leaves this host leaves by its tunnel, but for what is listed here",
            other => other,
        };
        let _ = writeln!(out, "profile     {words}{since}");
        let mut section = |title: &str, lines: Vec<String>| {
            for (n, line) in lines.iter().enumerate() {
                let title = if n == 0 { title } else { "" };
                let _ = writeln!(out, "{title:<12}{line}");
            }
        };
        let of = |kinds: &[&str]| -> Vec<String> {
            self.rules
                .iter()
                .filter(|r| kinds.iter().any(|k| r.why.starts_with(k)))
                .map(|r| format!("{:>9}  {}", r.packets, r.why))
                .collect()
        };
        section("let through", of(&["let ", "to ", "masquerade"]));
        section(
            "stopped",
            of(&["stopped"])
                .into_iter()
                .filter(|l| !l.trim_start().starts_with("0 "))
                .collect(),
        );
        section(
            "most often",
            self.stopped
                .iter()
                .take(20)
                .map(|s| {
                    format!(
                        "{:>9}  {}: {} to {}, {}",
                        s.packets, s.direction, s.from, s.to, s.port
                    )
                })
                .collect(),
        );
        section(
            "open ports",
            self.open_ports
                .iter()
                .map(|p| format!("{} {} of {}: {}", p.proto, p.port, p.user, p.because))
                .collect(),
        );
        section("relays", self.relays.iter().cloned().collect());
        section(
            "was open",
            self.opened
                .iter()
                .map(|(at, ms)| {
                    format!(
                        "{}: somebody took the rules away; loaded again after {ms} ms",
                        ago(*at)
                    )
                })
                .collect(),
        );
        section("warning", self.warnings.clone());
        let drift = match (self.drift.is_empty(), self.profile.as_str()) {
            (true, "off") => Vec::new(),
            (true, _) => vec!["none: file, boot and kernel say the same".to_owned()],
            _ => self.drift.clone(),
        };
        section("drift", drift);
        out
    }
}
