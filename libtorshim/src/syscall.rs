//! syscall(2): the same rules by number. A number that this file does not know passes only if it is one
//! of Linux's that cannot reach the network; newer ones and io_uring get ENOSYS, which programs expect.

use crate::hook::{fail, hooks};
use crate::{connect, datagram, epoll, exec, fds, log, rights, socket, state, stream, sys, wait};
use core::ffi::{c_int, c_long, c_uint};
use libc::{sigset_t, socklen_t};
use redhook::real;
use uwt_core::route::Refusal;

/// The newest number that was looked at: file_setattr, Linux 6.17 (the table is the same on every
/// architecture from 424 on).
const NEWEST: c_long = 469;

/// What pselect6(2) takes as its sixth argument.
#[repr(C)]
struct MaskAndSize {
    mask: *const sigset_t,
    size: usize,
}

fn refuse(n: c_long) -> c_long {
    let r = Refusal::UnknownSyscall;
    log::refused!("syscall({n}): {}", r.message());
    c_long::from(fail(r.errno()))
}

/// pidfd_getfd(2) may bring in a socket that is connected beside Tor.
fn taken(fd: c_long) -> c_long {
    if fd >= 0 && rights::is_foreign(fd as c_int) {
        sys::close(fd as c_int);
        let r = Refusal::ForeignSocket;
        log::refused!("pidfd_getfd: {}", r.message());
        return c_long::from(fail(r.errno()));
    }
    fd
}

/// The calls that x86_64 has and newer architectures do not.
#[cfg(target_arch = "x86_64")]
unsafe fn legacy(n: c_long, a: [usize; 6]) -> Option<c_long> {
    // SAFETY: each hook gets the arguments of the system call of the same name, as the program passed them.
    let r = unsafe {
        match n {
            libc::SYS_poll => wait::on_poll(a[0] as _, a[1] as _, a[2] as _),
            libc::SYS_select => {
                wait::on_select(a[0] as _, a[1] as _, a[2] as _, a[3] as _, a[4] as _)
            }
            libc::SYS_epoll_wait => {
                epoll::on_epoll_wait(a[0] as _, a[1] as _, a[2] as _, a[3] as _)
            }
            libc::SYS_dup2 => fds::on_dup2(a[0] as _, a[1] as _),
            libc::SYS_accept => socket::on_accept(a[0] as _, a[1] as _, a[2] as _),
            _ => return None,
        }
    };
    Some(c_long::from(r))
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn legacy(n: c_long, a: [usize; 6]) -> Option<c_long> {
    match n {
        // SAFETY: accept(2)'s own arguments.
        libc::SYS_accept => Some(c_long::from(unsafe {
            socket::on_accept(a[0] as _, a[1] as _, a[2] as _)
        })),
        _ => None,
    }
}

/// Calls that are held by their hooks; `None` for the others.
unsafe fn held(n: c_long, a: [usize; 6]) -> Option<c_long> {
    // SAFETY: as in `legacy`.
    let int = |r: c_int| Some(c_long::from(r));
    let size = |r: isize| Some(r as c_long);
    let fd = a[0] as c_int;
    // SAFETY: as in `legacy`.
    unsafe {
        match n {
            libc::SYS_socket => int(socket::on_socket(fd, a[1] as _, a[2] as _)),
            libc::SYS_connect => int(connect::on_connect(fd, a[1] as _, a[2] as socklen_t)),
            libc::SYS_bind => int(socket::on_bind(fd, a[1] as _, a[2] as _)),
            libc::SYS_listen => int(socket::on_listen(fd, a[1] as _)),
            libc::SYS_accept4 => int(socket::on_accept4(fd, a[1] as _, a[2] as _, a[3] as _)),
            libc::SYS_getpeername => int(socket::on_getpeername(fd, a[1] as _, a[2] as _)),
            libc::SYS_getsockname => int(socket::on_getsockname(fd, a[1] as _, a[2] as _)),
            libc::SYS_getsockopt => int(socket::on_getsockopt(
                fd, a[1] as _, a[2] as _, a[3] as _, a[4] as _,
            )),
            libc::SYS_setsockopt => int(socket::on_setsockopt(
                fd, a[1] as _, a[2] as _, a[3] as _, a[4] as _,
            )),
            libc::SYS_shutdown => int(socket::on_shutdown(fd, a[1] as _)),
            libc::SYS_read => size(stream::on_read(fd, a[1] as _, a[2])),
            libc::SYS_readv => size(stream::on_readv(fd, a[1] as _, a[2] as _)),
            libc::SYS_write => size(stream::on_write(fd, a[1] as _, a[2])),
            libc::SYS_writev => size(stream::on_writev(fd, a[1] as _, a[2] as _)),
            libc::SYS_recvfrom => size(stream::on_recvfrom(
                fd, a[1] as _, a[2], a[3] as _, a[4] as _, a[5] as _,
            )),
            libc::SYS_recvmsg => size(rights::on_recvmsg(fd, a[1] as _, a[2] as _)),
            libc::SYS_recvmmsg => int(rights::on_recvmmsg(
                fd,
                a[1] as _,
                a[2] as c_uint,
                a[3] as _,
                a[4] as _,
            )),
            libc::SYS_sendto => size(datagram::on_sendto(
                fd, a[1] as _, a[2], a[3] as _, a[4] as _, a[5] as _,
            )),
            libc::SYS_sendmsg => size(datagram::on_sendmsg(fd, a[1] as _, a[2] as _)),
            libc::SYS_sendmmsg => int(datagram::on_sendmmsg(fd, a[1] as _, a[2] as _, a[3] as _)),
            libc::SYS_sendfile => size(stream::on_sendfile(fd, a[1] as _, a[2] as _, a[3])),
            libc::SYS_splice => size(stream::on_splice(
                fd, a[1] as _, a[2] as _, a[3] as _, a[4], a[5] as _,
            )),
            libc::SYS_ppoll => int(wait::on_ppoll(a[0] as _, a[1] as _, a[2] as _, a[3] as _)),
            libc::SYS_pselect6 => {
                let mask = (a[5] as *const MaskAndSize).as_ref();
                let mask = mask.map_or(core::ptr::null(), |m| {
                    if m.size == 0 {
                        core::ptr::null()
                    } else {
                        m.mask
                    }
                });
                int(wait::on_pselect(
                    fd, a[1] as _, a[2] as _, a[3] as _, a[4] as _, mask,
                ))
            }
            libc::SYS_epoll_ctl => int(epoll::on_epoll_ctl(fd, a[1] as _, a[2] as _, a[3] as _)),
            libc::SYS_epoll_pwait => int(epoll::on_epoll_pwait(
                fd, a[1] as _, a[2] as _, a[3] as _, a[4] as _,
            )),
            libc::SYS_epoll_pwait2 => int(epoll::on_epoll_pwait2(
                fd, a[1] as _, a[2] as _, a[3] as _, a[4] as _,
            )),
            libc::SYS_execve => int(exec::on_execve(a[0] as _, a[1] as _, a[2] as _)),
            libc::SYS_execveat => int(exec::on_execveat(
                fd, a[1] as _, a[2] as _, a[3] as _, a[4] as _,
            )),
            libc::SYS_dup => int(fds::on_dup(fd)),
            libc::SYS_dup3 => int(fds::on_dup3(fd, a[1] as _, a[2] as _)),
            libc::SYS_fcntl => int(fds::on_fcntl(fd, a[1] as _, a[2])),
            libc::SYS_close => int(fds::on_close(fd)),
            libc::SYS_close_range => int(fds::on_close_range(a[0] as _, a[1] as _, a[2] as _)),
            _ => legacy(n, a),
        }
    }
}

hooks! {
    unsafe fn syscall(n: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long => on_syscall {
        // SAFETY: the program's own arguments; those that a call does not take are not looked at.
        if let Some(r) = unsafe { held(n, [a, b, c, d, e, f]) } {
            return r;
        }
        match n {
            libc::SYS_io_uring_setup | libc::SYS_io_uring_enter | libc::SYS_io_uring_register if !state::get().held() => {
                refuse(n)
            }
            // Also what x32 programs would call: their numbers have bit 30 set.
            _ if !(0..=NEWEST).contains(&n) => refuse(n),
            // SAFETY: the program's own call, unchanged.
            libc::SYS_pidfd_getfd => taken(unsafe { real!(syscall)(n, a, b, c, d, e, f) }),
            // SAFETY: the program's own call, unchanged.
            _ => unsafe { real!(syscall)(n, a, b, c, d, e, f) },
        }
    }
}
