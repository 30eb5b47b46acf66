//! The command line of `uwt`: torsocks' letters where torsocks has one.

use crate::config::{self, Value};
use crate::refusal::Result;
use crate::setting::Key;
use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What the command line asks for.
#[derive(Debug)]
pub struct Request {
    /// Settings that options give, in order.
    pub values: Vec<Value>,
    /// `--config FILE`.
    pub config: Option<PathBuf>,
    /// `--explain`: say what would be done.
    pub explain: bool,
    /// The command and its arguments; never empty.
    pub command: Vec<OsString>,
}

const OPTIONS: [(&str, Key); 7] = [
    ("address", Key::Address),
    ("port", Key::Port),
    ("user", Key::User),
    ("pass", Key::Password),
    ("isolate", Key::Isolate),
    ("level", Key::Level),
    ("dns", Key::Dns),
];

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// The command line's grammar, for parsing, help, man page and completions.
pub fn grammar() -> Command {
    Command::new("uwt")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Run a command with all its network traffic through Tor, on circuits of its own")
        .override_usage("uwt [OPTIONS] [--] COMMAND [ARG]...\n       uwt [OPTIONS] --shell")
        .after_help(
            "Settings are also read from /etc/uwt.d/*.toml, ~/.config/uwt/*.toml and UWT_* variables; \
             `uwtctl config show` tells each one's value and where it came from.\n\
             UWT_DEV_PASSTHROUGH=1 runs the command without uwt.\n\n\
             Exit status: the command's own; 125 uwt refused to run it, 126 it cannot be executed, \
             127 it was not found, 255 too many nested wrappers.",
        )
        .arg(option("address", "ADDRESS", "Tor's SOCKS address, or unix:/PATH [127.0.0.1]").short('a'))
        .arg(option("port", "PORT", "Tor's SOCKS port [9050]").short('P'))
        .arg(option("user", "USER", "A fixed SOCKS username; needs --pass").short('u'))
        .arg(option("pass", "PASSWORD", "A fixed SOCKS password; needs --user").short('p'))
        .arg(
            option("isolate", "SCOPE", "What shares circuits: pid, tree, app, destination, connection, none [pid]")
                .short('i')
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("pid"),
        )
        .arg(option("level", "LEVEL", "How the command is held: auto, preload, netns [auto]"))
        .arg(option("dns", "MODE", "How names are resolved: virtual, resolve, refuse [virtual]"))
        .arg(option("config", "FILE", "Read this file last").value_parser(OsStringValueParser::new()))
        .arg(Arg::new("debug").short('d').long("debug").action(ArgAction::SetTrue).help("Log each connection to standard error"))
        .arg(Arg::new("quiet").short('q').long("quiet").action(ArgAction::SetTrue).help("Log nothing, not even what was refused"))
        .arg(Arg::new("explain").long("explain").action(ArgAction::SetTrue).help("Say what would be done and why; run nothing"))
        .arg(Arg::new("shell").long("shell").action(ArgAction::SetTrue).help("Run your $SHELL"))
}

/// How many of `arguments` (`argv[0]` first) are uwt's own: up to `--`, or to the first that is no option.
/// All behind them is the command's, whatever it looks like.
fn own(arguments: &[OsString]) -> usize {
    let takes_value = |a: &[u8]| match a {
        [b'-', b'-', name @ ..] => {
            let mut with_value = OPTIONS
                .iter()
                .filter(|(n, _)| *n != "isolate")
                .map(|(n, _)| *n);
            with_value.any(|n| n.as_bytes() == name) || name == b"config"
        }
        // A cluster of letters ends in the one that takes the next argument.
        [b'-', .., last] => {
            b"aPup".contains(last) && !a[1..a.len() - 1].iter().any(|b| b"aPupi".contains(b))
        }
        _ => false,
    };
    let mut at = 1;
    while let Some(a) = arguments.get(at).map(|a| a.as_bytes()) {
        if a == b"--" || a.len() < 2 || a[0] != b'-' {
            break;
        }
        at += if takes_value(a) { 2 } else { 1 };
    }
    at.min(arguments.len())
}

/// Parses; on a mistake, or for help and version, gives what clap has to say.
pub fn parse(mut arguments: Vec<OsString>) -> std::result::Result<Result<Request>, clap::Error> {
    let mut command = arguments.split_off(own(&arguments));
    if command.first().is_some_and(|a| a == "--") {
        command.remove(0);
    }
    let mut grammar = grammar();
    let matches = grammar.try_get_matches_from_mut(arguments)?;
    let shell = matches.get_flag("shell");
    if command.is_empty() != shell {
        let message = if shell {
            "--shell takes no command"
        } else {
            "a command is missing"
        };
        return Err(grammar.error(clap::error::ErrorKind::MissingRequiredArgument, message));
    }
    if shell {
        let shell = std::env::var_os("SHELL").filter(|s| !s.is_empty());
        command.push(shell.unwrap_or_else(|| "/bin/sh".into()));
    }
    Ok(request(&matches, command))
}

fn request(matches: &ArgMatches, command: Vec<OsString>) -> Result<Request> {
    let mut values = Vec::new();
    for (name, key) in OPTIONS {
        if let Some(text) = matches.get_one::<String>(name) {
            values.push(config::option(key, text, &format!("--{name}"))?);
        }
    }
    if matches.get_flag("debug") {
        values.push(config::option(Key::Log, "debug", "--debug")?);
    }
    if matches.get_flag("quiet") {
        values.push(config::option(Key::Log, "silent", "--quiet")?);
    }
    Ok(Request {
        values,
        config: matches.get_one::<OsString>("config").map(PathBuf::from),
        explain: matches.get_flag("explain"),
        command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Split = (Vec<(Key, String)>, Vec<String>);

    fn split(line: &str) -> Option<Split> {
        let arguments = line.split(' ').map(OsString::from).collect();
        let r = parse(arguments).ok()?.ok()?;
        let values = r.values.into_iter().map(|v| (v.key, v.text)).collect();
        let command = r.command.iter().map(|c| c.to_string_lossy().into_owned());
        Some((values, command.collect()))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let (v, c) = split("uwt -P 9150 -i=tree curl -P 1 --explain").expect("parsed");
        assert_eq!(
            v,
            [(Key::Port, "9150".into()), (Key::Isolate, "tree".into())]
        );
        assert_eq!(c, ["curl", "-P", "1", "--explain"]);
        let (v, c) = split("uwt -dP9150 -i -- -x y").expect("parsed");
        assert_eq!(v.len(), 3);
        assert_eq!(c, ["-x", "y"]);
        let (_, c) = split("uwt --isolate tree").expect("parsed");
        assert_eq!(c, ["tree"]);
        assert_eq!(split("uwt -qa 127.0.0.1 true").expect("parsed").1, ["true"]);
    }

    #[test]
    fn unknown_options_and_missing_commands_are_mistakes() {
        for line in [
            "uwt --isolat x",
            "uwt",
            "uwt -P",
            "uwt -Z true",
            "uwt --port=x true",
            "uwt --shell x",
        ] {
            assert!(split(line).is_none(), "{line}");
        }
    }

    #[test]
    fn the_grammar_is_whole() {
        grammar().debug_assert();
    }
}
