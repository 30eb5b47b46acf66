//! Loading: the policy as one transaction, read back from the kernel, and kept for the next boot. Whatever fails, what
//! was loaded stays; where nothing was, the host is locked down.

use super::facts::Host;
use super::nft::{self, Where};
use super::policy::Policy;
use super::render::{HostSet, RELAYS, Rendered, render};
use super::rule::Action;
use super::ruleset::{self, LOCKDOWN, TABLE, gone, lockdown, next_generation};
use super::state::{self, Kept, Running};
use super::words::{HostName, Interface};
use super::{boot, names, relays};
use crate::refusal::{Refusal, Result};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use uwt_core::siphash::hash64;

/// A policy and what it comes to.
pub struct Prepared {
    /// The policy.
    pub policy: Policy,
    /// Its rules.
    pub rendered: Rendered,
    /// What tells it from every other.
    pub hash: String,
}

/// A hash as text. Against mistakes, not against somebody who wants to deceive: that would be root.
pub fn hash(text: &str) -> String {
    format!("{:016x}", hash64(&[0; 16], text.as_bytes()))
}

/// Reads and renders a policy.
///
/// # Errors
/// The file's.
pub fn prepare(file: &str) -> Result<Prepared> {
    let policy = Policy::read(file)?;
    let rendered = render(&policy, &Host);
    let hash = hash(&rendered.ruleset.text("", 0));
    Ok(Prepared {
        policy,
        rendered,
        hash,
    })
}

impl Prepared {
    /// The text of a whole transaction: the policy instead of the one before, and no lockdown any more.
    pub fn transaction(&self, generation: u32, filling: &str) -> String {
        let comment = format!(
            "uwt {} policy {} generation {generation}",
            self.policy.profile.name(),
            self.hash
        );
        let mut out = gone(TABLE);
        out += &self.rendered.ruleset.text(&comment, generation);
        out += filling;
        out += &gone(LOCKDOWN);
        out
    }

    /// What the kernel must have after the transaction; its digest.
    fn verify(&self, generation: u32) -> std::result::Result<String, String> {
        let loaded = nft::loaded(TABLE).map_err(|r| r.to_string())?;
        let loaded = loaded.ok_or("the kernel has no table")?;
        if loaded.policy() != Some(&self.hash) || loaded.generation() != generation {
            return Err(format!("the kernel has {:?}", loaded.comment));
        }
        for chain in self.rendered.ruleset.chains() {
            let found = loaded.chains.get(&chain.name).cloned().unwrap_or_default();
            if found.rules != chain.len() {
                return Err(format!(
                    "chain {} has {} rules of {}",
                    chain.name,
                    found.rules,
                    chain.len()
                ));
            }
        }
        for name in ["input", "output", "forward"] {
            let closed = loaded.chains.get(name).is_some_and(|c| c.base && c.drops);
            if !closed {
                return Err(format!("chain {name} does not drop what no rule names"));
            }
        }
        if nft::table_of(LOCKDOWN)
            .map_err(|r| r.to_string())?
            .is_some()
        {
            return Err("lockdown is still there".into());
        }
        Ok(loaded.digest)
    }
}

/// What goes into the sets of a policy beside its text, as statements of the same transaction.
#[derive(Default)]
pub struct Filling {
    /// The statements.
    pub text: String,
    /// Names that could not be resolved.
    pub unresolved: Vec<String>,
    /// What is known of the relays.
    pub relays: Option<String>,
}

/// The longest time that an element is given, in seconds; nft takes no more than some weeks. [`refresh`] gives it anew.
const TIMEOUT_MAX: u64 = 7 * 86_400;

/// An element anew, with a timeout that begins now: an `add` of what is there changes nothing.
fn renew(out: &mut String, set: &str, element: &str, seconds: u64) {
    let seconds = seconds.min(TIMEOUT_MAX);
    let _ = writeln!(
        out,
        "add element inet {TABLE} {set} {{ {element} timeout {seconds}s }}"
    );
    let _ = writeln!(out, "delete element inet {TABLE} {set} {{ {element} }}");
    let _ = writeln!(
        out,
        "add element inet {TABLE} {set} {{ {element} timeout {seconds}s }}"
    );
}

fn fill_host(out: &mut String, h: &HostSet, found: &[IpAddr], keep: u32) {
    for ip in found {
        let set = format!("{}_{}", h.set, if ip.is_ipv4() { 4 } else { 6 });
        if h.bars {
            // What was barred stays so: an old address may still be the host's.
            let _ = writeln!(out, "add element inet {TABLE} {set} {{ {ip} }}");
        } else {
            renew(out, &set, &ip.to_string(), keep.into());
        }
    }
    if h.bars && !found.is_empty() {
        let set = format!("{}_unknown", h.set);
        let _ = writeln!(out, "add element inet {TABLE} {set} {{ ipv4, ipv6 }}");
        let _ = writeln!(out, "delete element inet {TABLE} {set} {{ ipv4, ipv6 }}");
    }
}

/// Finds out what goes into the sets of a policy now.
pub fn filling(p: &Prepared, now: u64) -> Filling {
    let mut out = Filling::default();
    let names: Vec<HostName> = p.policy.hosts();
    let found = if names.is_empty() {
        HashMap::new()
    } else {
        names::resolve(&p.policy, &names)
    };
    for h in &p.rendered.hosts {
        match found.get(&h.name) {
            Some(ips) => fill_host(&mut out.text, h, ips, p.policy.names.keep),
            None => out.unresolved.push(h.name.0.clone()),
        }
    }
    out.unresolved.dedup();
    for e in p.rendered.expiries.iter().filter(|e| e.at > now) {
        for family in ["ipv4", "ipv6"] {
            renew(&mut out.text, &e.set, family, e.at - now);
        }
    }
    if p.rendered.relays {
        match relays::reachable(&p.policy, now) {
            Ok(r) => {
                let left = (r.until - now).min(TIMEOUT_MAX);
                for (set, v4) in RELAYS.into_iter().zip([true, false]) {
                    let _ = writeln!(out.text, "flush set inet {TABLE} {set}");
                    let elements: Vec<String> = r
                        .addresses
                        .iter()
                        .filter(|a| a.is_ipv4() == v4)
                        .map(|a| format!("{} . {} timeout {left}s", a.ip(), a.port()))
                        .collect();
                    if !elements.is_empty() {
                        let _ = writeln!(
                            out.text,
                            "add element inet {TABLE} {set} {{ {} }}",
                            elements.join(", ")
                        );
                    }
                }
                out.relays = Some(format!(
                    "{} relays, for {} more",
                    r.addresses.len(),
                    super::status::duration(r.until - now)
                ));
            }
            Err(e) => out.relays = Some(format!("none: {}", e.why.replace('\n', ";"))),
        }
    }
    out
}

/// Closes the host where nothing is loaded; says what came of it.
fn close() -> String {
    let open = |e: Refusal| format!("nothing could be loaded, and THIS HOST IS OPEN: {}", e.why);
    match (nft::table_of(TABLE), nft::table_of(LOCKDOWN)) {
        (Ok(Some(_)), _) => "the rules that were loaded stay".into(),
        (_, Ok(Some(_))) => "this host stays locked down".into(),
        (Err(e), _) | (_, Err(e)) if e.fix.contains("root") => {
            "nothing was changed: this needs root".into()
        }
        _ => match nft::load(&lockdown(), Where::Here) {
            Ok(()) => {
                since();
                "this host is locked down now: `uwtctl firewall apply` when it is mended, or `uwtctl firewall off`"
                    .into()
            }
            Err(e) => open(e),
        },
    }
}

fn closing(mut r: Refusal) -> Refusal {
    let state = close();
    r.why = match r.why.as_str() {
        "" => state,
        why => format!("{why}\n  {state}"),
    };
    r
}

fn since() {
    // For `status` alone.
    let _ = fs::create_dir_all(state::RUN).and_then(|()| fs::write(state::SINCE, ""));
}

/// Loads the policy of `file`; gives warnings for people.
///
/// # Errors
/// What went wrong, and how the host stands now.
pub fn apply(file: &str) -> Result<Vec<String>> {
    let _lock = state::lock()?;
    apply_locked(file).map_err(closing)
}

/// The same for a caller that holds [`state::lock`].
///
/// # Errors
/// As [`apply`]; the host stands as it did, or is locked down.
pub fn apply_locked(file: &str) -> Result<Vec<String>> {
    let prepared = prepare(file)?;
    let before = nft::table_of(TABLE)?;
    let now = state::now();
    let kept = state::kept();
    let generation = match &before {
        Some(b) if b.policy() == Some(&prepared.hash) && b.generation() > 0 => b.generation(),
        Some(b) => next_generation(b.generation().max(kept.generation)),
        None if kept.policy == prepared.hash && kept.generation > 0 => kept.generation,
        None => next_generation(kept.generation),
    };
    // Names and relays are asked for while the network is as it was.
    let filling = filling(&prepared, now);
    if before.is_none() {
        nft::load(&lockdown(), Where::Here)?;
        since();
    }
    let raw = (prepared.policy.raw_packets == Action::Drop)
        .then_some(*prepared.policy.dhcp.out.get_ref());
    // For the next boot first, so that no moment has rules that a boot would not bring again; but not in place until
    // the kernel has taken them.
    let new = format!("{}.checked", state::BOOT);
    state::replace(
        Path::new(&new),
        &prepared.transaction(generation, ""),
        0o600,
    )?;
    nft::load(
        &prepared.transaction(generation, &filling.text),
        Where::Here,
    )?;
    let digest = match prepared.verify(generation) {
        Ok(digest) => digest,
        Err(why) => {
            // The kernel does not have what it said that it took: nothing of it counts.
            nft::load(&lockdown(), Where::Here)?;
            return Err(Refusal::new("the rules read back are others", why, ""));
        }
    };
    since();
    fs::rename(&new, state::BOOT).map_err(|e| {
        Refusal::new(
            format!("{}: cannot be written", state::BOOT),
            format!("{e}: the rules are loaded, and will not be after a boot"),
            "",
        )
    })?;
    state::keep(&Kept {
        policy: prepared.hash.clone(),
        generation,
        raw,
        clock: now,
    })?;
    egress(raw)?;
    let mut warnings = prepared.rendered.warnings.clone();
    warnings.extend(sysctls(&prepared));
    state::run(&Running {
        digest,
        warnings: warnings.clone(),
        opened: state::running().opened,
        relays: filling.relays.clone(),
        unresolved: filling.unresolved.clone(),
    })?;
    for name in &filling.unresolved {
        warnings.push(format!(
            "{name} could not be resolved: what names it stays closed, and is asked for again"
        ));
    }
    warnings.extend(
        filling
            .relays
            .filter(|r| r.starts_with("none"))
            .map(|r| format!("relays: {r}")),
    );
    warnings.extend(boot::enable());
    Ok(warnings)
}

/// The devices of this host, but for loopback and ports of bridges: what a bridge forwards is its own.
fn devices() -> Vec<String> {
    let names = nix::net::if_::if_nameindex().map(|all| {
        all.iter()
            .map(|i| i.name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    });
    let mut names = names.unwrap_or_default();
    // Nothing that nft would take for its own; a device of such a name is closed to nobody's surprise.
    names.retain(|n| n != "lo" && n.parse::<Interface>().is_ok() && !n.ends_with('*'));
    names.retain(|n| !Path::new("/sys/class/net").join(n).join("brport").exists());
    names
}

/// Stops what passes the inet family by, on the devices that there are now; `raw` as in [`Kept::raw`]. Called again
/// whenever devices come.
///
/// # Errors
/// nft's: the rules are loaded, and raw packets are not stopped.
pub fn egress(raw: Option<bool>) -> Result<()> {
    let Some(dhcp) = raw else {
        if nft::at_devices(TABLE)? {
            nft::load(&ruleset::no_egress(), Where::Here)?;
        }
        return Ok(());
    };
    let mut last = Ok(());
    // A device may go between the question and the load.
    for _ in 0..5 {
        last = nft::load(&ruleset::egress(&devices(), dhcp), Where::Here);
        if last.is_ok() {
            break;
        }
    }
    last.map_err(|e| {
        Refusal::new(
            "the rules are loaded, but packets of raw sockets are not stopped",
            e.why,
            "raw_packets = \"accept\", if this kernel has no egress hook (5.16)",
        )
    })
}

/// What the kernel must do beside the rules; what it does not is told.
fn sysctls(p: &Prepared) -> Vec<String> {
    let mut out = Vec::new();
    // ICMP is not there to say what is too big (RFC 4821).
    let probing = "/proc/sys/net/ipv4/tcp_mtu_probing";
    if let Err(e) = fs::write(probing, "1") {
        out.push(format!("{probing} could not be set to 1: {e}"));
    }
    let forwards = p
        .policy
        .zones
        .values()
        .any(|z| z.get_ref().interface.is_some() || z.get_ref().source.is_some())
        || !p.policy.vpn.forward.get_ref().is_empty()
        || !p.policy.port_forward.is_empty();
    let forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    if forwards && forwarding.is_ok_and(|f| f.trim() == "0") {
        out.push("net.ipv4.ip_forward is 0: nothing is forwarded until sysctl sets it to 1".into());
    }
    out
}

/// How often the time is kept when nothing else is to be done.
pub const HOUR: Duration = Duration::from_secs(3600);

/// After how long is asked again when names or relays were not to be had.
pub const AGAIN: Duration = Duration::from_secs(30);

/// Fills the sets of what is loaded anew; when it is to be done again.
///
/// # Errors
/// Another policy is loaded than the file says, or nft's.
pub fn refresh(file: &str) -> Result<Duration> {
    let prepared = prepare(file)?;
    let now = state::now();
    // Asking takes its time, and is done while others may change the rules.
    let filling = filling(&prepared, now);
    let _lock = state::lock()?;
    let loaded = nft::table_of(TABLE)?;
    if loaded.and_then(|l| l.policy().map(str::to_owned)) != Some(prepared.hash.clone()) {
        return Err(Refusal::new(
            "the policy that is loaded is another than the file's",
            "names and relays were not refreshed",
            "uwtctl firewall apply",
        ));
    }
    if !filling.text.is_empty() {
        nft::load(&filling.text, Where::Here)?;
    }
    state::keep(&Kept {
        clock: now,
        ..state::kept()
    })?;
    let lacking = !filling.unresolved.is_empty()
        || filling
            .relays
            .as_ref()
            .is_some_and(|r| r.starts_with("none"));
    state::run(&Running {
        relays: filling.relays,
        unresolved: filling.unresolved,
        ..state::running()
    })?;
    let period = match prepared.rendered.hosts.is_empty() {
        true => HOUR,
        false => Duration::from_secs(prepared.policy.names.refresh.into()),
    };
    Ok(if lacking { period.min(AGAIN) } else { period })
}

/// Locks the host down, now and at the next boot.
///
/// # Errors
/// nft's, or the file for boot cannot be written.
pub fn lock_down() -> Result<()> {
    let _lock = state::lock()?;
    nft::load(&lockdown(), Where::Here).map_err(closing)?;
    since();
    state::replace(Path::new(state::BOOT), &lockdown(), 0o600)?;
    state::keep(&Kept {
        policy: String::new(),
        ..state::kept()
    })?;
    boot::enable();
    Ok(())
}

/// Takes all rules away, now and for the next boot.
///
/// # Errors
/// Something of it is still there, and which.
pub fn off() -> Result<()> {
    let _lock = state::lock()?;
    // First what would bring them back.
    state::forget()?;
    boot::disable()?;
    nft::load(&(gone(TABLE) + &gone(LOCKDOWN)), Where::Here)?;
    egress(None)
}

/// Loads again what somebody else took away; whether anything was gone. Called whenever the kernel's rules change.
///
/// # Errors
/// nft's: the host is open, or locked down.
pub fn mend() -> Result<bool> {
    let _lock = state::lock()?;
    let Ok(text) = fs::read_to_string(state::BOOT) else {
        // There is to be nothing.
        return Ok(false);
    };
    let kept = state::kept();
    let rules = if kept.policy.is_empty() {
        nft::table_of(LOCKDOWN)?.is_some()
    } else {
        nft::loaded(TABLE)?.is_some_and(|l| l.chains.get("output").is_some_and(|c| c.rules > 0))
            || nft::table_of(LOCKDOWN)?.is_some()
    };
    if rules && (kept.raw.is_none() || nft::at_devices(TABLE)?) {
        return Ok(false);
    }
    if rules {
        egress(kept.raw)?;
        return Ok(true);
    }
    if let Err(e) = again(&text, &kept) {
        nft::load(&lockdown(), Where::Here)?;
        return Err(e);
    }
    Ok(true)
}

/// Loads what was kept for boot, and what goes with it.
fn again(boot: &str, kept: &Kept) -> Result<()> {
    nft::load(boot, Where::Here)?;
    since();
    egress(kept.raw)?;
    state::run(&Running {
        digest: nft::loaded(TABLE)?.map(|l| l.digest).unwrap_or_default(),
        ..state::running()
    })
}

/// What `ruleset` says of a policy that would be loaded now, for reading.
pub fn show(p: &Prepared) -> String {
    let kept = state::kept();
    let generation = if kept.policy == p.hash {
        kept.generation.max(1)
    } else {
        ruleset::next_generation(kept.generation)
    };
    p.transaction(generation, "")
}

/// What is loaded and kept for boot, so that it can be had again.
pub struct Before {
    boot: Option<String>,
    kept: Kept,
    was_loaded: bool,
}

impl Before {
    /// Remembers it.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn take() -> Result<Before> {
        Ok(Before {
            boot: fs::read_to_string(state::BOOT).ok(),
            kept: state::kept(),
            was_loaded: nft::table_of(TABLE)?.is_some() || nft::table_of(LOCKDOWN)?.is_some(),
        })
    }

    /// Brings it back.
    ///
    /// # Errors
    /// nft's: then what was tried stays.
    pub fn restore(self) -> Result<()> {
        let Some(boot) = self.boot.filter(|_| self.was_loaded) else {
            return off();
        };
        let _lock = state::lock()?;
        again(&boot, &self.kept)?;
        state::replace(Path::new(state::BOOT), &boot, 0o600)?;
        state::keep(&self.kept)
    }
}
