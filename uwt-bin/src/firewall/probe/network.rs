//! The network that rules are tried on: interfaces, a tap that sees what leaves, and packets of any user's.

use crate::refusal::{Refusal, Result};
use std::io::{self, Error};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

/// The interface that stands for the network.
pub(super) const UPLINK: &str = "uwt-up";
/// Its other end, where packets come in from.
pub(super) const FAR: &str = "uwt-far";

pub(super) fn setup(what: &str) -> impl Fn(io::Error) -> Refusal {
    let what = what.to_owned();
    move |e| Refusal::new(format!("test: {what}"), e.to_string(), "")
}

pub(super) fn ip(batch: &str) -> Result<()> {
    use std::io::Write;
    let mut child = Command::new("/usr/sbin/ip")
        .args(["-batch", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            Refusal::new(
                "/usr/sbin/ip cannot be run",
                e.to_string(),
                "apt install iproute2",
            )
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(batch.as_bytes());
    }
    let out = child.wait_with_output().map_err(setup("ip"))?;
    if out.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(Refusal::new("test: ip failed", why, ""))
}

/// What leaves by any interface, and a way to put packets onto one.
pub(super) struct Tap {
    socket: OwnedFd,
    marks: u32,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) interface: String,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap_or(0)
}

impl Tap {
    pub(super) fn open() -> io::Result<Tap> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) with plain numbers; the descriptor is new and nobody else's.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
            if fd < 0 {
                return Err(Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::ReceiveTimeout,
            &nix::sys::time::TimeVal::new(10, 0),
        )?;
        Ok(Tap { socket, marks: 0 })
    }

    /// Puts a frame onto an interface, past all rules.
    pub(super) fn send(&self, interface: &str, frame: &[u8]) -> io::Result<()> {
        // SAFETY: all zeroes are a valid sockaddr_ll; frame and address live through the call.
        let n = unsafe {
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = index(interface) as i32;
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if n < 0 {
            return Err(Error::last_os_error());
        }
        Ok(())
    }

    /// All that has left until now: up to a frame of its own.
    pub(super) fn left(&mut self) -> io::Result<Vec<Frame>> {
        self.marks += 1;
        // An Ethernet header with a type for experiments (IEEE 802 OUI extended: 88b5), and a number.
        let mut mark = vec![0; 14];
        mark[12..14].copy_from_slice(&[0x88, 0xb5]);
        mark.extend_from_slice(b"uwt-probe");
        mark.extend_from_slice(&self.marks.to_be_bytes());
        self.send(UPLINK, &mark)?;
        let mut out = Vec::new();
        let mut buf = vec![0; 1 << 16];
        loop {
            // SAFETY: all zeroes are a valid sockaddr_ll; buffer, address and length live through the call.
            let (n, from) = unsafe {
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut len = size_of::<libc::sockaddr_ll>() as u32;
                let n = libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buf.as_mut_ptr().cast(),
                    buf.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut len,
                );
                (n, from)
            };
            let n = usize::try_from(n).map_err(|_| Error::last_os_error())?;
            let bytes = &buf[..n];
            if bytes == mark.as_slice() {
                return Ok(out);
            }
            let name = nix::net::if_::if_indextoname(from.sll_ifindex as u32)
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            let other_end = name == FAR || name.starts_with("uwt-t");
            if from.sll_pkttype == libc::PACKET_OUTGOING && name != "lo" && !other_end {
                out.push(Frame {
                    interface: name,
                    bytes: bytes.to_vec(),
                });
            }
        }
    }
}

/// Acts as `uid` for sockets that are made meanwhile: what `meta skuid` sees is the creator's file system uid.
pub(super) fn with_uid<T>(uid: u32, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // SAFETY: setfsuid(2) by number, for this thread alone.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    let result = f();
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setfsuid, 0) };
    result
}

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Tcp,
    Udp,
    Ping,
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            What::Tcp => "TCP",
            What::Udp => "UDP",
            What::Ping => "ICMP",
        }
    }
}

/// Sends one packet as `uid`; whether the system let it go is seen elsewhere.
pub(super) fn send(uid: u32, what: What, to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let (kind, protocol) = match what {
        What::Tcp => (libc::SOCK_STREAM, 0),
        What::Udp => (libc::SOCK_DGRAM, 0),
        What::Ping if to.is_ipv4() => (libc::SOCK_RAW, libc::IPPROTO_ICMP),
        What::Ping => (libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
    };
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let socket = with_uid(uid, || {
        // SAFETY: socket(2) with plain numbers; the descriptor is new and nobody else's.
        unsafe {
            let fd = libc::socket(family, kind, protocol);
            if fd < 0 {
                return Err(Error::last_os_error());
            }
            Ok(OwnedFd::from_raw_fd(fd))
        }
    })?;
    let address: nix::sys::socket::SockaddrStorage = to.into();
    // Refusals are what is looked for.
    let _ = nix::sys::socket::connect(socket.as_raw_fd(), &address);
    match what {
        What::Tcp => {}
        What::Udp => {
            let _ = nix::unistd::write(&socket, b"uwt probe");
        }
        What::Ping => {
            // An echo request (RFC 792); the checksum of these bytes is right for IPv4.
            let kind = if to.is_ipv4() { 8 } else { 128 };
            let sum = (!(u16::from(kind) << 8)).to_be_bytes();
            let _ = nix::unistd::write(&socket, &[kind, 0, sum[0], sum[1], 0, 0, 0, 0]);
        }
    }
    Ok(socket)
}

pub(super) fn carries(frame: &Frame, what: What, to: SocketAddr) -> bool {
    let b = &frame.bytes;
    let at = |n: usize| b.get(n).copied().unwrap_or(0);
    let (protocol, header, address): (u8, usize, IpAddr) = match (at(12), at(13)) {
        (0x08, 0x00) => {
            let a: [u8; 4] = b
                .get(30..34)
                .and_then(|a| a.try_into().ok())
                .unwrap_or_default();
            (at(23), 14 + usize::from(at(14) & 15) * 4, a.into())
        }
        (0x86, 0xdd) => {
            let a: [u8; 16] = b
                .get(38..54)
                .and_then(|a| a.try_into().ok())
                .unwrap_or_default();
            (at(20), 54, a.into())
        }
        _ => return false,
    };
    let port = u16::from_be_bytes([at(header + 2), at(header + 3)]);
    let kind = match what {
        What::Tcp => 6,
        What::Udp => 17,
        What::Ping if to.is_ipv4() => 1,
        What::Ping => 58,
    };
    protocol == kind && address == to.ip() && (what == What::Ping || port == to.port())
}

/// Whether a TCP connection on loopback comes about.
pub(super) fn reaches(uid: u32, to: SocketAddr) -> io::Result<bool> {
    let socket = send(uid, What::Tcp, to)?;
    let mut fds = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(&socket),
        nix::poll::PollFlags::POLLOUT,
    )];
    nix::poll::poll(&mut fds, 3000u16)?;
    Ok(
        nix::sys::socket::getpeername::<nix::sys::socket::SockaddrStorage>(socket.as_raw_fd())
            .is_ok(),
    )
}

/// A TCP SYN from the network to this host.
pub(super) fn syn(port: u16) -> Vec<u8> {
    let mut f = vec![0u8; 12];
    f.extend_from_slice(&[0x08, 0x00]);
    let ip_at = f.len();
    f.extend_from_slice(&[0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
    f.extend_from_slice(&[198, 51, 100, 9, 192, 0, 2, 2]);
    let checksum = |parts: &[&[u8]]| -> [u8; 2] {
        let mut sum = 0u32;
        for pair in parts.concat().chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([
                pair.first().copied().unwrap_or(0),
                low,
            ]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    };
    let sum = checksum(&[&f[ip_at..]]);
    f[ip_at + 10..ip_at + 12].copy_from_slice(&sum);
    let mut tcp = vec![0x9c, 0x40];
    tcp.extend_from_slice(&port.to_be_bytes());
    tcp.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    let pseudo = [&f[ip_at + 12..ip_at + 20], &[0, 6, 0, 20]].concat();
    let sum = checksum(&[&pseudo, &tcp]);
    tcp[16..18].copy_from_slice(&sum);
    f.extend_from_slice(&tcp);
    f
}

/// The uplink's hardware address, by SIOCGIFHWADDR (netdevice(7)).
pub(super) fn own_mac() -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: all zeroes are a valid ifreq, whose name ends with a NUL; it lives through the call, and the kernel has
    // written a sockaddr into the union when it says 0.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (slot, b) in request.ifr_name.iter_mut().zip(UPLINK.bytes()) {
            *slot = b as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) != 0 {
            return Err(Error::last_os_error());
        }
        let data = request.ifr_ifru.ifru_hwaddr.sa_data;
        Ok(data[..6].iter().map(|b| *b as u8).collect())
    }
}
