//! `uwtctl`: says what uwt would do on this machine, and whether it can.

use clap::{Arg, ArgAction, Command};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use uwt_bin::config::{self, Effective};
use uwt_bin::migrate::Migrated;
use uwt_bin::netns::Namespace;
use uwt_bin::plan::show;
use uwt_bin::refusal::{EXIT_REFUSED, Refusal, Result};
use uwt_bin::setting::{self, Address, Key};
use uwt_bin::{firewall, shim, wrappers};

fn grammar() -> Command {
    let json = || {
        Arg::new("json")
            .long("json")
            .action(ArgAction::SetTrue)
            .help("For programs")
    };
    let wrapper = |name: &'static str, about: &'static str| {
        Command::new(name)
            .about(about)
            .arg(Arg::new("command").value_name("COMMAND").required(true))
    };
    let command = Arg::new("command")
        .value_name("COMMAND")
        .help("As it holds for this command");
    Command::new("uwtctl")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Manage uwt: its wrappers, its configuration and the host's firewall; and whether it can work here")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("config")
                .about("The configuration")
                .subcommand_required(true)
                .subcommand(
                    Command::new("show")
                        .about("Every value, with the place it came from")
                        .arg(json())
                        .arg(command),
                )
                .subcommand(Command::new("check").about("Whether every file can be used"))
                .subcommand(
                    Command::new("migrate")
                        .about("The bash files of Whonix's uwt as TOML, and each line that could not be carried")
                        .arg(
                            Arg::new("file")
                                .value_name("FILE")
                                .num_args(0..)
                                .value_parser(clap::value_parser!(PathBuf))
                                .help("Instead of /etc/uwt.d/*.conf and /usr/local/etc/uwt.d/*.conf"),
                        ),
                ),
        )
        .subcommand(
            Command::new("wrappers")
                .about("The commands that go through Tor when they are typed as always")
                .subcommand_required(true)
                .subcommand(
                    Command::new("list")
                        .about("How it stands with each, and where that was decided")
                        .arg(json()),
                )
                .subcommand(wrapper("add", "Give COMMAND a wrapper"))
                .subcommand(wrapper("remove", "Take its wrapper away"))
                .subcommand(wrapper("enable", "Let its wrapper take COMMAND through Tor"))
                .subcommand(wrapper("disable", "Let its wrapper run COMMAND in the clear"))
                .subcommand(
                    Command::new("apply").about("Put wrappers in place as the configuration says"),
                ),
        )
        .subcommand(firewall::commands::grammar())
        .subcommand(Command::new("status").about("Whether commands can be carried here"))
}

fn layers(command: &str) -> Result<Effective> {
    let files = config::from_files(Some(command), None)?;
    let environment: Vec<_> = std::env::vars_os().collect();
    let late = config::from_environment(&environment)?;
    config::effective(command, &files, &late)
}

fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn config_show(command: &str, json: bool) -> Result<String> {
    let e = layers(command)?;
    let mut out = String::new();
    let rows = setting::ALL.iter().map(|s| {
        let origin = e
            .origins
            .iter()
            .find(|o| o.0 == s.key)
            .map_or("default", |o| o.1.as_str());
        (s.name, show(&e, s.key), origin)
    });
    if json {
        let rows: Vec<String> = rows
            .map(|(n, v, o)| {
                format!(
                    "  {}: {{\"value\": {}, \"origin\": {}}}",
                    quoted(n),
                    quoted(&v),
                    quoted(o)
                )
            })
            .collect();
        let _ = writeln!(out, "{{\n{}\n}}", rows.join(",\n"));
    } else {
        for (name, value, origin) in rows {
            let _ = writeln!(out, "{name:<24}{value:<24}{origin}");
        }
    }
    Ok(out)
}

fn config_check() -> Result<String> {
    let files = config::from_files(None, None)?;
    let mut commands: Vec<&str> = files
        .values
        .iter()
        .filter_map(|v| v.command.as_deref())
        .collect();
    commands.sort_unstable();
    commands.dedup();
    config::effective("", &files, &[])?;
    for command in &commands {
        config::effective(command, &files, &[])?;
    }
    Ok(format!(
        "the configuration is whole: {} values, {} commands\n",
        files.values.len(),
        commands.len()
    ))
}

fn yes(b: bool) -> &'static str {
    if b { "yes" } else { "no" }
}

/// Gives the list and whether all is as it was decided.
fn wrappers_list(json: bool) -> Result<(String, bool)> {
    let rows = wrappers::list()?;
    let mut out = String::new();
    let shown = [
        ("enabled", Key::Enabled),
        ("isolate", Key::Isolate),
        ("level", Key::Level),
    ];
    if json {
        let rows: Vec<String> = rows
            .iter()
            .map(|r| {
                let diverted = match &r.diverted {
                    Ok(b) => b.to_string(),
                    Err(other) => quoted(other),
                };
                let settings: Vec<String> = shown
                    .iter()
                    .map(|(n, key)| {
                        let (v, o) = r.setting(*key);
                        format!(
                            "{}: {{\"value\": {}, \"origin\": {}}}",
                            quoted(n),
                            quoted(&v),
                            quoted(o)
                        )
                    })
                    .collect();
                format!(
                    "  {{\"command\": {}, \"path\": {}, \"present\": {}, \"diverted\": {diverted}, \"wrapper\": {}, \"shadowed\": {}, \"wanted\": {{\"value\": {}, \"origin\": {}}}, {}}}",
                    quoted(&r.command),
                    quoted(&r.path),
                    r.present,
                    r.wrapper,
                    r.shadowed.as_deref().map_or("null".to_owned(), quoted),
                    r.wanted,
                    quoted(&r.origin),
                    settings.join(", ")
                )
            })
            .collect();
        let _ = writeln!(out, "[\n{}\n]", rows.join(",\n"));
    } else {
        let _ = writeln!(
            out,
            "{:<18}{:<28}{:<9}{:<10}{:<9}{:<13}{:<9}DECIDED BY",
            "COMMAND", "PATH", "PRESENT", "DIVERTED", "ENABLED", "SCOPE", "LEVEL"
        );
        for r in &rows {
            let diverted = match &r.diverted {
                Ok(b) => yes(*b),
                Err(other) => other,
            };
            let mut origins = vec![r.origin.clone()];
            let (enabled, _) = r.setting(Key::Enabled);
            for (name, key) in shown {
                let (_, origin) = r.setting(key);
                if origin != "default" {
                    origins.push(format!("{name}: {origin}"));
                }
            }
            let _ = writeln!(
                out,
                "{:<18}{:<28}{:<9}{diverted:<10}{:<9}{:<13}{:<9}{}",
                r.command,
                r.path,
                yes(r.present),
                yes(enabled == "true"),
                r.setting(Key::Isolate).0,
                r.setting(Key::Level).0,
                origins.join("; ")
            );
        }
        for r in &rows {
            if let Some(first) = &r.shadowed {
                let _ = writeln!(
                    out,
                    "{}: {first} comes first on PATH and is not carried",
                    r.command
                );
            }
        }
        for r in rows.iter().filter(|r| !r.whole()) {
            let _ = writeln!(
                out,
                "{}: {}",
                r.command,
                match (&r.diverted, r.wanted) {
                    (Err(other), _) => format!("no wrapper: {other} diverts {}", r.path),
                    (_, true) => "its wrapper is not in place: uwtctl wrappers apply".to_owned(),
                    (_, false) => "its wrapper is still in place: uwtctl wrappers apply".to_owned(),
                }
            );
        }
    }
    Ok((out, rows.iter().all(wrappers::Row::whole)))
}

fn wrappers_change(verb: &str, command: &str) -> Result<String> {
    let (commands, what) = match verb {
        "add" => {
            let files = wrappers::add(command)?;
            let shown = files.iter().map(|f| f.display().to_string());
            (shown.collect(), "goes through Tor now")
        }
        "remove" => (wrappers::remove(command)?, "has no wrapper any more"),
        "enable" => (wrappers::enable(command, true)?, "goes through Tor"),
        _ => (
            wrappers::enable(command, false)?,
            "runs in the clear when it is typed alone",
        ),
    };
    Ok(format!("{}: {what}\n", commands.join(", ")))
}

/// `*.conf` of the folders in which Whonix's uwt has them, in the order of their names.
fn whonix_files() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for folder in ["/etc/uwt.d", "/usr/local/etc/uwt.d"] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let conf = |p: &PathBuf| p.extension().is_some_and(|e| e == "conf");
        let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(conf).collect();
        files.sort();
        all.append(&mut files);
    }
    all
}

/// Prints TOML; what could not be carried goes to standard error, and makes the exit code 1.
fn config_migrate(files: &[PathBuf]) -> Result<(String, bool)> {
    let mut migrated = Migrated::default();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| {
            let what = format!("{}: cannot be read", file.display());
            Refusal::new(what, e.to_string(), "name another file")
        })?;
        migrated.read(&file.display().to_string(), &text);
    }
    for m in &migrated.missed {
        eprintln!("uwtctl: {}:{}: not carried: {}", m.file, m.line, m.why);
        eprintln!("  {}", m.text);
    }
    Ok((migrated.toml(), migrated.missed.is_empty()))
}

trait Stream: Read + std::io::Write {}
impl<T: Read + std::io::Write> Stream for T {}

/// Whether what listens at the SOCKS address takes a username and password, as isolation needs it.
fn socks_answers(e: &Effective) -> std::result::Result<(), String> {
    let limit = Some(Duration::from_secs(5));
    let s = &e.settings;
    let connect = || -> std::io::Result<Box<dyn Stream>> {
        match &s.address {
            Address::Ip(ip) => {
                let t = TcpStream::connect_timeout(&(*ip, s.port).into(), Duration::from_secs(5))?;
                t.set_read_timeout(limit)?;
                Ok(Box::new(t))
            }
            Address::Unix(path) => {
                let u = UnixStream::connect(path)?;
                u.set_read_timeout(limit)?;
                Ok(Box::new(u))
            }
        }
    };
    let mut stream = connect().map_err(|e| format!("{e}; is tor running? systemctl start tor"))?;
    let mut reply = [0; 2];
    stream
        .write_all(&[5, 1, 2])
        .and_then(|()| stream.read_exact(&mut reply))
        .map_err(|e| format!("it does not answer as SOCKS 5 ({e})"))?;
    match reply {
        [5, 2] => Ok(()),
        [5, _] => Err(
            "it does not take a username and password, so it cannot isolate; use Tor's SocksPort"
                .into(),
        ),
        _ => Err("it does not speak SOCKS 5".into()),
    }
}

/// How many wrappers are in place, or which are not.
fn wrappers_state() -> std::result::Result<String, String> {
    let rows = wrappers::list().map_err(|r| r.to_string())?;
    let not: Vec<&str> = rows
        .iter()
        .filter(|r| !r.whole() || r.shadowed.is_some())
        .map(|r| r.command.as_str())
        .collect();
    if !not.is_empty() {
        return Err(format!(
            "not as decided: {}; see uwtctl wrappers list",
            not.join(", ")
        ));
    }
    let typed = |on: bool| {
        let of_kind = |r: &&wrappers::Row| r.wrapper && r.effective.settings.enabled == on;
        rows.iter().filter(of_kind).count()
    };
    Ok(format!(
        "{} commands go through Tor as they are typed, {} are disabled",
        typed(true),
        typed(false)
    ))
}

/// Gives the report and whether all is well.
fn status() -> (String, bool) {
    let mut out = String::new();
    let mut well = true;
    let mut row = |name: &str, state: std::result::Result<String, String>| {
        let (mark, text) = match state {
            Ok(t) => ("ok", t),
            Err(t) => {
                well = false;
                ("FAIL", t)
            }
        };
        let _ = writeln!(out, "{name:<10}{mark:<6}{text}");
    };
    let shim = shim::find().and_then(|p| shim::prove(&p).map(|()| p));
    row(
        "shim",
        shim.map(|p| p.display().to_string())
            .map_err(|r| r.to_string()),
    );
    match layers("") {
        Ok(e) => {
            row(
                "config",
                Ok(config_check().unwrap_or_default().trim_end().to_owned()),
            );
            let address = match &e.settings.address {
                Address::Ip(ip) => std::net::SocketAddr::from((*ip, e.settings.port)).to_string(),
                Address::Unix(path) => format!("unix:{path}"),
            };
            row(
                "socks",
                socks_answers(&e)
                    .map(|()| format!("{address} takes credentials"))
                    .map_err(|w| format!("{address}: {w}")),
            );
        }
        Err(r) => row("config", Err(r.to_string())),
    }
    if wrappers::installed() {
        row("wrappers", wrappers_state());
    }
    row(
        "level",
        Ok(match Namespace::make() {
            Ok(_) => "netns".to_owned(),
            Err(e) if e.fix.is_empty() => format!("preload; no netns: {}", e.what),
            Err(e) => format!("preload; no netns: {}\n{:16}fix: {}", e.what, "", e.fix),
        }),
    );
    (out, well)
}

fn main() -> ExitCode {
    let matches = match grammar().try_get_matches() {
        Ok(m) => m,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { EXIT_REFUSED } else { 0 });
        }
    };
    let result: Result<(String, bool)> = match matches.subcommand() {
        Some(("config", m)) => match m.subcommand() {
            Some(("show", m)) => {
                let command = m.get_one::<String>("command").map_or("", String::as_str);
                config_show(command, m.get_flag("json")).map(|t| (t, true))
            }
            Some(("migrate", m)) => {
                let given: Vec<PathBuf> = m
                    .get_many::<PathBuf>("file")
                    .map_or(Vec::new(), |f| f.cloned().collect());
                let files = if given.is_empty() {
                    whonix_files()
                } else {
                    given
                };
                config_migrate(&files)
            }
            _ => config_check().map(|t| (t, true)),
        },
        Some(("wrappers", m)) => match m.subcommand() {
            Some(("list", m)) => wrappers_list(m.get_flag("json")),
            Some(("apply", _)) => wrappers::apply().map(|(n, done)| {
                (
                    format!("{n} commands have a wrapper when they are installed\n"),
                    done,
                )
            }),
            Some((verb, m)) => {
                let command = m.get_one::<String>("command").map_or("", String::as_str);
                wrappers_change(verb, command).map(|t| (t, true))
            }
            None => Ok((String::new(), false)),
        },
        Some(("firewall", m)) => firewall::commands::run(m),
        Some(("status", _)) => Ok(status()),
        _ => Err(Refusal::new("no such subcommand", "", "see uwtctl --help")),
    };
    match result {
        Ok((text, well)) => {
            let written = std::io::stdout().write_all(text.as_bytes());
            ExitCode::from(if well && written.is_ok() { 0 } else { 1 })
        }
        Err(r) => {
            eprintln!("{r}");
            ExitCode::from(r.exit)
        }
    }
}
