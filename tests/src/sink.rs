//! Records what leaves: every packet on the uplink, and whoever asks a daemon to resolve names.

use crate::netns::UPLINK;
use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// The recorder. Nothing runs in the background: the kernel queues, [`Sink::drain`] reads.
pub struct Sink {
    packets: OwnedFd,
    marker: UdpSocket,
    stub: Option<(UdpSocket, TcpListener)>,
    daemons: Vec<(&'static str, UnixListener)>,
    /// Whoever asks nscd, until it is known what for.
    asking: Vec<UnixStream>,
    marks: u64,
}

/// Where daemons listen that resolve names for their clients.
const DAEMONS: [&str; 3] = [
    "/run/nscd/socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/dbus/system_bus_socket",
];

const NSCD: &str = "/run/nscd/socket";

/// Whether a request to nscd (nscd-client.h: version 2, type, length of the key) is about users, groups,
/// services or netgroups: libc asks those past every hook, and they are in files. Hosts are 4 to 7, 13, 14.
fn is_about_users(request: &[u8]) -> bool {
    let word = |at: usize| {
        request
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(i32::from_ne_bytes)
    };
    word(0) == Some(2) && word(4).is_some_and(|kind| !matches!(kind, 4..=7 | 13 | 14))
}

const MARK: &[u8] = b"uwt-sink-mark-";

impl Sink {
    /// Records packets, and stands in for the daemons that resolve for others. Somebody must [`Sink::peek`] while
    /// a command runs: libc waits 5 s for an nscd that does not answer.
    pub fn with_daemons() -> io::Result<Sink> {
        let mut sink = Sink::packets()?;
        let stub_udp = UdpSocket::bind("127.0.0.53:53")?;
        stub_udp.set_nonblocking(true)?;
        let stub_tcp = TcpListener::bind("127.0.0.53:53")?;
        stub_tcp.set_nonblocking(true)?;
        sink.stub = Some((stub_udp, stub_tcp));
        for path in DAEMONS {
            if let Some(folder) = Path::new(path).parent() {
                fs::create_dir_all(folder)?;
            }
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
            sink.daemons.push((path, listener));
        }
        Ok(sink)
    }

    /// Records packets alone; [`crate::netns::enter`] has been called.
    pub fn packets() -> io::Result<Sink> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket(2) with plain numbers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that has just been made and is nobody else's.
        let packets = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = std::ffi::CString::new(UPLINK).unwrap_or_default();
        // SAFETY: all zeroes are a valid sockaddr_ll; if_nametoindex reads a C string; bind reads the
        // struct that lives through the call.
        let bound = unsafe {
            let mut a: libc::sockaddr_ll = std::mem::zeroed();
            a.sll_family = libc::AF_PACKET as u16;
            a.sll_protocol = protocol;
            a.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let len = size_of::<libc::sockaddr_ll>() as u32;
            libc::bind(fd, (&raw const a).cast(), len)
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut sink = Sink {
            packets,
            marker: UdpSocket::bind("192.0.2.2:0")?,
            stub: None,
            daemons: Vec::new(),
            asking: Vec::new(),
            marks: 0,
        };
        sink.drain()?;
        Ok(sink)
    }

    /// The descriptors that become readable when something leaves.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all = vec![self.packets.as_raw_fd()];
        if let Some((udp, tcp)) = &self.stub {
            all.extend([udp.as_raw_fd(), tcp.as_raw_fd()]);
        }
        all.extend(self.daemons.iter().map(|(_, l)| l.as_raw_fd()));
        all.extend(self.asking.iter().map(AsRawFd::as_raw_fd));
        all
    }

    fn next_packet(&self) -> io::Result<Option<(bool, Vec<u8>)>> {
        let mut buf = vec![0u8; 65536];
        // SAFETY: all zeroes are a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: buffer, address and its length live through the call.
        let n = unsafe {
            libc::recvfrom(
                self.packets.as_raw_fd(),
                buf.as_mut_ptr().cast(),
                buf.len(),
                0,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        if n < 0 {
            let e = io::Error::last_os_error();
            return match e.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(e),
            };
        }
        buf.truncate(n as usize);
        Ok(Some((from.sll_pkttype == libc::PACKET_OUTGOING, buf)))
    }

    /// What has come so far, without waiting.
    pub fn peek(&mut self) -> io::Result<Vec<String>> {
        let mut seen = Vec::new();
        while let Some((out, frame)) = self.next_packet()? {
            if out && !frame.windows(MARK.len()).any(|w| w == MARK) {
                seen.extend(summary(&frame));
            }
        }
        let mut buf = [0; 2048];
        if let Some((udp, tcp)) = &self.stub {
            while udp.recv_from(&mut buf).is_ok() {
                seen.push("a query to the resolver at 127.0.0.53, UDP".into());
            }
            while let Ok((mut stream, _)) = tcp.accept() {
                let _ = stream.set_nonblocking(true);
                let _ = stream.read(&mut buf);
                seen.push("a connection to the resolver at 127.0.0.53, TCP".into());
            }
        }
        for (path, listener) in &self.daemons {
            while let Ok((stream, _)) = listener.accept() {
                if *path == NSCD {
                    let _ = stream.set_nonblocking(true);
                    self.asking.push(stream);
                } else {
                    seen.push(format!("a connection to {path}"));
                }
            }
        }
        self.asking
            .retain_mut(|stream| match stream.read(&mut buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
                Ok(n) if !is_about_users(&buf[..n]) => {
                    seen.push(format!("a query to {NSCD}: {:02x?}", &buf[..n.min(32)]));
                    false
                }
                // Closing makes libc look for itself.
                _ => false,
            });
        Ok(seen)
    }

    /// All that has left until now, for certain: waits for a packet of its own behind it.
    pub fn drain(&mut self) -> io::Result<Vec<String>> {
        self.marks += 1;
        let mark = [MARK, self.marks.to_string().as_bytes()].concat();
        self.marker.send_to(&mark, "192.0.2.99:9")?;
        let mut seen = Vec::new();
        'wait: loop {
            let mut p = libc::pollfd {
                fd: self.packets.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one pollfd that lives through the call.
            if unsafe { libc::poll(&raw mut p, 1, 10_000) } == 0 {
                return Err(io::Error::other("the sink does not see its own packets"));
            }
            while let Some((out, frame)) = self.next_packet()? {
                if out && frame.ends_with(&mark) {
                    break 'wait;
                }
                if out {
                    seen.extend(summary(&frame));
                }
            }
        }
        seen.extend(self.peek()?);
        Ok(seen)
    }
}

fn protocol(n: u8) -> String {
    match n {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        33 => "DCCP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        136 => "UDP-Lite".into(),
        n => format!("IP protocol {n}"),
    }
}

/// One line about a frame; `None` for the kernel's own neighbour and multicast housekeeping.
fn summary(frame: &[u8]) -> Option<String> {
    let port = |at: usize| {
        let b = frame.get(at..at + 2)?;
        Some(u16::from_be_bytes([b[0], b[1]]))
    };
    match port(12)? {
        0x0800 => {
            let to = frame.get(30..34)?;
            let to = Ipv4Addr::new(to[0], to[1], to[2], to[3]);
            let header = 14 + usize::from(frame[14] & 15) * 4;
            let kind = protocol(frame[23]);
            Some(
                match port(header + 2).filter(|_| matches!(frame[23], 6 | 17 | 132 | 136)) {
                    Some(p) => format!("{kind} to {to}:{p}, {} bytes", frame.len()),
                    None => format!("{kind} to {to}, {} bytes", frame.len()),
                },
            )
        }
        0x86dd => {
            let to: [u8; 16] = frame.get(38..54)?.try_into().ok()?;
            let to = Ipv6Addr::from(to);
            // A hop-by-hop header (0) comes before multicast listener reports alone.
            let next = if frame[20] == 0 {
                *frame.get(54)?
            } else {
                frame[20]
            };
            let at = if frame[20] == 0 { 62 } else { 54 };
            if next == 58 && matches!(frame.get(at), Some(133..=136 | 143)) {
                return None;
            }
            Some(format!("{} to {to}, {} bytes", protocol(next), frame.len()))
        }
        other => Some(format!("ethertype {other:04x}, {} bytes", frame.len())),
    }
}
