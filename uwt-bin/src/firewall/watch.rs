//! Looks after what is loaded: loads it again when somebody else takes it away, asks names and relays anew, keeps the
//! time. Ends when it is told to (SIGTERM) and changes nothing then.

use super::{load, policy, state};
use crate::netns::netlink::Socket;
use crate::refusal::{Refusal, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES, as a bit.
const GROUPS: u32 = 1 << (7 - 1);

/// linux/rtnetlink.h: RTMGRP_LINK.
const LINKS: u32 = 1;

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

/// Whether anything was gone.
fn mend() -> bool {
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
            let _ = state::run(&running);
            true
        }
        Ok(false) => false,
        Err(e) => {
            eprintln!("{e}");
            false
        }
    }
}

/// Fills sets anew; when it is to be done again.
fn refresh() -> Duration {
    // Asked of the file alone, names of a policy that is not loaded would be looked up.
    if state::kept().policy.is_empty() {
        return load::HOUR;
    }
    load::refresh(policy::FILE).unwrap_or_else(|e| {
        eprintln!("{e}");
        load::AGAIN
    })
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
    // First the devices: a boot loads no rules for them, and that is nobody's doing.
    devices();
    mend();
    loop {
        if due <= Instant::now() {
            due = Instant::now() + refresh();
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
            if mend() {
                // What was filled in is gone too.
                due = Instant::now();
            }
        }
        if fds[1].any().unwrap_or(true) {
            let _ = links.receive(&mut buf);
            devices();
        }
    }
}
