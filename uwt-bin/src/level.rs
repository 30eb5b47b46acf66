//! How a command is held. `auto` is the strongest level that this host and this target allow; a wrapper's is `preload`
//! unless the configuration says otherwise, since what package managers start must outlive them.

use crate::netns::{self, Namespace, Unavailable};
use crate::plan::Plan;
use crate::refusal::{Refusal, Result};
use crate::run;
use crate::setting::{Level, Settings};
use crate::target::{self, Objection, Target};
use std::ffi::OsString;
use uwt_core::handoff::LogLevel;
use uwt_core::route::Inbound;

/// What holds the command.
#[derive(Debug)]
pub enum How {
    /// The shim alone.
    Preload,
    /// A network namespace, ready to be entered.
    Netns(Box<Namespace>),
    /// The network namespace of the run that this is part of.
    Joined,
}

impl How {
    /// The level's name.
    pub fn name(&self) -> &'static str {
        match self {
            How::Preload => "preload",
            How::Netns(_) | How::Joined => "netns",
        }
    }
}

/// How a command is held, and why so.
#[derive(Debug)]
pub struct Held {
    /// What holds it.
    pub how: How,
    /// Why this.
    pub why: String,
    /// Why the shim cannot enter the program, where the namespace holds it without.
    pub bare: Option<Objection>,
    /// What to say to a person who gets less than `auto` could give.
    pub warning: Option<String>,
}

fn preload(why: impl Into<String>) -> Held {
    Held {
        how: How::Preload,
        why: why.into(),
        bare: None,
        warning: None,
    }
}

/// Chooses: `wrapper` says that a wrapper was called, not `uwt`.
///
/// # Errors
/// The level that was asked for is not to be had, or none holds this target.
pub fn choose(
    s: &Settings,
    wrapper: bool,
    target: &Target,
    arguments: &[OsString],
) -> Result<Held> {
    let look = target::look(target, arguments);
    let joined = run::joined(|outer| outer.policy.held).map(|(_, held)| held);
    let held = match (joined, s.level) {
        (Some(true), _) => Held {
            how: How::Joined,
            ..preload("the run that this is part of")
        },
        (Some(false), Level::Netns) => {
            return Err(Refusal::new(
                "level netns cannot be had inside a run at level preload",
                "a run is held as a whole",
                "start the outer command with --level netns; nothing was run",
            ));
        }
        (Some(false), _) => preload("the run that this is part of"),
        (None, Level::Preload) => preload("as asked"),
        (None, Level::Netns) => match Namespace::make() {
            Ok(namespace) => netns(namespace, "as asked"),
            Err(e) => return Err(refusal(&e)),
        },
        (None, Level::Auto) if wrapper => {
            preload("auto: a wrapper; level = \"netns\" in its configuration changes it")
        }
        (None, Level::Auto) if s.inbound == Inbound::Allow => {
            preload("auto: inbound = \"allow\" needs the host's network")
        }
        (None, Level::Auto) => match Namespace::make() {
            Ok(namespace) => netns(namespace, "auto: this host has it"),
            Err(e) => Held {
                warning: warning(s, &e),
                ..preload(format!("auto: no network namespace here: {}", e.what))
            },
        },
    };
    match (&held.how, look) {
        (_, Ok(())) => Ok(held),
        (How::Preload, Err(objection)) => Err(objection.refusal()),
        (_, Err(objection)) if objection.elevates => Err(objection.powerless()),
        (_, Err(objection)) => Ok(Held {
            bare: Some(objection),
            ..held
        }),
    }
}

fn netns(namespace: Namespace, why: &str) -> Held {
    Held {
        how: How::Netns(Box::new(namespace)),
        ..preload(why)
    }
}

fn refusal(e: &Unavailable) -> Refusal {
    let fix = match e.fix.as_str() {
        "" => "--level preload holds programs that use libc; nothing was run".to_owned(),
        fix => format!("{fix}; --level preload holds programs that use libc; nothing was run"),
    };
    Refusal::new("level netns cannot be had here", e.what.clone(), fix)
}

fn warning(s: &Settings, e: &Unavailable) -> Option<String> {
    if s.log == LogLevel::Silent {
        return None;
    }
    let fix = match e.fix.as_str() {
        "" => String::new(),
        fix => format!(" ({fix})"),
    };
    Some(format!(
        "uwt: warning: level preload, not netns: {}{fix}",
        e.what
    ))
}

/// The namespace that is to be entered, taken out of a plan.
pub fn take(plan: &mut Plan) -> Option<Namespace> {
    let held = plan.held.as_mut()?;
    match std::mem::replace(&mut held.how, How::Joined) {
        How::Netns(namespace) => Some(*namespace),
        other => {
            held.how = other;
            None
        }
    }
}

/// The inode of the namespace that a plan holds its command in: 0 at level `preload`.
pub fn inode(held: Option<&Held>) -> u64 {
    match held.map(|h| &h.how) {
        Some(How::Netns(namespace)) => namespace.inode,
        Some(How::Joined) => netns::current(),
        _ => 0,
    }
}
