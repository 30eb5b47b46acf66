//! What is kept between runs: the file for boot, which policy it is, the latest time that was seen; and, until the next
//! boot, since when what is loaded.

use crate::refusal::{Refusal, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What outlives a boot.
pub const FOLDER: &str = "/var/lib/uwt-firewall";
/// What does not.
pub const RUN: &str = "/run/uwt-firewall";
/// What is loaded at boot, by nft alone.
pub const BOOT: &str = "/var/lib/uwt-firewall/boot.nft";
const KEPT: &str = "/var/lib/uwt-firewall/kept.json";
const RUNNING: &str = "/run/uwt-firewall/running.json";
/// Touched by whatever loads rules: since when they are there.
pub const SINCE: &str = "/run/uwt-firewall/since";

/// What is known of the file for boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// The policy's hash; empty: it is lockdown.
    pub policy: String,
    /// The generation of its marks.
    pub generation: u32,
    /// Whether packets of packet(7) sockets are stopped, and a DHCP client's are not.
    pub raw: Option<bool>,
    /// The latest time that was seen, in seconds since 1970: a clock that shows less has been set back.
    pub clock: u64,
}

/// What is known of what is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// The digest of the rules right after they were loaded; see [`super::nft::Loaded::digest`].
    pub digest: String,
    /// What could not be done as written.
    pub warnings: Vec<String>,
    /// Each time that somebody else took the rules away: when (seconds since 1970), and for how many milliseconds.
    pub opened: Vec<(u64, u64)>,
    /// When relays were read last, and how many; or why not.
    pub relays: Option<String>,
    /// Names that could not be resolved the last time.
    pub unresolved: Vec<String>,
}

fn cannot(path: &Path, e: &io::Error) -> Refusal {
    let fix = match e.kind() {
        io::ErrorKind::PermissionDenied => "run it as root",
        _ => "",
    };
    Refusal::new(
        format!("{}: cannot be written", path.display()),
        e.to_string(),
        fix,
    )
}

/// Writes a file as a whole or not at all.
///
/// # Errors
/// The system's; the file is as it was.
pub fn replace(path: &Path, text: &str, mode: u32) -> Result<()> {
    crate::replace::replace(path, text, mode).map_err(|e| cannot(path, &e))
}

fn load<T: Default + for<'a> Deserialize<'a>>(path: &str) -> T {
    // What cannot be read is as if it were not there: nothing is let through for it.
    fs::read_to_string(path)
        .ok()
        .and_then(|t| serde_json::from_str(&t).ok())
        .unwrap_or_default()
}

fn save<T: Serialize>(path: &str, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    replace(Path::new(path), &(text + "\n"), 0o600)
}

/// What is known of the file for boot.
pub fn kept() -> Kept {
    load(KEPT)
}

/// Writes it.
///
/// # Errors
/// As [`replace`].
pub fn keep(kept: &Kept) -> Result<()> {
    save(KEPT, kept)
}

/// What is known of what is loaded.
pub fn running() -> Running {
    load(RUNNING)
}

/// Writes it.
///
/// # Errors
/// As [`replace`].
pub fn run(running: &Running) -> Result<()> {
    save(RUNNING, running)
}

/// Nothing is to be loaded any more. Which marks were used and what time it was stays known.
///
/// # Errors
/// Something of it is still there.
pub fn forget() -> Result<()> {
    for path in [BOOT, RUNNING, SINCE].map(Path::new) {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(cannot(path, &e)),
            _ => {}
        }
    }
    keep(&Kept {
        policy: String::new(),
        raw: None,
        ..kept()
    })
}

/// What this clock shows, in seconds since 1970.
pub fn clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// The time, in seconds since 1970, and never less than was seen before: a clock set back revives nothing.
pub fn now() -> u64 {
    clock().max(kept().clock)
}

/// One change at a time.
///
/// # Errors
/// The lock cannot be made.
pub fn lock() -> Result<Flock<File>> {
    let path = Path::new(RUN).join("lock");
    let open = || {
        fs::create_dir_all(RUN)?;
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
    };
    let file = open().map_err(|e| cannot(&path, &e))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| cannot(&path, &e.into()))
}
