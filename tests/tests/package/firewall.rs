//! uwt-firewall as a package: installed it changes nothing, applied it is there at boot before the network is, removed it
//! leaves nothing. systemd is process 1, on a host of its own that is joined to another.

use crate::debian::{built, done, fresh};
use crate::ensure;
use crate::world::{Result, Stop, World};
use libtest_mimic::Trial;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::hosts::{self, Hosts, INTERNET, What};
use uwt_tests::root::Root;

pub fn tests(world: &Arc<World>, suite: &'static str) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World, &'static str) -> Result| {
        world.test(format!("{suite}: firewall: {name}"), move |w| {
            // Namespaces of its own, gone with the thread.
            std::thread::scope(|s| {
                s.spawn(|| f(w, suite))
                    .join()
                    .unwrap_or_else(|_| Err(Stop::Failed("it broke off".into())))
            })
        })
    };
    vec![
        test("installed, applied, removed, purged", life),
        test("its units, as systemd sees them", units),
        test("at boot before the network, or no network", boot),
    ]
}

const POLICY: &str = "[tor]\nusers = [\"4001\"]\n";

/// What a script says, which must end with 0.
fn output(root: &Root, script: &str) -> Result<String> {
    Ok(done(root, script)?.out)
}

/// Two hosts, the near one with a system in which both packages are installed.
fn installed(w: &World, suite: &str) -> Result<(Hosts, Root)> {
    let hosts = Hosts::make(&w.bed.path("home"), &w.bed.path("bin"))?;
    let root = fresh(w, suite)?;
    fs::copy(built("uwt-firewall")?, root.file("/firewall.deb"))?;
    done(
        &root,
        "dpkg -i /uwt.deb /firewall.deb >/dev/null 2>&1; dpkg -V uwt-firewall; echo installed",
    )?;
    Ok((hosts, root))
}

fn life(w: &World, suite: &str) -> Result {
    let (mut h, root) = installed(w, suite)?;
    let web = SocketAddr::new(INTERNET, 443);
    // Installed: nothing is loaded, nothing enabled.
    ensure!(
        h.gets_out(4004, What::Udp, web)?,
        "installing it closes the host"
    );
    done(
        &root,
        "! systemctl is-enabled uwt-firewall.service >/dev/null; uwtctl firewall check --file /etc/uwt/firewall.toml 2>/dev/null",
    )?;
    fs::write(root.file("/etc/uwt/firewall.toml"), POLICY)?;
    let said = output(
        &root,
        "uwtctl firewall apply 2>&1; uwtctl firewall status; systemctl is-enabled uwt-firewall.service uwt-firewall-watch.service",
    )?;
    ensure!(
        said.contains("now and at each boot") && said.contains("drift       none"),
        "{said}"
    );
    ensure!(!h.gets_out(4004, What::Udp, web)?, "not closed");
    ensure!(h.gets_out(4001, What::Tcp, web)?, "Tor is closed out");
    let said = output(&root, "uwtctl firewall test | tail -1")?;
    ensure!(said.contains(" 0 broken"), "{said}");
    // The same package again, as an upgrade: rules, policy and links stay.
    done(
        &root,
        "dpkg -i /firewall.deb >/dev/null 2>&1; systemctl is-enabled uwt-firewall.service; grep -q 4001 /etc/uwt/firewall.toml",
    )?;
    ensure!(
        !h.gets_out(4004, What::Udp, web)?,
        "an upgrade opens the host"
    );
    // Removed: closed until the next boot, and that boot finds nothing that waits for a unit that is gone.
    let said = output(
        &root,
        "dpkg -r uwt-firewall 2>&1; find /etc/systemd -name '*uwt*'; ls /var/lib/uwt-firewall",
    )?;
    ensure!(
        said.contains("stay loaded until the next boot") && !said.contains(".service"),
        "{said}"
    );
    ensure!(
        !h.gets_out(4004, What::Udp, web)?,
        "removing it opens the host"
    );
    let said = output(
        &root,
        "nft delete table inet uwt; dpkg -P uwt-firewall >/dev/null 2>&1; ls -d /etc/uwt /var/lib/uwt-firewall 2>&1 || true",
    )?;
    ensure!(said.matches("No such file").count() == 2, "{said}");
    ensure!(h.gets_out(4004, What::Udp, web)?, "still closed");
    Ok(())
}

fn units(w: &World, suite: &str) -> Result {
    let (_h, root) = installed(w, suite)?;
    let said = output(
        &root,
        "cd /usr/lib/systemd/system; systemd-analyze verify uwt-firewall.service uwt-firewall-watch.service 2>&1 | grep -i uwt- | grep -v \"Command 'man\" || true
         systemd-analyze security --offline=yes --threshold=30 uwt-firewall.service uwt-firewall-watch.service 2>&1 | grep -i overall",
    )?;
    ensure!(
        said.lines().count() == 2 && said.lines().all(|l| l.contains("Overall exposure level")),
        "{said}"
    );
    Ok(())
}

/// What stands for the network: the name of a unit that brings it up, which sends as a user at once.
const NETWORK: &str = "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\nBefore=network.target\n\
    [Service]\nType=oneshot\nRemainAfterExit=yes\n\
    ExecStart=/bin/bash -c 'echo up > /root/network; echo early > /dev/udp/198.51.100.7/4000; true'\n";

fn boot(w: &World, suite: &str) -> Result {
    let (mut h, root) = installed(w, suite)?;
    fs::write(root.file("/etc/uwt/firewall.toml"), POLICY)?;
    fs::write(root.file("/etc/systemd/system/networking.service"), NETWORK)?;
    let mut start = |prepare: &str, script: &str| -> Result<(bool, bool, String)> {
        done(
            &root,
            &format!("rm -f /root/network /root/said; {prepare}; true"),
        )?;
        h.arrived()?;
        let o = root
            .boot(&format!(
                "systemctl start networking.service || echo NOT STARTED\n{script}"
            ))?
            .limit(Duration::from_secs(60))
            .run()?;
        let said = fs::read_to_string(root.file("/root/said")).unwrap_or_default();
        ensure!(o.code() == 0, "{o:#?}\n{said}");
        let early = h.arrived()?.iter().any(|p| p.to.port() == 4000);
        Ok((root.file("/root/network").exists(), early, said))
    };
    // A control: without a policy the network's first packet is seen.
    let (up, early, said) = start("true", "nft list tables")?;
    ensure!(up && early, "up {up}, seen {early}: {said}");
    let list = "nft list tables; systemctl is-active uwt-firewall.service || systemctl status uwt-firewall.service || true";
    let (up, early, said) = start("uwtctl firewall apply 2>/dev/null; nft flush ruleset", list)?;
    ensure!(
        up && !early && said.contains("table inet uwt\n") && said.contains("\nactive"),
        "{up} {early} {said}"
    );
    // The watch under its own unit: somebody else's flush is undone.
    let (_, _, said) = start(
        "nft flush ruleset",
        "systemctl start uwt-firewall-watch.service; nft flush ruleset
         for i in $(seq 200); do nft list tables | grep -q 'inet uwt' && break; sleep 0.05; done; nft list tables
         systemctl is-active uwt-firewall-watch.service",
    )?;
    ensure!(said.contains("table inet uwt\nactive"), "{said}");
    // `apply` where systemd runs: the units are enabled and started.
    let (_, _, said) = start(
        "nft flush ruleset; systemctl disable -q uwt-firewall.service uwt-firewall-watch.service",
        "uwtctl firewall apply; sleep 0; systemctl is-enabled uwt-firewall.service
         for i in $(seq 200); do systemctl is-active -q uwt-firewall-watch.service && break; sleep 0.05; done
         systemctl is-active uwt-firewall.service uwt-firewall-watch.service; uwtctl firewall off --yes; nft list tables
         systemctl is-enabled uwt-firewall.service || true",
    )?;
    ensure!(
        said.contains("enabled\nactive\nactive\noff: ")
            && !said.contains("table inet uwt")
            && said.trim_end().ends_with("disabled"),
        "{said}"
    );
    // The kept file is damaged: lockdown, and then the network.
    let (up, early, said) = start(
        "uwtctl firewall apply 2>/dev/null; nft flush ruleset; echo nonsense > /var/lib/uwt-firewall/boot.nft",
        list,
    )?;
    ensure!(
        up && !early && said.contains("uwt_lockdown"),
        "{up} {early} {said}"
    );
    // Neither can be loaded: no network.
    let (up, early, said) = start(
        "nft flush ruleset; chmod -x /usr/sbin/nft",
        "systemctl is-failed uwt-firewall.service",
    )?;
    ensure!(
        !up && !early && said.contains("NOT STARTED") && said.contains("failed"),
        "{up} {early} {said}"
    );
    let _ = hosts::commands("/usr/sbin/nft flush ruleset");
    Ok(())
}
