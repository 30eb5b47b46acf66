//! Puts another socket in the place of the program's, where the program's own cannot reach the SOCKS
//! port: `SocksPort unix:`, an IPv6 SOCKS port for an IPv4 socket, a socket bound to an address from
//! which loopback is out of reach.
//!
//! The descriptor's number, its flags, the generic socket options and the epoll registrations that
//! went through hooks are kept. Copies made by dup(2) before connect(2) keep the old socket.

use crate::addr::Address;
use crate::table::{self, REGISTRATIONS, Registration};
use crate::{carry, sys};
use sys::Fd;
use uwt_core::errno::Errno;

/// Options of SOL_SOCKET that travel (socket(7)): each is an int, or a struct timeval.
const OPTIONS: [(i32, usize); 7] = [
    (libc::SO_KEEPALIVE, 4),
    (libc::SO_LINGER, 8),
    (libc::SO_PRIORITY, 4),
    (libc::SO_RCVBUF, 4),
    (libc::SO_SNDBUF, 4),
    (libc::SO_RCVTIMEO, 16),
    (libc::SO_SNDTIMEO, 16),
];

/// Starts a connection to `proxy` on a new socket and gives it the number `fd`.
pub fn connect(fd: Fd, proxy: &Address) -> Result<(), Errno> {
    let new = sys::socket(proxy.family(), libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)?;
    let result = replace(fd, new, proxy);
    sys::close(new);
    result
}

fn replace(fd: Fd, new: Fd, proxy: &Address) -> Result<(), Errno> {
    for (name, len) in OPTIONS {
        let mut value = [0u8; 16];
        if sys::getsockopt_bytes(fd, libc::SOL_SOCKET, name, &mut value[..len]).is_ok() {
            // The kernel doubles what it is told for the buffers and tells the double.
            if matches!(name, libc::SO_RCVBUF | libc::SO_SNDBUF) {
                continue;
            }
            let _ = sys::setsockopt_bytes(new, libc::SOL_SOCKET, name, &value[..len]);
        }
    }
    let flags = sys::fcntl(fd, libc::F_GETFL, 0)?;
    sys::fcntl(new, libc::F_SETFL, flags)?;
    // A unix socket's connect fails with EAGAIN, at once, when the listener's queue is full.
    carry::start(new, proxy)?;
    let cloexec = sys::fcntl(fd, libc::F_GETFD, 0)? & libc::FD_CLOEXEC != 0;
    let watched = table::with(|t| {
        let i = t.lookup(fd)?;
        let e = t.at(i)?;
        Some((e.registrations, e.registered))
    });
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    table::forget(fd);
    sys::dup3(new, fd, flags)?;
    table::note_swapped();
    let (registrations, n): ([Registration; REGISTRATIONS], usize) = match watched {
        Some(w) => w,
        None => return Ok(()),
    };
    let family = libc::AF_INET;
    table::with(|t| {
        let i = t.insert(fd, family)?;
        let e = t.at(i)?;
        e.registrations = registrations;
        e.registered = n;
        Some(())
    });
    for r in &registrations[..n.min(REGISTRATIONS)] {
        let mut event = libc::epoll_event {
            events: r.events,
            u64: r.data,
        };
        let _ = sys::epoll_ctl(r.epfd, libc::EPOLL_CTL_ADD, fd, Some(&mut event));
    }
    Ok(())
}
