//! `uwtctl firewall zone NAME list | add | del | reset`, in qvm-firewall(1)'s manner: the rules stand in
//! /etc/uwt/firewall.toml, whose other lines and comments stay as they are.

use super::policy::Policy;
use super::rule::Rule;
use super::words::ZoneName;
use super::{load, nft, ruleset, state};
use crate::refusal::{Refusal, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use toml_edit::{Array, DocumentMut, Item, Value};

/// A change to a zone's rules.
pub enum Change {
    /// A rule, before the one of this number (from 0) or at the end.
    Add(Rule, Option<usize>),
    /// Not the rule of this number any more.
    Delete(usize),
    /// Not this rule any more.
    DeleteRule(Rule),
    /// No rules.
    Reset,
}

/// A zone's rules, in order.
///
/// # Errors
/// The file's, or there is no such zone.
pub fn rules(file: &str, name: &str) -> Result<Vec<Rule>> {
    let policy = Policy::read(file)?;
    let zone = name
        .parse::<ZoneName>()
        .ok()
        .and_then(|n| policy.zones.get(&n))
        .ok_or_else(|| absent(file, &policy, name))?;
    Ok(zone
        .get_ref()
        .rules
        .iter()
        .map(|r| r.get_ref().clone())
        .collect())
}

fn absent(file: &str, policy: &Policy, name: &str) -> Refusal {
    let known: Vec<&str> = policy.zones.keys().map(|k| k.0.as_str()).collect();
    let fix = match known.is_empty() {
        true => {
            format!("write a [zone.{name}] with a user, cgroup, interface or source into {file}")
        }
        false => format!("there are {}", known.join(", ")),
    };
    Refusal::new(format!("{file}: there is no zone {name:?}"), "", fix)
}

/// Changes a zone's rules, and loads them if the firewall is on; gives warnings.
///
/// # Errors
/// The file is as it was.
pub fn change(file: &str, name: &str, change: &Change) -> Result<Vec<String>> {
    let _lock = state::lock()?;
    let before = rules(file, name)?;
    let path = Path::new(file);
    let old = crate::config::read_trusted(path)?;
    let mut document: DocumentMut = old
        .parse()
        .map_err(|e: toml_edit::TomlError| Refusal::new(file, e.message(), ""))?;
    let zone = document
        .get_mut("zone")
        .and_then(|z| z.get_mut(name))
        .and_then(Item::as_table_like_mut);
    let Some(zone) = zone else {
        return Err(Refusal::new(
            format!("{file}: zone {name:?} is not written as a table"),
            "",
            format!("write it as [zone.{name}]"),
        ));
    };
    let item = zone
        .entry("rules")
        .or_insert_with(|| Item::Value(Value::Array(Array::new())));
    let Some(array) = item.as_array_mut() else {
        return Err(Refusal::new(format!("{file}: rules is no list"), "", ""));
    };
    let beyond = |n: usize| {
        Refusal::new(
            format!("zone {name:?} has no rule {n}"),
            match before.len() {
                0 => "it has none".to_owned(),
                n => format!("they are 0 to {}", n - 1),
            },
            format!("uwtctl firewall zone {name} list"),
        )
    };
    match change {
        Change::Add(rule, None) => array.push(rule.to_string()),
        Change::Add(rule, Some(n)) if *n <= before.len() => array.insert(*n, rule.to_string()),
        Change::Delete(n) if *n < before.len() => {
            array.remove(*n);
        }
        Change::Add(_, Some(n)) | Change::Delete(n) => return Err(beyond(*n)),
        Change::DeleteRule(rule) => {
            let Some(at) = before.iter().position(|r| r == rule) else {
                return Err(Refusal::new(
                    format!("zone {name:?} has no rule {:?}", rule.to_string()),
                    "",
                    format!("uwtctl firewall zone {name} list"),
                ));
            };
            array.remove(at);
        }
        Change::Reset => array.clear(),
    }
    for value in array.iter_mut() {
        value.decor_mut().set_prefix("\n    ");
    }
    array.set_trailing_comma(!array.is_empty());
    array.set_trailing(if array.is_empty() { "" } else { "\n" });
    let new = document.to_string();
    Policy::parse(file, &new)?;
    let mode = fs::metadata(path).map_or(0o644, |m| m.permissions().mode() & 0o7777);
    state::replace(path, &new, mode)?;
    if nft::table_of(ruleset::TABLE)?.is_none() {
        return Ok(vec![
            "written; the firewall is off, so it has no effect until `uwtctl firewall apply`"
                .into(),
        ]);
    }
    load::apply_locked(file).inspect_err(|_| {
        let _ = state::replace(path, &old, mode);
    })
}

/// The rules as `list` shows them.
pub fn table(rules: &[Rule], default: &str) -> String {
    let mut out = String::from("no  rule\n");
    for (n, r) in rules.iter().enumerate() {
        out += &format!("{n:<3} {r}\n");
    }
    out + &format!("    {default} (default)\n")
}
