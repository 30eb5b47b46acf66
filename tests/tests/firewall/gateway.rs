//! A gateway as Whonix's: what comes in by an interface reaches Tor's ports, or nothing.

use crate::{Result, World, ensure, load, test};
use libtest_mimic::Trial;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::hosts::{self, Fate, Hosts, INTERNET, What, commands, namespace, on};

pub(crate) fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        test(
            world,
            "gateway: off, what uses no SocksPort gets nothing",
            off,
        ),
        test(world, "gateway: TCP and DNS, each by itself", transparent),
    ]
}

fn workstation() -> Result {
    namespace("work")?;
    commands(
        "ip link add int0 type veth peer name w0 netns work
         ip addr add 10.152.152.10/18 dev int0
         ip link set int0 up
         ip -n work addr add 10.152.152.11/18 dev w0
         ip -n work link set w0 up
         ip -n work route add default via 10.152.152.10
         sysctl -qw net.ipv4.ip_forward=1",
    )?;
    for port in [9040, 5353, 9050, 22] {
        hosts::serve_at(SocketAddr::new([10, 152, 152, 10].into(), port))?;
    }
    Ok(())
}

fn from(what: What, to: SocketAddr) -> Result<bool> {
    Ok(on("work", || {
        hosts::ask(0, what, to, Duration::from_millis(700))
    })? == Fate::Answered)
}

const SOCKS: &str = "[tor]\nusers = [\"4001\"]\n[[incoming]]\nname = \"SocksPort\"\nports = [9050]\ninterfaces = [\"int0\"]\n";

fn off(h: &mut Hosts) -> Result {
    workstation()?;
    let web = SocketAddr::new(INTERNET, 80);
    ensure!(
        from(What::Udp, "10.152.152.10:5353".parse()?)?,
        "nothing is reached without rules"
    );
    load(h, SOCKS)?;
    h.arrived()?;
    ensure!(
        from(What::Tcp, "10.152.152.10:9050".parse()?)?,
        "the SocksPort is not reached"
    );
    for (what, to) in [
        (What::Tcp, web),
        (What::Udp, web),
        (What::Udp, SocketAddr::new(INTERNET, 53)),
        (What::Tcp, "10.152.152.10:9040".parse()?),
        (What::Udp, "10.152.152.10:5353".parse()?),
        (What::Tcp, "10.152.152.10:22".parse()?),
    ] {
        ensure!(!from(what, to)?, "{what:?} {to} is reached");
    }
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    // What `test` says of it.
    let o = h.uwtctl("firewall test").run()?.expect(0)?;
    for line in [
        "transparent DNS is off",
        "transparent TCP is off",
        "transparent proxying is off",
    ] {
        ensure!(
            o.out
                .lines()
                .any(|l| l.starts_with("kept") && l.contains(line)),
            "{}",
            o.out
        );
    }
    Ok(())
}

fn transparent(h: &mut Hosts) -> Result {
    workstation()?;
    let (web, dns) = (SocketAddr::new(INTERNET, 80), SocketAddr::new(INTERNET, 53));
    for (lines, tcp, udp) in [
        ("tcp_interfaces = [\"int0\"]", true, false),
        ("dns_interfaces = [\"int*\"]", false, true),
        (
            "tcp_interfaces = [\"int0\"]\ndns_interfaces = [\"int0\"]",
            true,
            true,
        ),
    ] {
        load(h, &format!("{SOCKS}[transparent]\n{lines}\n"))?;
        h.arrived()?;
        ensure!(from(What::Tcp, web)? == tcp, "{lines}: TCP");
        ensure!(from(What::Udp, dns)? == udp, "{lines}: DNS");
        ensure!(!from(What::Udp, web)?, "{lines}: other UDP");
        ensure!(
            !from(What::Tcp, "10.152.152.10:22".parse()?)?,
            "{lines}: the host's own ssh"
        );
        let seen = h.arrived()?;
        ensure!(seen.is_empty(), "{lines}: {seen:?}");
    }
    let torrc = h.uwtctl("firewall render --torrc").run()?.expect(0)?.out;
    ensure!(
        torrc.contains("TransPort 0.0.0.0:9040") && torrc.contains("DNSPort 0.0.0.0:5353"),
        "{torrc}"
    );
    Ok(())
}
