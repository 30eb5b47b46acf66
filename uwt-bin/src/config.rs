//! The layers of configuration. Later wins: built-in defaults, the shipped wrappers, /usr/share/uwt/*.toml,
//! /etc/uwt.d/*.toml, /usr/local/etc/uwt.d/*.toml, the user's $XDG_CONFIG_HOME/uwt/*.toml, `UWT_*`
//! variables, options. Within files, what is said of a command wins over what is said of all.
//!
//! Fails closed: an unknown key, a bad value, a file of the wrong owner, and nothing runs.

use crate::refusal::{Refusal, Result};
use crate::setting::{self, ALL, Key, Setting, Settings};
use crate::wrapped;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Where a value came from: a file and line, a variable, an option, or `default`.
pub type Origin = String;

/// One value, as text.
#[derive(Clone, Debug)]
pub struct Value {
    /// Of which setting.
    pub key: Key,
    /// For which command; `None`: for all.
    pub command: Option<String>,
    /// As [`Settings::set`] takes it.
    pub text: String,
    /// Where it came from.
    pub origin: Origin,
}

/// What one file says.
#[derive(Default, Debug)]
pub struct Parsed {
    /// Its settings, in order.
    pub values: Vec<Value>,
    /// Which commands have a wrapper, in order: the last word on each counts.
    pub wrappers: Vec<WrapperEntry>,
}

/// `[command.NAME] wrapped = ...`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrapperEntry {
    /// The command.
    pub command: String,
    /// The file that is diverted, absolute; `None`: it has no wrapper.
    pub path: Option<String>,
    /// Where that was decided.
    pub origin: Origin,
}

/// All settings for one command, each with where it came from.
#[derive(Debug)]
pub struct Effective {
    /// The settings.
    pub settings: Settings,
    /// In the order of [`setting::ALL`].
    pub origins: Vec<(Key, Origin)>,
}

/// The folders that hold configuration, in order; the last is the user's.
pub fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["/usr/share/uwt", "/etc/uwt.d", "/usr/local/etc/uwt.d"]
        .into_iter()
        .map(PathBuf::from)
        .collect();
    // Without a home there are no settings of the user's.
    folders.extend(dirs::config_dir().map(|d| d.join("uwt")));
    folders
}

/// The line (from 1) at which byte `at` of `text` stands.
pub fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// How far two words are apart (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

/// The nearest of `known` to `word`, for a message.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|k| distance(word, k))
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    out: Parsed,
}

impl Reader<'_> {
    fn at(&self, byte: usize) -> String {
        format!("{}:{}", self.file, line_of(self.text, byte))
    }

    fn unknown(
        &self,
        byte: usize,
        key: &str,
        known: impl Iterator<Item = &'static str>,
    ) -> Refusal {
        let near = nearest(key, known);
        let fix = near
            .map(|n| format!("did you mean {n:?}?"))
            .unwrap_or_default();
        Refusal::new(
            format!("{}: unknown key {key:?}", self.at(byte)),
            "nothing was run",
            fix,
        )
    }

    /// One setting's value; arrays become words.
    fn value(
        &mut self,
        s: &Setting,
        command: Option<&str>,
        v: &DeValue<'_>,
        byte: usize,
    ) -> Result<()> {
        let scalar = |v: &DeValue<'_>| match v {
            DeValue::String(s) => Some(s.to_string()),
            DeValue::Integer(i) => Some(i.as_str().to_owned()),
            DeValue::Boolean(b) => Some(b.to_string()),
            _ => None,
        };
        let is_list = matches!(s.key, Key::Ports | Key::UnixAllow | Key::Release);
        let text = match v {
            DeValue::Array(a) if is_list => {
                let words: Option<Vec<String>> = a.iter().map(|v| scalar(v.get_ref())).collect();
                words.map(|w| w.join(" "))
            }
            v if !is_list => scalar(v),
            _ => None,
        };
        let origin = self.at(byte);
        let text = text.filter(|t| Settings::defaults().set(s.key, t));
        let Some(text) = text else {
            return Err(Refusal::new(
                format!("{origin}: bad value for {:?}", s.name),
                format!("it takes {}", s.takes),
                "",
            ));
        };
        self.out.values.push(Value {
            key: s.key,
            command: command.map(str::to_owned),
            text,
            origin,
        });
        Ok(())
    }

    /// `true` stands for /usr/bin/NAME.
    fn wrapped(&mut self, command: &str, v: &DeValue<'_>, byte: usize) -> Result<()> {
        let origin = self.at(byte);
        let path = match v {
            DeValue::Boolean(on) => Some(on.then(|| format!("/usr/bin/{command}"))),
            DeValue::String(path) => Some(Some(path.to_string())),
            _ => None,
        };
        let named = |p: &str| {
            let file = Path::new(p);
            file.is_absolute()
                && file.file_name().is_some_and(|n| n == command)
                && !p.contains(char::is_whitespace)
        };
        let whole = |p: &Option<String>| p.as_deref().is_none_or(named);
        let Some(path) = path.filter(whole) else {
            return Err(Refusal::new(
                format!("{origin}: bad value for \"wrapped\""),
                format!("it takes true, false, or the absolute path of a file called {command:?}"),
                "",
            ));
        };
        self.out.wrappers.push(WrapperEntry {
            command: command.to_owned(),
            path,
            origin,
        });
        Ok(())
    }

    fn table(&mut self, prefix: &str, command: Option<&str>, table: &DeTable<'_>) -> Result<()> {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let byte = key.span().start;
            let known = || ALL.iter().map(|s| s.name).chain(["command", "wrapped"]);
            match (value.get_ref(), command) {
                (DeValue::Table(commands), None) if name == "command" => {
                    for (c, t) in commands {
                        let DeValue::Table(t) = t.get_ref() else {
                            return Err(self.unknown(
                                c.span().start,
                                &format!("command.{}", c.get_ref()),
                                known(),
                            ));
                        };
                        self.table("", Some(c.get_ref()), t)?;
                    }
                }
                (DeValue::Table(t), _)
                    if ALL.iter().any(|s| s.name.starts_with(&format!("{name}."))) =>
                {
                    self.table(&format!("{name}."), command, t)?;
                }
                (v, Some(c)) if name == "wrapped" => self.wrapped(c, v, byte)?,
                (v, _) => match setting::by_name(&name) {
                    Some(s) => self.value(s, command, v, byte)?,
                    None => return Err(self.unknown(byte, &name, known())),
                },
            }
        }
        Ok(())
    }
}

/// Reads a file's text. `file` is its name in messages.
pub fn parse(file: &str, text: &str) -> Result<Parsed> {
    let table = DeTable::parse(text).map_err(|e| {
        let line = e.span().map_or(1, |s| line_of(text, s.start));
        Refusal::new(
            format!("{file}:{line}: not TOML"),
            e.message(),
            "see https://toml.io",
        )
    })?;
    let mut reader = Reader {
        file,
        text,
        out: Parsed::default(),
    };
    reader.table("", None, table.get_ref())?;
    Ok(reader.out)
}

/// Whether a file or folder may be believed: it belongs to root or the caller, and nobody else may
/// write it.
fn trusted(path: &Path, meta: &fs::Metadata) -> Result<()> {
    let me = nix::unistd::geteuid().as_raw();
    let why = if meta.uid() != 0 && meta.uid() != me {
        format!(
            "it belongs to uid {}, neither root nor you (uid {me})",
            meta.uid()
        )
    } else if meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0 {
        format!("others may write it (mode {:04o})", meta.mode() & 0o7777)
    } else {
        return Ok(());
    };
    let path = path.display();
    let sudo = std::env::var("SUDO_UID").ok().and_then(|u| u.parse().ok());
    let fix = if me == 0 && sudo == Some(meta.uid()) {
        // What it says about files (log_file) would be done as root.
        "sudo kept your HOME: sudo -H uwt, with what is for root in /etc/uwt.d".to_owned()
    } else {
        format!("chown root {path}; chmod go-w {path}; or remove it")
    };
    Err(Refusal::new(format!("{path}: not believed"), why, fix))
}

fn io(path: &Path, e: &std::io::Error) -> Refusal {
    let what = format!("{}: cannot be read", path.display());
    Refusal::new(what, e.to_string(), "mend or remove it; nothing was run")
}

/// Reads one file's text: opened first and judged by its descriptor, so that it cannot be exchanged between.
///
/// # Errors
/// It cannot be read, or somebody else could have written it.
pub fn read_trusted(path: &Path) -> Result<String> {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| io(path, &e))?;
    let meta = file.metadata().map_err(|e| io(path, &e))?;
    if !meta.is_file() {
        return Err(Refusal::new(
            format!("{}: not a regular file", path.display()),
            "",
            "",
        ));
    }
    trusted(path, &meta)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|e| io(path, &e))?;
    Ok(text)
}

/// Reads one file.
pub fn read(path: &Path) -> Result<Parsed> {
    parse(&path.display().to_string(), &read_trusted(path)?)
}

/// The `*.toml` files of a folder, sorted; none if there is no such folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(e) => e,
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(e) => return Err(io(folder, &e)),
    };
    let meta = fs::metadata(folder).map_err(|e| io(folder, &e))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| io(folder, &e))?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    if !files.is_empty() {
        trusted(folder, &meta)?;
    }
    files.sort();
    Ok(files)
}

/// What files and shipped wrappers say, for `command` or (None) for every command.
pub fn from_files(command: Option<&str>, extra: Option<&Path>) -> Result<Parsed> {
    let mut all = Parsed::default();
    let mut add = |p: Parsed| {
        all.values.extend(p.values);
        all.wrappers.extend(p.wrappers);
    };
    for (name, text) in wrapped::FILES {
        if command.is_none_or(|c| c == *name) {
            let file = format!("built-in wrappers/{name}.toml");
            let mut parsed = parse(&file, text)?;
            let entry = WrapperEntry {
                command: (*name).to_owned(),
                path: Some(format!("/usr/bin/{name}")),
                origin: file,
            };
            parsed.wrappers.insert(0, entry);
            add(parsed);
        }
    }
    for folder in folders() {
        for file in files(&folder)? {
            add(read(&file)?);
        }
    }
    if let Some(file) = extra {
        add(read(file)?);
    }
    Ok(all)
}

/// Variables of uwt's own that are not settings.
const OTHER_VARIABLES: [&str; 4] = [
    "UWT_HANDOFF",
    "UWT_DEV_PASSTHROUGH",
    "UWT_CONFIG",
    "UWT_TEST",
];

/// What the environment says. An unknown `UWT_*` variable is a typo that would leave a wish unheard.
pub fn from_environment(environment: &[(OsString, OsString)]) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|n| n.starts_with("UWT_")) else {
            continue;
        };
        if OTHER_VARIABLES.contains(&name) || name.starts_with("UWT_TEST_") {
            continue;
        }
        let Some(s) = ALL.iter().find(|s| s.variable == name) else {
            let known = ALL.iter().map(|s| s.variable).chain(OTHER_VARIABLES);
            let near = nearest(name, known).unwrap_or_default();
            return Err(Refusal::new(
                format!("unknown environment variable {name}"),
                "nothing was run",
                format!("did you mean {near}? else: unset {name}"),
            ));
        };
        values.push(option(s.key, &value.to_string_lossy(), name)?);
    }
    Ok(values)
}

/// A value from the command line or the environment.
pub fn option(key: Key, text: &str, origin: &str) -> Result<Value> {
    if !Settings::defaults().set(key, text) {
        let s = setting::of(key);
        return Err(Refusal::new(
            format!("{origin}: bad value {text:?}"),
            format!("it takes {}", s.takes),
            "",
        ));
    }
    Ok(Value {
        key,
        command: None,
        text: text.to_owned(),
        origin: origin.to_owned(),
    })
}

/// Puts the layers together for `command`: `files` (what is said of the command over what is said of
/// all), then `late` (variables and options).
pub fn effective(command: &str, files: &Parsed, late: &[Value]) -> Result<Effective> {
    let mut settings = Settings::defaults();
    let mut origins: Vec<(Key, Origin)> =
        ALL.iter().map(|s| (s.key, "default".to_owned())).collect();
    let general = files.values.iter().filter(|v| v.command.is_none());
    let own = files
        .values
        .iter()
        .filter(|v| v.command.as_deref() == Some(command));
    for v in general.chain(own).chain(late) {
        settings.set(v.key, &v.text);
        if let Some(o) = origins.iter_mut().find(|o| o.0 == v.key) {
            o.1.clone_from(&v.origin);
        }
    }
    if let Err(why) = settings.complete() {
        let origin = origins.iter().find(|o| o.0 == Key::User);
        let other = origins.iter().find(|o| o.0 == Key::Password);
        let at = origin.into_iter().chain(other).map(|o| o.1.as_str());
        let at = at
            .filter(|o| *o != "default")
            .collect::<Vec<_>>()
            .join(", ");
        return Err(Refusal::new(at, why, "set both, or neither"));
    }
    Ok(Effective { settings, origins })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_origins() {
        let text = "port = 9150\n[command.curl]\nport = 9100\nlocalhost.ports = [9051, 53]\n[localhost]\npassthrough = \"off\"\n";
        let files = parse("f", text).expect("parse");
        let e = effective("curl", &files, &[]).expect("effective");
        assert_eq!(e.settings.port, 9100);
        assert_eq!(e.settings.ports, [9051, 53]);
        assert!(e.origins.contains(&(Key::Port, "f:3".into())));
        assert!(e.origins.contains(&(Key::Passthrough, "f:6".into())));
        let e = effective("wget", &files, &[]).expect("effective");
        assert_eq!(e.settings.port, 9150);
        let late = [option(Key::Port, "1", "--port").expect("option")];
        let e = effective("curl", &files, &late).expect("effective");
        assert_eq!(e.settings.port, 1);
        assert!(e.origins.contains(&(Key::Port, "--port".into())));
    }

    #[test]
    fn mistakes_name_file_line_and_the_nearest_key() {
        for (text, want) in [
            ("\nisolat = \"pid\"", ["f:2", "\"isolate\""]),
            ("[command.curl]\nprot = 1", ["f:2", "\"port\""]),
            (
                "[localhost]\npasthrough = 'off'",
                ["f:2", "\"localhost.passthrough\""],
            ),
            ("\n\nport = 70000", ["f:3", "65535"]),
            ("port = \"x\"", ["f:1", "port"]),
            ("localhost.ports = 80", ["f:1", "at most 64"]),
            ("a b", ["f:1", "not TOML"]),
            ("command = 1", ["f:1", "command"]),
            ("[command.curl]\nwrapped = 1", ["f:2", "absolute path"]),
            ("[command.curl]\nwrapped = '/bin/wget'", ["f:2", "\"curl\""]),
            ("[command.curl]\nrelease = ['x']", ["f:2", "absolute"]),
        ] {
            let message = parse("f", text).expect_err(text).to_string();
            assert!(
                want.iter().all(|w| message.contains(w)),
                "{text}: {message}"
            );
        }
    }

    #[test]
    fn variables() {
        let env = |n: &str, v: &str| vec![(OsString::from(n), OsString::from(v))];
        assert!(from_environment(&env("UWT_PORT", "9150")).is_ok());
        assert!(from_environment(&env("UWT_PROT", "9150")).is_err());
        assert!(from_environment(&env("UWT_PORT", "x")).is_err());
        assert!(from_environment(&env("UWT_HANDOFF", "x")).is_ok());
    }

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(nearest("prot", ["port", "dns"].into_iter()), Some("port"));
    }
}
