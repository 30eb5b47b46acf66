//! How the launcher was called: as `uwt`, or in a wrapped command's place.
//!
//! A wrapper is a link to the launcher under the command's name, with the command itself beside it as
//! `NAME.anondist-orig` (dpkg-divert(1)). Other links may lead to the wrapper: `/usr/bin/aptitude` through
//! /etc/alternatives to `aptitude-curses`, `git-receive-pack` to `git`. The first name on the way that has a diverted
//! command beside it is the command.

use crate::target;
use std::ffi::{CStr, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the wrapped command itself is called once it has been diverted (dpkg-divert(1)).
pub const DIVERTED: &str = ".anondist-orig";

/// A wrapper's own name may carry this (Whonix's uwt has it so).
const WRAPPER_SUFFIX: &[u8] = b".anondist";

/// How many links a path may lead over (Linux: MAXSYMLINKS).
const LINKS_MAX: usize = 40;

/// How the launcher was called.
#[derive(PartialEq, Eq, Debug)]
pub enum Invocation {
    /// As itself.
    Uwt,
    /// In a wrapped command's place.
    Wrapper(Wrapped),
}

/// What stands behind a wrapper.
#[derive(PartialEq, Eq, Debug)]
pub struct Wrapped {
    /// The wrapped command's name, as the configuration has it.
    pub command: String,
    /// Its file; `None` if it is not installed.
    pub target: Option<PathBuf>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let m = fs::metadata(path).ok()?;
    Some((m.dev(), m.ino()))
}

/// A path's file name, without `.anondist`.
fn name_of(path: &Path) -> OsString {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let name = name.strip_suffix(WRAPPER_SUFFIX).unwrap_or(name);
    OsString::from_vec(name.to_vec())
}

/// This process's own file; where there is no /proc (a bare chroot), by the path that it was executed by.
fn own_identity() -> Option<(u64, u64)> {
    identity(Path::new("/proc/self/exe")).or_else(|| identity(&executed()?))
}

/// What stands behind `start`; `None` if it does not lead to the launcher.
pub fn wrapped(start: &Path) -> Option<Wrapped> {
    let launcher = own_identity();
    if launcher.is_none() || identity(start) != launcher {
        return None;
    }
    let mut command = None;
    let mut at = start.to_owned();
    for _ in 0..LINKS_MAX {
        let mut diverted = name_of(&at);
        diverted.push(DIVERTED);
        let diverted = at.with_file_name(diverted);
        if fs::symlink_metadata(&diverted).is_ok() {
            command.get_or_insert_with(|| name_of(&at));
            at = diverted;
            // A diverted link may lead to another wrapper: gpg2 to gpg.
            if identity(&at) != launcher {
                let command = command.unwrap_or_default().to_string_lossy().into_owned();
                let target = Some(at);
                return Some(Wrapped { command, target });
            }
        }
        let Ok(link) = fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("")).join(link);
    }
    let command = command.unwrap_or_else(|| name_of(start));
    Some(Wrapped {
        command: command.to_string_lossy().into_owned(),
        target: None,
    })
}

/// The path that this process was executed by (AT_EXECFN, getauxval(3)). `argv[0]` is whatever the caller put there.
pub fn executed() -> Option<PathBuf> {
    // SAFETY: getauxval(3) of AT_EXECFN is 0 or points to a C string that the kernel put on the stack.
    let path = unsafe {
        match libc::getauxval(libc::AT_EXECFN) as *const libc::c_char {
            p if p.is_null() => return None,
            p => CStr::from_ptr(p),
        }
    };
    let path = PathBuf::from(OsStr::from_bytes(path.to_bytes()));
    // fexecve(3) leaves a descriptor's number.
    (!path.starts_with("/dev/fd") && !path.starts_with("/proc")).then_some(path)
}

/// Tells from the path that was executed and from `argv[0]`, which may be a path and may be missing; `search` is PATH.
///
/// The path comes first; it is no wrapper's where the launcher is a script's interpreter (`#!/usr/bin/git`): then
/// `argv[0]` is.
pub fn tell(argv0: Option<&OsStr>, executed: Option<&Path>, search: Option<&OsStr>) -> Invocation {
    let by_path = executed.and_then(wrapped);
    let by_path = by_path.filter(|w| w.command != "uwt" && w.target.is_some());
    if let Some(wrapper) = by_path {
        return Invocation::Wrapper(wrapper);
    }
    let argv0 = argv0.map(OsStrExt::as_bytes).unwrap_or_default();
    // A login shell's argv[0] starts with a dash.
    let argv0 = Path::new(OsStr::from_bytes(argv0.strip_prefix(b"-").unwrap_or(argv0)));
    let name = name_of(argv0);
    if name.is_empty() || name == "uwt" {
        return Invocation::Uwt;
    }
    let found = target::find(argv0.as_os_str(), search).ok();
    let by_name = found.and_then(|t| wrapped(&t.path));
    Invocation::Wrapper(by_name.unwrap_or_else(|| Wrapped {
        command: name.to_string_lossy().into_owned(),
        target: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn names() {
        let wrapper = |c: &str| {
            Invocation::Wrapper(Wrapped {
                command: c.into(),
                target: None,
            })
        };
        for (argv0, want) in [
            (Some("uwt"), Invocation::Uwt),
            (Some("/usr/bin/uwt"), Invocation::Uwt),
            (Some("-uwt"), Invocation::Uwt),
            (Some(""), Invocation::Uwt),
            (None, Invocation::Uwt),
            (Some("no-such"), wrapper("no-such")),
            (Some("/nowhere/apt-get"), wrapper("apt-get")),
            (Some("no-such.anondist"), wrapper("no-such")),
        ] {
            assert_eq!(tell(argv0.map(OsStr::new), None, None), want, "{argv0:?}");
        }
    }

    #[test]
    fn links_lead_to_what_is_diverted() {
        let folder = std::env::temp_dir().join(format!("uwt-links-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("folder");
        let at = |name: &str| folder.join(name);
        // The test is the launcher here.
        let me = std::env::current_exe().expect("exe");
        for (name, to) in [
            ("git", me.as_path()),
            ("git-receive-pack", Path::new("git")),
            ("alternative", &at("git")),
            ("gpg2", &me),
            ("gpg2.anondist-orig", Path::new("gpg")),
            ("gpg", &me),
            ("absent", &me),
        ] {
            symlink(to, at(name)).expect("symlink");
        }
        for real in ["git.anondist-orig", "gpg.anondist-orig"] {
            fs::write(at(real), "").expect("write");
        }
        let behind = |name: &str| wrapped(&at(name));
        for (name, command, target) in [
            ("git", "git", Some("git.anondist-orig")),
            ("git-receive-pack", "git", Some("git.anondist-orig")),
            ("alternative", "git", Some("git.anondist-orig")),
            ("gpg2", "gpg2", Some("gpg.anondist-orig")),
            ("absent", "absent", None),
        ] {
            let want = Wrapped {
                command: command.into(),
                target: target.map(at),
            };
            assert_eq!(behind(name), Some(want), "{name}");
        }
        assert_eq!(behind("git.anondist-orig"), None);
        assert_eq!(behind("nothing"), None);
        // What was executed tells, whatever argv[0] says; a script's path does not, its interpreter's does.
        let command = |argv0: &str, executed: &str| match tell(
            Some(OsStr::new(argv0)),
            Some(&at(executed)),
            None,
        ) {
            Invocation::Wrapper(w) => w.command,
            Invocation::Uwt => "uwt".into(),
        };
        assert_eq!(command("anything", "git"), "git");
        let interpreter = at("git").display().to_string();
        assert_eq!(command(&interpreter, "git.anondist-orig"), "git");
        fs::remove_dir_all(&folder).expect("remove");
    }
}
