//! The bash files of Whonix's uwt (`/etc/uwt.d/*.conf`) as TOML. They are read, never run: what is not one of the
//! assignments that they document is named and left to a person.

use crate::invocation::DIVERTED;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A line that could not be carried over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missed {
    /// The file, as it was given.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
    /// Why it was left.
    pub why: &'static str,
}

/// What the files say.
#[derive(Default, Debug)]
pub struct Migrated {
    /// Settings for every command: name and value, as TOML has them. A later file wins.
    general: BTreeMap<&'static str, String>,
    /// Whether each command is wrapped.
    commands: BTreeMap<String, bool>,
    /// What could not be carried.
    pub missed: Vec<Missed>,
}

/// A bash assignment: name, index, value.
fn assignment(line: &str) -> Option<(&str, Option<&str>, &str)> {
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let (left, right) = line.split_once('=')?;
    let (name, index) = match left.split_once('[') {
        Some((name, rest)) => (name, Some(unquoted(rest.strip_suffix(']')?)?)),
        None => (left, None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return None;
    }
    // A comment may follow a value.
    let value = match right.chars().next() {
        Some(q @ ('"' | '\'')) => {
            let end = right[1..].find(q)? + 2;
            let rest = right[end..].trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                return None;
            }
            &right[..end]
        }
        _ => right.split_whitespace().next().unwrap_or(""),
    };
    Some((name, index, unquoted(value)?))
}

/// A word without its quotes; `None` for one that bash would expand.
fn unquoted(word: &str) -> Option<&str> {
    let inner = ['"', '\'']
        .iter()
        .find_map(|q| word.strip_prefix(*q)?.strip_suffix(*q))
        .unwrap_or(word);
    (!inner.contains(['$', '`', '"', '\'', '\\', ';', '&', '|', '(', ')'])).then_some(inner)
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

impl Migrated {
    /// Takes one file's text. Files are taken in the order of their names, as bash sourced them.
    pub fn read(&mut self, file: &str, text: &str) {
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(why) = self.take(line) {
                self.missed.push(Missed {
                    file: file.to_owned(),
                    line: i + 1,
                    text: line.to_owned(),
                    why,
                });
            }
        }
    }

    fn take(&mut self, line: &str) -> Result<(), &'static str> {
        let (name, index, value) = assignment(line).ok_or("it is no plain assignment")?;
        match (name, index) {
            ("uwtwrapper_global", None) => {
                let on = switch(value).ok_or("it takes 0 or 1")?;
                self.general.insert("enabled", on.to_string());
            }
            ("uwtwrapper", Some(path)) => {
                let on = switch(value).ok_or("it takes 0 or 1")?;
                let command = path.rsplit('/').next().unwrap_or(path);
                let command = command.strip_suffix(DIVERTED).unwrap_or(command);
                let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
                if command.is_empty() || !command.chars().all(plain) {
                    return Err("it names no command");
                }
                self.commands.insert(command.to_owned(), on);
            }
            ("uwtwrapper_max", None) => {
                let max: u32 = value.parse().map_err(|_| "it takes a number")?;
                if !(1..=100).contains(&max) {
                    return Err("uwt takes 1 to 100");
                }
                self.general.insert("nested_max", max.to_string());
            }
            ("timeprivacy" | "timeprivacy_global", _) => {
                return Err("uwt does not change the time that a program sees");
            }
            _ => return Err("uwt has no such setting"),
        }
        Ok(())
    }

    /// The settings as a file for /etc/uwt.d; empty if there are none.
    pub fn toml(&self) -> String {
        let mut out = String::new();
        for (name, value) in &self.general {
            let _ = writeln!(out, "{name} = {value}");
        }
        for (command, on) in &self.commands {
            let blank = if out.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{blank}[command.\"{command}\"]\nenabled = {on}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_whonix_documents_is_carried_and_the_rest_named() {
        let mut m = Migrated::default();
        m.read(
            "30_default.conf",
            "# a comment\nuwtwrapper_global=\"1\"\n  uwtwrapper[\"/usr/bin/curl\"]=\"0\" # off\n\
             uwtwrapper[/usr/bin/apt-get.anondist-orig]=1\nuwtwrapper_max=5\n",
        );
        m.read(
            "50_user.conf",
            "uwtwrapper_global=0\ntimeprivacy[\"/usr/bin/git\"]=\"1\"\nif true; then\nuwtwrapper_max=$(id -u)\n\
             uwtwrapper[\"/usr/bin/x\"]=2\nuwtport_x=9104\nuwtwrapper_max=0\n",
        );
        assert_eq!(
            m.toml(),
            "enabled = false\nnested_max = 5\n\n[command.\"apt-get\"]\nenabled = true\n\n\
             [command.\"curl\"]\nenabled = false\n"
        );
        let lines: Vec<usize> = m.missed.iter().map(|l| l.line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7]);
        assert!(m.missed.iter().all(|l| l.file == "50_user.conf"));
    }

    #[test]
    fn what_comes_out_goes_in() {
        let mut m = Migrated::default();
        m.read("x.conf", "uwtwrapper_max=7\nuwtwrapper[/usr/bin/git]=0\n");
        crate::config::parse("x.toml", &m.toml()).expect("TOML that uwt takes");
    }
}
