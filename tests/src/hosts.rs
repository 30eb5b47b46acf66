//! Two hosts for the firewall's tests: network namespaces joined by a veth pair, the near one with a mount namespace of
//! its own so that it has its own /etc/uwt, /run and /var/lib/uwt-firewall. On the far one everything answers, and
//! every packet that arrives is recorded.

use crate::run::Run;
use std::fs::{self, File};
use std::io::{self, Error, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The near host's interface to the far one.
pub const UPLINK: &str = "up0";

/// The near host's address.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Somewhere in the internet (RFC 5737); the far host has all of it.
pub const INTERNET: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// Somewhere in the local network; the far host has it too.
pub const LAN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 7, 9));

/// Somewhere in the internet by IPv6.
pub const INTERNET6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 7));

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A TCP SYN.
    Tcp,
    /// A datagram.
    Udp,
    /// An ICMP echo request.
    Ping,
    /// A packet of SCTP's protocol number, from a raw socket.
    Sctp,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The far host answered.
    Answered,
    /// It was refused at once, with this errno.
    Refused(i32),
    /// Nothing came back.
    Silent,
}

/// A packet that arrived on the far host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// IP protocol.
    pub protocol: u8,
    /// From where.
    pub from: SocketAddr,
    /// Where to; port 0 where the protocol has none.
    pub to: SocketAddr,
    /// ICMP's type.
    pub icmp: Option<u8>,
    /// The whole frame's length in bytes.
    pub len: usize,
}

/// Both hosts; the calling thread is on the near one for the rest of its life.
pub struct Hosts {
    home: PathBuf,
    bin: PathBuf,
    tap: OwnedFd,
    marker: OwnedFd,
    marks: u32,
}

fn cause(what: &str) -> impl Fn(Error) -> Error + '_ {
    move |e| Error::new(e.kind(), format!("{what}: {e}"))
}

fn command(line: &str) -> io::Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    let out = std::process::Command::new(program)
        .args(words)
        .output()
        .map_err(cause(line))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&out.stderr);
    Err(Error::other(format!("{line}: {}", why.trim())))
}

/// Runs lines of commands, each of which must succeed.
pub fn commands(lines: &str) -> io::Result<()> {
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        command(line)?;
    }
    Ok(())
}

/// Loads text with nft.
pub fn nft(text: &str) -> io::Result<()> {
    let mut child = std::process::Command::new("/usr/sbin/nft")
        .args(["-f", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    match child.wait()?.success() {
        true => Ok(()),
        false => Err(Error::other(format!("nft does not take:\n{text}"))),
    }
}

/// What nft lists.
pub fn nft_list(what: &str) -> io::Result<String> {
    command(&format!("/usr/sbin/nft {what}"))
}

fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: plain numbers; a C string and a struct that live through the calls; the descriptor is new.
    unsafe {
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            i32::from(protocol),
        );
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let mut a: libc::sockaddr_ll = std::mem::zeroed();
        a.sll_family = libc::AF_PACKET as u16;
        a.sll_protocol = protocol;
        a.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        if libc::bind(fd.as_raw_fd(), (&raw const a).cast(), len) != 0 {
            return Err(Error::last_os_error());
        }
        let size: libc::c_int = 64 << 20;
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            4,
        );
        let limit = libc::timeval {
            tv_sec: 10,
            tv_usec: 0,
        };
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const limit).cast(),
            size_of::<libc::timeval>() as u32,
        );
        Ok(fd)
    }
}

/// Moves the calling thread into the namespace of this name (`ip netns`).
fn enter(name: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{name}"))?;
    // SAFETY: a descriptor that lives through the call.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Runs `f` on the host of this name (`far`, or one that the test has made).
pub fn on<T: Send>(name: &str, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|s| {
        s.spawn(|| {
            enter(name)?;
            f()
        })
        .join()
        .unwrap_or_else(|_| Err(Error::other("it broke off")))
    })
}

/// Makes a network namespace that `ip -n NAME` and [`on`] know.
pub fn namespace(name: &str) -> io::Result<()> {
    commands(&format!("ip netns add {name}\nip -n {name} link set lo up"))
}

/// Answers everybody: TCP with what it is sent, UDP likewise; until the process ends.
pub fn serve(port: u16) -> io::Result<()> {
    serve_at((Ipv6Addr::UNSPECIFIED, port).into())
}

/// The same at one address, from which its datagrams then come.
pub fn serve_at(at: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    let socket = UdpSocket::bind(at)?;
    std::thread::spawn(move || {
        let mut buf = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(&buf[..n], from);
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut buf = [0; 4096];
                while let Ok(n) = stream.read(&mut buf) {
                    if n == 0 || stream.write_all(&buf[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(())
}

impl Hosts {
    /// Makes both. `home` is a folder for scratch files, `bin` where the built programs are.
    pub fn make(home: &Path, bin: &Path) -> io::Result<Hosts> {
        // SAFETY: flags only; this thread alone changes its namespaces.
        if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
            return Err(Error::last_os_error());
        }
        for folder in ["/etc/uwt", "/var/lib/uwt-firewall"] {
            fs::create_dir_all(folder)?;
        }
        commands(
            "mount --make-rprivate /
             mount -t tmpfs -o mode=755 tmpfs /run
             mount -t tmpfs -o mode=755 tmpfs /etc/uwt
             mount -t tmpfs -o mode=755 tmpfs /var/lib/uwt-firewall
             ip link set lo up",
        )?;
        namespace("far")?;
        for (name, value) in [("accept_dad", "0"), ("router_solicitations", "0")] {
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/default/{name}"), value);
        }
        commands(&format!(
            "ip link add {UPLINK} type veth peer name far0
             ip link set far0 netns far
             ip link set {UPLINK} address 02:00:00:00:00:02
             ip -n far link set far0 address 02:00:00:00:00:01
             ip link set {UPLINK} up
             ip -n far link set far0 up
             ip addr add {NEAR}/24 dev {UPLINK}
             ip -6 addr add 2001:db8::2/64 dev {UPLINK} nodad
             ip route add default via 192.0.2.1
             ip -n far addr add 192.0.2.1/24 dev far0
             ip -n far -6 addr add 2001:db8::1/64 dev far0 nodad
             ip neigh replace 2001:db8::1 lladdr 02:00:00:00:00:01 dev {UPLINK} nud permanent
             ip -n far -6 neigh replace 2001:db8::2 lladdr 02:00:00:00:00:02 dev far0 nud permanent
             ip -6 route add default via 2001:db8::1
             ip -n far route add local 198.51.100.0/24 dev lo
             ip -n far route add local 203.0.113.0/24 dev lo
             ip -n far route add local 192.168.0.0/16 dev lo
             ip -n far route add local 10.9.0.0/16 dev lo
             ip -n far -6 route add local 2001:db8:99::/64 dev lo"
        ))?;
        let tap = on("far", || {
            // Whatever the port, one server answers.
            nft("table inet far { chain anything { type nat hook prerouting priority -100; policy accept;
                 iifname \"far0\" ct state established accept
                 iifname \"far0\" meta l4proto { tcp, udp } th dport != 22222 redirect to :7
                 }\n }\n")?;
            serve(7)?;
            packet_socket("far0")
        })?;
        Ok(Hosts {
            home: home.to_owned(),
            bin: bin.to_owned(),
            tap,
            marker: packet_socket(UPLINK)?,
            marks: 0,
        })
    }

    /// A built program, `uwtctl`, to run on the near host.
    pub fn uwtctl(&self, words: &str) -> Run {
        Run::new(self.bin.join("uwtctl"), &self.home).args(words.split_whitespace())
    }

    /// A path for scratch files.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Where a built program is.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Writes the policy.
    pub fn policy(&self, text: &str) -> io::Result<()> {
        fs::write("/etc/uwt/firewall.toml", text)
    }

    /// Puts a frame onto the uplink from a packet(7) socket; whether it left is seen by what arrives.
    pub fn raw(&self, frame: &[u8]) {
        // SAFETY: the frame lives through the call.
        unsafe {
            libc::send(
                self.marker.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
    }

    /// What has arrived on the far host until now, for certain: up to a frame that is sent past all rules.
    pub fn arrived(&mut self) -> io::Result<Vec<Packet>> {
        self.marks += 1;
        let mut mark = vec![0xff; 6];
        mark.extend_from_slice(&[2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
        mark.extend_from_slice(format!("mark {:08}", self.marks).as_bytes());
        mark.resize(60, 0);
        // SAFETY: the frame lives through the call.
        let sent =
            unsafe { libc::send(self.marker.as_raw_fd(), mark.as_ptr().cast(), mark.len(), 0) };
        if sent < 0 {
            let e = Error::last_os_error();
            // A link that was down in between says so once.
            return match e.raw_os_error() {
                Some(libc::ENETDOWN) => self.arrived(),
                _ => Err(e),
            };
        }
        let mut out = Vec::new();
        let mut buf = vec![0; 1 << 16];
        loop {
            // SAFETY: all zeroes are a valid sockaddr_ll; everything lives through the call.
            let (n, from) = unsafe {
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut len = size_of::<libc::sockaddr_ll>() as u32;
                let n = libc::recvfrom(
                    self.tap.as_raw_fd(),
                    buf.as_mut_ptr().cast(),
                    buf.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut len,
                );
                (n, from)
            };
            let n = usize::try_from(n)
                .map_err(|_| Error::other(format!("the tap: {}", Error::last_os_error())))?;
            if buf[..n] == mark[..] {
                return Ok(out);
            }
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                out.extend(packet(&buf[..n]));
            }
        }
    }

    /// Sends as `uid`, and says whether it arrived on the far host.
    pub fn gets_out(&mut self, uid: u32, what: What, to: SocketAddr) -> io::Result<bool> {
        self.arrived()?;
        let socket = send(uid, what, to)?;
        let local = match what {
            What::Tcp | What::Udp => UdpSocket::from(socket.try_clone()?).local_addr()?.port(),
            _ => 0,
        };
        let number = what.protocol(to);
        Ok(self.arrived()?.iter().any(|p| {
            p.protocol == number
                && match what {
                    // Not what the kernel still sends for a socket from before, nor what others send there.
                    What::Tcp | What::Udp => p.to == to && p.from.port() == local,
                    What::Ping => p.to.ip() == to.ip() && matches!(p.icmp, Some(8 | 128)),
                    What::Sctp => p.to.ip() == to.ip(),
                }
        }))
    }
}

impl What {
    fn protocol(self, to: SocketAddr) -> u8 {
        match self {
            What::Tcp => 6,
            What::Udp => 17,
            What::Ping if to.is_ipv4() => 1,
            What::Ping => 58,
            What::Sctp => 132,
        }
    }
}

fn packet(frame: &[u8]) -> Option<Packet> {
    let at = |n: usize| frame.get(n).copied().unwrap_or(0);
    let (protocol, header, from, to): (u8, usize, IpAddr, IpAddr) = match (at(12), at(13)) {
        (0x08, 0) => {
            let a = |n: usize| Ipv4Addr::new(at(n), at(n + 1), at(n + 2), at(n + 3));
            let header = 14 + usize::from(at(14) & 15) * 4;
            (at(23), header, a(26).into(), a(30).into())
        }
        (0x86, 0xdd) => {
            let a = |n: usize| -> Option<IpAddr> {
                let b: [u8; 16] = frame.get(n..n + 16)?.try_into().ok()?;
                Some(b.into())
            };
            // One extension header at most: hop-by-hop, routing, destination options (RFC 8200, 4).
            let (next, header) = match at(20) {
                0 | 43 | 60 => (at(54), 54 + (usize::from(at(55)) + 1) * 8),
                n => (n, 54),
            };
            // The kernel's own multicast listener reports and neighbour messages.
            if next == 58 && matches!(at(header), 133..=136 | 143) {
                return None;
            }
            (next, header, a(22)?, a(38)?)
        }
        _ => return None,
    };
    let port = |n: usize| u16::from_be_bytes([at(header + n), at(header + n + 1)]);
    let ports = matches!(protocol, 6 | 17 | 132 | 136);
    Some(Packet {
        protocol,
        from: SocketAddr::new(from, if ports { port(0) } else { 0 }),
        to: SocketAddr::new(to, if ports { port(2) } else { 0 }),
        icmp: matches!(protocol, 1 | 58).then(|| at(header)),
        len: frame.len(),
    })
}

/// A socket of `uid`'s: what nftables calls skuid is the file system uid of whoever makes it.
pub fn socket_of(uid: u32, family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; setfsuid by number is for this thread alone; the descriptor is new.
    unsafe {
        libc::syscall(libc::SYS_setfsuid, uid);
        let fd = libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol);
        let e = Error::last_os_error();
        libc::syscall(libc::SYS_setfsuid, 0);
        if fd < 0 {
            return Err(e);
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn storage(to: SocketAddr) -> (libc::sockaddr_storage, u32) {
    // SAFETY: all zeroes are a valid sockaddr_storage, which is large and aligned enough for both.
    let mut s: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    match to {
        SocketAddr::V4(a) => {
            // SAFETY: see above.
            let sin = unsafe { &mut *(&raw mut s).cast::<libc::sockaddr_in>() };
            sin.sin_family = libc::AF_INET as u16;
            sin.sin_port = a.port().to_be();
            sin.sin_addr.s_addr = u32::from_ne_bytes(a.ip().octets());
            (s, size_of::<libc::sockaddr_in>() as u32)
        }
        SocketAddr::V6(a) => {
            // SAFETY: see above.
            let sin = unsafe { &mut *(&raw mut s).cast::<libc::sockaddr_in6>() };
            sin.sin6_family = libc::AF_INET6 as u16;
            sin.sin6_port = a.port().to_be();
            sin.sin6_addr.s6_addr = a.ip().octets();
            (s, size_of::<libc::sockaddr_in6>() as u32)
        }
    }
}

/// connect(2); what it says.
pub fn connect(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let (s, len) = storage(to);
    // SAFETY: the address lives through the call.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const s).cast(), len) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// bind(2), again for a while where the port is in use: another test's child may hold a copy until it execs.
pub fn bind(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match bind_once(socket, to) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) && Instant::now() < end => {
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

fn bind_once(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let one: libc::c_int = 1;
    let (s, len) = storage(to);
    // SAFETY: number and address live through the calls.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR,
            (&raw const one).cast(),
            4,
        );
        match libc::bind(socket.as_raw_fd(), (&raw const s).cast(), len) {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }
}

/// send(2) of these bytes; what it says.
pub fn write(socket: &OwnedFd, data: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes live through the call.
    let n = unsafe {
        libc::send(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_NOSIGNAL,
        )
    };
    if n < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

/// Sends one packet as `uid` without waiting; refusals are seen by what does not arrive.
pub fn send(uid: u32, what: What, to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let (kind, protocol) = match what {
        What::Tcp => (libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0),
        What::Udp => (libc::SOCK_DGRAM, 0),
        What::Ping if to.is_ipv4() => (libc::SOCK_RAW, libc::IPPROTO_ICMP),
        What::Ping => (libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        What::Sctp => (libc::SOCK_RAW, libc::IPPROTO_SCTP),
    };
    let socket = socket_of(uid, family, kind, protocol)?;
    let _ = connect(&socket, to);
    match what {
        What::Tcp => {}
        What::Udp => {
            let _ = write(&socket, b"probe");
        }
        What::Ping => {
            let kind = if to.is_ipv4() { 8 } else { 128 };
            let sum = (!(u16::from(kind) << 8)).to_be_bytes();
            let _ = write(&socket, &[kind, 0, sum[0], sum[1], 0, 0, 0, 0]);
        }
        What::Sctp => {
            let _ = write(&socket, &[0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
    Ok(socket)
}

/// Waits until a socket has this event (poll(2)) or the time is over.
pub fn wait(socket: &OwnedFd, events: i16, limit: Duration) -> bool {
    let mut p = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one pollfd that lives through the call.
    unsafe { libc::poll(&raw mut p, 1, limit.as_millis() as i32) > 0 }
}

/// What a socket's pending error is (SO_ERROR).
pub fn pending(socket: &OwnedFd) -> i32 {
    let mut e: libc::c_int = 0;
    let mut len = 4;
    // SAFETY: both live through the call.
    unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut e).cast(),
            &raw mut len,
        );
    }
    e
}

/// Asks a server that sends back what it gets, as `uid`; waits at most `limit`.
pub fn ask(uid: u32, what: What, to: SocketAddr, limit: Duration) -> io::Result<Fate> {
    let until = Instant::now() + limit;
    let left = || until.saturating_duration_since(Instant::now());
    let socket = send(uid, what, to)?;
    if what == What::Tcp {
        if !wait(&socket, libc::POLLOUT, left()) {
            return Ok(Fate::Silent);
        }
        match pending(&socket) {
            0 => {}
            e => return Ok(Fate::Refused(e)),
        }
        if let Err(e) = write(&socket, b"probe") {
            return Ok(Fate::Refused(e.raw_os_error().unwrap_or(0)));
        }
    } else if what == What::Udp {
        // The datagram has gone with send(); one that a rule refuses says so now.
        if let Err(e) = write(&socket, b"again") {
            return Ok(Fate::Refused(e.raw_os_error().unwrap_or(0)));
        }
    }
    if !wait(&socket, libc::POLLIN, left()) {
        return Ok(Fate::Silent);
    }
    Ok(match pending(&socket) {
        0 => Fate::Answered,
        e => Fate::Refused(e),
    })
}

/// The same, without a doubt about what is meant: whether an answer came.
pub fn answered(uid: u32, what: What, to: SocketAddr) -> io::Result<bool> {
    Ok(ask(uid, what, to, Duration::from_secs(3))? == Fate::Answered)
}
