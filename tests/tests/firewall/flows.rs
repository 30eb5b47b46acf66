//! Connections that are there when rules come, change, or go.

use crate::{ALICE, BOB, CLEAR, Result, TOR, World, ensure, load, test};
use libtest_mimic::Trial;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use uwt_tests::hosts::{self, Hosts, INTERNET, NEAR, What, on};

pub(crate) fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        test(world, "flows: open before the rules", before),
        test(
            world,
            "flows: answers of a connection from before, the other way",
            before_in,
        ),
        test(
            world,
            "flows: Tor's user taken out of the policy",
            taken_out,
        ),
        test(
            world,
            "flows: what stays allowed goes on, download or upload",
            goes_on,
        ),
        test(world, "flows: the last packets of closed sockets", orphans),
        test(
            world,
            "flows: a closed connection's port used by another user",
            reused,
        ),
        test(world, "flows: 200 reloads under a flood", flood),
    ]
}

const WHO: &str = "[tor]\nusers = [\"4001\"]\n";

/// A connection to the server that sends back what it gets.
fn open(uid: u32, port: u16) -> Result<OwnedFd> {
    let socket = hosts::send(uid, What::Tcp, SocketAddr::new(INTERNET, port))?;
    ensure!(
        hosts::wait(&socket, libc::POLLOUT, Duration::from_secs(3)) && hosts::pending(&socket) == 0,
        "uid {uid} is not connected to {port}"
    );
    Ok(socket)
}

/// Whether what is sent comes back.
fn alive(socket: &OwnedFd) -> Result<bool> {
    if hosts::write(socket, b"more").is_err() {
        return Ok(false);
    }
    if !hosts::wait(socket, libc::POLLIN, Duration::from_millis(1500)) {
        return Ok(false);
    }
    let mut buf = [0u8; 64];
    use std::io::Read;
    let mut stream = TcpStream::from(socket.try_clone()?);
    Ok(stream.read(&mut buf).is_ok_and(|n| n > 0))
}

fn before(h: &mut Hosts) -> Result {
    // Conntrack knows connections only while somebody's rules ask it to: others' do, as Docker's.
    hosts::nft(
        "table inet other { chain c { type filter hook output priority 0; ct state new counter\n }\n }\n",
    )?;
    let alice = open(ALICE, 443)?;
    let tor = open(TOR, 443)?;
    let udp = hosts::send(ALICE, What::Udp, SocketAddr::new(INTERNET, 4000))?;
    ensure!(
        alive(&alice)? && alive(&tor)?,
        "not connected before the rules"
    );
    load(h, WHO)?;
    h.arrived()?;
    ensure!(!alive(&alice)?, "alice's connection goes on");
    let _ = hosts::write(&udp, b"more");
    drop(alice);
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    ensure!(alive(&tor)?, "Tor's connection has ended");
    Ok(())
}

fn before_in(h: &mut Hosts) -> Result {
    hosts::nft(
        "table inet other { chain c { type filter hook output priority 0; ct state new counter\n }\n }\n",
    )?;
    hosts::serve(8001)?;
    let come = || -> std::io::Result<OwnedFd> {
        on("far", || {
            let s = hosts::socket_of(0, libc::AF_INET, libc::SOCK_STREAM, 0)?;
            hosts::bind(&s, SocketAddr::new(INTERNET, 0))?;
            hosts::connect(&s, SocketAddr::new(NEAR.into(), 8001))?;
            Ok(s)
        })
    };
    let inward = come()?;
    ensure!(alive(&inward)?, "nothing comes in before the rules");
    load(h, WHO)?;
    h.arrived()?;
    ensure!(!alive(&inward)?, "it goes on");
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    // And one that the policy lets in survives a change, though nothing but this host sends.
    load(
        h,
        &format!("{WHO}[[incoming]]\nname = \"web\"\nports = [8001]\n"),
    )?;
    let inward = come()?;
    ensure!(alive(&inward)?, "nothing comes in though it may");
    load(
        h,
        &format!("{WHO}[lan]\nout = true\n[[incoming]]\nname = \"web\"\nports = [8001]\n"),
    )?;
    ensure!(alive(&inward)?, "it does not survive a change");
    Ok(())
}

fn taken_out(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    let tor = open(TOR, 443)?;
    ensure!(alive(&tor)?, "Tor has no connection");
    load(h, "[tor]\nusers = [\"4099\"]\n")?;
    h.arrived()?;
    ensure!(!alive(&tor)?, "it goes on");
    drop(tor);
    let seen = h.arrived()?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

fn goes_on(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    // On the far side a server that sends by itself, after a pause in which the policy changes.
    let listener = on("far", || {
        hosts::nft("add rule inet far anything tcp dport 22222 accept\n")?;
        std::net::TcpListener::bind(("198.51.100.7", 22222))
    })?;
    let socket = open(TOR, 22222)?;
    let (mut far, _) = listener.accept()?;
    load(h, "[tor]\nusers = [\"4001\"]\n[lan]\nout = true\n")?;
    use std::io::{Read, Write};
    far.write_all(&[1; 100_000])?;
    let mut near = TcpStream::from(socket);
    near.set_nonblocking(false)?;
    near.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buf = vec![0; 100_000];
    near.read_exact(&mut buf)?;
    // And upwards.
    load(h, WHO)?;
    near.write_all(&[2; 100_000])?;
    far.set_read_timeout(Some(Duration::from_secs(5)))?;
    far.read_exact(&mut buf)?;
    Ok(())
}

fn orphans(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    for _ in 0..20 {
        let socket = open(TOR, 443)?;
        hosts::write(&socket, &[3; 3000])?;
        drop(socket);
    }
    // All have come to their end on the far side: the server there sees each close.
    let status = h.uwtctl("firewall status --json").run()?.expect(0)?.out;
    let stopped = status.split("\"stopped\": [").nth(1).unwrap_or("");
    ensure!(!stopped.contains("198.51.100.7"), "{status}");
    let counted = status
        .split('{')
        .find(|r| r.contains("stopped: nothing lets it out"))
        .unwrap_or_default();
    ensure!(counted.contains("\"packets\": 0"), "{counted}");
    Ok(())
}

fn reused(h: &mut Hosts) -> Result {
    load(h, &format!("{WHO}[clearnet]\nusers = [\"4002\"]\n"))?;
    // A clearnet user's datagrams: conntrack keeps them, marked, after the socket is closed.
    let to = SocketAddr::new(INTERNET, 4001);
    let clear = hosts::send(CLEAR, What::Udp, to)?;
    ensure!(
        hosts::wait(&clear, libc::POLLIN, Duration::from_secs(3)),
        "no answer"
    );
    let local = std::net::UdpSocket::from(clear.try_clone()?).local_addr()?;
    drop(clear);
    for uid in [BOB, 0] {
        h.arrived()?;
        let socket = hosts::socket_of(uid, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        hosts::bind(&socket, local)?;
        let _ = hosts::connect(&socket, to);
        let _ = hosts::write(&socket, b"mine now");
        drop(socket);
        let seen = h.arrived()?;
        ensure!(seen.is_empty(), "uid {uid}: {seen:?}");
    }
    // The user's own goes on by the same port.
    let again = hosts::socket_of(CLEAR, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    hosts::bind(&again, local)?;
    hosts::connect(&again, to)?;
    hosts::write(&again, b"again")?;
    ensure!(!h.arrived()?.is_empty(), "its own does not go on");
    let status = h.uwtctl("firewall status").run()?.expect(0)?.out;
    ensure!(
        status.contains("out: uid 4005 to 198.51.100.7, udp 4001")
            && status.contains("out: root to"),
        "{status}"
    );
    Ok(())
}

fn flood(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    h.arrived()?;
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let here = std::fs::File::open("/proc/thread-self/ns/net")?;
    let result = std::thread::scope(|s| -> Result {
        for uid in [ALICE, 0] {
            let (stop, sent, here) = (&stop, &sent, &here);
            s.spawn(move || {
                use std::os::fd::AsRawFd;
                // SAFETY: a descriptor that lives through the call.
                unsafe { libc::setns(here.as_raw_fd(), libc::CLONE_NEWNET) };
                let to = SocketAddr::new(INTERNET, 53);
                let Ok(socket) = hosts::send(uid, What::Udp, to) else {
                    return;
                };
                while !stop.load(Ordering::Relaxed) {
                    let _ = hosts::write(&socket, b"flood");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Policies that differ, so that each load is one.
        let result = (|| {
            for n in 0..200 {
                let lan = ["", "[lan]\nout = true\n"][n % 2];
                load(h, &format!("{WHO}{lan}"))?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        result
    });
    result?;
    let seen = h.arrived()?;
    let sent = sent.load(Ordering::Relaxed);
    ensure!(
        seen.is_empty(),
        "{} of {sent} left: {:?}",
        seen.len(),
        seen.first()
    );
    ensure!(sent > 10_000, "the flood sent {sent} only");
    Ok(())
}
