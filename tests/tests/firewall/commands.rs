//! What `uwtctl firewall` says and does besides.

use crate::{ALICE, Result, TOR, World, ensure, load, test};
use libtest_mimic::Trial;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::hosts::{self, Hosts, INTERNET, What, commands};

pub(crate) fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        test(
            world,
            "commands: status says what, why, whom and since when",
            status,
        ),
        test(world, "commands: status sees drift", drift),
        test(
            world,
            "commands: test gives a verdict on each promise",
            verdicts,
        ),
        test(
            world,
            "commands: test sees a promise that is broken",
            broken,
        ),
        test(world, "commands: apply --confirm goes back", confirm),
        test(world, "commands: off asks", off),
        test(world, "commands: the shipped policy", shipped),
        test(
            world,
            "commands: a reload with the same policy is the same text",
            same,
        ),
    ]
}

const WHO: &str = "[tor]\nusers = [\"4001\"]\n";

fn web() -> SocketAddr {
    SocketAddr::new(INTERNET, 443)
}

fn status(h: &mut Hosts) -> Result {
    h.policy(WHO)?;
    let o = h.uwtctl("firewall status").run()?.expect(0)?;
    ensure!(
        o.out.contains("off: this host has no firewall"),
        "{}",
        o.out
    );
    load(h, WHO)?;
    // TCP finds out by itself what is too big for a path: no ICMP says so.
    let probing = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mtu_probing")?;
    ensure!(probing.trim() == "1", "tcp_mtu_probing is {probing}");
    for _ in 0..3 {
        h.gets_out(ALICE, What::Udp, web())?;
    }
    h.gets_out(TOR, What::Tcp, web())?;
    let o = h.uwtctl("firewall status").run()?.expect(0)?;
    for line in [
        "profile     tor-host: what leaves this host leaves by Tor",
        "loaded 0 s ago",
        "let out: Tor, firewall.toml:2 tor.users",
        "3  stopped: nothing lets it out",
        "3  out: uid 4004 to 198.51.100.7, udp 443",
        "drift       none",
    ] {
        ensure!(
            o.out.contains(line) || (line.contains("0 s ago") && o.out.contains(" s ago")),
            "no {line:?} in\n{}",
            o.out
        );
    }
    let json = h.uwtctl("firewall status --json").run()?.expect(0)?.out;
    for word in [
        "\"profile\": \"tor-host\"",
        "\"from\": \"uid 4004\"",
        "\"packets\": 3",
    ] {
        ensure!(json.contains(word), "no {word} in {json}");
    }
    Ok(())
}

fn drift(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    h.uwtctl("firewall status").run()?.expect(0)?;
    let says = |h: &Hosts, what: &str| -> Result {
        let o = h.uwtctl("firewall status").run()?.expect(1)?;
        ensure!(o.out.contains(what), "no {what:?} in {}", o.out);
        Ok(())
    };
    h.policy(&format!("{WHO}[lan]\nout = true\n"))?;
    says(h, "firewall.toml has changed since it was loaded")?;
    h.policy("nonsense")?;
    says(h, "the file is no policy")?;
    h.policy(WHO)?;
    commands("/usr/sbin/nft insert rule inet uwt output meta skuid 4004 accept")?;
    says(h, "somebody has changed the rules in the kernel")?;
    h.uwtctl("firewall apply").run()?.expect(0)?;
    h.uwtctl("firewall status").run()?.expect(0)?;
    std::fs::rename(
        "/var/lib/uwt-firewall/boot.nft",
        "/var/lib/uwt-firewall/away",
    )?;
    says(h, "a boot would load no policy")?;
    std::fs::rename(
        "/var/lib/uwt-firewall/away",
        "/var/lib/uwt-firewall/boot.nft",
    )?;
    commands("/usr/sbin/nft delete table inet uwt")?;
    says(h, "this host is OPEN")
}

fn verdicts(h: &mut Hosts) -> Result {
    commands("ip link add tun0 type veth peer name tunx")?;
    for policy in [
        WHO.to_owned(),
        format!(
            "{WHO}reachable_ports = [80]\n[clearnet]\nusers = [\"4002\"]\n[lan]\nout = true\n[automap]\nusers = [\"4004\"]\n[[incoming]]\nname = \"web\"\nports = [8080]\n"
        ),
        format!(
            "{WHO}interfaces = [\"tun0\"]\n[vpn]\nservers = [\"203.0.113.5:1194/udp\"]\nusers = [\"4003\"]\n[dns]\nredirect = true\n"
        ),
        format!(
            "{WHO}relays = \"guards\"\ncontrol_port = \"/nowhere\"\n[transparent]\ntcp_users = [\"4004\"]\ndns_users = [\"4004\"]\n"
        ),
        format!(
            "profile = \"vpn\"\n[vpn]\ninterfaces = [\"tun*\", \"wg0\"]\nservers = [\"203.0.113.5:1194/udp\", \"203.0.113.6\"]\nusers = [\"4003\"]\n{WHO}"
        ),
        "profile = \"lockdown\"\n".to_owned(),
    ] {
        h.policy(&policy)?;
        let o = h.uwtctl("firewall test").run()?;
        ensure!(
            o.code() == 0 && o.out.contains(", 0 broken"),
            "{policy}: {o:#?}"
        );
        let kept = o.out.lines().filter(|l| l.starts_with("kept")).count();
        ensure!(kept >= 10, "{kept} promises: {}", o.out);
    }
    // In a copy: nothing is loaded here, and nothing has left.
    ensure!(
        hosts::nft_list("list tables")?.is_empty(),
        "it loaded something"
    );
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

/// An nft that takes the rules and one more: `test` sees what it lets through.
fn broken(h: &mut Hosts) -> Result {
    h.policy(WHO)?;
    std::fs::copy("/usr/sbin/nft", "/run/nft.real")?;
    std::fs::write(
        "/run/nft.fake",
        "#!/bin/sh\n/run/nft.real \"$@\" || exit 1\nexec /run/nft.real insert rule inet uwt output udp dport 53 accept\n",
    )?;
    commands("chmod 755 /run/nft.real /run/nft.fake\nmount --bind /run/nft.fake /usr/sbin/nft")?;
    let o = h.uwtctl("firewall test").run()?.expect(1)?;
    let broken: Vec<&str> = o.out.lines().filter(|l| l.starts_with("BROKEN")).collect();
    ensure!(
        !broken.is_empty() && broken.iter().all(|l| l.contains(":53")),
        "{}",
        o.out
    );
    let o = h.uwtctl("firewall test --json").run()?.expect(1)?;
    ensure!(o.out.contains("\"kept\": false"), "{}", o.out);
    Ok(())
}

fn confirm(h: &mut Hosts) -> Result {
    h.policy(WHO)?;
    // Nobody says yes: what was before is again, which was nothing.
    for answer in ["", "no\n"] {
        let o = h
            .uwtctl("firewall apply --confirm 1")
            .input(answer)
            .run()?
            .expect(1)?;
        ensure!(o.out.contains("gone back"), "{o:#?}");
        ensure!(
            hosts::nft_list("list tables")?.is_empty(),
            "something is loaded"
        );
    }
    let o = h
        .uwtctl("firewall apply --confirm 30")
        .input("yes\n")
        .run()?
        .expect(0)?;
    ensure!(o.out.contains("kept"), "{o:#?}");
    ensure!(!h.gets_out(ALICE, What::Udp, web())?, "not loaded");
    // Back to the policy before; an open stdin without a word is a no too.
    let before = hosts::nft_list("-s -t list table inet uwt")?;
    h.policy(&format!("{WHO}[lan]\nout = true\n"))?;
    let mut child = std::process::Command::new(h.program("uwtctl"))
        .args(["firewall", "apply", "--confirm", "1"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let stdin = child.stdin.take();
    let status = child.wait()?;
    drop(stdin);
    ensure!(status.code() == Some(1), "{status}");
    ensure!(
        before == hosts::nft_list("-s -t list table inet uwt")?,
        "another policy is loaded"
    );
    // A mistake goes back as well, instead of locking down.
    h.uwtctl("firewall off --yes").run()?.expect(0)?;
    h.policy("nonsense")?;
    h.uwtctl("firewall apply --confirm 5")
        .input("yes\n")
        .run()?
        .expect(1)?;
    ensure!(h.gets_out(ALICE, What::Udp, web())?, "locked out");
    Ok(())
}

fn off(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    let o = h.uwtctl("firewall off").input("yes\n").run()?.expect(125)?;
    ensure!(
        o.err.contains("nobody is there to answer") && o.err.contains("in the clear"),
        "{o:#?}"
    );
    ensure!(
        !h.gets_out(ALICE, What::Udp, web())?,
        "a refused command opened the host"
    );
    let o = h.uwtctl("firewall off --yes").run()?.expect(0)?;
    ensure!(o.out.contains("leaves in the clear"), "{o:#?}");
    ensure!(
        hosts::nft_list("list tables")?.is_empty(),
        "something is left"
    );
    ensure!(
        !std::path::Path::new("/var/lib/uwt-firewall/boot.nft").exists(),
        "a boot would load it"
    );
    Ok(())
}

/// Every default is written out: the file says what an empty one means.
fn shipped(h: &mut Hosts) -> Result {
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../etc/uwt/firewall.toml"
    ))?;
    let plain = |out: &str| -> Vec<String> {
        // Without where each stands.
        out.lines()
            .skip(4)
            .map(|l| {
                let words = l
                    .split(' ')
                    .filter(|w| !w.starts_with("firewall.toml:") && *w != "default");
                words.collect::<Vec<_>>().join(" ")
            })
            .collect()
    };
    h.policy(&text)?;
    let full = h.uwtctl("firewall render").run()?.expect(0)?.out;
    h.uwtctl("firewall check").run()?.expect(0)?;
    h.policy("")?;
    let empty = h.uwtctl("firewall render").run()?.expect(0)?.out;
    ensure!(plain(&full) == plain(&empty), "{full}\n{empty}");
    // And its examples can be used.
    let examples: String = text
        .lines()
        .filter_map(|l| l.strip_prefix("#   "))
        .filter(|l| !l.starts_with("uwtctl"))
        .map(|l| format!("{l}\n"))
        .collect();
    let zones = "[zone.work]\ninterface = \"work0\"\n[zone.web]\ninterface = \"web0\"\n";
    let lines: String = text
        .lines()
        .filter_map(|l| {
            l.strip_prefix("# ")
                .filter(|l| l.starts_with("connect = ") || l.starts_with("port_forward = "))
        })
        .map(|l| format!("{}\n", l.replace("to = \"printer\"", "to = \"web\"")))
        .collect();
    ensure!(
        lines.lines().count() == 2 && examples.contains("[zone.printer]"),
        "{lines}{examples}"
    );
    h.policy(&format!(
        "{lines}{zones}{examples}[names]\nresolver = \"system\"\n"
    ))?;
    h.uwtctl("firewall check")
        .limit(Duration::from_secs(30))
        .run()?
        .expect(0)?;
    Ok(())
}

fn same(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    let first = hosts::nft_list("-s -t list table inet uwt")?;
    for _ in 0..3 {
        h.uwtctl("firewall apply").run()?.expect(0)?;
        ensure!(
            first == hosts::nft_list("-s -t list table inet uwt")?,
            "another text"
        );
    }
    Ok(())
}
