//! Finds the command and proves that the shim will load into it, through `#!` lines too: ld.so only
//! warns and runs on when a preload fails, and that would be an escape.

use crate::refusal::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, Refusal, Result};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use uwt_core::elf::{self, Executable};

/// How deep `#!` lines may nest (Linux: BINPRM_MAX_RECURSION).
const SHEBANG_DEPTH: usize = 5;

/// A command's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Where it is, as it will be passed to execve(2).
    pub path: PathBuf,
}

/// Whether a path can be executed; `None` if no regular file is there.
fn executable(path: &Path) -> Option<bool> {
    let c = CString::new(path.as_os_str().as_bytes()).ok()?;
    let file = std::fs::metadata(path).ok()?.is_file();
    // SAFETY: access(2) reads a C string that lives through the call.
    file.then(|| unsafe { libc::access(c.as_ptr(), libc::X_OK) } == 0)
}

/// Looks a command up as execvp(3) does: as a path if it has a slash, else along `search`.
pub fn find(command: &OsStr, search: Option<&OsStr>) -> Result<Target> {
    let shown = command.to_string_lossy();
    if command.is_empty() {
        return Err(Refusal::new("the command is empty", "", "").with_exit(EXIT_NOT_FOUND));
    }
    let not_executable = |path: &Path| {
        let why = match std::fs::metadata(path) {
            Ok(m) if m.is_dir() => "it is a folder".to_owned(),
            Ok(m) if !m.is_file() => "it is not a regular file".to_owned(),
            Ok(m) => format!("you may not execute it (mode {:04o})", m.mode() & 0o7777),
            Err(e) => e.to_string(),
        };
        let what = format!("cannot execute {}", path.display());
        Refusal::new(what, why, "").with_exit(EXIT_NOT_EXECUTABLE)
    };
    if command.as_bytes().contains(&b'/') {
        let path = PathBuf::from(command);
        return match std::fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let what = format!("{shown}: command not found");
                Err(Refusal::new(what, "there is no such file", "").with_exit(EXIT_NOT_FOUND))
            }
            _ if executable(&path) == Some(true) => Ok(Target { path }),
            _ => Err(not_executable(&path)),
        };
    }
    let default = OsString::from("/usr/local/bin:/usr/bin:/bin");
    let search = search.unwrap_or(&default);
    let mut refused = None;
    for folder in std::env::split_paths(search) {
        // An empty element is the working directory (execvp(3)).
        let folder = if folder.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            folder
        };
        let path = folder.join(command);
        match executable(&path) {
            Some(true) => return Ok(Target { path }),
            Some(false) => {
                refused.get_or_insert(path);
            }
            None => {}
        }
    }
    match refused {
        Some(path) => Err(not_executable(&path)),
        None => {
            let what = format!("{shown}: command not found");
            let why = format!("not in PATH={}", search.to_string_lossy());
            Err(Refusal::new(what, why, "").with_exit(EXIT_NOT_FOUND))
        }
    }
}

/// Why the shim cannot enter.
#[derive(PartialEq, Eq, Debug)]
pub struct Objection {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub why: String,
    /// Starting it would change who it is (setuid, setgid).
    pub elevates: bool,
}

impl Objection {
    /// At level `preload` nothing else holds the program.
    pub fn refusal(&self) -> Refusal {
        Refusal::new(
            format!("{} cannot be held at level preload", self.path.display()),
            format!(
                "{}, so the shim would not be loaded and its traffic would go beside Tor",
                self.why
            ),
            "--level netns holds such programs; nothing was run",
        )
    }

    /// In a user namespace the bit would have no effect, and the program fail in its own words.
    pub fn powerless(&self) -> Refusal {
        Refusal::new(
            format!(
                "{} cannot change who it is at level netns",
                self.path.display()
            ),
            format!("{}, which has no effect in a user namespace", self.why),
            "sudo uwt COMMAND runs all of it as root; nothing was run",
        )
    }
}

type Look = std::result::Result<(), Objection>;

fn cannot(path: &Path, why: &str) -> Objection {
    Objection {
        path: path.to_owned(),
        why: why.to_owned(),
        elevates: false,
    }
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(c) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    let name = c"security.capability".as_ptr();
    // SAFETY: getxattr(2) with a null buffer only tells the size; both strings live through the call.
    unsafe { libc::getxattr(c.as_ptr(), name, std::ptr::null_mut(), 0) >= 0 }
}

/// Whether starting the file changes who the process is, so that ld.so ignores LD_PRELOAD (AT_SECURE).
fn elevation(path: &Path, meta: &Metadata) -> Option<(&'static str, bool)> {
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    if meta.mode() & 0o4000 != 0 && meta.uid() != uid {
        Some(("it is setuid", true))
    } else if meta.mode() & 0o2010 == 0o2010 && meta.gid() != gid {
        Some(("it is setgid", true))
    } else if uid != 0 && has_capabilities(path) {
        Some(("it has file capabilities", false))
    } else {
        None
    }
}

/// The program that ld.so is asked to run, from the arguments behind `ld.so` (ld.so(8)).
pub fn loaders_program(arguments: &[OsString]) -> Option<&OsStr> {
    let takes_value = [
        "--library-path",
        "--preload",
        "--argv0",
        "--audit",
        "--inhibit-rpath",
        "--glibc-hwcaps-prepend",
        "--glibc-hwcaps-mask",
    ];
    let mut arguments = arguments.iter();
    while let Some(a) = arguments.next() {
        if takes_value.iter().any(|t| a.as_os_str() == *t) {
            arguments.next();
        } else if !a.as_bytes().starts_with(b"--") {
            return Some(a);
        }
    }
    None
}

/// Looks whether the shim will load into `target`, run with `arguments`.
///
/// # Errors
/// Why not.
pub fn look(target: &Target, arguments: &[OsString]) -> Look {
    let mut path = target.path.clone();
    let mut arguments = arguments.to_vec();
    for _ in 0..=SHEBANG_DEPTH {
        let file =
            File::open(&path).map_err(|e| cannot(&path, &format!("it cannot be read ({e})")))?;
        let meta = file.metadata().map_err(|e| cannot(&path, &e.to_string()))?;
        let kind = elf::inspect(|at, buf| file.read_at(buf, at).unwrap_or(0));
        // Linux honours neither bit on scripts; on what interprets them it does.
        if !matches!(kind, Executable::Script | Executable::Unknown) {
            if let Some((why, elevates)) = elevation(&path, &meta) {
                return Err(Objection {
                    elevates,
                    ..cannot(&path, why)
                });
            }
        }
        if let Some(why) = kind.objection() {
            return Err(cannot(&path, why));
        }
        match kind {
            Executable::Script => {
                let mut head = [0u8; 256];
                let n = file.read_at(&mut head, 0).unwrap_or(0);
                let Some((interpreter, argument)) = elf::shebang(&head[..n]) else {
                    return Err(cannot(&path, "its #! line names no interpreter"));
                };
                let script = OsString::from(&path);
                path = PathBuf::from(OsStr::from_bytes(interpreter));
                let mut next: Vec<OsString> = argument
                    .map(|a| OsStr::from_bytes(a).into())
                    .into_iter()
                    .collect();
                next.push(script);
                next.append(&mut arguments);
                arguments = next;
                if path.file_name() == Some(OsStr::new("env")) {
                    look_env(&path, &arguments)?;
                }
            }
            Executable::Loader => match loaders_program(&arguments).map(OsStr::to_owned) {
                Some(program) => {
                    let at = arguments.iter().position(|a| *a == program).unwrap_or(0);
                    arguments.drain(..=at);
                    path = PathBuf::from(program);
                }
                None => return Ok(()),
            },
            // A shell would run it as a script: the launcher does as execvp(3) and asks /bin/sh.
            Executable::Unknown => {
                return look(
                    &Target {
                        path: "/bin/sh".into(),
                    },
                    &[],
                );
            }
            _ => return Ok(()),
        }
    }
    Err(cannot(&target.path, "its #! lines nest too deep"))
}

/// `#!/usr/bin/env PROGRAM`: the program is refused here already, with a message, rather than by the
/// shim in env.
fn look_env(env: &Path, arguments: &[OsString]) -> Look {
    let split: Vec<&[u8]> = match arguments.first() {
        // The kernel passes all behind the interpreter as one argument; env -S splits it.
        Some(a) => a
            .as_bytes()
            .split(|b| *b == b' ')
            .filter(|w| !w.is_empty())
            .collect(),
        None => return Ok(()),
    };
    let program = split
        .into_iter()
        .find(|w| !w.starts_with(b"-") && !w.contains(&b'='));
    let Some(program) = program.map(OsStr::from_bytes) else {
        return Ok(());
    };
    if Path::new(program) == env {
        return Ok(());
    }
    match find(program, std::env::var_os("PATH").as_deref()) {
        Ok(target) => look(&target, &[]),
        // env itself says so, with its own exit code.
        Err(_) => Ok(()),
    }
}
