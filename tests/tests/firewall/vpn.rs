//! Profile `vpn`: out by the tunnel, and by nothing else, whatever becomes of it.

use crate::{ALICE, BOB, Result, Stop, TOR, VPN, World, daemon, ensure, load, test, until};
use libtest_mimic::Trial;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::hosts::{
    self, Hosts, INTERNET, INTERNET6, LAN, What, answered, commands, namespace, on,
};
use uwt_tests::run::Run;

pub(crate) fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        test(world, "vpn: who gets out, by which way", who),
        test(
            world,
            "vpn: the tunnel goes down and comes back, open connections too",
            down,
        ),
        test(world, "vpn: a Tor guard at the server's address", shared),
        test(
            world,
            "vpn: the tunnel's address asked for from the link",
            probed,
        ),
        test(world, "vpn: two tunnels, the local network", two),
        test(world, "vpn: forwarding into the tunnel alone", forwarding),
        test(world, "vpn: OpenVPN's own tun", openvpn),
        test(world, "vpn: WireGuard's own wg, by its mark", wireguard),
        test(world, "vpn: a log prefix for each direction", prefixes),
    ]
}

const POLICY: &str = "profile = \"vpn\"\n[vpn]\ninterfaces = [\"tun*\"]\nservers = [\"203.0.113.5:1194/udp\"]\nusers = [\"4003\"]\n[tor]\nusers = [\"4001\"]\n";

/// A tunnel to a namespace `exit`, which answers everything: a cable in the place of one.
fn tunnel(name: &str, n: u8) -> Result {
    let exit = format!("exit{n}");
    if !std::path::Path::new(&format!("/run/netns/{exit}")).exists() {
        namespace(&exit)?;
        on(&exit, || {
            hosts::nft(
                "table inet far { chain anything { type nat hook prerouting priority -100; policy accept;\n iifname \"t*\" meta l4proto { tcp, udp } redirect to :7\n }\n }\n",
            )?;
            hosts::serve(7)
        })?;
    }
    commands(&format!(
        "ip link add {name} type veth peer name t{n} netns {exit}
         ip addr add 10.250.{n}.2/24 dev {name}
         ip link set {name} up
         ip -n {exit} addr add 10.250.{n}.1/24 dev t{n}
         ip -n {exit} link set t{n} up
         ip -n {exit} route replace local 198.51.100.0/24 dev lo
         ip -n {exit} route replace local 203.0.113.0/24 dev lo
         ip route replace 198.51.100.0/24 via 10.250.{n}.1"
    ))?;
    Ok(())
}

fn at(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port))
}

fn who(h: &mut Hosts) -> Result {
    tunnel("tun0", 0)?;
    load(h, POLICY)?;
    let web = SocketAddr::new(INTERNET, 443);
    for uid in [ALICE, TOR, VPN, 0] {
        for what in [What::Tcp, What::Udp] {
            ensure!(
                answered(uid, what, web)?,
                "uid {uid}, {what:?}: not by the tunnel"
            );
        }
    }
    let server = at("203.0.113.5", 1194)?;
    ensure!(
        h.gets_out(VPN, What::Udp, server)?,
        "the client does not reach its server"
    );
    ensure!(!h.gets_out(VPN, What::Tcp, server)?, "by another protocol");
    ensure!(
        !h.gets_out(VPN, What::Udp, at("203.0.113.5", 53)?)?,
        "at another port"
    );
    ensure!(
        !h.gets_out(VPN, What::Udp, at("203.0.113.6", 1194)?)?,
        "at another address"
    );
    for uid in [ALICE, TOR, 0] {
        ensure!(
            !h.gets_out(uid, What::Udp, server)?,
            "uid {uid} reaches the server"
        );
    }
    for uid in [ALICE, VPN, 0] {
        for what in [What::Tcp, What::Udp, What::Ping] {
            ensure!(
                !h.gets_out(uid, what, SocketAddr::new(LAN, 445))?,
                "uid {uid} reaches the local network"
            );
            ensure!(
                !h.gets_out(uid, what, SocketAddr::new(INTERNET6, 443))?,
                "uid {uid} gets out by IPv6"
            );
        }
    }
    Ok(())
}

fn down(h: &mut Hosts) -> Result {
    tunnel("tun0", 0)?;
    load(h, POLICY)?;
    let web = SocketAddr::new(INTERNET, 443);
    let tcp = hosts::send(ALICE, What::Tcp, web)?;
    ensure!(
        hosts::wait(&tcp, libc::POLLOUT, Duration::from_secs(3)),
        "not connected"
    );
    let udp = hosts::send(ALICE, What::Udp, web)?;
    let client = hosts::send(VPN, What::Udp, at("203.0.113.5", 1194)?)?;
    // Gone: all routes lead to the uplink now.
    commands("ip link del tun0")?;
    h.arrived()?;
    for _ in 0..3 {
        let _ = hosts::write(&tcp, b"more");
        let _ = hosts::write(&udp, b"more");
    }
    for uid in [ALICE, TOR, VPN, 0] {
        for what in [What::Tcp, What::Udp, What::Ping] {
            ensure!(!h.gets_out(uid, what, web)?, "uid {uid}, {what:?}");
        }
    }
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    hosts::write(&client, b"still there")?;
    ensure!(!h.arrived()?.is_empty(), "the client cannot come back");
    // Made again: it carries again, with no rule loaded anew.
    tunnel("tun1", 0)?;
    ensure!(answered(ALICE, What::Tcp, web)?, "not by the new tunnel");
    Ok(())
}

fn shared(h: &mut Hosts) -> Result {
    tunnel("tun0", 0)?;
    load(h, &POLICY.replace(":1194/udp", ""))?;
    for uid in [TOR, ALICE, 0] {
        for port in [443, 9001, 1194] {
            ensure!(
                !h.gets_out(uid, What::Tcp, at("203.0.113.5", port)?)?,
                "uid {uid} reaches {port}"
            );
        }
    }
    // Through the tunnel it may.
    commands("ip route add 203.0.113.5/32 via 10.250.0.1")?;
    ensure!(
        answered(TOR, What::Tcp, at("203.0.113.5", 443)?)?,
        "not by the tunnel either"
    );
    // Without anybody to reach it, a server is a mistake.
    h.policy(&POLICY.replace("users = [\"4003\"]\n[tor]", "[tor]"))?;
    let o = h.uwtctl("firewall check").run()?;
    ensure!(
        o.code() == 125 && o.err.contains("servers without users"),
        "{o:#?}"
    );
    Ok(())
}

/// CVE-2019-14899: an answer for the tunnel's address says that somebody has it.
fn probed(h: &mut Hosts) -> Result {
    tunnel("tun0", 0)?;
    let probe = |h: &mut Hosts| -> Result<bool> {
        let _ = hosts::serve(8001);
        h.arrived()?;
        on("far", || {
            commands("ip route replace 10.250.0.0/24 via 192.0.2.2")?;
            let s = hosts::socket_of(0, libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
            let _ = hosts::connect(&s, SocketAddr::new([10, 250, 0, 2].into(), 8001));
            hosts::wait(&s, libc::POLLOUT, Duration::from_millis(300));
            Ok(())
        })?;
        Ok(h.arrived()?
            .iter()
            .any(|p| p.from.ip().to_string() == "10.250.0.2"))
    };
    ensure!(probe(h)?, "no answer without rules: the test is blind");
    load(
        h,
        &format!("{POLICY}[[incoming]]\nname = \"web\"\nports = [8001]\n"),
    )?;
    ensure!(!probe(h)?, "answered from the link");
    // By the tunnel itself it may come in.
    ensure!(
        on("exit0", || {
            let s = hosts::socket_of(0, libc::AF_INET, libc::SOCK_STREAM, 0)?;
            Ok(hosts::connect(&s, SocketAddr::new([10, 250, 0, 2].into(), 8001)).is_ok())
        })?,
        "not by the tunnel either"
    );
    Ok(())
}

fn two(h: &mut Hosts) -> Result {
    tunnel("tun0", 0)?;
    tunnel("wg0", 1)?;
    let policy = POLICY.replace("\"tun*\"", "\"tun*\", \"wg0\"");
    load(h, &format!("{policy}[lan]\nout = true\n"))?;
    let web = SocketAddr::new(INTERNET, 443);
    ensure!(answered(ALICE, What::Tcp, web)?, "not by the second");
    commands("ip route replace 198.51.100.0/24 via 10.250.0.1")?;
    ensure!(answered(ALICE, What::Tcp, web)?, "not by the first");
    ensure!(
        answered(ALICE, What::Tcp, SocketAddr::new(LAN, 445))?,
        "not the local network"
    );
    ensure!(
        !h.gets_out(ALICE, What::Udp, SocketAddr::new(LAN, 53))?,
        "its DNS"
    );
    // Only the second is named: the first is no tunnel.
    load(h, &POLICY.replace("tun*", "wg0"))?;
    ensure!(
        !answered(ALICE, What::Tcp, web)?,
        "by an interface that is no tunnel"
    );
    Ok(())
}

fn forwarding(h: &mut Hosts) -> Result {
    tunnel("tun0", 0)?;
    namespace("guest")?;
    commands(
        "ip link add guest0 type veth peer name g0 netns guest
         ip addr add 10.77.0.1/24 dev guest0
         ip link set guest0 up
         ip -n guest addr add 10.77.0.2/24 dev g0
         ip -n guest link set g0 up
         ip -n guest route add default via 10.77.0.1
         sysctl -qw net.ipv4.ip_forward=1",
    )?;
    let web = SocketAddr::new(INTERNET, 443);
    load(h, POLICY)?;
    ensure!(
        !on("guest", || answered(0, What::Tcp, web))?,
        "forwarded though it is off"
    );
    load(h, &POLICY.replace("[tor]", "forward = [\"guest0\"]\n[tor]"))?;
    ensure!(
        on("guest", || answered(0, What::Tcp, web))?,
        "not forwarded"
    );
    ensure!(
        on("guest", || answered(0, What::Udp, web))?,
        "not forwarded"
    );
    let flow = on("guest", || hosts::send(0, What::Udp, web))?;
    commands("ip link del tun0")?;
    h.arrived()?;
    let _ = hosts::write(&flow, b"on");
    let fate = on("guest", || {
        hosts::ask(0, What::Tcp, web, Duration::from_secs(3))
    })?;
    ensure!(
        matches!(fate, hosts::Fate::Refused(_)),
        "the guest waits instead of being refused: {fate:?}"
    );
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

fn openvpn(h: &mut Hosts) -> Result {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(Stop::Skipped("this kernel has no /dev/net/tun".into()));
    }
    let key = "/run/static.key";
    Run::new("openvpn", std::path::Path::new("/tmp"))
        .args(["--genkey", "secret", key])
        .run()?
        .expect(0)?;
    load(
        h,
        &POLICY.replace("users = [\"4003\"]\n", "users = [\"0\"]\n"),
    )?;
    let common =
        format!("--dev tun0 --proto udp --secret {key} --cipher AES-256-CBC --verb 0 --port 1194");
    let common = match openvpn_is_new()? {
        true => format!("{common} --allow-deprecated-insecure-static-crypto"),
        false => common,
    };
    on("far", || {
        hosts::nft("insert rule inet far anything udp dport 1194 accept\n")
    })?;
    let _far = daemon(&format!(
        "ip netns exec far openvpn {common} --local 203.0.113.5 --ifconfig 10.8.0.1 10.8.0.2"
    ))?;
    let near = daemon(&format!(
        "openvpn {common} --remote 203.0.113.5 --ifconfig 10.8.0.2 10.8.0.1"
    ))?;
    on("far", || {
        hosts::nft(
            "add rule inet far anything iifname \"tun*\" meta l4proto { tcp, udp } redirect to :7\n",
        )
    })?;
    let web = SocketAddr::new([10, 8, 0, 1].into(), 443);
    until("OpenVPN's tunnel", || {
        Ok(hosts::ask(ALICE, What::Tcp, web, Duration::from_millis(300))? == hosts::Fate::Answered)
    })?;
    commands("ip route add 198.51.100.0/24 dev tun0")?;
    ensure!(
        answered(ALICE, What::Tcp, SocketAddr::new(INTERNET, 443))?,
        "not by the tunnel"
    );
    h.arrived()?;
    drop(near);
    until("its end", || {
        Ok(!std::path::Path::new("/proc/self/net/dev").exists()
            || !std::fs::read_to_string("/proc/thread-self/net/dev")?.contains("tun0"))
    })?;
    for uid in [ALICE, TOR] {
        ensure!(
            !h.gets_out(uid, What::Tcp, SocketAddr::new(INTERNET, 443))?,
            "uid {uid} beside it"
        );
    }
    Ok(())
}

fn openvpn_is_new() -> Result<bool> {
    let o = Run::new("openvpn", std::path::Path::new("/tmp"))
        .arg("--version")
        .run()?;
    let minor = o
        .out
        .split_whitespace()
        .nth(1)
        .and_then(|v| v.split('.').nth(1))
        .and_then(|m| m.parse::<u32>().ok());
    Ok(minor.is_some_and(|m| m >= 7))
}

fn wireguard(h: &mut Hosts) -> Result {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(Stop::Skipped("this kernel has no /dev/net/tun".into()));
    }
    // The mark alone says that it is WireGuard's: root itself may not go there.
    load(
        h,
        "profile = \"vpn\"\n[vpn]\ninterfaces = [\"wg0\"]\nservers = [\"203.0.113.5:51820/udp\"]\nmark = 51820\n",
    )?;
    let mut keys = Vec::new();
    for side in ["near", "far"] {
        let private = Run::new("wg", std::path::Path::new("/tmp"))
            .arg("genkey")
            .run()?
            .expect(0)?
            .out;
        let public = Run::new("wg", std::path::Path::new("/tmp"))
            .arg("pubkey")
            .input(private.clone())
            .run()?
            .expect(0)?
            .out;
        std::fs::write(format!("/run/{side}.key"), &private)?;
        keys.push(public.trim().to_owned());
    }
    on("far", || {
        hosts::nft("insert rule inet far anything udp dport 51820 accept\n")
    })?;
    let _far = daemon("ip netns exec far env WG_PROCESS_FOREGROUND=1 wireguard-go -f wg1")?;
    let near = daemon("env WG_PROCESS_FOREGROUND=1 wireguard-go -f wg0")?;
    for name in ["wg0", "wg1"] {
        until("wireguard-go", || {
            Ok(std::path::Path::new(&format!("/run/wireguard/{name}.sock")).exists())
        })?;
    }
    commands(&format!(
        "wg set wg0 private-key /run/near.key fwmark 51820 peer {} allowed-ips 0.0.0.0/0 endpoint 203.0.113.5:51820
         ip netns exec far wg set wg1 private-key /run/far.key listen-port 51820 peer {} allowed-ips 10.66.0.2/32
         ip addr add 10.66.0.2/24 dev wg0
         ip link set wg0 up
         ip -n far addr add 10.66.0.1/24 dev wg1
         ip -n far link set wg1 up
         ip route add 198.51.100.0/24 dev wg0",
        keys[1], keys[0]
    ))?;
    on("far", || {
        hosts::nft(
            "add rule inet far anything iifname \"wg*\" meta l4proto { tcp, udp } redirect to :7\n",
        )
    })?;
    until("WireGuard's tunnel", || {
        Ok(hosts::ask(
            BOB,
            What::Tcp,
            SocketAddr::new(INTERNET, 443),
            Duration::from_millis(500),
        )? == hosts::Fate::Answered)
    })?;
    ensure!(
        !h.gets_out(0, What::Udp, at("203.0.113.5", 51820)?)?,
        "root without the mark"
    );
    drop(near);
    until("its end", || {
        Ok(!std::fs::read_to_string("/proc/thread-self/net/dev")?.contains("wg0"))
    })?;
    for uid in [ALICE, 0] {
        ensure!(
            !h.gets_out(uid, What::Tcp, SocketAddr::new(INTERNET, 443))?,
            "uid {uid} beside it"
        );
    }
    Ok(())
}

fn prefixes(h: &mut Hosts) -> Result {
    load(
        h,
        &format!(
            "{POLICY}[log]\nstopped = true\noutput_prefix = \"OUT! \"\ninput_prefix = \"IN! \"\nforward_prefix = \"FWD! \"\n"
        ),
    )?;
    for (chain, prefix) in [
        ("refuse", "OUT! "),
        ("refuse_in", "IN! "),
        ("refuse_forward", "FWD! "),
    ] {
        let text = hosts::nft_list(&format!("list chain inet uwt {chain}"))?;
        ensure!(
            text.contains(&format!("log prefix \"{prefix}\"")),
            "{chain}: {text}"
        );
    }
    Ok(())
}
