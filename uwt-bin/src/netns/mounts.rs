//! The mount namespace of a run: its own resolv.conf, and sockets of daemons that resolve or connect for their
//! clients hidden, since the kernel cannot hold what a daemon outside does.

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use uwt_core::route::{self, Policy, UnixRoute};

/// No search list: names go to Tor as they were given.
const RESOLV_CONF: &str =
    "# uwt: this run's resolver; every address has one.\nnameserver 127.0.0.1\n";

fn last(n: libc::c_long) -> io::Result<i32> {
    i32::try_from(n)
        .ok()
        .filter(|n| *n >= 0)
        .ok_or_else(Error::last_os_error)
}

/// A tmpfs that is mounted nowhere (fsopen(2), fsconfig(2), fsmount(2); Linux 5.2).
fn detached_tmpfs() -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSCONFIG_SET_STRING: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const FSMOUNT_CLOEXEC: u32 = 1;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: C strings that live through the calls; each descriptor is new and becomes somebody's at once.
    unsafe {
        let context = last(libc::syscall(
            libc::SYS_fsopen,
            c"tmpfs".as_ptr(),
            FSOPEN_CLOEXEC,
        ))?;
        let context = OwnedFd::from_raw_fd(context);
        let fd = context.as_raw_fd();
        let (mode, value) = (c"mode".as_ptr(), c"755".as_ptr());
        last(libc::syscall(
            libc::SYS_fsconfig,
            fd,
            FSCONFIG_SET_STRING,
            mode,
            value,
            0,
        ))?;
        last(libc::syscall(
            libc::SYS_fsconfig,
            fd,
            FSCONFIG_CMD_CREATE,
            null,
            null,
            0,
        ))?;
        let mount = last(libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(mount))
    }
}

/// Puts what `name` is on the detached mount in the place of `at`.
fn cover(mount: &OwnedFd, name: &CStr, at: &Path) -> io::Result<()> {
    const OPEN_TREE_CLONE: u32 = 1;
    const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
    const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
    const MOVE_MOUNT_T_SYMLINKS: u32 = 0x10;
    let at = CString::new(at.as_os_str().as_bytes()).map_err(Error::other)?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    // SAFETY: as above.
    unsafe {
        let tree = libc::syscall(libc::SYS_open_tree, mount.as_raw_fd(), name.as_ptr(), flags);
        let tree = OwnedFd::from_raw_fd(last(tree)?);
        last(libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            at.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS,
        ))?;
    }
    Ok(())
}

fn write(mount: &OwnedFd, name: &CStr, text: &str) -> io::Result<()> {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::Mode;
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = openat(mount, name, flags, Mode::from_bits_truncate(0o644))?;
    io::Write::write_all(&mut fs::File::from(fd), text.as_bytes())
}

/// Gives this process a mount namespace of its own and covers what is to be covered in it. What `policy` lets
/// through (`unix.allow`) stays.
///
/// # Errors
/// mount(2)'s and its kin's: what could not be covered would be a way out.
pub fn cover_all(policy: &Policy<'_>) -> io::Result<()> {
    // SAFETY: unshare(2) with a plain number; mount(2) with C strings and without data: what is mounted outside later
    // appears here too, and nothing of this appears there.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            return Err(Error::last_os_error());
        }
        let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_SLAVE);
        if libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) != 0
            // In a chroot "/" may be no mount point; then this namespace is another user's anyway.
            && Errno::last() != Errno::EINVAL
        {
            return Err(Error::last_os_error());
        }
    }
    let mount = detached_tmpfs()?;
    write(&mount, c"resolv.conf", RESOLV_CONF)?;
    write(&mount, c"hidden", "")?;
    // systemd-resolved's folder, where /etc/resolv.conf may point.
    nix::sys::stat::mkdirat(
        &mount,
        c"folder",
        nix::sys::stat::Mode::from_bits_truncate(0o755),
    )?;
    for name in [c"folder/resolv.conf", c"folder/stub-resolv.conf"] {
        write(&mount, name, RESOLV_CONF)?;
    }
    let resolv_conf = fs::canonicalize("/etc/resolv.conf").ok();
    let mut covered = false;
    for denied in route::DENIED_UNIX {
        let allowed = route::unix(policy, denied) == UnixRoute::Direct;
        let path = Path::new(std::ffi::OsStr::from_bytes(denied));
        let name = match fs::metadata(path) {
            Ok(m) if m.is_dir() => c"folder",
            Ok(_) => c"hidden",
            Err(_) => continue,
        };
        if !allowed {
            cover(&mount, name, path)?;
            covered |= resolv_conf.as_ref().is_some_and(|r| r.starts_with(path));
        }
    }
    match resolv_conf {
        Some(path) if !covered => cover(&mount, c"resolv.conf", &path),
        // Without a file libc asks 127.0.0.1, which is right here.
        _ => Ok(()),
    }
}
