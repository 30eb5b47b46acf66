//! Profile `tor-host`: who gets out, what comes in, what loopback is for.

use crate::{ALICE, BOB, CLEAR, Result, TOR, World, ensure, load, test};
use libtest_mimic::Trial;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uwt_tests::hosts::{
    Fate, Hosts, INTERNET, INTERNET6, LAN, NEAR, UPLINK, What, answered, ask, commands, on, serve,
    serve_at,
};
use uwt_tests::run::Run;

pub(crate) fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        test(world, "tor-host: who gets out, by what, where to", who),
        test(world, "tor-host: real programs", programs),
        test(world, "tor-host: reachable_ports, and torrc's lines", ports),
        test(world, "tor-host: the local network, never its names", lan),
        test(world, "tor-host: IPv6, also after the link was down", ipv6),
        test(world, "tor-host: IPv6 where it is asked for", ipv6_on),
        test(world, "tor-host: DHCP where it is asked for", dhcp),
        test(
            world,
            "tor-host: raw sockets, on devices that come later too",
            raw,
        ),
        test(world, "tor-host: what comes in", incoming),
        test(world, "tor-host: ICMP that comes in", icmp_in),
        test(
            world,
            "tor-host: impossible flags, fragments, multicast",
            odd_packets,
        ),
        test(world, "tor-host: by the VPN alone", before_tor),
        test(world, "tor-host: relays of the consensus alone", relays),
        test(
            world,
            "tor-host: relays as a real Tor knows them",
            real_relays,
        ),
        test(world, "loopback: services for their users", loopback),
        test(
            world,
            "loopback: all of it closed but for what is named",
            loopback_closed,
        ),
        test(world, "redirects: mapped addresses", automap),
        test(world, "redirects: DNS of the host", dns),
        test(
            world,
            "redirects: transparent for listed users",
            transparent,
        ),
    ]
}

const WHO: &str = "
[tor]
users = [\"4001\"]
[clearnet]
users = [\"4002\"]
";

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn who(h: &mut Hosts) -> Result {
    const ALL: [What; 4] = [What::Tcp, What::Udp, What::Ping, What::Sctp];
    // Controls: without rules everything arrives.
    for what in ALL {
        for to in [INTERNET, LAN] {
            ensure!(
                h.gets_out(ALICE, what, at(to, 443))?,
                "{what:?} to {to} is not seen"
            );
        }
    }
    load(h, WHO)?;
    for (name, uid) in [
        ("tor", TOR),
        ("clearnet", CLEAR),
        ("alice", ALICE),
        ("root", 0),
    ] {
        for what in ALL {
            for to in [INTERNET, LAN] {
                let wanted = uid == CLEAR || (uid == TOR && what == What::Tcp);
                if uid == CLEAR && what == What::Sctp {
                    // Whether conntrack takes it for valid is the kernel's business.
                    continue;
                }
                let out = h.gets_out(uid, what, at(to, 443))?;
                ensure!(out == wanted, "{name}, {what:?} to {to}: out is {out}");
            }
        }
    }
    // And answers come back.
    ensure!(
        answered(TOR, What::Tcp, at(INTERNET, 9001))?,
        "Tor gets no answer"
    );
    ensure!(
        answered(CLEAR, What::Udp, at(INTERNET, 53))?,
        "clearnet gets no answer"
    );
    // Those that are refused know at once.
    let begun = Instant::now();
    let fate = ask(ALICE, What::Tcp, at(INTERNET, 443), Duration::from_secs(5))?;
    ensure!(fate == Fate::Refused(libc::ECONNREFUSED), "{fate:?}");
    let fate = ask(ALICE, What::Udp, at(INTERNET, 443), Duration::from_secs(5))?;
    ensure!(matches!(fate, Fate::Refused(_)), "{fate:?}");
    ensure!(begun.elapsed() < Duration::from_secs(4), "it had to wait");
    Ok(())
}

/// What this project's own sockets do not show: programs as users have them, run by other means.
fn programs(h: &mut Hosts) -> Result {
    let programs = [
        ("curl -sS -m 2 http://198.51.100.7/", 6),
        ("ping -n -c 1 -W 1 198.51.100.7", 1),
        (
            "python3 -c import\u{a0}socket;socket.socket(2,2).sendto(b'x',('198.51.100.7',53))",
            17,
        ),
    ];
    let out = |h: &mut Hosts, uid: u32| -> Result<Vec<bool>> {
        let mut all = Vec::new();
        for (line, protocol) in programs {
            let words: Vec<String> = line.split(' ').map(|w| w.replace('\u{a0}', " ")).collect();
            h.arrived()?;
            let run = Run::new("setpriv", std::path::Path::new("/tmp"))
                .args([
                    format!("--reuid={uid}"),
                    "--clear-groups".into(),
                    "--".into(),
                ])
                .args(&words);
            let _ = run.limit(Duration::from_secs(5)).run()?;
            all.push(
                h.arrived()?
                    .iter()
                    .any(|p| p.protocol == protocol && p.to.ip() == INTERNET),
            );
        }
        Ok(all)
    };
    let before = out(h, ALICE)?;
    ensure!(
        before == [true; 3],
        "not all are seen without rules: {before:?}"
    );
    load(h, WHO)?;
    let (alice, clear, tor) = (out(h, ALICE)?, out(h, CLEAR)?, out(h, TOR)?);
    ensure!(alice == [false; 3], "alice: {alice:?}");
    ensure!(clear == [true; 3], "clearnet: {clear:?}");
    ensure!(tor == [true, false, false], "Tor: {tor:?}");
    Ok(())
}

fn ports(h: &mut Hosts) -> Result {
    load(
        h,
        "[tor]\nusers = [\"4001\"]\nreachable_ports = [80, 443]\n",
    )?;
    for (port, wanted) in [(80, true), (443, true), (9001, false), (22, false)] {
        let out = h.gets_out(TOR, What::Tcp, at(INTERNET, port))?;
        ensure!(out == wanted, "port {port}: {out}");
    }
    let torrc = h.uwtctl("firewall render --torrc").run()?.expect(0)?.out;
    for line in [
        "ReachableDirAddresses *:80,*:443",
        "ReachableORAddresses *:80,*:443",
        "FirewallPorts 80,443",
    ] {
        ensure!(torrc.contains(line), "no {line:?} in {torrc}");
    }
    // Tor takes them.
    let file = std::env::temp_dir().join(format!("torrc-{}", std::process::id()));
    std::fs::write(&file, torrc)?;
    let o = Run::new("tor", std::path::Path::new("/tmp"))
        .args(["--verify-config", "--quiet", "-f"])
        .arg(&file)
        .run()?;
    std::fs::remove_file(&file)?;
    o.expect(0)?;
    Ok(())
}

fn lan(h: &mut Hosts) -> Result {
    load(h, &format!("{WHO}[lan]\nout = true\n"))?;
    for what in [What::Tcp, What::Udp, What::Ping] {
        ensure!(
            h.gets_out(ALICE, what, at(LAN, 445))?,
            "{what:?} does not reach the local network"
        );
        ensure!(
            !h.gets_out(ALICE, what, at(INTERNET, 445))?,
            "{what:?} reaches the internet"
        );
    }
    ensure!(answered(ALICE, What::Tcp, at(LAN, 445))?, "no answer");
    for port in [53, 137, 138, 139, 853, 5353, 5355] {
        for what in [What::Tcp, What::Udp] {
            ensure!(
                !h.gets_out(ALICE, what, at(LAN, port))?,
                "{what:?} {port} gets out"
            );
        }
    }
    // Nor does anything of the local network come in by itself: the other way round.
    for port in [53, 853, 5353, 445] {
        ensure!(!comes_in(h, What::Udp, LAN, port)?, "UDP {port} comes in");
        ensure!(!comes_in(h, What::Tcp, LAN, port)?, "TCP {port} comes in");
    }
    Ok(())
}

/// Whether what the far host sends from `from` is answered by a server here.
fn comes_in(_h: &mut Hosts, what: What, from: IpAddr, port: u16) -> Result<bool> {
    serve(port).or_else(|e| match e.raw_os_error() {
        Some(libc::EADDRINUSE) => Ok(()),
        _ => Err(e),
    })?;
    Ok(on("far", || {
        let family = libc::AF_INET;
        let kind = match what {
            What::Tcp => libc::SOCK_STREAM | libc::SOCK_NONBLOCK,
            _ => libc::SOCK_DGRAM,
        };
        let socket = uwt_tests::hosts::socket_of(0, family, kind, 0)?;
        uwt_tests::hosts::bind(&socket, SocketAddr::new(from, 0))?;
        let _ = uwt_tests::hosts::connect(&socket, SocketAddr::new(NEAR.into(), port));
        let limit = Duration::from_millis(800);
        if what == What::Tcp {
            let writable = uwt_tests::hosts::wait(&socket, libc::POLLOUT, limit);
            return Ok(writable && uwt_tests::hosts::pending(&socket) == 0);
        }
        uwt_tests::hosts::write(&socket, b"probe")?;
        Ok(uwt_tests::hosts::wait(&socket, libc::POLLIN, limit)
            && uwt_tests::hosts::pending(&socket) == 0)
    })?)
}

fn ipv6(h: &mut Hosts) -> Result {
    let to = at(INTERNET6, 443);
    ensure!(
        h.gets_out(ALICE, What::Udp, to)?,
        "IPv6 is not seen without rules"
    );
    load(h, WHO)?;
    for flap in [false, true] {
        if flap {
            commands(&format!(
                "ip link set {UPLINK} down
                 ip link set {UPLINK} up
                 ip -6 addr replace 2001:db8::2/64 dev {UPLINK} nodad
                 ip neigh replace 2001:db8::1 lladdr 02:00:00:00:00:01 dev {UPLINK} nud permanent
                 ip -6 route replace default via 2001:db8::1
                 ip route replace default via 192.0.2.1"
            ))?;
        }
        for uid in [TOR, CLEAR, ALICE, 0] {
            for what in [What::Tcp, What::Udp, What::Ping] {
                ensure!(
                    !h.gets_out(uid, what, to)?,
                    "uid {uid}, {what:?}, flap {flap}"
                );
            }
        }
        // The interface is up: the control goes on.
        ensure!(
            h.gets_out(TOR, What::Tcp, at(INTERNET, 443))?,
            "Tor does not get out"
        );
    }
    Ok(())
}

fn ipv6_on(h: &mut Hosts) -> Result {
    load(h, &format!("ipv6 = true\n{WHO}"))?;
    let to = at(INTERNET6, 443);
    ensure!(
        h.gets_out(TOR, What::Tcp, to)?,
        "Tor does not get out by IPv6"
    );
    ensure!(!h.gets_out(TOR, What::Udp, to)?, "Tor gets out by UDP");
    ensure!(
        h.gets_out(CLEAR, What::Udp, to)?,
        "clearnet does not get out by IPv6"
    );
    for what in [What::Tcp, What::Udp, What::Ping] {
        ensure!(!h.gets_out(ALICE, what, to)?, "alice gets out: {what:?}");
    }
    // With an extension header, sent raw: destination options of padding, then UDP.
    let raw = uwt_tests::hosts::socket_of(ALICE, libc::AF_INET6, libc::SOCK_RAW, 60)?;
    h.arrived()?;
    let _ = uwt_tests::hosts::connect(&raw, at(INTERNET6, 0));
    let _ = uwt_tests::hosts::write(&raw, &[17, 0, 1, 4, 0, 0, 0, 0, 0, 9, 0, 53, 0, 8, 0, 0]);
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

fn dhcp(h: &mut Hosts) -> Result {
    let ask = |h: &mut Hosts, uid: u32| -> Result<bool> {
        h.arrived()?;
        let socket = uwt_tests::hosts::socket_of(uid, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        uwt_tests::hosts::bind(&socket, at(NEAR.into(), 68))?;
        let _ = uwt_tests::hosts::connect(&socket, "192.0.2.1:67".parse()?);
        let _ = uwt_tests::hosts::write(&socket, b"discover");
        Ok(h.arrived()?.iter().any(|p| p.to.port() == 67))
    };
    load(h, WHO)?;
    ensure!(!ask(h, 0)?, "DHCP though it is not asked for");
    load(h, &format!("{WHO}[dhcp]\nout = true\n"))?;
    ensure!(ask(h, 0)?, "no DHCP though it is asked for");
    ensure!(!ask(h, ALICE)?, "alice as a DHCP client");
    Ok(())
}

fn raw(h: &mut Hosts) -> Result {
    // A UDP datagram as a whole frame, from a packet socket.
    let frame = |port: u16| {
        let mut f = vec![
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0,
        ];
        f.extend_from_slice(&NEAR.octets());
        f.extend_from_slice(&[198, 51, 100, 7]);
        let sum = checksum(&f[14..34]);
        f[24..26].copy_from_slice(&sum);
        f.extend_from_slice(&[0, 9]);
        f.extend_from_slice(&port.to_be_bytes());
        f.extend_from_slice(&[0, 12, 0, 0, 1, 2, 3, 4]);
        f
    };
    let leaves = |h: &mut Hosts, port: u16| -> Result<bool> {
        h.arrived()?;
        h.raw(&frame(port));
        Ok(h.arrived()?.iter().any(|p| p.to.port() == port))
    };
    load(h, WHO)?;
    ensure!(
        leaves(h, 4001)?,
        "a raw socket is not seen where it may send: the test is blind"
    );
    h.policy(&format!("raw_packets = \"drop\"\n{WHO}"))?;
    h.uwtctl("firewall apply").run()?.expect(0)?;
    // The tap's own marks are such packets, of a type that is let through for it.
    commands("/usr/sbin/nft insert rule netdev uwt egress meta protocol 0x88b5 accept")?;
    ensure!(!leaves(h, 4002)?, "a raw socket sends");
    ensure!(
        answered(TOR, What::Tcp, at(INTERNET, 443))?,
        "Tor does not get out"
    );
    ensure!(
        h.gets_out(CLEAR, What::Udp, at(INTERNET, 443))?,
        "clearnet does not get out"
    );
    ensure!(
        !h.gets_out(ALICE, What::Udp, at(INTERNET, 443))?,
        "alice gets out"
    );
    // A device that comes later is closed by the watch.
    let watch = crate::watch(h)?;
    commands("ip link add later0 type veth peer name later1")?;
    let end = Instant::now() + Duration::from_secs(10);
    while !uwt_tests::hosts::nft_list("list table netdev uwt")?.contains("later0") {
        ensure!(Instant::now() < end, "later0 is not closed");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Taken away by somebody, all of it or this table alone: there again.
    for how in ["flush ruleset", "delete table netdev uwt"] {
        commands(&format!("/usr/sbin/nft {how}"))?;
        let end = Instant::now() + Duration::from_secs(10);
        while !uwt_tests::hosts::nft_list("list tables")?.contains("netdev uwt") {
            ensure!(Instant::now() < end, "{how}: not loaded again");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    drop(watch);
    load(h, WHO)?;
    ensure!(leaves(h, 4003)?, "still stopped though it may send");
    // Tried and taken back: what the policy before lets out gets out.
    h.policy(&format!("raw_packets = \"drop\"\n{WHO}"))?;
    h.uwtctl("firewall apply --confirm 1").run()?.expect(1)?;
    ensure!(
        answered(TOR, What::Tcp, at(INTERNET, 443))?,
        "Tor is cut off"
    );
    ensure!(leaves(h, 4004)?, "raw packets are still stopped");
    Ok(())
}

fn incoming(h: &mut Hosts) -> Result {
    ensure!(
        comes_in(h, What::Tcp, INTERNET, 8001)?,
        "nothing comes in without rules"
    );
    load(h, WHO)?;
    for (what, port) in [(What::Tcp, 8001), (What::Udp, 8001), (What::Tcp, 8002)] {
        ensure!(
            !comes_in(h, what, INTERNET, port)?,
            "{what:?} {port} comes in"
        );
    }
    load(
        h,
        &format!(
            "{WHO}
            [[incoming]]\nname = \"web\"\nports = [8001, \"8010-8012\"]\n
            [[incoming]]\nname = \"near\"\nproto = \"udp\"\nports = [8003]\nfrom = [\"192.168.0.0/16\"]\n
            [[incoming]]\nname = \"elsewhere\"\nports = [8004]\ninterfaces = [\"wlan*\"]\n"
        ),
    )?;
    for (what, from, port, wanted) in [
        (What::Tcp, INTERNET, 8001, true),
        (What::Tcp, INTERNET, 8011, true),
        (What::Udp, INTERNET, 8001, false),
        (What::Tcp, INTERNET, 8002, false),
        (What::Udp, LAN, 8003, true),
        (What::Udp, INTERNET, 8003, false),
        (What::Tcp, INTERNET, 8004, false),
    ] {
        let came = comes_in(h, what, from, port)?;
        ensure!(came == wanted, "{what:?} from {from} to {port}: {came}");
    }
    // Who has such a port gets no way out by it.
    let socket = uwt_tests::hosts::socket_of(ALICE, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    uwt_tests::hosts::bind(&socket, at(NEAR.into(), 8012))?;
    h.arrived()?;
    let _ = uwt_tests::hosts::connect(&socket, at(INTERNET, 53));
    let _ = uwt_tests::hosts::write(&socket, b"out");
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    let status = h.uwtctl("firewall status").run()?.expect(0)?.out;
    ensure!(
        status.contains("tcp 8001 of root: web, firewall.toml:") && !status.contains("tcp 8002 of"),
        "{status}"
    );
    Ok(())
}

fn icmp_in(h: &mut Hosts) -> Result {
    let ping = |_h: &mut Hosts| -> Result<bool> {
        Ok(on("far", || {
            let out = std::process::Command::new("ping")
                .args(["-n", "-c", "1", "-W", "1", "192.0.2.2"])
                .output()?;
            Ok(out.status.success())
        })?)
    };
    ensure!(ping(h)?, "no ping without rules");
    load(h, WHO)?;
    ensure!(!ping(h)?, "a ping comes in");
    load(
        h,
        &format!("{WHO}[[incoming]]\nname = \"ping\"\nproto = \"icmp\"\n"),
    )?;
    ensure!(ping(h)?, "no ping though it is let in");

    // "Fragmentation needed" about datagrams of a clearnet user: whether it is believed shows in the path's MTU.
    let mtu = |h: &mut Hosts, policy: &str, last: u8| -> Result<i32> {
        load(h, policy)?;
        let to = at(IpAddr::from([198, 51, 100, last]), 443);
        let socket = uwt_tests::hosts::send(CLEAR, What::Udp, to)?;
        uwt_tests::hosts::wait(&socket, libc::POLLIN, Duration::from_secs(3));
        let local = std::net::UdpSocket::from(socket.try_clone()?)
            .local_addr()?
            .port();
        on("far", || too_big(to, local))?;
        // What came before has been looked at when this arrives; a datagram that is too big says so by itself.
        h.arrived()?;
        let _ = uwt_tests::hosts::write(&socket, b"x");
        path_mtu(&socket)
    };
    let closed = mtu(h, WHO, 31)?;
    ensure!(closed == 1500, "believed though not let in: {closed}");
    let open = mtu(h, &format!("fragmentation_needed = true\n{WHO}"), 32)?;
    ensure!(open == 1300, "not let in: {open}");
    Ok(())
}

fn path_mtu(socket: &std::os::fd::OwnedFd) -> Result<i32> {
    use std::os::fd::AsRawFd;
    let mut mtu: libc::c_int = 0;
    let mut len = 4;
    // SAFETY: both live through the call.
    let r = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU,
            (&raw mut mtu).cast(),
            &raw mut len,
        )
    };
    ensure!(r == 0, "IP_MTU: {}", std::io::Error::last_os_error());
    Ok(mtu)
}

fn checksum(data: &[u8]) -> [u8; 2] {
    let mut sum: u32 = data
        .chunks(2)
        .map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Sends "fragmentation needed, MTU 1300" (RFC 1191) about the connection to `to`, from a router.
fn too_big(to: SocketAddr, local: u16) -> std::io::Result<()> {
    let IpAddr::V4(far) = to.ip() else {
        return Ok(());
    };
    let mut inner = vec![0x45, 0, 5, 220, 0, 1, 0x40, 0, 63, 17, 0, 0];
    inner.extend_from_slice(&NEAR.octets());
    inner.extend_from_slice(&far.octets());
    let sum = checksum(&inner);
    inner[10..12].copy_from_slice(&sum);
    inner.extend_from_slice(&local.to_be_bytes());
    inner.extend_from_slice(&to.port().to_be_bytes());
    inner.extend_from_slice(&[5, 200, 0, 0]);
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend_from_slice(&1300u16.to_be_bytes());
    icmp.extend_from_slice(&inner);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let raw = uwt_tests::hosts::socket_of(0, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    uwt_tests::hosts::bind(&raw, SocketAddr::new(IpAddr::from([198, 51, 100, 254]), 0))?;
    uwt_tests::hosts::connect(&raw, SocketAddr::new(NEAR.into(), 0))?;
    uwt_tests::hosts::write(&raw, &icmp)
}

fn odd_packets(h: &mut Hosts) -> Result {
    load(
        h,
        &format!("{WHO}[[incoming]]\nname = \"web\"\nports = [8001]\n"),
    )?;
    serve(8001)?;
    // Flags that no honest SYN has, to the port that is open; a raw socket on the far side.
    let mut answers = Vec::new();
    for flags in [0x03u8, 0x06, 0x05, 0x00, 0x3f, 0x29] {
        h.arrived()?;
        on("far", || {
            let mut tcp = vec![
                0x9c, 0x41, 0x1f, 0x41, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0x20, 0, 0, 0, 0, 0,
            ];
            let pseudo = [&[198, 51, 100, 254][..], &NEAR.octets(), &[0, 6, 0, 20]].concat();
            let sum = checksum(&[&pseudo[..], &tcp].concat());
            tcp[16..18].copy_from_slice(&sum);
            let raw =
                uwt_tests::hosts::socket_of(0, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP)?;
            uwt_tests::hosts::bind(&raw, SocketAddr::new(IpAddr::from([198, 51, 100, 254]), 0))?;
            uwt_tests::hosts::connect(&raw, SocketAddr::new(NEAR.into(), 0))?;
            uwt_tests::hosts::write(&raw, &tcp)
        })?;
        answers.extend(h.arrived()?);
    }
    ensure!(answers.is_empty(), "answered: {answers:?}");
    let status = h.uwtctl("firewall status").run()?.expect(0)?.out;
    let counted: u64 = status
        .lines()
        .filter(|l| l.contains("stopped: impossible flags") || l.contains("stopped: invalid"))
        .filter_map(|l| l.split_whitespace().find_map(|w| w.parse::<u64>().ok()))
        .sum();
    ensure!(counted >= 6, "{counted} counted: {status}");
    // A datagram in fragments, and multicast and broadcast.
    for (what, to) in [
        ("multicast", at(IpAddr::from([224, 0, 0, 251]), 5353)),
        ("broadcast", at(IpAddr::from([192, 0, 2, 255]), 137)),
        ("fragments", at(INTERNET, 4444)),
    ] {
        h.arrived()?;
        let socket = uwt_tests::hosts::socket_of(ALICE, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        use std::os::fd::AsRawFd;
        let one: libc::c_int = 1;
        // SAFETY: the number lives through the call.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BROADCAST,
                (&raw const one).cast(),
                4,
            );
        }
        let _ = uwt_tests::hosts::connect(&socket, to);
        let _ = uwt_tests::hosts::write(&socket, &[7; 4000]);
        // What joins a group: IGMP.
        let _ =
            std::net::UdpSocket::from(socket).join_multicast_v4(&[224, 0, 0, 251].into(), &NEAR);
        let seen = h.arrived()?;
        ensure!(seen.is_empty(), "{what}: {seen:?}");
    }
    Ok(())
}

fn before_tor(h: &mut Hosts) -> Result {
    commands(
        "ip link add tun0 type veth peer name tun0x\nip link set tun0x up\nip addr add 10.250.0.2/24 dev tun0\nip link set tun0 up\nip route add 198.51.100.0/24 dev tun0",
    )?;
    load(
        h,
        "[tor]\nusers = [\"4001\"]\ninterfaces = [\"tun0\"]\n[vpn]\nservers = [\"203.0.113.5:1194/udp\"]\nusers = [\"4003\"]\n",
    )?;
    // The way into the tunnel is open: its counter says so. Nothing of it arrives on the far side.
    ensure!(
        !h.gets_out(TOR, What::Tcp, at(INTERNET, 443))?,
        "Tor beside the tunnel"
    );
    let status = h.uwtctl("firewall status").run()?.expect(0)?.out;
    let line = status
        .lines()
        .find(|l| l.contains("let out: Tor"))
        .unwrap_or("");
    ensure!(
        !line.trim_start().starts_with("let through         0") && !line.contains("    0  "),
        "{status}"
    );
    ensure!(
        h.gets_out(crate::VPN, What::Udp, at("203.0.113.5".parse()?, 1194))?,
        "no VPN"
    );
    ensure!(
        !h.gets_out(TOR, What::Tcp, at("203.0.113.5".parse()?, 443))?,
        "a guard at the VPN's address"
    );
    commands("ip link del tun0")?;
    for uid in [TOR, crate::VPN, ALICE] {
        ensure!(
            !h.gets_out(uid, What::Tcp, at(INTERNET, 443))?,
            "uid {uid} beside the tunnel"
        );
    }
    Ok(())
}

fn relays(h: &mut Hosts) -> Result {
    let policy = |file: &str, which: &str| {
        format!(
            "[tor]\nusers = [\"4001\"]\nrelays = \"{which}\"\naddresses = [\"198.51.100.200:443/tcp\"]\n\
             control_port = \"/nowhere\"\ndata_directory = \"{file}\"\n"
        )
    };
    let folder = std::path::PathBuf::from("/run/tor-data");
    std::fs::create_dir_all(&folder)?;
    let write = |until: &str| -> std::io::Result<()> {
        std::fs::write(
            folder.join("cached-microdesc-consensus"),
            format!(
                "network-status-version 3 microdesc\nvalid-after 2020-01-01 00:00:00\nvalid-until {until}\n\
                 r one AAAAAAAAAAAAAAAAAAAAAAAAAAA 2020-01-01 00:00:00 198.51.100.11 9001 0\ns Fast Guard Running Valid V2Dir\n\
                 r two AAAAAAAAAAAAAAAAAAAAAAAAAAA 2020-01-01 00:00:00 198.51.100.12 9002 0\ns Fast Running Valid\n\
                 r off AAAAAAAAAAAAAAAAAAAAAAAAAAA 2020-01-01 00:00:00 198.51.100.13 9003 0\ns Fast Valid\n"
            ),
        )
    };
    let out = |h: &mut Hosts| -> Result<Vec<bool>> {
        let mut all = Vec::new();
        for (last, port) in [
            (11, 9001),
            (12, 9002),
            (13, 9003),
            (11, 9002),
            (200, 443),
            (7, 443),
        ] {
            let to = at(IpAddr::from([198, 51, 100, last]), port);
            all.push(h.gets_out(TOR, What::Tcp, to)?);
        }
        Ok(all)
    };
    let data = folder.display().to_string();
    // No consensus: closed, but for what is named.
    let warned = load(h, &policy(&data, "consensus"))?;
    ensure!(warned.contains("relays: none"), "{warned}");
    let seen = out(h)?;
    ensure!(
        seen == [false, false, false, false, true, false],
        "no consensus: {seen:?}"
    );
    write("2999-01-01 00:00:00")?;
    load(h, &policy(&data, "consensus"))?;
    let seen = out(h)?;
    ensure!(
        seen == [true, true, false, false, true, false],
        "consensus: {seen:?}"
    );
    load(h, &policy(&data, "guards"))?;
    let seen = out(h)?;
    ensure!(
        seen == [true, false, false, false, true, false],
        "guards: {seen:?}"
    );
    // Stale: closed again.
    write("2021-01-01 00:00:00")?;
    load(h, &policy(&data, "consensus"))?;
    let seen = out(h)?;
    ensure!(
        seen == [false, false, false, false, true, false],
        "stale: {seen:?}"
    );
    // No other user gets there.
    write("2999-01-01 00:00:00")?;
    load(h, &policy(&data, "consensus"))?;
    ensure!(
        !h.gets_out(ALICE, What::Tcp, at("198.51.100.11".parse()?, 9001))?,
        "alice reaches a relay"
    );
    Ok(())
}

/// The private network's consensus, by the control port and by the data directory, in both flavours; and names by RESOLVE.
fn real_relays(h: &mut Hosts) -> Result {
    if !uwt_tests::bed::has("tor") {
        return Err(crate::Stop::Skipped("tor is not installed".into()));
    }
    uwt_tests::dns::listen("127.0.0.1:53")?;
    uwt_tests::http::listen(uwt_tests::tornet::WEB, None)?;
    let folder = h.scratch("tor-for-relays");
    let _tor = uwt_tests::tornet::Network::start(&folder)?;
    let policy = |control: &str, data: &str| {
        format!(
            "[tor]\nusers = [\"4001\"]\nrelays = \"consensus\"\ncontrol_port = \"{control}\"\ndata_directory = \"{data}\"\n"
        )
    };
    let relays = || -> Result<Vec<String>> {
        let set = uwt_tests::hosts::nft_list("list set inet uwt relays4")?;
        let words = set.split(['{', ',', '}']).filter(|w| w.contains("timeout"));
        let mut all: Vec<String> = words
            .filter_map(|w| w.split("timeout").next().map(|w| w.trim().to_owned()))
            .filter(|w| w.starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        all.sort();
        Ok(all)
    };
    // Its cookie is root's: not one of a Tor user that the policy names, so it is not sent to whoever asks for it.
    let warned = load(h, &policy(uwt_tests::tornet::CONTROL, "/nowhere"))?;
    ensure!(
        warned.contains("is no cookie of a user in tor.users"),
        "{warned}"
    );
    let cookie = folder.join("client/control_auth_cookie");
    std::os::unix::fs::chown(&cookie, Some(TOR), None)?;
    load(h, &policy(uwt_tests::tornet::CONTROL, "/nowhere"))?;
    let by_control = relays()?;
    ensure!(
        by_control.len() >= 3 && by_control.iter().all(|r| r.starts_with("127.0.0.1 . ")),
        "{by_control:?}"
    );
    load(
        h,
        &policy("/nowhere", &folder.join("client").display().to_string()),
    )?;
    let by_file = relays()?;
    ensure!(by_file == by_control, "{by_file:?}, {by_control:?}");
    let status = h.uwtctl("firewall status").run()?.expect(0)?.out;
    ensure!(
        status.contains(&format!("{} relays, for ", by_file.len())),
        "{status}"
    );
    // A rule's name, asked of this Tor.
    load(
        h,
        "[tor]\nusers = [\"4001\"]\n[zone.alice]\nuser = \"4004\"\nrules = [\"accept dsthost=www.example\"]\n",
    )?;
    let set = uwt_tests::hosts::nft_list("list set inet uwt host_0_4")?;
    ensure!(set.contains("timeout 15m"), "{set}");
    Ok(())
}

/// Whether `uid` reaches a server on loopback, and that a refusal is not waited for.
fn local(uid: u32, what: What, to: &str) -> Result<bool> {
    let begun = Instant::now();
    let fate = ask(uid, what, to.parse()?, Duration::from_secs(3))?;
    ensure!(
        begun.elapsed() < Duration::from_secs(2),
        "{to}: {fate:?} after {:?}",
        begun.elapsed()
    );
    Ok(fate == Fate::Answered)
}

fn loopback(h: &mut Hosts) -> Result {
    for port in [9050, 9051, 631] {
        serve(port)?;
    }
    load(
        h,
        &format!(
            "{WHO}
            [[loopback.service]]\nname = \"ControlPort\"\nports = [9051]\nusers = [\"0\", \"4004\"]\n
            [[loopback.service]]\nname = \"nobody's\"\nproto = \"udp\"\nports = [631]\nusers = []\n"
        ),
    )?;
    for (uid, what, to, wanted) in [
        (ALICE, What::Tcp, "127.0.0.1:9050", true),
        (BOB, What::Tcp, "127.0.0.1:9050", true),
        (ALICE, What::Tcp, "127.0.0.1:9051", true),
        (0, What::Tcp, "127.0.0.1:9051", true),
        (BOB, What::Tcp, "127.0.0.1:9051", false),
        (BOB, What::Tcp, "127.0.0.9:9051", false),
        (BOB, What::Tcp, "[::1]:9051", false),
        (ALICE, What::Tcp, "[::1]:9051", true),
        // The host's own address is loopback too.
        (BOB, What::Tcp, "192.0.2.2:9051", false),
        (ALICE, What::Udp, "127.0.0.1:631", false),
        (ALICE, What::Tcp, "127.0.0.1:631", true),
        (CLEAR, What::Tcp, "127.0.0.1:9050", false),
        (CLEAR, What::Udp, "127.0.0.1:9050", false),
        (CLEAR, What::Tcp, "[::1]:9050", false),
    ] {
        let reached = local(uid, what, to)?;
        ensure!(reached == wanted, "uid {uid}, {what:?} {to}: {reached}");
    }
    Ok(())
}

fn loopback_closed(h: &mut Hosts) -> Result {
    for port in [9050, 631] {
        serve(port)?;
    }
    load(
        h,
        &format!(
            "{WHO}[loopback]\nothers = \"drop\"\n[[loopback.service]]\nname = \"SocksPort\"\nports = [9050]\nusers = [\"4004\"]\n"
        ),
    )?;
    ensure!(
        local(ALICE, What::Tcp, "127.0.0.1:9050")?,
        "alice does not reach the SocksPort"
    );
    ensure!(
        !local(BOB, What::Tcp, "127.0.0.1:9050")?,
        "bob reaches the SocksPort"
    );
    ensure!(
        !local(ALICE, What::Tcp, "127.0.0.1:631")?,
        "alice reaches what is not named"
    );
    ensure!(
        !local(0, What::Tcp, "127.0.0.1:631")?,
        "root reaches what is not named"
    );
    // Many connections, closed by either side: their last packets have no user, and are not stopped.
    let mut to = Vec::new();
    for _ in 0..50 {
        let socket = uwt_tests::hosts::send(ALICE, What::Tcp, "127.0.0.1:9050".parse()?)?;
        uwt_tests::hosts::wait(&socket, libc::POLLOUT, Duration::from_secs(2));
        let mut stream = TcpStream::from(socket);
        stream.set_nonblocking(false)?;
        stream.write_all(b"bye")?;
        to.push(stream);
    }
    drop(to);
    let status = h.uwtctl("firewall status").run()?.expect(0)?.out;
    ensure!(
        !status.contains("uid 4004 to 127.0.0.1, tcp 9050"),
        "{status}"
    );
    Ok(())
}

fn automap(h: &mut Hosts) -> Result {
    serve(9040)?;
    load(h, &format!("{WHO}[automap]\nusers = [\"4004\"]\n"))?;
    ensure!(
        local(ALICE, What::Tcp, "127.192.0.10:80")?,
        "alice's does not reach TransPort"
    );
    for uid in [BOB, CLEAR, 0] {
        ensure!(
            !local(uid, What::Tcp, "127.192.0.10:80")?,
            "uid {uid} reaches TransPort"
        );
        ensure!(
            !local(uid, What::Tcp, "127.0.0.1:9040")?,
            "uid {uid} reaches TransPort itself"
        );
    }
    // Refused soon: programs do not wait for it.
    let begun = Instant::now();
    local(BOB, What::Tcp, "127.192.0.10:80")?;
    ensure!(
        begun.elapsed() < Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    let torrc = h.uwtctl("firewall render --torrc").run()?.expect(0)?.out;
    ensure!(
        torrc.contains("TransPort 9040") && torrc.contains("VirtualAddrNetworkIPv4 127.192.0.0/10"),
        "{torrc}"
    );
    Ok(())
}

fn dns(h: &mut Hosts) -> Result {
    serve_at("127.0.0.1:5353".parse()?)?;
    load(h, WHO)?;
    ensure!(!local(ALICE, What::Udp, "192.0.2.1:53")?, "DNS gets out");
    load(h, &format!("{WHO}[dns]\nredirect = true\n"))?;
    for (what, to) in [
        (What::Udp, "192.0.2.1:53"),
        (What::Tcp, "192.0.2.1:53"),
        (What::Udp, "127.0.0.53:53"),
    ] {
        h.arrived()?;
        ensure!(
            local(ALICE, what, to)?,
            "{what:?} {to} does not reach DNSPort"
        );
        ensure!(h.arrived()?.is_empty(), "{what:?} {to} left the host");
    }
    // Tor itself would go round in circles.
    ensure!(
        !answered(TOR, What::Udp, "192.0.2.1:53".parse()?)?,
        "Tor's own is redirected"
    );
    Ok(())
}

fn transparent(h: &mut Hosts) -> Result {
    serve(9040)?;
    serve_at("127.0.0.1:5353".parse()?)?;
    load(
        h,
        &format!("{WHO}[transparent]\ntcp_users = [\"4004\"]\ndns_users = [\"4005\"]\n"),
    )?;
    let web = at(INTERNET, 80);
    let resolver = at(INTERNET, 53);
    h.arrived()?;
    ensure!(
        answered(ALICE, What::Tcp, web)?,
        "alice's TCP does not reach TransPort"
    );
    ensure!(
        answered(BOB, What::Udp, resolver)?,
        "bob's DNS does not reach DNSPort"
    );
    // Each alone: switched separately.
    ensure!(
        !answered(ALICE, What::Udp, resolver)?,
        "alice's DNS is redirected"
    );
    ensure!(!answered(BOB, What::Tcp, web)?, "bob's TCP is redirected");
    ensure!(
        !answered(ALICE, What::Udp, at(INTERNET, 443))?,
        "alice's UDP goes somewhere"
    );
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    // A server of this host is reached as always.
    let listener = TcpListener::bind(("192.0.2.2", 8077))?;
    let fate = ask(
        ALICE,
        What::Tcp,
        listener.local_addr()?,
        Duration::from_millis(300),
    )?;
    ensure!(!matches!(fate, Fate::Refused(_)), "{fate:?}");
    Ok(())
}
