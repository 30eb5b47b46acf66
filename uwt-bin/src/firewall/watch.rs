//! Looks after what is loaded: loads it again when somebody else takes it away, asks names and relays anew, keeps the
//! time. Ends when it is told to (SIGTERM) and changes nothing then.

use super::ruleset::TABLE;
use super::{load, nft, policy, state};
use crate::netns::netlink::Socket;
use crate::refusal::{Refusal, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES, as a bit.
const GROUPS: u32 = 1 << (7 - 1);

/// linux/rtnetlink.h: RTMGRP_LINK.
const LINKS: u32 = 1;

/// How often the time is kept when nothing else is to be done.
const HOUR: Duration = Duration::from_secs(3600);

/// After how long is asked again when names or relays were not to be had.
const AGAIN: Duration = Duration::from_secs(30);

fn subscribe(protocol: i32, groups: u32) -> std::io::Result<Socket> {
    let socket = Socket::open(protocol)?;
    // SAFETY: all zeroes are a valid sockaddr_nl, which lives through the call.
    let r = unsafe {
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups;
        let len = size_of::<libc::sockaddr_nl>() as u32;
        libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), len)
    };
    if r != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(socket)
}

/// Each device that comes is closed as the others are.
fn devices() {
    let kept = state::kept();
    if kept.raw.is_none() {
        return;
    }
    let done = state::lock().and_then(|_lock| load::egress(kept.raw));
    if let Err(e) = done {
        eprintln!("{e}");
    }
}

fn mend() {
    let begun = Instant::now();
    match load::mend() {
        Ok(true) => {
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            eprintln!("uwt: somebody took the firewall's rules away; loaded again after {ms} ms");
            let mut running = state::running();
            running.opened.push((state::now(), ms));
            // The newest hundred.
            let old = running.opened.len().saturating_sub(100);
            running.opened.drain(..old);
            running.digest = nft::loaded(TABLE)
                .ok()
                .flatten()
                .map(|l| l.digest)
                .unwrap_or_default();
            let _ = state::run(&running);
        }
        Ok(false) => {}
        Err(e) => eprintln!("{e}"),
    }
}

/// What needs asking again, and how often.
fn period(file: &str) -> Duration {
    match load::prepare(file) {
        Ok(p) if !p.rendered.hosts.is_empty() => Duration::from_secs(p.policy.names.refresh.into()),
        _ => HOUR,
    }
}

fn refresh(file: &str) -> Duration {
    // Asked of the file alone, names of a policy that is not loaded would be looked up.
    if state::kept().policy.is_empty() {
        return HOUR;
    }
    let result = load::refresh(file);
    if let Err(e) = &result {
        eprintln!("{e}");
    }
    let running = state::running();
    let lacking = !running.unresolved.is_empty()
        || running.relays.is_some_and(|r| r.starts_with("none"))
        || result.is_err();
    let period = period(file);
    if lacking { period.min(AGAIN) } else { period }
}

/// Looks after the rules until the process is told to end.
///
/// # Errors
/// The kernel's events cannot be had.
pub fn watch() -> Result<()> {
    let cannot = |e: std::io::Error| {
        Refusal::new(
            "the kernel's changes of rules cannot be followed",
            e.to_string(),
            "run it as root",
        )
    };
    let socket = subscribe(libc::NETLINK_NETFILTER, GROUPS).map_err(cannot)?;
    let links = subscribe(libc::NETLINK_ROUTE, LINKS).map_err(cannot)?;
    let mut buf = vec![0; 1 << 17];
    let mut due = Instant::now();
    mend();
    devices();
    loop {
        if due <= Instant::now() {
            due = Instant::now() + refresh(policy::FILE);
        }
        let left = due.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [&socket, &links].map(|s| PollFd::new(s.0.as_fd(), PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(Refusal::new("poll failed", e.to_string(), "")),
            Ok(_) => {}
        }
        // What has changed does not matter, only what is there now. ENOBUFS: more has changed than was read.
        if fds[0].any().unwrap_or(true) {
            let _ = socket.receive(&mut buf);
            mend();
        }
        if fds[1].any().unwrap_or(true) {
            let _ = links.receive(&mut buf);
            devices();
        }
    }
}
