//! Which settings there are, what each takes, and what it defaults to: the one list behind files,
//! `UWT_*` variables, options, `config show` and `--explain`.

use std::net::IpAddr;
use uwt_core::handoff::{Dns, LogLevel, PORTS_MAX, RELEASE_MAX, UNIX_PATH_MAX};
use uwt_core::isolation::Scope;
use uwt_core::route::{Bind, Inbound};

/// A setting's name in files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// Where Tor's SOCKS port is.
    Address,
    /// Its TCP port.
    Port,
    /// How long a connection may take, in seconds.
    Timeout,
    /// What shares circuits.
    Isolate,
    /// A fixed SOCKS username.
    User,
    /// A fixed SOCKS password.
    Password,
    /// How the command is held.
    Level,
    /// How hostnames are resolved.
    Dns,
    /// Whether the program is told its proxy.
    NativeProxy,
    /// Which connections may come in.
    Inbound,
    /// Where servers bind.
    Bind,
    /// How loopback is reached.
    Passthrough,
    /// Loopback ports that are reached all the same.
    Ports,
    /// Unix sockets that are reached all the same.
    UnixAllow,
    /// Programs that are started without the shim.
    Release,
    /// How much is logged.
    Log,
    /// Where to.
    LogFile,
    /// How deep wrappers may nest.
    NestedMax,
    /// Whether a wrapper carries its command at all.
    Enabled,
}

/// One setting: its name in files, its variable, its default as text, and what it is for.
pub struct Setting {
    /// Which.
    pub key: Key,
    /// Its name in TOML files; a dot separates tables.
    pub name: &'static str,
    /// The environment variable that sets it.
    pub variable: &'static str,
    /// Its default.
    pub default: &'static str,
    /// What it takes.
    pub takes: &'static str,
}

macro_rules! settings {
    ($($key:ident $name:literal $variable:literal $default:literal $takes:literal;)*) => {
        /// Every setting.
        pub const ALL: &[Setting] = &[
            $(Setting { key: Key::$key, name: $name, variable: $variable, default: $default, takes: $takes },)*
        ];
    };
}

settings! {
    Address "address" "UWT_ADDRESS" "127.0.0.1" "an IP address, or unix:/ABSOLUTE/PATH";
    Port "port" "UWT_PORT" "9050" "a TCP port, 1 to 65535";
    Timeout "timeout" "UWT_TIMEOUT" "120" "seconds, 1 to 86400";
    Isolate "isolate" "UWT_ISOLATE" "pid" "pid, tree, app, destination, connection or none";
    User "user" "UWT_USER" "" "1 to 255 bytes, with password; empty: made from isolate";
    Password "password" "UWT_PASSWORD" "" "1 to 255 bytes, with user";
    Level "level" "UWT_LEVEL" "auto" "auto, preload or netns";
    Dns "dns" "UWT_DNS" "virtual" "virtual, resolve or refuse";
    NativeProxy "native_proxy" "UWT_NATIVE_PROXY" "off" "off or env";
    Inbound "inbound" "UWT_INBOUND" "loopback" "refuse, loopback or allow";
    Bind "bind" "UWT_BIND" "keep" "keep or loopback";
    Passthrough "localhost.passthrough" "UWT_LOCALHOST_PASSTHROUGH" "connection" "connection, command or off";
    Ports "localhost.ports" "UWT_LOCALHOST_PORTS" "" "TCP and UDP ports, at most 64";
    UnixAllow "unix.allow" "UWT_UNIX_ALLOW" "" "absolute paths of unix sockets";
    Release "release" "UWT_RELEASE" "" "absolute paths of programs, at most 16";
    Log "log" "UWT_LOG" "refusals" "silent, refusals or debug";
    LogFile "log_file" "UWT_LOG_FILE" "" "an absolute path; empty: standard error";
    NestedMax "nested_max" "UWT_NESTED_MAX" "10" "1 to 100";
    Enabled "enabled" "UWT_ENABLED" "true" "true or false";
}

/// The setting of this name.
pub fn by_name(name: &str) -> Option<&'static Setting> {
    ALL.iter().find(|s| s.name == name)
}

/// The setting behind a key.
pub fn of(key: Key) -> &'static Setting {
    ALL.iter().find(|s| s.key == key).unwrap_or(&ALL[0])
}

/// Where Tor's SOCKS port is, without its port number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// TCP.
    Ip(IpAddr),
    /// A unix socket's path.
    Unix(String),
}

/// How a command is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// The strongest that this host and this target allow.
    Auto,
    /// The shim alone.
    Preload,
    /// A network namespace without uplink.
    Netns,
}

/// How loopback is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passthrough {
    /// Each connection to loopback goes direct.
    Connection,
    /// As `connection`, and a command with a loopback argument runs without the shim.
    Command,
    /// Loopback is refused.
    Off,
}

/// All settings, parsed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// See [`Key::Address`].
    pub address: Address,
    /// See [`Key::Port`].
    pub port: u16,
    /// Milliseconds.
    pub timeout_ms: u32,
    /// See [`Key::Isolate`].
    pub scope: Scope,
    /// A fixed username and password, both or neither.
    pub fixed: Option<(String, String)>,
    /// See [`Key::Level`].
    pub level: Level,
    /// See [`Key::Dns`].
    pub dns: Dns,
    /// See [`Key::NativeProxy`].
    pub native_proxy: bool,
    /// See [`Key::Inbound`].
    pub inbound: Inbound,
    /// See [`Key::Bind`].
    pub bind: Bind,
    /// See [`Key::Passthrough`].
    pub passthrough: Passthrough,
    /// See [`Key::Ports`].
    pub ports: Vec<u16>,
    /// See [`Key::UnixAllow`].
    pub unix_allow: Vec<String>,
    /// See [`Key::Release`].
    pub release: Vec<String>,
    /// See [`Key::Log`].
    pub log: LogLevel,
    /// See [`Key::LogFile`].
    pub log_file: String,
    /// See [`Key::NestedMax`].
    pub nested_max: u32,
    /// See [`Key::Enabled`].
    pub enabled: bool,
}

fn one_of<T: Copy>(table: &[(&str, T)], text: &str) -> Option<T> {
    table.iter().find(|(n, _)| *n == text).map(|(_, v)| *v)
}

fn number(text: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    text.parse().ok().filter(|n| range.contains(n))
}

fn absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

impl Settings {
    /// The defaults, with nothing configured.
    pub fn defaults() -> Settings {
        Settings {
            address: Address::Ip(IpAddr::from([127, 0, 0, 1])),
            port: 9050,
            timeout_ms: 120_000,
            scope: Scope::Pid,
            fixed: None,
            level: Level::Auto,
            dns: Dns::Virtual,
            native_proxy: false,
            inbound: Inbound::Loopback,
            bind: Bind::Keep,
            passthrough: Passthrough::Connection,
            ports: Vec::new(),
            unix_allow: Vec::new(),
            release: Vec::new(),
            log: LogLevel::Refusals,
            log_file: String::new(),
            nested_max: 10,
            enabled: true,
        }
    }

    /// Sets one from text (lists are separated by spaces or commas). False if `text` is not one of its
    /// values. `user` and `password` go in one after the other; [`Settings::complete`] checks the pair.
    pub fn set(&mut self, key: Key, text: &str) -> bool {
        self.try_set(key, text).is_some()
    }

    fn try_set(&mut self, key: Key, text: &str) -> Option<()> {
        match key {
            Key::Address => {
                self.address = match text.strip_prefix("unix:") {
                    Some(path) if absolute(path) && path.len() <= UNIX_PATH_MAX => {
                        Address::Unix(path.to_owned())
                    }
                    Some(_) => return None,
                    // A hostname would have to be resolved, beside Tor.
                    None if text == "localhost" => Address::Ip(IpAddr::from([127, 0, 0, 1])),
                    None => Address::Ip(text.trim_matches(['[', ']']).parse().ok()?),
                };
            }
            Key::Port => self.port = number(text, 1..=65535)? as u16,
            Key::Timeout => self.timeout_ms = number(text, 1..=86400)? * 1000,
            Key::Isolate => self.scope = Scope::parse(text)?,
            Key::User | Key::Password => {
                if text.len() > 255 {
                    return None;
                }
                let (user, password) = self.fixed.take().unwrap_or_default();
                let pair = match key {
                    Key::User => (text.to_owned(), password),
                    _ => (user, text.to_owned()),
                };
                self.fixed = Some(pair).filter(|p| !p.0.is_empty() || !p.1.is_empty());
            }
            Key::Level => {
                let table = [
                    ("auto", Level::Auto),
                    ("preload", Level::Preload),
                    ("netns", Level::Netns),
                ];
                self.level = one_of(&table, text)?;
            }
            Key::Dns => {
                let table = [
                    ("virtual", Dns::Virtual),
                    ("resolve", Dns::Resolve),
                    ("refuse", Dns::Refuse),
                ];
                self.dns = one_of(&table, text)?;
            }
            Key::NativeProxy => self.native_proxy = one_of(&[("off", false), ("env", true)], text)?,
            Key::Inbound => {
                let table = [
                    ("refuse", Inbound::Refuse),
                    ("loopback", Inbound::Loopback),
                    ("allow", Inbound::Allow),
                ];
                self.inbound = one_of(&table, text)?;
            }
            Key::Bind => {
                self.bind = one_of(&[("keep", Bind::Keep), ("loopback", Bind::Loopback)], text)?;
            }
            Key::Passthrough => {
                let table = [
                    ("connection", Passthrough::Connection),
                    ("command", Passthrough::Command),
                    ("off", Passthrough::Off),
                ];
                self.passthrough = one_of(&table, text)?;
            }
            Key::Ports => {
                let ports: Option<Vec<u16>> = words(text)
                    .map(|w| number(w, 1..=65535).map(|n| n as u16))
                    .collect();
                self.ports = ports.filter(|p| p.len() <= PORTS_MAX)?;
            }
            Key::UnixAllow => self.unix_allow = paths(text)?,
            Key::Release => {
                self.release = paths(text).filter(|p| p.len() <= RELEASE_MAX)?;
            }
            Key::Log => {
                let table = [
                    ("silent", LogLevel::Silent),
                    ("refusals", LogLevel::Refusals),
                    ("debug", LogLevel::Debug),
                ];
                self.log = one_of(&table, text)?;
            }
            Key::LogFile => {
                if !text.is_empty() && !absolute(text) {
                    return None;
                }
                self.log_file = text.to_owned();
            }
            Key::NestedMax => self.nested_max = number(text, 1..=100)?,
            Key::Enabled => self.enabled = one_of(&[("true", true), ("false", false)], text)?,
        }
        Some(())
    }

    /// Whether the settings fit together; the reason if not.
    pub fn complete(&self) -> Result<(), &'static str> {
        match &self.fixed {
            Some((user, password)) if user.is_empty() || password.is_empty() => Err(
                "user and password go together: with one alone there would be no authentication, and no isolation",
            ),
            _ => Ok(()),
        }
    }
}

/// Absolute paths without a colon, which separates them in the handoff.
fn paths(text: &str) -> Option<Vec<String>> {
    let paths: Vec<String> = words(text).map(str::to_owned).collect();
    let whole = |p: &String| absolute(p) && !p.contains(':');
    paths.iter().all(whole).then_some(paths)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',']).filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_what_the_list_says() {
        let mut s = Settings::defaults();
        let before = format!("{s:?}");
        for setting in ALL {
            assert!(s.set(setting.key, setting.default), "{}", setting.name);
        }
        assert_eq!(format!("{s:?}"), before);
    }

    #[test]
    fn bad_values_are_refused() {
        for (key, bad) in [
            (Key::Address, "tor.example"),
            (Key::Address, "unix:relative"),
            (Key::Port, "0"),
            (Key::Port, "65536"),
            (Key::Isolate, "process"),
            (Key::Timeout, "0"),
            (Key::Level, "strong"),
            (Key::Ports, "80 http"),
            (Key::UnixAllow, "run/x"),
            (Key::Release, "systemctl"),
            (Key::LogFile, "log"),
            (Key::NestedMax, "0"),
            (Key::Enabled, "yes"),
        ] {
            assert!(!Settings::defaults().set(key, bad), "{key:?} {bad}");
        }
    }

    #[test]
    fn half_a_pair_is_incomplete() {
        let mut s = Settings::defaults();
        assert!(s.set(Key::User, "me"));
        assert!(s.complete().is_err());
        assert!(s.set(Key::Password, "x"));
        assert!(s.complete().is_ok());
        assert!(s.set(Key::User, "") && s.set(Key::Password, ""));
        assert!(s.fixed.is_none());
    }
}
