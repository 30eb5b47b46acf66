//! What would be done with a command, and why. Made before anything is done; `--explain` prints it.

use crate::config::Effective;
use crate::level::Held;
use crate::refusal::{EXIT_NESTED, Refusal, Result};
use crate::setting::{Address, Key, Passthrough};
use crate::target::Target;
use crate::{passthrough, setting};
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::PathBuf;

/// What becomes of the command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum How {
    /// It runs without the shim, for this reason.
    Plain(&'static str),
    /// It is carried through Tor.
    Carried,
}

/// What would be done.
pub struct Plan {
    /// The file to execute.
    pub target: Target,
    /// What the program sees as its arguments, `argv[0]` first.
    pub arguments: Vec<OsString>,
    /// How.
    pub how: How,
    /// With which settings, and where each came from.
    pub effective: Effective,
    /// The shim, if the command is carried.
    pub shim: Option<PathBuf>,
    /// How it is held, if it is carried.
    pub held: Option<Held>,
    /// In wrapper mode: the new value of `uwtwrapper_counter`.
    pub counter: Option<u32>,
}

/// The variable in which wrappers count how deep they nest; its name is that of Whonix's uwt.
pub const COUNTER: &str = "uwtwrapper_counter";

/// The next value of the counter, or the refusal that ends an endless recursion.
pub fn count(current: Option<&OsStr>, max: u32) -> Result<u32> {
    let current = current.and_then(OsStr::to_str).and_then(|c| c.parse().ok());
    let next = current.unwrap_or(0u32).saturating_add(1);
    if next > max {
        return Err(Refusal {
            exit: EXIT_NESTED,
            what: format!(
                "uwtwrapper uwt wrapper ERROR: More than uwtwrapper_counter '{max}' nested executions (uwtwrapper_max: '{max}')."
            ),
            why: String::new(),
            fix: String::new(),
        });
    }
    Ok(next)
}

/// Whether the environment asks for the command without the shim, this once.
pub fn dev_passthrough(value: Option<&OsStr>) -> bool {
    value.is_some_and(|v| v == "1")
}

/// Whether, and why, the command runs without the shim.
pub fn how(arguments: &[OsString], passthrough: Passthrough, dev: bool, enabled: bool) -> How {
    if dev {
        return How::Plain("UWT_DEV_PASSTHROUGH=1");
    }
    if !enabled {
        return How::Plain("enabled = false");
    }
    if passthrough == Passthrough::Command {
        let local = |a: &&OsString| passthrough::names_loopback(a);
        if arguments.iter().skip(1).find(local).is_some() {
            return How::Plain(
                "an argument is a loopback host (localhost.passthrough = \"command\")",
            );
        }
    }
    How::Carried
}

impl Plan {
    /// The plan for a person: what would be run, how, and where each setting came from.
    pub fn explain(&self) -> String {
        let mut out = String::new();
        let s = &self.effective.settings;
        let _ = writeln!(out, "command    {}", self.target.path.display());
        let args: Vec<_> = self.arguments.iter().map(|a| format!("{a:?}")).collect();
        let _ = writeln!(out, "arguments  {}", args.join(" "));
        match &self.how {
            How::Plain(why) => {
                let _ = writeln!(out, "how        without uwt, in the clear: {why}");
            }
            How::Carried => {
                let (level, why) = self
                    .held
                    .as_ref()
                    .map_or(("none", ""), |h| (h.how.name(), &h.why));
                let _ = writeln!(out, "how        through Tor, level {level} ({why})");
                let shim = self.shim.as_ref().map(|s| s.display().to_string());
                let bare = self.held.as_ref().and_then(|h| h.bare.as_ref());
                let _ = match bare {
                    None => writeln!(out, "shim       {}", shim.unwrap_or_default()),
                    Some(why) => writeln!(out, "shim       not loaded: {}", why.why),
                };
                let _ = match &s.address {
                    Address::Ip(ip) if ip.is_ipv6() => {
                        writeln!(out, "socks      [{ip}]:{}", s.port)
                    }
                    Address::Ip(ip) => writeln!(out, "socks      {ip}:{}", s.port),
                    Address::Unix(path) => writeln!(out, "socks      unix:{path}"),
                };
                let _ = match &s.fixed {
                    Some((user, _)) => writeln!(out, "circuits   fixed username {user:?}"),
                    None => writeln!(out, "circuits   shared by: {}", s.scope.name()),
                };
            }
        }
        let _ = writeln!(out, "settings");
        for setting in setting::ALL {
            let origin = self.effective.origins.iter().find(|o| o.0 == setting.key);
            let origin = origin.map_or("default", |o| o.1.as_str());
            let value = show(&self.effective, setting.key);
            let _ = writeln!(out, "  {:<24}{value:<24}{origin}", setting.name);
        }
        out
    }
}

/// A setting's value as text. A password is not shown.
pub fn show(e: &Effective, key: Key) -> String {
    let s = &e.settings;
    let lower = |d: &dyn std::fmt::Debug| format!("{d:?}").to_lowercase();
    match key {
        Key::Address => match &s.address {
            Address::Ip(ip) => ip.to_string(),
            Address::Unix(path) => format!("unix:{path}"),
        },
        Key::Port => s.port.to_string(),
        Key::Timeout => (s.timeout_ms / 1000).to_string(),
        Key::Isolate => s.scope.name().to_owned(),
        Key::User => s.fixed.as_ref().map(|f| f.0.clone()).unwrap_or_default(),
        Key::Password => s
            .fixed
            .as_ref()
            .map(|_| "(set)".to_owned())
            .unwrap_or_default(),
        Key::Level => lower(&s.level),
        Key::Dns => lower(&s.dns),
        Key::NativeProxy => if s.native_proxy { "env" } else { "off" }.to_owned(),
        Key::Inbound => lower(&s.inbound),
        Key::Bind => lower(&s.bind),
        Key::Passthrough => lower(&s.passthrough),
        Key::Ports => s
            .ports
            .iter()
            .map(u16::to_string)
            .collect::<Vec<_>>()
            .join(" "),
        Key::UnixAllow => s.unix_allow.join(" "),
        Key::Release => s.release.join(" "),
        Key::Log => lower(&s.log),
        Key::LogFile => s.log_file.clone(),
        Key::NestedMax => s.nested_max.to_string(),
        Key::Enabled => s.enabled.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_wrappers_end() {
        assert_eq!(count(None, 10).expect("first"), 1);
        assert_eq!(count(Some(OsStr::new("9")), 10).expect("tenth"), 10);
        let e = count(Some(OsStr::new("10")), 10).expect_err("eleventh");
        assert_eq!(e.exit, 255);
        assert_eq!(
            e.what,
            "uwtwrapper uwt wrapper ERROR: More than uwtwrapper_counter '10' nested executions (uwtwrapper_max: '10')."
        );
    }

    #[test]
    fn what_runs_without_the_shim() {
        let args = |a: &[&str]| a.iter().map(OsString::from).collect::<Vec<_>>();
        let local = args(&["curl", "http://127.0.0.1/"]);
        assert_eq!(
            how(&local, Passthrough::Connection, false, true),
            How::Carried
        );
        assert!(matches!(
            how(&local, Passthrough::Command, false, true),
            How::Plain(_)
        ));
        assert_eq!(how(&local, Passthrough::Off, false, true), How::Carried);
        assert!(matches!(
            how(&local, Passthrough::Off, true, true),
            How::Plain(_)
        ));
        assert!(matches!(
            how(&local, Passthrough::Off, false, false),
            How::Plain(_)
        ));
    }
}
