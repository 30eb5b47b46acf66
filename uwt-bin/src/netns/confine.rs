//! What a run in a namespace gives up before it becomes the command: capabilities that lead to another network,
//! and kinds of sockets that no network namespace holds.

use std::io::{self, Error};
use std::path::Path;

/// What root keeps from the command (capabilities(7)): with these it could join the host's network, take hold of a
/// process outside, change the rules inside, or change the kernel.
const LEADS_OUT: [u32; 9] = [
    12, // CAP_NET_ADMIN
    16, // CAP_SYS_MODULE
    17, // CAP_SYS_RAWIO
    19, // CAP_SYS_PTRACE
    21, // CAP_SYS_ADMIN
    22, // CAP_SYS_BOOT: kexec
    38, // CAP_PERFMON
    39, // CAP_BPF
    40, // CAP_CHECKPOINT_RESTORE
];

/// Kinds of sockets that the namespace holds or that stay on this machine (bits/socket.h): AF_UNIX, AF_INET, AF_INET6,
/// AF_NETLINK, AF_PACKET, AF_ALG. AF_VSOCK, which reaches the hypervisor, was seen to get out.
const FAMILIES: [u32; 6] = [1, 2, 10, 16, 17, 38];

#[cfg(target_arch = "x86_64")]
mod abi {
    /// AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386 (linux/audit.h).
    pub const NATIVE: u32 = 0xc000_003e;
    pub const OTHER: u32 = 0x4000_0003;
    /// socket(2) and socketpair(2) of either; x32 has the native ones with bit 30 set.
    pub const NATIVE_SOCKET: [u32; 4] = [41, 53, 41 | 1 << 30, 53 | 1 << 30];
    pub const OTHER_SOCKET: [u32; 2] = [359, 360];
}
#[cfg(target_arch = "aarch64")]
mod abi {
    /// AUDIT_ARCH_AARCH64 and AUDIT_ARCH_ARM (linux/audit.h).
    pub const NATIVE: u32 = 0xc000_00b7;
    pub const OTHER: u32 = 0x4000_0028;
    /// socket(2) and socketpair(2) of either.
    pub const NATIVE_SOCKET: [u32; 2] = [198, 199];
    pub const OTHER_SOCKET: [u32; 2] = [281, 288];
}

/// io_uring_setup(2), the same number everywhere.
const IO_URING_SETUP: u32 = 425;

/// Whether sockets of AF_VSOCK lead anywhere here. io_uring can make them past the filter, so it is off where they do;
/// programs that use it know how to do without, since containers refuse it too.
pub fn vsock_leads_out() -> bool {
    let there = |name: &str| Path::new("/sys/class/misc").join(name).exists();
    !Path::new("/sys/class/misc").is_dir() || there("vsock") || there("vmci")
}

/// A seccomp filter's program (seccomp(2), linux/filter.h).
struct Filter(Vec<libc::sock_filter>);

impl Filter {
    fn push(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        let code = code as u16;
        self.0.push(libc::sock_filter { code, jt, jf, k });
    }

    fn load(&mut self, offset: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    }

    fn jump_if(&mut self, k: u32, jt: u8, jf: u8) {
        self.push(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    }

    fn give(&mut self, what: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, what, 0, 0);
    }

    /// The number has been loaded: socket(2) of other families fails, the rest passes.
    fn sockets(&mut self, calls: &[u32], io_uring: bool) {
        let deny = |e: i32| libc::SECCOMP_RET_ERRNO | e as u32;
        if !io_uring {
            self.jump_if(IO_URING_SETUP, 0, 1);
            self.give(deny(libc::ENOSYS));
        }
        // To the family's line, over the rest of these and the return behind them.
        for (i, call) in calls.iter().enumerate() {
            self.jump_if(*call, (calls.len() - i) as u8, 0);
        }
        self.give(libc::SECCOMP_RET_ALLOW);
        // args[0], the low half: both architectures are little-endian.
        self.load(16);
        for (i, family) in FAMILIES.iter().enumerate() {
            self.jump_if(*family, (FAMILIES.len() - i) as u8, 0);
        }
        self.give(deny(libc::EAFNOSUPPORT));
        self.give(libc::SECCOMP_RET_ALLOW);
    }
}

fn filter(io_uring: bool) -> Filter {
    let mut other = Filter(Vec::new());
    other.sockets(&abi::OTHER_SOCKET, io_uring);
    let mut native = Filter(Vec::new());
    native.sockets(&abi::NATIVE_SOCKET, io_uring);
    let mut f = Filter(Vec::new());
    // struct seccomp_data: nr, arch, instruction pointer, args.
    f.load(4);
    f.jump_if(abi::OTHER, 0, other.0.len() as u8 + 1);
    f.load(0);
    f.0.append(&mut other.0);
    f.jump_if(abi::NATIVE, 1, 0);
    f.give(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    f.load(0);
    f.0.append(&mut native.0);
    f
}

/// Gives up what leads out. The last step before exec: it cannot be undone.
///
/// # Errors
/// prctl(2)'s, seccomp(2)'s, capset(2)'s.
pub fn give_up(root: bool) -> io::Result<()> {
    let mut program = filter(!vsock_leads_out());
    let len = program.0.len() as u16;
    let program = libc::sock_fprog {
        len,
        filter: program.0.as_mut_ptr(),
    };
    let failed = || Err(Error::last_os_error());
    // SAFETY: seccomp(2) reads a program that lives through the call. CAP_SYS_ADMIN of this user namespace stands in for
    // no_new_privs, which would take sudo's power from those who are root here.
    if unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    } != 0
    {
        return failed();
    }
    let all: Vec<u32> = (0..64).collect();
    let drop: &[u32] = if root { &LEADS_OUT } else { &all };
    for cap in drop {
        // SAFETY: prctl(2) with plain numbers.
        let dropped =
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(*cap), 0, 0, 0) };
        // EINVAL: past the last one that this kernel knows.
        if dropped != 0 && Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return failed();
        }
    }
    // SAFETY: prctl(2) with plain numbers.
    unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    // effective, permitted, inheritable; twice, low half first.
    let mut sets = [0u32; 6];
    // SAFETY: capget(2) and capset(2) with a header and two structs of three numbers that live through the calls.
    unsafe {
        if libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) != 0 {
            return failed();
        }
        for cap in drop {
            let half = (cap / 32) as usize * 3;
            for set in &mut sets[half..half + 3] {
                *set &= !(1 << (cap % 32));
            }
        }
        if libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) != 0 {
            return failed();
        }
    }
    Ok(())
}
