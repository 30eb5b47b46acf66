//! Addresses of host names in rules: asked of Tor, or of the host's own resolver.

use super::policy::{Policy, Resolver};
use super::words::HostName;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use uwt_core::isolation::Credentials;
use uwt_core::socks5::{Answer, Command, Handshake, Progress, Request, Target};

/// How long the answers to all names may take together.
const LIMIT: Duration = Duration::from_secs(20);

/// How many are asked at once.
const AT_ONCE: usize = 32;

/// What each name stands for now; what could not be resolved is not in it.
pub fn resolve(policy: &Policy, names: &[HostName]) -> HashMap<HostName, Vec<IpAddr>> {
    let (send, receive) = mpsc::channel();
    let port = policy.tor.socks_port;
    let resolver = policy.names.resolver;
    let until = Instant::now() + LIMIT;
    let share = names.len().div_ceil(AT_ONCE).max(1);
    for part in names.chunks(share) {
        let (part, send) = (part.to_vec(), send.clone());
        // Not waited for: getaddrinfo(3) knows no limit. The process ends with them, or they with their answers.
        std::thread::spawn(move || {
            for name in part {
                let found = match resolver {
                    Resolver::Tor => by_tor(&name.0, port),
                    Resolver::System => by_host(&name.0),
                };
                let _ = send.send((name, found));
            }
        });
    }
    drop(send);
    let mut out = HashMap::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match receive.recv_timeout(left) {
            Ok((name, found)) if !found.is_empty() => {
                out.insert(name, found);
            }
            Ok(_) => {}
            Err(_) => return out,
        }
    }
}

fn by_host(name: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = (name, 0)
        .to_socket_addrs()
        .map(|a| a.map(|a| a.ip()).collect())
        .unwrap_or_default();
    found.sort();
    found.dedup();
    found
}

/// Tor's RESOLVE (socks-extensions): one address, of the family that Tor prefers.
fn by_tor(name: &str, port: u16) -> Vec<IpAddr> {
    let ask = || -> Option<IpAddr> {
        let proxy = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = TcpStream::connect_timeout(&proxy, LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let target = Target::Name(name.as_bytes());
        // Each name on a circuit of its own, and none that anybody else uses.
        let who = Credentials::fixed(b"uwt-firewall", name.as_bytes())?;
        let request = Request::new(Some(&who), Command::Resolve, target, 0)?;
        stream.write_all(request.bytes()).ok()?;
        let mut handshake = Handshake::new(true);
        let mut buf = [0; 300];
        let mut progress = handshake.progress();
        while let Progress::Want(n) = progress {
            let n = stream
                .read(&mut buf[..n.min(300)])
                .ok()
                .filter(|n| *n > 0)?;
            progress = handshake.feed(&buf[..n]);
        }
        match handshake.answer()? {
            Answer::Ip(ip) => Some(ip),
            Answer::Name(_) => None,
        }
    };
    ask().into_iter().collect()
}
