//! What tells a process from every other since boot.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use uwt_core::isolation::Process;

/// This process, as the shim inside it names it: see [`Process::birth`].
pub fn identity(pid: u32) -> Process {
    Process {
        pid,
        birth: pidfd_inode(pid).unwrap_or_else(|| start_time(pid)),
    }
}

/// See [`Process::birth`].
fn pidfd_inode(pid: u32) -> Option<u64> {
    const PID_FS_MAGIC: libc::__fsword_t = 0x5049_4446;
    let fd = pidfd(pid)?;
    // SAFETY: struct statfs is plain integers, for which zero is a value; it lives through the call.
    let on_pidfs = unsafe {
        let mut fs: libc::statfs = std::mem::zeroed();
        libc::fstatfs(fd.as_raw_fd(), &raw mut fs) == 0 && fs.f_type == PID_FS_MAGIC
    };
    let inode = fs::File::from(fd).metadata().ok()?.ino();
    on_pidfs.then_some(inode)
}

/// pidfd_open(2); `None` if there is no such process.
pub fn pidfd(pid: u32) -> Option<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the descriptor has just been made and is nobody else's.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Field 22 of /proc/PID/stat (proc(5)); 0 without /proc.
fn start_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let stat = stat.unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or("");
    let start = after.split_whitespace().nth(19);
    start.and_then(|f| f.parse().ok()).unwrap_or(0)
}
