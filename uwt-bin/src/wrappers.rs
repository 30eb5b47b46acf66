//! `uwtctl wrappers`: which commands have a wrapper, and how it stands with each. What is decided is written into the
//! configuration; `etc/libexec/divert` does it, as it does for the package's own scripts.

use crate::config::{self, Effective, Parsed, WrapperEntry};
use crate::invocation::DIVERTED;
use crate::plan::show;
use crate::refusal::{Refusal, Result};
use crate::replace::replace;
use crate::setting::{Key, Level};
use crate::target::{self, Target};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use toml_edit::{DocumentMut, Item, Table, value};

/// Where decisions are written.
pub const DECISIONS: &str = "/etc/uwt.d/60_wrappers.toml";

const HEADER: &str =
    "# Written by `uwtctl wrappers`; what you write here yourself stays. purge removes it.\n";

/// What puts wrappers in place, in the package's folder.
const DIVERT: &str = "/usr/libexec/uwt/divert";

/// Where the package has the launcher; the wrappers are links to it.
const LAUNCHER: &str = "/usr/bin/uwt";

/// Where commands are looked for, in order.
const FOLDERS: [&str; 3] = ["/usr/bin", "/usr/sbin", "/usr/games"];

/// Without these, neither dpkg nor uwt could put things right again; and Tor cannot go through Tor.
const NEVER: [&str; 4] = ["uwt", "uwtctl", "tor", "dpkg-divert"];

/// A line of `dpkg-divert --list`.
#[derive(PartialEq, Eq, Debug)]
pub struct Diversion {
    /// What is diverted.
    pub from: String,
    /// Where to.
    pub to: String,
    /// By which package; `None`: a local diversion.
    pub package: Option<String>,
}

/// Reads what `dpkg-divert --list` prints in the C locale.
pub fn diversions(text: &str) -> Vec<Diversion> {
    let parse = |line: &str| {
        let (local, rest) = match line.strip_prefix("local diversion of ") {
            Some(rest) => (true, rest),
            None => (false, line.strip_prefix("diversion of ")?),
        };
        let (rest, package) = match local {
            true => (rest, None),
            false => rest.rsplit_once(" by ").map(|(r, p)| (r, Some(p)))?,
        };
        let (from, to) = rest.split_once(" to ")?;
        Some(Diversion {
            from: from.to_owned(),
            to: to.to_owned(),
            package: package.map(str::to_owned),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Whether the package is installed here: without it there are no wrappers.
pub fn installed() -> bool {
    Path::new(DIVERT).exists() && Path::new(LAUNCHER).exists()
}

fn run(program: &str, arguments: &[&str]) -> Result<std::process::Output> {
    let cannot = |why: String, fix: &str| {
        let what = format!("{program} {}: failed", arguments.join(" "));
        Refusal::new(what, why, fix)
    };
    let out = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| cannot(e.to_string(), "wrappers need dpkg and the package uwt"))?;
    Ok(out)
}

fn registered() -> Result<Vec<Diversion>> {
    let out = run("dpkg-divert", &["--list"])?;
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        return Err(Refusal::new("dpkg-divert --list: failed", why, ""));
    }
    Ok(diversions(&String::from_utf8_lossy(&out.stdout)))
}

/// How it stands with one command.
pub struct Row {
    /// The command.
    pub command: String,
    /// The file that its wrapper stands for.
    pub path: String,
    /// Whether the command is installed.
    pub present: bool,
    /// Whether it is diverted, and by whom else if not by uwt.
    pub diverted: std::result::Result<bool, String>,
    /// Whether the wrapper is in place.
    pub wrapper: bool,
    /// Where it was decided that it has a wrapper, or none.
    pub origin: String,
    /// Whether it is to have one.
    pub wanted: bool,
    /// A file of the same name that the usual PATH finds first, and that does not lead to uwt.
    pub shadowed: Option<String>,
    /// Its settings.
    pub effective: Effective,
}

/// What comes before the packages' own folders in Debian's PATH.
fn shadow(command: &str) -> Option<String> {
    let places = ["/usr/local/sbin", "/usr/local/bin"].map(|f| format!("{f}/{command}"));
    let bare = |p: &String| fs::canonicalize(p).is_ok_and(|to| to != Path::new(LAUNCHER));
    places.into_iter().find(bare)
}

impl Row {
    /// A setting's value and where it was decided.
    pub fn setting(&self, key: Key) -> (String, &str) {
        let origin = self.effective.origins.iter().find(|o| o.0 == key);
        let origin = origin.map_or("default", |o| o.1.as_str());
        let value = match key {
            // A wrapper's `auto` is the shim: see level.rs.
            Key::Level if self.effective.settings.level == Level::Auto => "preload".to_owned(),
            key => show(&self.effective, key),
        };
        (value, origin)
    }

    /// Whether all is as it was decided.
    pub fn whole(&self) -> bool {
        match self.wanted {
            true => self.diverted == Ok(true) && self.wrapper == self.present,
            false => self.diverted != Ok(true) && !self.wrapper,
        }
    }
}

/// The last word on each command, in the order of their names.
fn decided(files: &Parsed) -> Vec<&WrapperEntry> {
    let mut last: Vec<&WrapperEntry> = Vec::new();
    for entry in &files.wrappers {
        last.retain(|e| e.command != entry.command);
        last.push(entry);
    }
    last.sort_by(|a, b| a.command.cmp(&b.command));
    last
}

fn exists(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn is_wrapper(path: &str) -> bool {
    fs::read_link(path).is_ok_and(|l| l == Path::new(LAUNCHER))
}

fn path_of(files: &Parsed, entry: &WrapperEntry) -> String {
    // One that has none any more stood where the word before said.
    let before = files.wrappers.iter().rev();
    let mut before = before.filter(|e| e.command == entry.command);
    before
        .find_map(|e| e.path.clone())
        .unwrap_or_else(|| format!("/usr/bin/{}", entry.command))
}

/// How it stands with every command that the configuration names a wrapper for.
///
/// # Errors
/// The configuration cannot be used; dpkg-divert is not to be had.
pub fn list() -> Result<Vec<Row>> {
    let files = config::from_files(None, None)?;
    let diversions = registered()?;
    let row = |entry: &WrapperEntry| {
        let path = path_of(&files, entry);
        let diverted = match diversions.iter().find(|d| d.from == path) {
            None => Ok(false),
            Some(d) if d.package.as_deref() == Some("uwt") && d.to == path.clone() + DIVERTED => {
                Ok(true)
            }
            Some(d) => Err(d.package.clone().unwrap_or_else(|| "local".to_owned())),
        };
        let wrapper = is_wrapper(&path);
        let real = if diverted == Ok(true) {
            exists(&format!("{path}{DIVERTED}"))
        } else {
            exists(&path) && !wrapper
        };
        Ok(Row {
            command: entry.command.clone(),
            present: real,
            diverted,
            wrapper,
            origin: entry.origin.clone(),
            wanted: entry.path.is_some(),
            shadowed: entry
                .path
                .is_some()
                .then(|| shadow(&entry.command))
                .flatten(),
            effective: config::effective(&entry.command, &files, &[])?,
            path,
        })
    };
    decided(&files).into_iter().map(row).collect()
}

/// Only root may, and only with the package in place; not while dpkg is at work, unless dpkg itself has called.
fn may() -> Result<Option<File>> {
    if !nix::unistd::geteuid().is_root() {
        let fix = "run it as root: sudo uwtctl wrappers ...";
        return Err(Refusal::new("wrappers are root's to change", "", fix));
    }
    if !installed() {
        let why = format!("{DIVERT} or {LAUNCHER} is missing");
        let fix = "wrappers come with the Debian package: apt install ./uwt_*.deb";
        return Err(Refusal::new("wrappers cannot be put in place", why, fix));
    }
    if std::env::var_os("DPKG_MAINTSCRIPT_PACKAGE").is_some() {
        return Ok(None);
    }
    // As apt does, see dpkg(1) on lock-frontend.
    let path = "/var/lib/dpkg/lock-frontend";
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
        .map_err(|e| Refusal::new(format!("{path}: cannot be opened"), e.to_string(), ""))?;
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&lock)).map_err(|e| {
        let fix = "wait until apt or dpkg has ended; nothing was changed";
        Refusal::new(
            format!("{path}: held by another process"),
            e.to_string(),
            fix,
        )
    })?;
    Ok(Some(file))
}

/// Whether every path could be done. What could not has been said on standard error.
fn divert(verb: &str, paths: &[String]) -> Result<bool> {
    if paths.is_empty() {
        return Ok(true);
    }
    let mut arguments = vec![verb];
    arguments.extend(paths.iter().map(String::as_str));
    let out = run(DIVERT, &arguments)?;
    eprint!("{}", String::from_utf8_lossy(&out.stderr));
    match out.status.code() {
        Some(0) => Ok(true),
        Some(3) => Ok(false),
        _ => Err(Refusal::new(
            format!("{DIVERT} {verb}: it failed"),
            out.status.to_string(),
            "mend what it says above and run uwtctl wrappers apply",
        )),
    }
}

/// Makes the machine what the configuration says: a wrapper for each command that is to have one, none for others. Gives
/// the number of commands that are to have one, and whether each could be done.
///
/// # Errors
/// The configuration cannot be used: nothing was changed then.
pub fn apply() -> Result<(usize, bool)> {
    let _lock = may()?;
    sync()
}

fn sync() -> Result<(usize, bool)> {
    let files = config::from_files(None, None)?;
    let wanted: Vec<String> = decided(&files)
        .into_iter()
        .filter_map(|e| e.path.clone())
        .collect();
    let listed = run(DIVERT, &["list"])?;
    let stale: Vec<String> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .map(str::to_owned)
        .filter(|path| !wanted.contains(path))
        .collect();
    let undone = divert("unwrap", &stale)?;
    let done = divert("wrap", &wanted)?;
    Ok((wanted.len(), done && undone))
}

/// What a command's name, or its path, stands for: the files that have to be diverted so that it is carried.
///
/// A link of /etc/alternatives belongs to update-alternatives(1), which would write over a wrapper there: what it may
/// lead to is diverted.
fn files_of(command: &str) -> Result<Vec<PathBuf>> {
    let given = Path::new(command);
    let found = if given.is_absolute() {
        // By the name that dpkg-divert works with: /bin/ss is /usr/bin/ss.
        let folder = given.parent().map(fs::canonicalize);
        let folder = folder.and_then(std::result::Result::ok);
        let name = given.file_name().unwrap_or_default();
        folder
            .map(|f| f.join(name))
            .filter(|p| exists(&p.display().to_string()))
    } else if command.contains('/') || command.is_empty() {
        None
    } else {
        let places = FOLDERS.iter().map(|f| Path::new(f).join(command));
        places.into_iter().find(|p| fs::symlink_metadata(p).is_ok())
    };
    let Some(path) = found else {
        return Err(Refusal::new(
            format!("{command}: no such command"),
            format!("it is not in {}", FOLDERS.join(", ")),
            "install it first, or name its absolute path",
        ));
    };
    let link = fs::read_link(&path).unwrap_or_default();
    if !link.starts_with("/etc/alternatives") {
        return Ok(vec![path]);
    }
    let group = link
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let out = run("update-alternatives", &["--query", &group])?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let choices = text.lines().filter_map(|l| l.strip_prefix("Alternative: "));
    let mut files: Vec<PathBuf> = choices
        .filter_map(|c| {
            let folder = fs::canonicalize(Path::new(c).parent()?).ok()?;
            Some(folder.join(Path::new(c).file_name()?))
        })
        .collect();
    if files.is_empty() {
        // A slave link (update-alternatives(1)): what it leads to now, which may be a wrapper already.
        let mut at = path;
        for _ in 0..40 {
            match fs::read_link(&at) {
                Ok(to) if to != Path::new(LAUNCHER) => {
                    at = at.parent().unwrap_or(Path::new("/")).join(to);
                }
                _ => break,
            }
        }
        files.push(at);
    }
    Ok(files)
}

/// The package that a file belongs to is one that dpkg and its scripts cannot be without.
fn essential(path: &Path) -> bool {
    let out = run("dpkg-query", &["-S", &path.display().to_string()]);
    let merged = path.strip_prefix("/usr").map(|p| Path::new("/").join(p));
    let other = merged.map(|p| run("dpkg-query", &["-S", &p.display().to_string()]));
    let packages = [Some(out), other.ok()].into_iter().flatten().flatten();
    let packages = packages.filter_map(|o| {
        let text = String::from_utf8_lossy(&o.stdout).into_owned();
        let owner = text.lines().find(|l| !l.starts_with("diversion "))?;
        Some(owner.split(':').next()?.to_owned())
    });
    for package in packages {
        let flag = run("dpkg-query", &["-W", "-f", "${Essential}", &package]);
        if flag.is_ok_and(|o| o.stdout == b"yes") {
            return true;
        }
    }
    false
}

/// Whether a wrapper of the file would leave a command that works.
fn fit(path: &Path) -> Result<()> {
    let shown = path.display();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let refuse = |why: &str, fix: &str| {
        Err(Refusal::new(
            format!("{shown} cannot have a wrapper"),
            why,
            fix,
        ))
    };
    if NEVER.contains(&name.as_ref()) {
        return refuse("uwt needs it as it is", "");
    }
    if name.contains(char::is_whitespace) || name.ends_with(DIVERTED) {
        return refuse("its name is not one for a command", "");
    }
    if essential(path) {
        return refuse(
            "its package is essential: dpkg's scripts need it as it is",
            "type uwt before the command",
        );
    }
    // To root, a setuid program looks like any other; the wrapper is for everybody.
    let mode = fs::metadata(path).map_or(0, |m| m.mode());
    if mode & 0o6000 != 0 {
        return refuse(
            "it is setuid or setgid: the library would not be loaded into it",
            "sudo uwt COMMAND holds what is started by it",
        );
    }
    let file = Target {
        path: path.to_owned(),
    };
    match target::look(&file, &[] as &[OsString]) {
        Ok(()) => Ok(()),
        Err(objection) => refuse(
            &format!("{}: a wrapper holds by the shim", objection.why),
            "type uwt before the command: level netns holds such programs",
        ),
    }
}

fn cannot_decide(what: &str, why: String) -> Refusal {
    let fix = "mend it; nothing was changed";
    Refusal::new(format!("{DECISIONS}: {what}"), why, fix)
}

fn decisions() -> Result<Option<String>> {
    match fs::read_to_string(DECISIONS) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(cannot_decide("cannot be read", e.to_string())),
    }
}

/// Changes the decisions: `edit` gets the table of commands. Written as a whole or not at all.
fn decide(edit: impl FnOnce(&mut Table)) -> Result<()> {
    let text = decisions()?.unwrap_or_else(|| HEADER.to_owned());
    let mut document: DocumentMut = text
        .parse()
        .map_err(|e: toml_edit::TomlError| cannot_decide("not TOML", e.message().to_owned()))?;
    let commands = document
        .entry("command")
        .or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        })
        .as_table_mut()
        .ok_or_else(|| cannot_decide("`command` is no table", String::new()))?;
    edit(commands);
    replace(Path::new(DECISIONS), &document.to_string(), 0o644)
        .map_err(|e| cannot_decide("cannot be written", e.to_string()))
}

/// Does `change`. If it fails, what was decided before holds again, in the file and on the machine.
fn whole(change: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = decisions()?;
    let changed = change();
    if changed.is_err() {
        let path = Path::new(DECISIONS);
        let put_back = match before {
            Some(text) => replace(path, &text, 0o644),
            None if path.exists() => fs::remove_file(path),
            None => Ok(()),
        };
        if let Err(e) = put_back {
            eprintln!("uwtctl: {DECISIONS}: cannot be put back: {e}");
        }
        // What it says has been said, or was so before.
        let _ = sync();
    }
    changed
}

/// Decides that `command` has a wrapper at `path`, or none. What would be so without a word of ours gets none.
fn decide_wrapped(command: &str, path: Option<&str>) -> Result<()> {
    let last = || -> Result<Option<WrapperEntry>> {
        let files = config::from_files(None, None)?;
        let entries = decided(&files);
        Ok(entries.into_iter().find(|e| e.command == command).cloned())
    };
    let agrees = |e: &Option<WrapperEntry>| e.as_ref().and_then(|e| e.path.as_deref()) == path;
    decide(|commands| set(commands, command, "wrapped", None))?;
    if agrees(&last()?) {
        return Ok(());
    }
    let to: toml_edit::Value = match path {
        None => false.into(),
        Some(path) if path == format!("/usr/bin/{command}") => true.into(),
        Some(path) => path.into(),
    };
    decide(|commands| set(commands, command, "wrapped", Some(to)))?;
    match last()? {
        e if agrees(&e) => Ok(()),
        e => Err(overruled(command, e.as_ref().map_or("", |e| &e.origin))),
    }
}

/// One key of one command's table; `None` takes it out, and the table with its last key.
fn set(commands: &mut Table, command: &str, key: &str, to: Option<toml_edit::Value>) {
    let entry = commands
        .entry(command)
        .or_insert_with(|| Item::Table(Table::new()));
    let Some(table) = entry.as_table_like_mut() else {
        return;
    };
    match to {
        Some(v) => {
            table.insert(key, value(v));
        }
        None => {
            table.remove(key);
        }
    }
    if table.is_empty() {
        commands.remove(command);
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Gives `command` a wrapper; gives the files that were diverted for it.
///
/// # Errors
/// It is not there, could not be held, or has another's diversion: nothing was changed then.
pub fn add(command: &str) -> Result<Vec<PathBuf>> {
    let _lock = may()?;
    let files = config::from_files(None, None)?;
    let known = decided(&files).iter().any(|e| e.command == command);
    let files = match files_of(command) {
        Err(_) if known => vec![PathBuf::from(format!("/usr/bin/{command}"))],
        files => files?,
    };
    for file in &files {
        if !is_wrapper(&file.display().to_string()) && file.exists() {
            fit(file)?;
        }
    }
    let paths: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    whole(|| {
        for (file, path) in files.iter().zip(&paths) {
            decide_wrapped(&name(file), Some(path))?;
        }
        done(divert("wrap", &paths)?)
    })?;
    Ok(files)
}

fn done(complete: bool) -> Result<()> {
    match complete {
        true => Ok(()),
        false => Err(Refusal::new("nothing was changed", "see above", "")),
    }
}

fn overruled(command: &str, origin: &str) -> Refusal {
    Refusal::new(
        format!("{command}: {origin} says otherwise, and has the last word"),
        "",
        "change it there; nothing was changed",
    )
}

fn unknown(command: &str, files: &Parsed) -> Refusal {
    let known: Vec<&str> = files.wrappers.iter().map(|e| e.command.as_str()).collect();
    let near = config::nearest(command, known.into_iter());
    let fix = near.map(|n| format!("did you mean {n}? see uwtctl wrappers list"));
    Refusal::new(
        format!("{command} has no wrapper"),
        "",
        fix.unwrap_or_default(),
    )
}

/// The commands that `command` stands for among those that have a wrapper.
fn known_commands(command: &str, files: &Parsed) -> Result<Vec<String>> {
    let entries = decided(files);
    let known = |c: &str| entries.iter().any(|e| e.command == c);
    if known(command) {
        return Ok(vec![command.to_owned()]);
    }
    let others = files_of(command).unwrap_or_default();
    let others: Vec<String> = others
        .iter()
        .map(|f| name(f))
        .filter(|c| known(c))
        .collect();
    match others.is_empty() {
        true => Err(unknown(command, files)),
        false => Ok(others),
    }
}

/// Takes the wrapper of `command` away; one that uwt ships it with stays away over upgrades. Gives the commands.
///
/// # Errors
/// It has none, or another file of the configuration gives it one: nothing was changed then.
pub fn remove(command: &str) -> Result<Vec<String>> {
    let _lock = may()?;
    let files = config::from_files(None, None)?;
    let commands = known_commands(command, &files)?;
    let paths: Vec<String> = decided(&files)
        .into_iter()
        .filter(|e| commands.contains(&e.command))
        .map(|e| path_of(&files, e))
        .collect();
    whole(|| {
        for c in &commands {
            decide_wrapped(c, None)?;
        }
        done(divert("unwrap", &paths)?)
    })?;
    Ok(commands)
}

/// Whether the wrapper of `command` takes it through Tor. Gives the commands.
///
/// # Errors
/// It has none, or another file of the configuration has the last word: nothing was changed then.
pub fn enable(command: &str, on: bool) -> Result<Vec<String>> {
    let _lock = may()?;
    let files = config::from_files(None, None)?;
    let commands = known_commands(command, &files)?;
    whole(|| {
        decide(|table| {
            for c in &commands {
                set(table, c, "enabled", Some(on.into()));
            }
        })?;
        let now = config::from_files(None, None)?;
        for c in &commands {
            let e = config::effective(c, &now, &[])?;
            if e.settings.enabled != on {
                let origin = e.origins.iter().find(|o| o.0 == Key::Enabled);
                return Err(overruled(c, origin.map_or("", |o| &o.1)));
            }
        }
        Ok(())
    })?;
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_divert_lists() {
        let text = "diversion of /usr/bin/curl to /usr/bin/curl.anondist-orig by uwt\n\
                    local diversion of /usr/bin/a to /usr/bin/a.real\nother\n\
                    diversion of /usr/bin/gpg to /usr/bin/gpg-g10code by gpg-from-sq\n";
        let d = diversions(text);
        let shown: Vec<_> = d
            .iter()
            .map(|d| (d.from.as_str(), d.package.as_deref()))
            .collect();
        assert_eq!(
            shown,
            [
                ("/usr/bin/curl", Some("uwt")),
                ("/usr/bin/a", None),
                ("/usr/bin/gpg", Some("gpg-from-sq"))
            ]
        );
        assert_eq!(d[1].to, "/usr/bin/a.real");
    }

    #[test]
    fn decisions_keep_what_a_person_wrote() {
        let text = "# mine\n[command.curl]\nport = 9150 # why\n";
        let mut document: DocumentMut = text.parse().expect("TOML");
        let commands = document["command"].as_table_mut().expect("table");
        set(commands, "curl", "enabled", Some(false.into()));
        set(commands, "nc.openbsd", "wrapped", Some(true.into()));
        let now = document.to_string();
        assert!(now.starts_with(text), "{now}");
        assert!(now.contains("enabled = false"), "{now}");
        let parsed = config::parse("f", &now).expect("ours");
        assert_eq!(parsed.wrappers[0].command, "nc.openbsd");
        let commands = document["command"].as_table_mut().expect("table");
        set(commands, "curl", "enabled", None);
        set(commands, "nc.openbsd", "wrapped", None);
        assert_eq!(document.to_string(), text);
    }
}
