//! Zones: what a qube is to the Qubes firewall. Each field of a rule, their order, what goes between zones.

use crate::{ALICE, BOB, Result, TOR, World, ensure, load, test, until, watch};
use libtest_mimic::Trial;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uwt_tests::hosts::{
    self, Fate, Hosts, INTERNET, INTERNET6, LAN, NEAR, What, answered, commands, namespace, on,
};

pub(crate) fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        test(world, "zones: each field of a rule", fields),
        test(world, "zones: the first rule that matches decides", order),
        test(world, "zones: what is merged means the same", merged),
        test(world, "zones: IPv6", ipv6),
        test(world, "zones: a cgroup", cgroup),
        test(world, "zones: an interface, masqueraded", interface),
        test(world, "zones: a source", source),
        test(world, "zones: two connected, others not", connected),
        test(world, "zones: a port forwarded in", forwarded_in),
        test(world, "zones: within a VPN", within_vpn),
        test(
            world,
            "zones: a host's name, and its address that changes",
            names,
        ),
        test(world, "zones: a name that does not resolve", unresolved),
        test(world, "zones: expiry without a reload", expiry),
        test(world, "zones: expiry with a clock set back", clock),
        test(world, "zones: 10,000 rules", many),
        test(world, "zones: list, add, del, reset", command),
    ]
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn zone(rules: &[&str]) -> String {
    format!("[tor]\nusers = [\"4001\"]\n[zone.alice]\nuser = \"4004\"\nrules = {rules:?}\n")
}

fn epoch() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn fields(h: &mut Hosts) -> Result {
    let other: IpAddr = "198.51.100.99".parse()?;
    // Rule; what gets out by it; what does not.
    type Probe = (What, IpAddr, u16);
    let cases: Vec<(&str, Vec<Probe>, Vec<Probe>)> = vec![
        (
            "accept",
            vec![
                (What::Tcp, INTERNET, 1),
                (What::Udp, LAN, 53),
                (What::Ping, other, 0),
            ],
            vec![],
        ),
        (
            "accept proto=tcp",
            vec![(What::Tcp, other, 22)],
            vec![(What::Udp, other, 22), (What::Ping, other, 0)],
        ),
        (
            "accept proto=udp",
            vec![(What::Udp, other, 22)],
            vec![(What::Tcp, other, 22)],
        ),
        (
            "accept proto=icmp",
            vec![(What::Ping, other, 0)],
            vec![(What::Udp, other, 22)],
        ),
        (
            "accept proto=icmp icmptype=8",
            vec![(What::Ping, other, 0)],
            vec![(What::Tcp, other, 1)],
        ),
        (
            "accept proto=icmp icmptype=13",
            vec![],
            vec![(What::Ping, other, 0)],
        ),
        (
            "accept dst4=198.51.100.7",
            vec![(What::Udp, INTERNET, 9), (What::Ping, INTERNET, 0)],
            vec![(What::Udp, other, 9)],
        ),
        (
            "accept dst4=198.51.100.0/29",
            vec![(What::Tcp, INTERNET, 9)],
            vec![(What::Tcp, other, 9)],
        ),
        (
            "accept dsthost=198.51.100.7 proto=tcp",
            vec![(What::Tcp, INTERNET, 9)],
            vec![(What::Tcp, other, 9)],
        ),
        (
            "accept proto=tcp dst4=198.51.100.7 dstports=80",
            vec![(What::Tcp, INTERNET, 80)],
            vec![(What::Tcp, INTERNET, 81)],
        ),
        (
            "accept proto=udp dstports=50-60",
            vec![(What::Udp, INTERNET, 53), (What::Udp, LAN, 60)],
            vec![(What::Udp, INTERNET, 61), (What::Tcp, INTERNET, 53)],
        ),
        (
            "accept specialtarget=dns",
            vec![(What::Udp, other, 53), (What::Tcp, other, 53)],
            vec![(What::Udp, INTERNET, 53), (What::Udp, other, 54)],
        ),
        (
            "accept specialtarget=dns proto=udp",
            vec![(What::Udp, other, 53)],
            vec![(What::Tcp, other, 53)],
        ),
        (
            "accept expire=1000000000",
            vec![],
            vec![(What::Tcp, INTERNET, 80)],
        ),
        (
            "accept expire=4000000000",
            vec![(What::Tcp, INTERNET, 80)],
            vec![],
        ),
        (
            "accept comment=for \"quoted\" reasons, 100% { } ; #",
            vec![(What::Tcp, INTERNET, 80)],
            vec![],
        ),
        ("drop", vec![], vec![(What::Tcp, INTERNET, 80)]),
    ];
    for (rule, outs, stopped) in cases {
        let policy = format!("{}\n[dns]\nservers = [\"198.51.100.99\"]\n", zone(&[rule]));
        load(h, &policy)?;
        for (what, to, port) in outs {
            ensure!(
                h.gets_out(ALICE, what, at(to, port))?,
                "{rule}: {what:?} {to} {port} is stopped"
            );
            ensure!(
                !h.gets_out(BOB, what, at(to, port))?,
                "{rule}: bob's {what:?} gets out"
            );
        }
        for (what, to, port) in stopped {
            ensure!(
                !h.gets_out(ALICE, what, at(to, port))?,
                "{rule}: {what:?} {to} {port} gets out"
            );
        }
        // The kernel has the line that asked for it.
        let rules = hosts::nft_list("list chain inet uwt zone_alice")?;
        ensure!(
            rules.contains("zone alice, firewall.toml:5"),
            "{rule}: {rules}"
        );
    }
    // A default of its own.
    load(
        h,
        &format!("{}default = \"accept\"\n", zone(&["drop proto=udp"])),
    )?;
    ensure!(
        h.gets_out(ALICE, What::Tcp, at(INTERNET, 5))?,
        "default accept"
    );
    ensure!(!h.gets_out(ALICE, What::Udp, at(INTERNET, 5))?, "its drop");
    Ok(())
}

fn order(h: &mut Hosts) -> Result {
    load(
        h,
        &zone(&[
            "drop dst4=198.51.100.7 proto=tcp dstports=80",
            "accept dst4=198.51.100.0/24 proto=tcp",
            "drop dst4=198.51.100.0/24",
            "accept proto=udp",
        ]),
    )?;
    for (what, to, port, wanted) in [
        (What::Tcp, "198.51.100.7", 80, false),
        (What::Tcp, "198.51.100.7", 81, true),
        (What::Tcp, "198.51.100.8", 80, true),
        (What::Udp, "198.51.100.8", 80, false),
        (What::Udp, "192.168.7.9", 80, true),
        (What::Tcp, "192.168.7.9", 80, false),
    ] {
        let out = h.gets_out(ALICE, what, at(to.parse()?, port))?;
        ensure!(out == wanted, "{what:?} {to} {port}: {out}");
    }
    Ok(())
}

/// Rules in a row that say the same of many places become one: with networks within networks, and ports across ports.
fn merged(h: &mut Hosts) -> Result {
    load(
        h,
        &zone(&[
            "accept proto=tcp dst4=198.51.100.0/28 dstports=80",
            "accept proto=tcp dst4=198.51.100.7 dstports=80",
            "accept proto=tcp dst4=198.51.100.64/26 dstports=80",
            "accept proto=udp dst4=198.51.100.7 dstports=50-60",
            "accept proto=udp dst4=198.51.100.7 dstports=55-70",
            "accept proto=udp dst4=198.51.100.7 dstports=90",
            "accept dst4=192.168.7.9",
            "accept dst4=192.168.0.0/21",
        ]),
    )?;
    let rules = hosts::nft_list("list chain inet uwt zone_alice")?;
    ensure!(
        rules.lines().filter(|l| l.contains("daddr")).count() == 3,
        "{rules}"
    );
    for (what, to, port, wanted) in [
        (What::Tcp, "198.51.100.7", 80, true),
        (What::Tcp, "198.51.100.15", 80, true),
        (What::Tcp, "198.51.100.16", 80, false),
        (What::Tcp, "198.51.100.127", 80, true),
        (What::Tcp, "198.51.100.128", 80, false),
        (What::Tcp, "198.51.100.7", 81, false),
        (What::Udp, "198.51.100.7", 50, true),
        (What::Udp, "198.51.100.7", 70, true),
        (What::Udp, "198.51.100.7", 71, false),
        (What::Udp, "198.51.100.7", 90, true),
        (What::Udp, "198.51.100.8", 55, false),
        (What::Udp, "192.168.7.9", 9, true),
        (What::Tcp, "192.168.6.1", 9, true),
        (What::Tcp, "192.168.8.1", 9, false),
    ] {
        let out = h.gets_out(ALICE, what, at(to.parse()?, port))?;
        ensure!(out == wanted, "{what:?} {to} {port}: {out}");
    }
    Ok(())
}

fn ipv6(h: &mut Hosts) -> Result {
    let rules = zone(&[
        "accept proto=tcp dst6=2001:db8:99::/64 dstports=443",
        "accept proto=icmp dst6=2001:db8:99::7",
    ]);
    load(h, &rules)?;
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET6, 443))?,
        "IPv6 though it is off"
    );
    load(h, &format!("ipv6 = true\n{rules}"))?;
    ensure!(
        h.gets_out(ALICE, What::Tcp, at(INTERNET6, 443))?,
        "not let through"
    );
    ensure!(answered(ALICE, What::Tcp, at(INTERNET6, 443))?, "no answer");
    ensure!(h.gets_out(ALICE, What::Ping, at(INTERNET6, 0))?, "no ping");
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET6, 80))?,
        "another port"
    );
    ensure!(!h.gets_out(ALICE, What::Tcp, at(INTERNET, 443))?, "IPv4");
    Ok(())
}

fn cgroup(h: &mut Hosts) -> Result {
    // Where systemd has it, in this test's own mount namespace.
    commands("mount -t tmpfs tmpfs /sys/fs/cgroup")?;
    if commands("mount -t cgroup2 cgroup2 /sys/fs/cgroup").is_err() {
        return Err(crate::Stop::Skipped("no cgroup2 here".into()));
    }
    let name = format!("uwt-test-{}", std::process::id());
    let folder = std::path::PathBuf::from("/sys/fs/cgroup").join(&name);
    let policy = format!(
        "[tor]\nusers = [\"4001\"]\n[zone.unit]\ncgroup = \"{name}\"\nrules = [\"accept proto=udp dstports=53\"]\n"
    );
    // Not there: the rule is off, and it is said; the rest is loaded.
    let warned = load(h, &policy)?;
    ensure!(
        warned.contains(&format!("there is no cgroup {name}")),
        "{warned}"
    );
    std::fs::create_dir(&folder)?;
    let result = (|| -> Result {
        load(h, &policy)?;
        let mut from = |inside: bool, port: u16| -> Result<bool> {
            let enter = if inside {
                format!("echo $$ > {}/cgroup.procs;", folder.display())
            } else {
                String::new()
            };
            h.arrived()?;
            std::process::Command::new("sh")
                .args(["-c", &format!("{enter} exec python3 -c \"import socket;socket.socket(2,2).sendto(b'x',('198.51.100.7',{port}))\" 2>/dev/null")])
                .status()?;
            Ok(!h.arrived()?.is_empty())
        };
        ensure!(from(true, 53)?, "its own does not get out");
        ensure!(!from(true, 54)?, "another port gets out");
        ensure!(!from(false, 53)?, "others get out");
        Ok(())
    })();
    let _ = std::fs::remove_dir(&folder);
    result
}

/// A namespace behind an interface of this host's, with this address.
fn guest(name: &str, net: u8) -> Result {
    namespace(name)?;
    commands(&format!(
        "ip link add if{name} type veth peer name g0 netns {name}
         ip addr add 10.77.{net}.1/24 dev if{name}
         ip link set if{name} up
         ip -n {name} addr add 10.77.{net}.2/24 dev g0
         ip -n {name} link set g0 up
         ip -n {name} route add default via 10.77.{net}.1
         ip -n far route replace 10.77.{net}.0/24 via 192.0.2.2
         sysctl -qw net.ipv4.ip_forward=1"
    ))?;
    on(name, || {
        hosts::nft(
            "table inet in { chain anything { type nat hook prerouting priority -100; policy accept;\n udp dport 9999 accept\n iifname \"g0\" meta l4proto { tcp, udp } redirect to :7\n }\n }\n",
        )?;
        hosts::serve(7)
    })?;
    Ok(())
}

/// Whether a server answers what is asked from a namespace.
fn from(name: &str, what: What, to: SocketAddr) -> Result<bool> {
    Ok(on(name, || {
        hosts::ask(0, what, to, Duration::from_millis(1500))
    })? == Fate::Answered)
}

/// A socket on one of the hosts, for datagrams.
fn datagrams(name: &str, at: &str) -> Result<UdpSocket> {
    let at: SocketAddr = at.parse()?;
    Ok(on(name, || {
        let socket = UdpSocket::bind(at)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    })?)
}

/// Whether what one sends reaches the other: without waiting for an answer, which may be stopped by itself.
fn hears(from: &UdpSocket, to: &UdpSocket, at: &str) -> Result<bool> {
    // What a rule refuses may say so here.
    let _ = from.send_to(b"one way", at);
    let _ = from.send_to(b"one way", at);
    let mut buf = [0; 16];
    let heard = to.recv(&mut buf).is_ok();
    while heard && to.recv(&mut buf).is_ok() {}
    Ok(heard)
}

fn interface(h: &mut Hosts) -> Result {
    guest("work", 1)?;
    ensure!(
        from("work", What::Tcp, at(INTERNET, 80))?,
        "nothing is forwarded without rules"
    );
    let policy = "[tor]\nusers = [\"4001\"]\n[zone.work]\ninterface = \"ifwork\"\nrules = [\"accept proto=tcp dstports=80\"]\n";
    load(h, policy)?;
    h.arrived()?;
    ensure!(
        from("work", What::Tcp, at(INTERNET, 80))?,
        "not let through"
    );
    let seen = h.arrived()?;
    ensure!(
        seen.iter().all(|p| p.from.ip().to_string() == "10.77.1.2"),
        "{seen:?}"
    );
    let begun = Instant::now();
    ensure!(!from("work", What::Tcp, at(INTERNET, 81))?, "another port");
    ensure!(
        !from("work", What::Udp, at(INTERNET, 80))?,
        "another protocol"
    );
    ensure!(
        begun.elapsed() < Duration::from_millis(700),
        "it had to wait: {:?}",
        begun.elapsed()
    );
    load(h, &format!("{policy}masquerade = true\n"))?;
    h.arrived()?;
    ensure!(
        from("work", What::Tcp, at(INTERNET, 80))?,
        "not masqueraded"
    );
    let seen = h.arrived()?;
    ensure!(
        !seen.is_empty() && seen.iter().all(|p| p.from.ip() == NEAR),
        "{seen:?}"
    );
    // The host itself is not the zone's.
    hosts::serve(631)?;
    ensure!(
        !from("work", What::Tcp, "10.77.1.1:631".parse()?)?,
        "the host's own service"
    );
    // Nor does the internet come in by it.
    ensure!(
        !from("far", What::Tcp, "10.77.1.2:22".parse()?)?,
        "from outside"
    );
    // Taken out of the policy, an open connection ends, and so does what it answers.
    let flow = on("work", || hosts::send(0, What::Tcp, at(INTERNET, 80)))?;
    load(h, "[tor]\nusers = [\"4001\"]\n")?;
    h.arrived()?;
    let _ = hosts::write(&flow, b"on");
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

fn source(h: &mut Hosts) -> Result {
    guest("work", 1)?;
    commands("ip -n work addr add 10.77.1.3/24 dev g0")?;
    load(
        h,
        "[tor]\nusers = [\"4001\"]\n[zone.one]\nsource = \"10.77.1.2\"\nrules = [\"accept\"]\n",
    )?;
    let by =
        |last: u8| -> Result<bool> {
            Ok(on("work", || {
                let s = hosts::socket_of(0, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
                hosts::bind(&s, at(IpAddr::from([10, 77, 1, last]), 0))?;
                hosts::connect(&s, at(INTERNET, 53))?;
                let _ = hosts::write(&s, b"x");
                Ok(hosts::wait(&s, libc::POLLIN, Duration::from_millis(500))
                    && hosts::pending(&s) == 0)
            })?)
        };
    ensure!(by(2)?, "the zone's address");
    ensure!(!by(3)?, "another address");
    Ok(())
}

fn connected(h: &mut Hosts) -> Result {
    for (n, name) in ["work", "print", "play"].into_iter().enumerate() {
        guest(name, n as u8 + 1)?;
    }
    let zones = "[tor]\nusers = [\"4001\"]\n\
         [zone.work]\ninterface = \"ifwork\"\nrules = [\"accept\"]\n\
         [zone.print]\ninterface = \"ifprint\"\n\
         [zone.play]\ninterface = \"ifplay\"\nrules = [\"accept\"]\n";
    let to: SocketAddr = "10.77.2.2:631".parse()?;
    load(h, zones)?;
    // Accepting everything is for outside, not for other zones: not even one way.
    let (work, print) = (
        datagrams("work", "10.77.1.2:9999")?,
        datagrams("print", "10.77.2.2:9999")?,
    );
    ensure!(!hears(&work, &print, "10.77.2.2:9999")?, "one way");
    ensure!(!from("work", What::Tcp, to)?, "zones see each other");
    ensure!(
        from("work", What::Tcp, at(INTERNET, 80))?,
        "nothing outside"
    );
    load(
        h,
        &format!(
            "connect = [{{ from = \"work\", to = \"print\", rule = \"accept proto=tcp dstports=631\" }}]\n{zones}"
        ),
    )?;
    ensure!(from("work", What::Tcp, to)?, "not connected");
    ensure!(!from("work", What::Udp, to)?, "by another protocol");
    ensure!(
        !from("work", What::Tcp, "10.77.2.2:80".parse()?)?,
        "at another port"
    );
    ensure!(!from("play", What::Tcp, to)?, "from another zone");
    ensure!(
        !from("print", What::Tcp, "10.77.1.2:631".parse()?)?,
        "the other way round"
    );
    ensure!(!hears(&work, &print, "10.77.2.2:9999")?, "one way");
    let line = "connect = [{ from = \"work\", to = \"print\", rule = \"accept proto=udp\" }]\n";
    load(h, &format!("{line}{zones}"))?;
    ensure!(hears(&work, &print, "10.77.2.2:9999")?, "the test is blind");
    ensure!(hears(&print, &work, "10.77.1.2:9999")?, "no answers");
    // The other zone's interface is gone, and its addresses lead to the uplink: answers do not take that way.
    commands("ip link set ifwork down")?;
    h.arrived()?;
    let _ = print.send_to(b"answer", "10.77.1.2:9999");
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    commands("ip link set ifwork up")?;
    ensure!(hears(&print, &work, "10.77.1.2:9999")?, "the test is blind");
    // Taken back: what had answers to give gives them no more.
    load(h, zones)?;
    ensure!(!hears(&print, &work, "10.77.1.2:9999")?, "answers go on");
    let o = h.uwtctl("firewall check --file /etc/uwt/wrong.toml");
    std::fs::write(
        "/etc/uwt/wrong.toml",
        format!("connect = [{{ from = \"work\", to = \"nowhere\", rule = \"accept\" }}]\n{zones}"),
    )?;
    let o = o.run()?;
    ensure!(
        o.code() == 125 && o.err.contains("wrong.toml:1: there is no zone \"nowhere\""),
        "{o:#?}"
    );
    Ok(())
}

fn forwarded_in(h: &mut Hosts) -> Result {
    guest("web", 1)?;
    let zones = "[tor]\nusers = [\"4001\"]\n[zone.web]\ninterface = \"ifweb\"\n";
    load(h, zones)?;
    ensure!(
        !from("far", What::Tcp, "192.0.2.2:8080".parse()?)?,
        "before it is asked for"
    );
    load(
        h,
        &format!(
            "port_forward = [{{ interface = \"up0\", port = 8080, to = \"10.77.1.2\", to_port = 80 }}]\n{zones}"
        ),
    )?;
    ensure!(
        from("far", What::Tcp, "192.0.2.2:8080".parse()?)?,
        "not forwarded"
    );
    ensure!(
        !from("far", What::Tcp, "192.0.2.2:8081".parse()?)?,
        "another port"
    );
    ensure!(
        !from("far", What::Tcp, "10.77.1.2:80".parse()?)?,
        "past the forwarding"
    );
    ensure!(
        !from("web", What::Tcp, at(INTERNET, 80))?,
        "the zone gets out by it"
    );
    // Open connections end with the line.
    let flow = on("far", || {
        let s = hosts::send(
            0,
            What::Tcp,
            "192.0.2.2:8080".parse().map_err(std::io::Error::other)?,
        )?;
        hosts::wait(&s, libc::POLLOUT, Duration::from_secs(3));
        Ok(s)
    })?;
    load(h, zones)?;
    h.arrived()?;
    let _ = hosts::write(&flow, b"x");
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    load(
        h,
        &format!(
            "port_forward = [{{ interface = \"up0\", port = 8080, from = [\"192.168.0.0/16\"], to = \"10.77.1.2\", to_port = 80 }}]\n{zones}"
        ),
    )?;
    ensure!(
        !from("far", What::Tcp, "192.0.2.2:8080".parse()?)?,
        "from elsewhere"
    );
    Ok(())
}

fn within_vpn(h: &mut Hosts) -> Result {
    guest("work", 1)?;
    commands(
        "ip link add tun0 type veth peer name tunx\nip link set tunx up\nip addr add 10.8.0.2/24 dev tun0\nip link set tun0 up",
    )?;
    load(
        h,
        "profile = \"vpn\"\n[vpn]\ninterfaces = [\"tun0\"]\n[zone.alice]\nuser = \"4004\"\nrules = [\"accept\"]\n\
         [zone.work]\ninterface = \"ifwork\"\nrules = [\"accept\"]\n",
    )?;
    // Whatever a zone's rules accept, it goes by the tunnel or not at all.
    for what in [What::Tcp, What::Udp, What::Ping] {
        ensure!(
            !h.gets_out(ALICE, what, at(INTERNET, 80))?,
            "alice's {what:?} beside the tunnel"
        );
    }
    h.arrived()?;
    ensure!(
        !from("work", What::Tcp, at(INTERNET, 80))?,
        "work's beside the tunnel"
    );
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

/// The host's own resolver reads this file.
fn resolver(ip: &str) -> Result {
    std::fs::write(
        "/run/hosts",
        format!("127.0.0.1 localhost\n{ip} moving.example\n"),
    )?;
    if !std::path::Path::new("/run/hosts.mounted").exists() {
        commands("mount --bind /run/hosts /etc/hosts")?;
        std::fs::write("/run/hosts.mounted", "")?;
    }
    Ok(())
}

const SYSTEM: &str = "[names]\nresolver = \"system\"\nrefresh = 1\nkeep = 2\n";

fn names(h: &mut Hosts) -> Result {
    resolver("198.51.100.7")?;
    load(
        h,
        &format!(
            "{SYSTEM}{}",
            zone(&["accept proto=tcp dsthost=moving.example dstports=443"])
        ),
    )?;
    let (old, new) = (at(INTERNET, 443), at("198.51.100.77".parse()?, 443));
    ensure!(h.gets_out(ALICE, What::Tcp, old)?, "its address");
    ensure!(!h.gets_out(ALICE, What::Tcp, new)?, "another address");
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "another port"
    );
    let _watch = watch(h)?;
    resolver("198.51.100.77")?;
    until("the new address", || {
        Ok(h.gets_out(ALICE, What::Tcp, new)?)
    })?;
    until("the old one's end", || {
        Ok(!h.gets_out(ALICE, What::Tcp, old)?)
    })?;
    ensure!(h.gets_out(ALICE, What::Tcp, new)?, "the new one ended too");
    Ok(())
}

fn unresolved(h: &mut Hosts) -> Result {
    resolver("198.51.100.7")?;
    // A rule that accepts: nothing. The rest works.
    let warned = load(
        h,
        &format!(
            "{SYSTEM}{}",
            zone(&[
                "accept dsthost=nowhere.invalid",
                "accept proto=tcp dstports=80"
            ])
        ),
    )?;
    ensure!(
        warned.contains("nowhere.invalid could not be resolved"),
        "{warned}"
    );
    ensure!(
        h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "one bad name stops the rest"
    );
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET, 81))?,
        "a name that is nowhere lets through"
    );
    // A rule that drops: what it means is not known, so nothing behind it goes.
    load(
        h,
        &format!(
            "{SYSTEM}{}",
            zone(&["drop dsthost=nowhere.invalid", "accept"])
        ),
    )?;
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "past a rule that is not known"
    );
    load(
        h,
        &format!(
            "{SYSTEM}{}",
            zone(&["drop dsthost=moving.example", "accept"])
        ),
    )?;
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "what is dropped"
    );
    ensure!(h.gets_out(ALICE, What::Tcp, at(LAN, 80))?, "the rest");
    Ok(())
}

fn expiry(h: &mut Hosts) -> Result {
    let soon = epoch()? + 6;
    load(
        h,
        &zone(&[
            &format!("accept proto=tcp expire={soon}"),
            &format!("drop proto=udp expire={soon}"),
            "accept proto=udp",
        ]),
    )?;
    let (tcp, udp) = (at(INTERNET, 80), at(INTERNET, 80));
    ensure!(
        h.gets_out(ALICE, What::Tcp, tcp)?,
        "not let through in its time"
    );
    ensure!(
        !h.gets_out(ALICE, What::Udp, udp)?,
        "not stopped in its time"
    );
    let flow = hosts::send(ALICE, What::Tcp, tcp)?;
    ensure!(
        hosts::wait(&flow, libc::POLLOUT, Duration::from_secs(2)),
        "not connected"
    );
    until("expiry", || Ok(!h.gets_out(ALICE, What::Tcp, tcp)?))?;
    ensure!(epoch()? >= soon, "too early");
    h.arrived()?;
    let _ = hosts::write(&flow, b"on");
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "what was open goes on: {seen:?}");
    until("the drop's expiry", || {
        Ok(h.gets_out(ALICE, What::Udp, udp)?)
    })?;
    Ok(())
}

fn clock(h: &mut Hosts) -> Result {
    // The time that was seen last is far ahead: this clock has been set back, past the rule's end.
    let end = epoch()? + 3600;
    let rule = format!("accept proto=tcp expire={end}");
    load(h, &zone(&[&rule]))?;
    ensure!(
        h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "not let through in its time"
    );
    let kept = std::fs::read_to_string("/var/lib/uwt-firewall/kept.json")?;
    let at_clock = kept.find("\"clock\": ").ok_or("no clock")? + 9;
    let number: String = kept[at_clock..]
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let ahead = kept.replace(&number, &(end + 10).to_string());
    std::fs::write("/var/lib/uwt-firewall/kept.json", ahead)?;
    h.uwtctl("firewall apply").run()?.expect(0)?;
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "a clock set back revives a rule"
    );
    // The file for boot lets nothing through that has an end, until the watch has looked at the time.
    std::fs::write("/var/lib/uwt-firewall/kept.json", kept)?;
    h.uwtctl("firewall apply").run()?.expect(0)?;
    commands("/usr/sbin/nft -f /var/lib/uwt-firewall/boot.nft")?;
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "right after a boot"
    );
    let _watch = watch(h)?;
    until("the watch", || {
        Ok(h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?)
    })?;
    // Somebody takes it all away: what was filled in is filled in again, and not an hour later.
    commands("/usr/sbin/nft flush ruleset")?;
    until("the watch's rules", || {
        Ok(hosts::nft_list("list tables")?.contains("inet uwt"))
    })?;
    until("what was filled in", || {
        Ok(h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?)
    })?;
    Ok(())
}

fn many(h: &mut Hosts) -> Result {
    // 10,000 that cannot be merged: accept and drop in turns, each with a port of its own.
    let rules: Vec<String> = (0..10_000u32)
        .map(|n| {
            let action = if n % 2 == 0 { "accept" } else { "drop" };
            format!(
                "{action} proto=tcp dst4=10.9.{}.{} dstports={}",
                n / 250,
                n % 250,
                n + 1
            )
        })
        .collect();
    let mut rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    // What an earlier rule has said is said.
    rules.push("drop proto=tcp dst4=10.9.0.0 dstports=1");
    load(h, &zone(&rules))?;
    ensure!(
        h.gets_out(ALICE, What::Tcp, at("10.9.39.248".parse()?, 9999))?,
        "the last but one"
    );
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at("10.9.39.249".parse()?, 10_000))?,
        "the last"
    );
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at("10.9.39.248".parse()?, 9998))?,
        "another port"
    );
    ensure!(
        h.gets_out(ALICE, What::Tcp, at("10.9.0.0".parse()?, 1))?,
        "the first"
    );
    ensure!(h.gets_out(TOR, What::Tcp, at(INTERNET, 443))?, "Tor");
    Ok(())
}

fn command(h: &mut Hosts) -> Result {
    let policy =
        "# mine\n[tor]\nusers = [\"4001\"] # who\n\n[zone.alice] # a zone\nuser = \"4004\"\n";
    h.policy(policy)?;
    let out = h
        .uwtctl("firewall zone alice add accept proto=tcp dstports=80")
        .run()?
        .expect(0)?;
    ensure!(out.err.contains("the firewall is off"), "{out:#?}");
    h.uwtctl("firewall apply").run()?.expect(0)?;
    ensure!(
        h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "added before"
    );
    h.uwtctl("firewall zone alice add --before 0 drop dsthost=198.51.100.7")
        .run()?
        .expect(0)?;
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "in effect at once"
    );
    h.uwtctl("firewall zone alice add accept proto=udp expire=+600 comment=for now")
        .run()?
        .expect(0)?;
    ensure!(h.gets_out(ALICE, What::Udp, at(LAN, 80))?, "with an end");
    let list = h.uwtctl("firewall zone alice list").run()?.expect(0)?.out;
    let lines: Vec<&str> = list.lines().collect();
    ensure!(
        lines.len() == 5
            && lines[1] == "0   drop dst4=198.51.100.7"
            && lines[2] == "1   accept proto=tcp dstports=80"
            && lines[3].starts_with("2   accept proto=udp expire=")
            && lines[3].ends_with(" comment=for now")
            && lines[4] == "    drop (default)",
        "{list}"
    );
    let text = std::fs::read_to_string("/etc/uwt/firewall.toml")?;
    ensure!(
        text.starts_with("# mine\n") && text.contains("# who") && text.contains("# a zone"),
        "{text}"
    );
    h.uwtctl("firewall zone alice del --rule-no 0")
        .run()?
        .expect(0)?;
    ensure!(
        h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "deleted by number"
    );
    h.uwtctl("firewall zone alice del accept proto=tcp dstports=80")
        .run()?
        .expect(0)?;
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at(INTERNET, 80))?,
        "deleted by rule"
    );
    let before = std::fs::read_to_string("/etc/uwt/firewall.toml")?;
    for (words, says) in [
        ("alice del --rule-no 7", "has no rule 7"),
        ("alice del accept proto=tcp", "has no rule"),
        ("alice add accept dstports=80", "dstports needs proto"),
        (
            "alice add accept proto=tcp dstport=80",
            "did you mean \"dstports\"?",
        ),
        ("alice add reject", "accept"),
        ("nobody list", "there is no zone \"nobody\""),
        ("alice add --before 9 accept", "has no rule 9"),
    ] {
        let o = h.uwtctl(&format!("firewall zone {words}")).run()?;
        ensure!(o.code() == 125 && o.err.contains(says), "{words}: {o:#?}");
    }
    let after = std::fs::read_to_string("/etc/uwt/firewall.toml")?;
    ensure!(before == after, "a refused command changed the file");
    h.uwtctl("firewall zone alice reset").run()?.expect(0)?;
    let json = h
        .uwtctl("firewall zone alice list --json")
        .run()?
        .expect(0)?
        .out;
    ensure!(
        json.contains("\"rules\": []") && json.contains("\"default\": \"drop\""),
        "{json}"
    );
    ensure!(!h.gets_out(ALICE, What::Udp, at(LAN, 80))?, "after reset");
    Ok(())
}
