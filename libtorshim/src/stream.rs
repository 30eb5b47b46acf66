//! Reading and writing: a handshake under way comes first, so that the program never sees the proxy's
//! bytes and the proxy never the program's. Costs one load where no handshake is under way.

use crate::carry::settle;
use crate::hook::{hooks, set_errno};
use libc::{c_int, c_uint, c_void, iovec, off_t, size_t, ssize_t};
use redhook::real;

/// Whether the call may go on; if not, errno is set.
fn ready(fd: c_int, flags: c_int) -> bool {
    match settle(fd, flags & libc::MSG_DONTWAIT != 0) {
        Ok(()) => true,
        Err(e) => {
            set_errno(e);
            false
        }
    }
}

/// Hooks that wait for the handshake on their first argument and then pass on unchanged.
macro_rules! after_handshake {
    ($( $real:ident ( $fd:ident $(, $v:ident : $t:ty)* ) $flags:expr => $name:ident; )*) => {
        hooks! {
            $(
                unsafe fn $real($fd: c_int $(, $v: $t)*) -> ssize_t => $name {
                    if !ready($fd, $flags) {
                        return -1;
                    }
                    // SAFETY: the program's own call, unchanged.
                    unsafe { real!($real)($fd $(, $v)*) }
                }
            )*
        }
    };
}

after_handshake! {
    read(fd, buf: *mut c_void, n: size_t) 0 => on_read;
    __read(fd, buf: *mut c_void, n: size_t) 0 => on_read_internal;
    __read_chk(fd, buf: *mut c_void, n: size_t, len: size_t) 0 => on_read_chk;
    readv(fd, v: *const iovec, n: c_int) 0 => on_readv;
    write(fd, buf: *const c_void, n: size_t) 0 => on_write;
    __write(fd, buf: *const c_void, n: size_t) 0 => on_write_internal;
    writev(fd, v: *const iovec, n: c_int) 0 => on_writev;
    recv(fd, buf: *mut c_void, n: size_t, flags: c_int) flags => on_recv;
    __recv_chk(fd, buf: *mut c_void, n: size_t, len: size_t, flags: c_int) flags => on_recv_chk;
    recvfrom(fd, buf: *mut c_void, n: size_t, flags: c_int, from: *mut libc::sockaddr, len: *mut libc::socklen_t) flags => on_recvfrom;
    __recvfrom_chk(fd, buf: *mut c_void, n: size_t, blen: size_t, flags: c_int, from: *mut libc::sockaddr, len: *mut libc::socklen_t) flags => on_recvfrom_chk;
    sendfile(fd, from: c_int, offset: *mut off_t, n: size_t) 0 => on_sendfile;
    sendfile64(fd, from: c_int, offset: *mut off_t, n: size_t) 0 => on_sendfile64;
    splice(fd, off_in: *mut off_t, to: c_int, off_out: *mut off_t, n: size_t, flags: c_uint) {
        // Either end may be the socket.
        if settle(to, flags & libc::SPLICE_F_NONBLOCK != 0).is_err() { libc::MSG_DONTWAIT } else { 0 }
    } => on_splice;
}
