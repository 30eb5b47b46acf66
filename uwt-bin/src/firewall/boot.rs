//! The units that load the rules at boot and look after them: see etc/systemd.

use crate::refusal::{Refusal, Result};
use std::path::Path;
use std::process::{Command, Stdio};

/// The units, in the order in which they are started.
const UNITS: [&str; 2] = ["uwt-firewall.service", "uwt-firewall-watch.service"];

fn installed() -> bool {
    [
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
        "/etc/systemd/system",
    ]
    .iter()
    .any(|f| Path::new(f).join(UNITS[0]).exists())
}

fn systemctl(arguments: &[&str]) -> std::result::Result<(), String> {
    let out = Command::new("/usr/bin/systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&out.stderr).trim().to_owned())
}

/// Whether systemd is process 1 here.
fn running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Has the rules loaded at each boot, and looked after from now; what could not be done.
pub fn enable() -> Option<String> {
    if !installed() || !Path::new("/usr/bin/systemctl").exists() {
        return Some(
            "nothing loads the rules at the next boot: package uwt-firewall, which has the units, or systemd is not installed"
                .into(),
        );
    }
    let [load, watch] = UNITS;
    let enabled = systemctl(&["enable", "--quiet", load, watch]);
    let started = match running() {
        // The rules are loaded already; this makes the unit say so.
        true => systemctl(&["start", "--no-block", load])
            .and_then(|()| systemctl(&["restart", "--no-block", watch])),
        false => Ok(()),
    };
    let why = enabled.and(started).err()?;
    Some(format!("the units for boot could not be enabled: {why}"))
}

/// The opposite.
///
/// # Errors
/// systemctl's: they would bring the rules back.
pub fn disable() -> Result<()> {
    if !installed() || !Path::new("/usr/bin/systemctl").exists() {
        return Ok(());
    }
    let [load, watch] = UNITS;
    let stopped = match running() {
        true => systemctl(&["stop", watch, load]),
        false => Ok(()),
    };
    stopped
        .and_then(|()| systemctl(&["disable", "--quiet", load, watch]))
        .map_err(|why| Refusal::new("the units for boot could not be disabled", why, ""))
}
