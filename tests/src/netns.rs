//! A network namespace whose only way out is a sink, with a mount namespace beside it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

/// The interface that holds the default routes: whatever is not loopback leaves by it, and ends there.
pub const UPLINK: &str = "uplink";

/// The resolver that /etc/resolv.conf names inside: beyond the uplink.
pub const RESOLVER: &str = "192.0.2.53";

fn check(what: &str, ok: bool) -> io::Result<()> {
    if ok {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    Err(io::Error::new(e.kind(), format!("{what}: {e}")))
}

fn ip(arguments: &str) -> io::Result<()> {
    let out = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("ip: {e}; install iproute2")))?;
    if out.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("ip {arguments}: {}", why.trim())))
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong) -> io::Result<()> {
    let c = |s: &str| std::ffi::CString::new(s).unwrap_or_default();
    let (source, to, kind) = (c(source), c(target), c(kind));
    // SAFETY: three C strings that live through the call, and no data.
    let r = unsafe {
        libc::mount(
            source.as_ptr(),
            to.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    check(&format!("mount on {target}"), r == 0)
}

/// Puts `text` in the place of `target`, in this mount namespace only.
fn overlay(scratch: &Path, target: &str, text: &str) -> io::Result<()> {
    let name = target.replace('/', "_");
    let file = scratch.join(name);
    fs::write(&file, text)?;
    // A link into /run, which is empty now, leads nowhere: make what it leads to.
    if let Ok(link) = fs::read_link(target) {
        let to = Path::new(target)
            .parent()
            .unwrap_or(Path::new("/"))
            .join(link);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        if !to.exists() {
            fs::write(&to, "")?;
        }
    }
    if !Path::new(target).exists() {
        return Ok(());
    }
    mount(&file.to_string_lossy(), target, "", libc::MS_BIND)
}

/// Raises the limit of open descriptors as far as it goes, for servers with 10,000 connections; gives it.
pub fn raise_descriptors() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 65536,
        rlim_max: 65536,
    };
    // SAFETY: the struct lives through the calls. Root may raise both limits, others the soft one alone.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
    }
    limit.rlim_cur
}

/// Moves this process, which must have one thread, into namespaces of its own. As an ordinary user, into
/// a user namespace as well.
///
/// /run is empty inside; resolv.conf names [`RESOLVER`]; the machine's own configuration of uwt is not
/// seen.
pub fn enter() -> io::Result<()> {
    // SAFETY: plain numbers.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let user = if uid == 0 { 0 } else { libc::CLONE_NEWUSER };
    // SAFETY: flags only.
    let r = unsafe { libc::unshare(user | libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    check("namespaces", r == 0)?;
    if user != 0 {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE)?;
    mount("tmpfs", "/run", "tmpfs", 0)?;
    for folder in ["/etc/uwt.d", "/usr/local/etc/uwt.d", "/usr/share/uwt"] {
        if Path::new(folder).exists() {
            mount("tmpfs", folder, "tmpfs", 0)?;
        }
    }
    let scratch = Path::new("/run/overlay");
    fs::create_dir_all(scratch)?;
    overlay(
        scratch,
        "/etc/resolv.conf",
        &format!("nameserver {RESOLVER}\noptions timeout:1 attempts:1\n"),
    )?;
    overlay(
        scratch,
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files dns\n",
    )?;

    // The kernel's own chatter on a new interface would look like a leak.
    for (name, value) in [
        ("accept_dad", "0"),
        ("router_solicitations", "0"),
        ("addr_gen_mode", "1"),
    ] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/default/{name}"), value);
    }
    // In a user namespace there is one group alone.
    let groups = "/proc/sys/net/ipv4/ping_group_range";
    if fs::write(groups, "0 65535").is_err() {
        let _ = fs::write(groups, "0 0");
    }
    let _ = fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1027");
    ip("link set lo up")?;
    ip("link add uplink type veth peer name sink")?;
    ip("link set sink arp off up")?;
    ip("link set uplink arp off up")?;
    ip("addr add 192.0.2.2/24 dev uplink")?;
    ip("-6 addr add 2001:db8::2/64 dev uplink nodad")?;
    ip("route add default dev uplink")?;
    ip("-6 route add default dev uplink")
}
