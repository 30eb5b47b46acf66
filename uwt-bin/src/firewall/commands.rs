//! `uwtctl firewall ...`: what is typed, and what is said.

use super::load::{self, Prepared};
use super::nft::{self, Where};
use super::policy::{FILE, Policy};
use super::render::torrc;
use super::rule::Rule;
use super::zone::{self, Change};
use super::{probe, status, watch};
use crate::refusal::{Refusal, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::time::Duration;

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

/// What can be typed.
pub fn grammar() -> Command {
    let json = || flag("json", "For programs");
    let file = || {
        Arg::new("file")
            .long("file")
            .value_name("FILE")
            .default_value(FILE)
            .help("Another policy than this host's")
    };
    let rule = || {
        Arg::new("rule")
            .value_name("RULE")
            .num_args(1..)
            .help("accept or drop, proto=, dst4=, dst6=, dsthost=, dstports=, icmptype=, specialtarget=dns, expire=, comment=")
    };
    Command::new("firewall")
        .about("The host's firewall: nothing leaves beside Tor, or beside a VPN")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("render")
                .about("The ruleset that the policy comes to")
                .arg(file())
                .arg(flag("torrc", "The lines for torrc that go with it instead"))
                .arg(json()),
        )
        .subcommand(
            Command::new("check")
                .about("Whether the policy can be loaded, without loading it; as any user")
                .arg(file())
                .arg(json()),
        )
        .subcommand(
            Command::new("apply")
                .about("Load the policy, now and at each boot")
                .arg(
                    Arg::new("confirm")
                        .long("confirm")
                        .value_name("SECONDS")
                        .value_parser(value_parser!(u16).range(1..))
                        .help("Go back to what was before unless you say yes within SECONDS"),
                ),
        )
        .subcommand(
            Command::new("status")
                .about("What is let through and why, what was stopped, what differs")
                .arg(json()),
        )
        .subcommand(
            Command::new("test")
                .about(
                    "Send real packets against a copy of the rules, one verdict for each promise",
                )
                .arg(file())
                .arg(json()),
        )
        .subcommand(
            Command::new("lockdown")
                .about("Nothing but loopback, now and at each boot, until `apply`"),
        )
        .subcommand(
            Command::new("off")
                .about("Take all rules away, now and for the next boot")
                .arg(flag("yes", "Do not ask")),
        )
        .subcommand(
            Command::new("zone")
                .about("The rules of a zone, in qvm-firewall's manner")
                .arg(Arg::new("name").value_name("NAME").required(true))
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(
                    Command::new("list")
                        .about("The rules, with their numbers")
                        .arg(json()),
                )
                .subcommand(
                    Command::new("add")
                        .about("A rule more")
                        .arg(rule().required(true))
                        .arg(
                            Arg::new("before")
                                .long("before")
                                .value_name("NUMBER")
                                .value_parser(value_parser!(usize))
                                .help("Before this rule instead of at the end"),
                        ),
                )
                .subcommand(
                    Command::new("del").about("A rule less").arg(rule()).arg(
                        Arg::new("rule-no")
                            .long("rule-no")
                            .value_name("NUMBER")
                            .value_parser(value_parser!(usize))
                            .help("By its number"),
                    ),
                )
                .subcommand(Command::new("reset").about("No rules: the zone's default alone")),
        )
        .subcommand(Command::new("watch").about(
            "Look after what is loaded until told to end; what uwt-firewall-watch.service runs",
        ))
}

/// Does what was typed: what to print, and whether all is well.
///
/// # Errors
/// What failed.
pub fn run(m: &ArgMatches) -> Result<(String, bool)> {
    match m.subcommand() {
        Some(("render", m)) => {
            let p = load::prepare(file(m))?;
            let text = if m.get_flag("torrc") {
                torrc(&p.policy)
            } else {
                load::show(&p)
            };
            if m.get_flag("json") {
                let value = json!({
                    "policy": p.hash, "text": text, "torrc": torrc(&p.policy), "warnings": p.rendered.warnings,
                });
                return Ok((pretty(&value), true));
            }
            warn(&p.rendered.warnings);
            Ok((text, true))
        }
        Some(("check", m)) => check(m),
        Some(("apply", m)) => apply(m.get_one::<u16>("confirm").copied()),
        Some(("status", m)) => {
            let s = status::status(FILE)?;
            let well = s.drift.is_empty();
            if m.get_flag("json") {
                let value = serde_json::to_value(&s).unwrap_or_default();
                return Ok((pretty(&value), well));
            }
            Ok((s.text(), well))
        }
        Some(("test", m)) => test(m),
        Some(("lockdown", _)) => {
            load::lock_down()?;
            Ok((
                "locked down: nothing but loopback, until `uwtctl firewall apply` or `off`\n"
                    .into(),
                true,
            ))
        }
        Some(("off", m)) => off(m.get_flag("yes")),
        Some(("zone", m)) => zones(m),
        Some(("watch", _)) => watch::watch().map(|()| (String::new(), true)),
        _ => Err(Refusal::new(
            "no such subcommand",
            "",
            "see uwtctl firewall --help",
        )),
    }
}

fn file(m: &ArgMatches) -> &str {
    m.get_one::<String>("file").map_or(FILE, String::as_str)
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn warn(warnings: &[String]) {
    for w in warnings {
        eprintln!("uwt: warning: {w}");
    }
}

fn check(m: &ArgMatches) -> Result<(String, bool)> {
    let json = m.get_flag("json");
    let checked = load::prepare(file(m)).and_then(|p| {
        nft::load(&p.transaction(1, ""), Where::Aside)?;
        Ok(p)
    });
    match checked {
        Ok(p) if json => {
            let value = json!({ "ok": true, "policy": p.hash, "warnings": p.rendered.warnings });
            Ok((pretty(&value), true))
        }
        Err(e) if json => {
            let value = json!({ "ok": false, "what": e.what, "why": e.why, "fix": e.fix });
            Ok((pretty(&value), false))
        }
        Ok(p) => {
            warn(&p.rendered.warnings);
            Ok((said(&p), true))
        }
        Err(e) => Err(e),
    }
}

fn said(p: &Prepared) -> String {
    let rules: usize = p.rendered.ruleset.chains().iter().map(|c| c.len()).sum();
    format!(
        "{}: {rules} rules, and this kernel takes them\n",
        p.policy.profile.name()
    )
}

fn apply(confirm: Option<u16>) -> Result<(String, bool)> {
    let Some(seconds) = confirm else {
        let warnings = load::apply(FILE)?;
        warn(&warnings);
        let when = match warnings.iter().any(|w| w.contains("boot")) {
            true => "loaded",
            false => "loaded, now and at each boot",
        };
        return Ok((
            format!(
                "{when}; see `uwtctl firewall status`
"
            ),
            true,
        ));
    };
    let before = load::Before::take()?;
    let applied = load::apply(FILE);
    match &applied {
        Ok(warnings) => warn(warnings),
        Err(e) => eprintln!("{e}"),
    }
    if applied.is_ok() && agreed(seconds) {
        return Ok(("kept\n".into(), true));
    }
    before.restore()?;
    Ok(("gone back to what was before\n".into(), false))
}

/// Whether somebody says yes in time. A terminal that goes away says no.
fn agreed(seconds: u16) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let _ = write!(
        std::io::stdout(),
        "Loaded. Keep it? Type yes within {seconds} s: "
    );
    let _ = std::io::stdout().flush();
    // SAFETY: SIG_IGN for SIGHUP: the answer is what counts, and its absence is a no.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let limit = Duration::from_secs(seconds.into());
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, timeout).unwrap_or(0) == 0 {
        return false;
    }
    let mut line = String::new();
    stdin.read_line(&mut line).is_ok() && line.trim() == "yes"
}

fn off(yes: bool) -> Result<(String, bool)> {
    let opens = "everything that this host's programs send leaves in the clear, and everything that is sent to it comes in, but for what other rules stop";
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(Refusal::new(
                "off asks, and nobody is there to answer",
                opens,
                "uwtctl firewall off --yes",
            ));
        }
        let _ = write!(
            std::io::stdout(),
            "{opens}.\nType yes to take the firewall away: "
        );
        let _ = std::io::stdout().flush();
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_err() || line.trim() != "yes" {
            return Ok(("nothing was changed\n".into(), false));
        }
    }
    load::off()?;
    Ok((format!("off: {opens}\n"), true))
}

fn test(m: &ArgMatches) -> Result<(String, bool)> {
    let p = load::prepare(file(m))?;
    let verdicts = probe::test(&p)?;
    let well = verdicts.iter().all(|v| v.kept);
    if m.get_flag("json") {
        let value = serde_json::to_value(&verdicts).unwrap_or_default();
        return Ok((pretty(&value), well));
    }
    let mut out = String::new();
    for v in &verdicts {
        let word = if v.kept { "kept  " } else { "BROKEN" };
        out += &format!("{word}  {:<56}{}\n", v.promise, v.seen);
    }
    let broken = verdicts.iter().filter(|v| !v.kept).count();
    out += &format!("{} promises, {broken} broken\n", verdicts.len());
    Ok((out, well))
}

fn zones(m: &ArgMatches) -> Result<(String, bool)> {
    let name = m.get_one::<String>("name").map_or("", String::as_str);
    let rule = |m: &ArgMatches| -> Result<Option<Rule>> {
        let words: Vec<&str> = m
            .get_many::<String>("rule")
            .map_or(Vec::new(), |w| w.map(String::as_str).collect());
        if words.is_empty() {
            return Ok(None);
        }
        Rule::parse(&words.join(" "), Some(super::state::now()))
            .map(Some)
            .map_err(|why| {
                Refusal::new(
                    format!("{:?} is no rule", words.join(" ")),
                    why,
                    "as in: accept proto=tcp dsthost=example.org dstports=443",
                )
            })
    };
    let change = match m.subcommand() {
        Some(("list", m)) => {
            let rules = zone::rules(FILE, name)?;
            let policy = Policy::read(FILE)?;
            let default = policy
                .zones
                .iter()
                .find(|z| z.0.0 == name)
                .map_or("drop", |z| z.1.get_ref().default.name());
            if m.get_flag("json") {
                let rules: Vec<String> = rules.iter().map(Rule::to_string).collect();
                let value = json!({ "rules": rules, "default": default });
                return Ok((pretty(&value), true));
            }
            return Ok((zone::table(&rules, default), true));
        }
        Some(("add", m)) => match rule(m)? {
            Some(r) => Change::Add(r, m.get_one::<usize>("before").copied()),
            None => return Err(Refusal::new("add what?", "", "name a rule")),
        },
        Some(("del", m)) => match (rule(m)?, m.get_one::<usize>("rule-no")) {
            (Some(r), None) => Change::DeleteRule(r),
            (None, Some(n)) => Change::Delete(*n),
            _ => {
                return Err(Refusal::new(
                    "del takes a rule, or --rule-no NUMBER",
                    "",
                    format!("uwtctl firewall zone {name} list"),
                ));
            }
        },
        _ => Change::Reset,
    };
    warn(&zone::change(FILE, name, &change)?);
    Ok((String::new(), true))
}
