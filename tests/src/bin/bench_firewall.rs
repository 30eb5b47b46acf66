//! How long it takes to load a firewall again, against nft and iptables-restore on a file with the same rules written by
//! hand, all in one run. The programs take turns; a cell is the median.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use uwt_tests::bed::Bed;
use uwt_tests::hosts::Hosts;

/// One rule: action, address, port.
fn rule(n: u32, in_turns: bool) -> (&'static str, String, u32) {
    let action = if in_turns && n % 2 == 1 {
        "drop"
    } else {
        "accept"
    };
    let port = if in_turns { n % 60_000 + 1 } else { 443 };
    (
        action,
        format!("10.{}.{}.{}", 9 + n / 62_500, n / 250 % 250, n % 250),
        port,
    )
}

/// The policy, the same by hand for nft, the same for iptables-restore.
fn files(rules: u32, in_turns: bool) -> (String, String, String) {
    let mut policy =
        String::from("[tor]\nusers = [\"4001\"]\n[zone.many]\nuser = \"4004\"\nrules = [\n");
    let mut nft = String::from(
        "table inet uwt\ndelete table inet uwt\ntable inet uwt {\n\tchain many {\n\t\tct state established accept\n",
    );
    let mut iptables = String::from("*filter\n:OUTPUT DROP [0:0]\n:MANY - [0:0]\n");
    for n in 0..rules {
        let (action, to, port) = rule(n, in_turns);
        let _ = writeln!(policy, "\"{action} proto=tcp dst4={to} dstports={port}\",");
        let _ = writeln!(nft, "\t\tip daddr {to} tcp dport {port} counter {action}");
        let target = action.to_uppercase();
        let _ = writeln!(
            iptables,
            "-A MANY -d {to}/32 -p tcp --dport {port} -j {target}"
        );
    }
    policy += "]\n";
    nft += "\t}\n\tchain output {\n\t\ttype filter hook output priority filter; policy drop;\n\t\toifname \"lo\" accept\n\
        \t\tmeta skuid 4001 meta l4proto tcp accept\n\t\tmeta skuid 4004 goto many\n\t}\n}\n";
    iptables += "-A OUTPUT -o lo -j ACCEPT\n-A OUTPUT -m owner --uid-owner 4001 -p tcp -j ACCEPT\n\
        -A OUTPUT -m owner --uid-owner 4004 -j MANY\nCOMMIT\n";
    (policy, nft, iptables)
}

fn timed(program: &Path, arguments: &[&str]) -> io::Result<Duration> {
    let begun = Instant::now();
    let out = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    let took = begun.elapsed();
    if out.status.success() {
        return Ok(took);
    }
    let why = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!(
        "{}: {why:.300}",
        program.display()
    )))
}

fn median(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all[all.len() / 2].as_secs_f64() * 1000.0
}

fn bench(bed: &Bed) -> io::Result<()> {
    let hosts = Hosts::make(&bed.path("home"), &bed.path("bin"))?;
    println!(
        "| load again, ms | uwtctl firewall apply | nft -f, by hand (apply to it) | nft -f, the same ruleset (apply to it) | iptables-restore |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for (in_turns, what) in [
        (false, "one action, one port"),
        (true, "accept and drop in turns"),
    ] {
        for rules in [10, 1_000, 10_000] {
            let (policy, nft, iptables) = files(rules, in_turns);
            hosts.policy(&policy)?;
            std::fs::write("/run/by-hand.nft", nft)?;
            std::fs::write("/run/by-hand.iptables", iptables)?;
            let rendered = hosts.uwtctl("firewall render").run()?.out;
            std::fs::write("/run/rendered.nft", rendered)?;
            let mut all = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
            let rounds = if rules > 1_000 { 7 } else { 21 };
            for _ in 0..rounds {
                // Each meets its own rules and no other's.
                for (which, program, arguments) in [
                    (0, hosts.program("uwtctl"), vec!["firewall", "apply"]),
                    (1, "/usr/sbin/nft".into(), vec!["-f", "/run/by-hand.nft"]),
                    (2, "/usr/sbin/nft".into(), vec!["-f", "/run/rendered.nft"]),
                    (
                        3,
                        "/usr/sbin/iptables-restore".into(),
                        vec!["/run/by-hand.iptables"],
                    ),
                ] {
                    timed("/usr/sbin/nft".as_ref(), &["flush", "ruleset"])?;
                    timed(&program, &arguments)?;
                    all[which].push(timed(&program, &arguments)?);
                }
            }
            timed("/usr/sbin/nft".as_ref(), &["flush", "ruleset"])?;
            let [ours, hand, same, iptables] = all.map(median);
            println!(
                "| {rules} rules, {what} | {ours:.1} | {hand:.1} ({:.2}) | {same:.1} ({:.2}) | {iptables:.1} |",
                ours / hand,
                ours / same,
            );
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    // SAFETY: a plain number.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: loading a firewall needs root");
        return ExitCode::SUCCESS;
    }
    let done = Bed::make().and_then(|bed| {
        let done = bench(&bed);
        let _ = std::fs::remove_dir_all(&bed.folder);
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("uwt-bench-firewall: {e}");
            ExitCode::FAILURE
        }
    }
}
