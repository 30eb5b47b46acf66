//! Level `netns`: a network namespace without uplink. It is made, whole, by a helper process, so that a host
//! that does not allow it leaves this process as it was; the launcher enters it last, just before it becomes the
//! command.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`netlink`] | messages to the kernel |
//! | [`rules`] | the namespace's addresses and its nftables table |
//! | [`mounts`] | resolv.conf, and sockets of daemons that reach the network, hidden |
//! | [`confine`] | capabilities and kinds of sockets that lead out are given up |

pub mod confine;
pub mod mounts;
pub mod netlink;
pub mod rules;

use netlink::{Messages, Socket};
use nix::fcntl::{FcntlArg, fcntl};
use std::fs;
use std::io::{self, Error, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// What the broker holds of the namespace: the sockets through which everything goes.
#[derive(Debug)]
pub struct Sockets {
    /// Where carried connections arrive, on 127.0.0.1 and, where there is IPv6, on ::1.
    pub relay: Vec<OwnedFd>,
    /// The resolver, UDP port 53 of every address.
    pub resolver: Vec<OwnedFd>,
    /// SYNs that wait for a verdict (NETLINK_NETFILTER, queue 0).
    pub queue: OwnedFd,
    /// Questions about the namespace's sockets (NETLINK_SOCK_DIAG).
    pub diag: OwnedFd,
}

/// A namespace that is ready to be entered.
#[derive(Debug)]
pub struct Namespace {
    user: Option<OwnedFd>,
    net: OwnedFd,
    /// The broker's part.
    pub sockets: Sockets,
    /// Which namespace it is: the inode of /proc/PID/ns/net.
    pub inode: u64,
}

/// Why there is none: what failed, and what the host says about it.
#[derive(Debug)]
pub struct Unavailable {
    /// What failed.
    pub what: String,
    /// What to do about it; may be empty.
    pub fix: String,
}

/// Which network namespace this process is in; 0 if /proc does not tell.
pub fn current() -> u64 {
    fs::metadata("/proc/self/ns/net").map_or(0, |m| m.ino())
}

/// What switches user namespaces off here, and what switches them on.
fn switched_off() -> (String, String) {
    let number = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let switches = [
        ("kernel.unprivileged_userns_clone", "1"),
        ("user.max_user_namespaces", "15000"),
        ("user.max_net_namespaces", "15000"),
    ];
    if let Some((name, to)) = switches.iter().find(|(name, _)| number(name) == Some(0)) {
        (
            format!("{name}=0 keeps ordinary users from making user namespaces"),
            format!("sysctl -w {name}={to} as root, or sudo uwt"),
        )
    } else if number("kernel.apparmor_restrict_unprivileged_userns") == Some(1) {
        (
            "kernel.apparmor_restrict_unprivileged_userns=1 leaves user namespaces without power".to_owned(),
            "put /usr/share/doc/uwt/examples/apparmor.d/uwt into /etc/apparmor.d and load it (apparmor_parser -r), or sudo uwt".to_owned(),
        )
    } else {
        (String::new(), String::new())
    }
}

fn unavailable(what: &str, e: &Error) -> Unavailable {
    let (mut why, mut fix) = switched_off();
    if why.is_empty() {
        why = match e.raw_os_error() {
            Some(libc::EPERM) if nix::unistd::geteuid().is_root() => {
                fix = "run it with CAP_SYS_ADMIN, or as an ordinary user".to_owned();
                "this root may not make namespaces (a container?)".to_owned()
            }
            Some(libc::EPERM) => {
                "this process may not make namespaces (a chroot or a container?)".to_owned()
            }
            Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT) => {
                "this kernel lacks nf_tables, nfnetlink_queue or nf_nat".to_owned()
            }
            _ => e.to_string(),
        };
    }
    Unavailable {
        what: format!("{what}: {why}"),
        fix,
    }
}

/// clone(2) as fork(2) does it, with flags; 0 in the child.
///
/// # Safety
/// The process has one thread.
pub unsafe fn fork(flags: i32) -> io::Result<i32> {
    let none = 0usize;
    // SAFETY: no stack: the child goes on with a copy of this one. The other arguments are not looked at without
    // the flags that would use them, and as zeroes have no meaning on any architecture's order.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as usize, none, none, none, none) };
    match pid {
        -1 => Err(Error::last_os_error()),
        pid => Ok(pid as i32),
    }
}

fn pipe() -> io::Result<(fs::File, fs::File)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((read.into(), write.into()))
}

impl Namespace {
    /// Makes one: for root a network namespace, for others inside a user namespace that maps their own ids.
    ///
    /// # Errors
    /// Why this host has none; nothing has changed then.
    pub fn make() -> Result<Namespace, Unavailable> {
        // Inside, before they are mapped, they could not be told.
        let ids = Ids::own();
        let root = ids.euid == 0;
        let (mut hear, mut tell) = pipe().map_err(|e| unavailable("pipe", &e))?;
        // The helper's descriptors are this process's: what it opens stays when it is gone.
        let mut flags = libc::CLONE_FILES | libc::CLONE_NEWNET;
        if !root {
            flags |= libc::CLONE_NEWUSER;
        }
        // SAFETY: the launcher has one thread.
        let helper = unsafe { fork(flags) }.map_err(|e| unavailable("a network namespace", &e))?;
        if helper == 0 {
            let told = match build(ids) {
                Ok(numbers) => numbers,
                Err((what, e)) => format!("! {} {what}", e.raw_os_error().unwrap_or(0)),
            };
            let _ = tell.write_all(told.as_bytes());
            // SAFETY: ends the helper without running what this process left to be run at its end.
            unsafe { libc::_exit(0) };
        }
        // Its descriptor is the helper's as well: the helper has ended before the pipe is read to its end.
        let mut status = 0;
        // SAFETY: waitpid(2) for our own child; `status` lives through the call.
        let waited = unsafe { libc::waitpid(helper, &raw mut status, libc::__WALL) };
        drop(tell);
        let mut told = String::new();
        let read = hear.read_to_string(&mut told);
        if waited != helper || read.is_err() {
            return Err(unavailable("the helper", &Error::last_os_error()));
        }
        if let Some(rest) = told.strip_prefix("! ") {
            let (code, what) = rest.split_once(' ').unwrap_or(("0", rest));
            let e = Error::from_raw_os_error(code.parse().unwrap_or(0));
            return Err(unavailable(what, &e));
        }
        Namespace::take(&told).ok_or_else(|| Unavailable {
            what: format!("the helper ended with status {status:#x}"),
            fix: String::new(),
        })
    }

    /// Takes what the helper opened: `INODE USER NET QUEUE DIAG RELAYS... / RESOLVERS...`.
    fn take(told: &str) -> Option<Namespace> {
        // SAFETY: the helper shared this process's table of descriptors, opened these numbers and told each once.
        let own = |n: &str| Some(unsafe { OwnedFd::from_raw_fd(n.parse::<RawFd>().ok()?) });
        let (fixed, resolvers) = told.split_once('/')?;
        let mut words = fixed.split_whitespace();
        let inode = words.next()?.parse().ok()?;
        let user = words.next()?;
        Some(Namespace {
            inode,
            user: if user == "-" { None } else { Some(own(user)?) },
            net: own(words.next()?)?,
            sockets: Sockets {
                queue: own(words.next()?)?,
                diag: own(words.next()?)?,
                relay: words.map(own).collect::<Option<_>>()?,
                resolver: resolvers
                    .split_whitespace()
                    .map(own)
                    .collect::<Option<_>>()?,
            },
        })
    }

    /// Enters it. From here on this process has no way out but the broker.
    ///
    /// # Errors
    /// setns(2)'s.
    pub fn enter(self) -> io::Result<()> {
        for (fd, kind) in [
            (self.user.as_ref(), libc::CLONE_NEWUSER),
            (Some(&self.net), libc::CLONE_NEWNET),
        ] {
            let Some(fd) = fd else { continue };
            // SAFETY: setns(2) with a descriptor that is ours.
            if unsafe { libc::setns(fd.as_raw_fd(), kind) } != 0 {
                return Err(Error::last_os_error());
            }
        }
        if current() != self.inode {
            return Err(Error::other("this is not the namespace that was made"));
        }
        Ok(())
    }
}

/// Who this process is.
#[derive(Clone, Copy)]
struct Ids {
    uid: u32,
    gid: u32,
    euid: u32,
    egid: u32,
}

impl Ids {
    fn own() -> Ids {
        use nix::unistd::{getegid, geteuid, getgid, getuid};
        Ids {
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
            euid: geteuid().as_raw(),
            egid: getegid().as_raw(),
        }
    }
}

type Step<T> = Result<T, (&'static str, Error)>;

fn step<T>(what: &'static str, r: io::Result<T>) -> Step<T> {
    r.map_err(|e| (what, e))
}

/// The namespace's own settings (net.ipv4, ip-sysctl in the kernel's documentation).
const SYSCTLS: [(&str, &str); 3] = [
    // An accepted socket has the mark of its SYN: see [`rules::Mark::Carried`].
    ("tcp_fwmark_accept", "1"),
    // A cookie would forget it.
    ("tcp_syncookies", "0"),
    // Ports are used again as soon as on loopback, which is what this is: 28,000 connections a minute to one place are
    // not too many.
    ("tcp_tw_reuse", "1"),
];

/// Everything in the new namespace, in the helper. Gives the numbers of the descriptors, which are its parent's too.
fn build(ids: Ids) -> Step<String> {
    let root = ids.euid == 0;
    if !root {
        // Own ids only. The kernel wants setgroups(2) off before an ordinary user maps a group; the groups that the
        // user has stay in force.
        let Ids {
            uid,
            gid,
            euid,
            egid,
        } = ids;
        if (uid, gid) != (euid, egid) {
            let e = Error::from_raw_os_error(libc::EPERM);
            return Err(("real and effective ids differ", e));
        }
        step("setgroups", fs::write("/proc/self/setgroups", "deny"))?;
        step(
            "gid_map",
            fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")),
        )?;
        step(
            "uid_map",
            fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")),
        )?;
    }
    step("its addresses", rules::addresses())?;
    for (name, value) in SYSCTLS {
        let path = format!("/proc/sys/net/ipv4/{name}");
        step(name, fs::write(path, value))?;
    }
    let four = step("its relay", TcpListener::bind("127.0.0.1:0"))?;
    let port = step("its relay", four.local_addr())?.port();
    // Backlog as net.core.somaxconn has it; std listens with 128.
    let mut relay: Vec<OwnedFd> = vec![four.into()];
    if let Ok(six) = TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
        relay.push(six.into());
    }
    for fd in &relay {
        // SAFETY: listen(2) again on our own socket only changes its backlog.
        unsafe { libc::listen(fd.as_raw_fd(), 65535) };
    }
    step("its nftables table", rules::load(port))?;
    let queue = step("its packet queue", packet_queue())?;
    let mut resolver = vec![step("its resolver", resolver_socket("0.0.0.0:53"))?];
    resolver.extend(resolver_socket("[::]:53"));
    let diag = step("socket diagnosis", Socket::open(libc::NETLINK_SOCK_DIAG))?.0;
    let net: OwnedFd = step("its name", fs::File::open("/proc/self/ns/net"))?.into();
    let inode = current();
    let user: Option<OwnedFd> = match root {
        true => None,
        false => Some(step("its name", fs::File::open("/proc/self/ns/user"))?.into()),
    };
    // Left open on purpose: they are the parent's.
    let raw = |fd: OwnedFd| std::os::fd::IntoRawFd::into_raw_fd(fd).to_string();
    let mut told = vec![
        inode.to_string(),
        user.map_or("-".to_owned(), raw),
        raw(net),
        raw(queue),
        raw(diag),
    ];
    told.extend(relay.into_iter().map(raw));
    told.push("/".to_owned());
    told.extend(resolver.into_iter().map(raw));
    Ok(told.join(" "))
}

/// UDP port 53 of every address; tells with each question the address that was asked.
fn resolver_socket(at: &str) -> io::Result<OwnedFd> {
    let address: SocketAddr = at.parse().map_err(Error::other)?;
    let on: libc::c_int = 1;
    // The IPv6 one must not take the port of the IPv4 one.
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let (family, level, option) = match address {
        SocketAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    // SAFETY: socket(2) with plain numbers; the descriptor is new. setsockopt(2) reads one int that lives through
    // the call.
    let socket = unsafe {
        let fd = libc::socket(family, kind, 0);
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        if family == libc::AF_INET6 {
            // IPv6 lets nobody answer from an address that is local by a route alone.
            for option in [libc::IPV6_V6ONLY, libc::IPV6_FREEBIND] {
                let at = (&raw const on).cast();
                libc::setsockopt(fd, libc::IPPROTO_IPV6, option, at, len);
            }
        }
        if libc::setsockopt(fd, level, option, (&raw const on).cast(), len) != 0 {
            return Err(Error::last_os_error());
        }
        socket
    };
    bind(&socket, address)?;
    Ok(socket)
}

fn bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    use nix::sys::socket::SockaddrStorage;
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(())
}

/// Queue 0: every SYN, of which the first 128 bytes are of use.
fn packet_queue() -> io::Result<OwnedFd> {
    const SUBSYSTEM_QUEUE: u16 = 3;
    const CONFIG: u16 = 2;
    const COMMAND: u16 = 1;
    const PARAMETERS: u16 = 2;
    const LENGTH_MAX: u16 = 3;
    const BIND: u8 = 1;
    const COPY_PACKET: u8 = 2;
    let socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut m = Messages::default();
    let header = [libc::AF_UNSPEC as u8, 0, 0, 0];
    m.add(
        SUBSYSTEM_QUEUE << 8 | CONFIG,
        libc::NLM_F_ACK,
        &header,
        |b| {
            b.attribute(COMMAND, &[BIND, 0, 0, 0]);
            let mut parameters = 128u32.to_be_bytes().to_vec();
            parameters.push(COPY_PACKET);
            b.attribute(PARAMETERS, &parameters);
            b.number(LENGTH_MAX, 65536);
        },
    );
    socket.ask(&m)?;
    let bytes: libc::c_int = 4 << 20;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: setsockopt(2) reads one int that lives through the call. Either may fail: the queue is shorter then.
        unsafe {
            let at = (&raw const bytes).cast();
            let set = libc::setsockopt(socket.0.as_raw_fd(), libc::SOL_SOCKET, option, at, len);
            if set == 0 {
                break;
            }
        }
    }
    fcntl(&socket.0, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(socket.0)
}
