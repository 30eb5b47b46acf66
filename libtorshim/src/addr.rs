//! sockaddr <-> `SocketAddr`: reads what a program passes once, into memory that it cannot change
//! afterwards.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A copy of a program's sockaddr (sockaddr(3type)), at most 128 bytes.
#[derive(Clone, Copy)]
pub struct Address {
    bytes: [u8; 128],
    len: usize,
}

impl Address {
    /// Copies the sockaddr that a program passed; `None` for a null pointer, or a length under two
    /// or over 128 bytes, for which the kernel gives EFAULT or EINVAL.
    ///
    /// # Safety
    /// If not null, `at` must be readable for `len` bytes.
    pub unsafe fn copy(at: *const libc::sockaddr, len: libc::socklen_t) -> Option<Address> {
        let len = len as usize;
        if at.is_null() || !(2..=128).contains(&len) {
            return None;
        }
        let mut a = Address {
            bytes: [0; 128],
            len,
        };
        // SAFETY: the caller vouches for `len` bytes at `at`; `bytes` has room for 128.
        unsafe { core::ptr::copy_nonoverlapping(at.cast(), a.bytes.as_mut_ptr(), len) };
        Some(a)
    }

    /// The sockaddr in `bytes`, as the kernel filled it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Address> {
        if !(2..=128).contains(&bytes.len()) {
            return None;
        }
        let mut a = Address {
            bytes: [0; 128],
            len: bytes.len(),
        };
        a.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(a)
    }

    /// `addr` as a sockaddr of `family` (AF_INET, or AF_INET6: IPv4 v4-mapped).
    pub fn new(addr: SocketAddr, family: i32) -> Address {
        let mut bytes = [0u8; 128];
        let addr = match (addr, family) {
            (SocketAddr::V4(a), libc::AF_INET6) => {
                SocketAddrV6::new(a.ip().to_ipv6_mapped(), a.port(), 0, 0).into()
            }
            _ => addr,
        };
        let len = match addr {
            SocketAddr::V4(a) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[2..4].copy_from_slice(&a.port().to_be_bytes());
                bytes[4..8].copy_from_slice(&a.ip().octets());
                16
            }
            SocketAddr::V6(a) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[2..4].copy_from_slice(&a.port().to_be_bytes());
                bytes[8..24].copy_from_slice(&a.ip().octets());
                bytes[24..28].copy_from_slice(&a.scope_id().to_ne_bytes());
                28
            }
        };
        Address { bytes, len }
    }

    /// A unix socket's address (unix(7)); `path` is at most 107 bytes.
    pub fn unix(path: &[u8]) -> Address {
        let mut bytes = [0u8; 128];
        bytes[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
        let n = path.len().min(107);
        bytes[2..2 + n].copy_from_slice(&path[..n]);
        Address { bytes, len: 3 + n }
    }

    /// The address family.
    pub fn family(&self) -> i32 {
        i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]))
    }

    /// The sockaddr's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// IPv4 or IPv6; `None` for another family, or if it is too short.
    pub fn ip(&self) -> Option<SocketAddr> {
        let b = &self.bytes;
        let port = u16::from_be_bytes([b[2], b[3]]);
        match self.family() {
            libc::AF_INET if self.len >= 16 => {
                let ip = Ipv4Addr::new(b[4], b[5], b[6], b[7]);
                Some(SocketAddrV4::new(ip, port).into())
            }
            // 24 bytes: without the scope id, as RFC 2133 had it; the kernel takes it.
            libc::AF_INET6 if self.len >= 24 => {
                let mut o = [0u8; 16];
                o.copy_from_slice(&b[8..24]);
                let scope = u32::from_ne_bytes([b[24], b[25], b[26], b[27]]);
                Some(SocketAddrV6::new(Ipv6Addr::from(o), port, 0, scope).into())
            }
            _ => None,
        }
    }

    /// The path of a unix socket: without final NULs, empty for an abstract or unnamed one.
    pub fn unix_path(&self) -> &[u8] {
        let path = &self.bytes[2..self.len];
        path.split(|b| *b == 0).next().unwrap_or(b"")
    }

    /// Copies the sockaddr to where a program wants it, as getpeername(2) does: cut off at `*len`,
    /// `*len` becomes the full length.
    ///
    /// # Safety
    /// `len` must be valid, and `to` writable for `*len` bytes.
    pub unsafe fn store(&self, to: *mut libc::sockaddr, len: *mut libc::socklen_t) {
        // SAFETY: the caller vouches for both.
        unsafe {
            let n = (*len as usize).min(self.len);
            core::ptr::copy_nonoverlapping(self.bytes.as_ptr(), to.cast(), n);
            *len = self.len as libc::socklen_t;
        }
    }
}

/// IPv4 for a v4-mapped address, else as it is.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(uwt_core::hostname::canonical(addr.ip()), addr.port())
}

/// The bytes of an address, as they stand in a SOCKS request.
pub fn octets(ip: IpAddr, out: &mut [u8; 16]) -> &[u8] {
    match ip {
        IpAddr::V4(a) => {
            out[..4].copy_from_slice(&a.octets());
            &out[..4]
        }
        IpAddr::V6(a) => {
            out.copy_from_slice(&a.octets());
            out
        }
    }
}
