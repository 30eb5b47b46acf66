//! Raw system calls: the one file that makes them. Nothing here passes a hook, ours or another
//! library's, and nothing touches errno: each call gives `Ok(value)` or `Err(Errno)`.

use core::arch::asm;
use core::ffi::CStr;
use uwt_core::decimal::Decimal;
use uwt_core::errno::Errno;

/// What a system call gave.
pub type Result<T> = core::result::Result<T, Errno>;

/// A system call with six arguments (syscall(2)).
///
/// # Safety
/// The arguments must be what the call `n` takes: pointers valid for what it reads and writes.
#[cfg(target_arch = "x86_64")]
pub unsafe fn raw(n: libc::c_long, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel's convention for x86_64: number in rax, rcx and r11 clobbered; the caller
    // answers for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") n as isize => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// A system call with six arguments (syscall(2)).
///
/// # Safety
/// The arguments must be what the call `n` takes: pointers valid for what it reads and writes.
#[cfg(target_arch = "aarch64")]
pub unsafe fn raw(n: libc::c_long, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel's convention for aarch64: number in x8; the caller answers for the arguments.
    unsafe {
        asm!("svc 0", in("x8") n, inlateout("x0") a[0] => ret, in("x1") a[1], in("x2") a[2],
            in("x3") a[3], in("x4") a[4], in("x5") a[5], options(nostack));
    }
    ret
}

fn result(ret: isize) -> Result<usize> {
    if (-4095..0).contains(&ret) {
        Err(Errno(-ret as i32))
    } else {
        Ok(ret as usize)
    }
}

macro_rules! call {
    ($n:ident $(, $a:expr)*) => {{
        #[allow(unused_mut)]
        let mut args = [0usize; 6];
        #[allow(unused_mut)]
        let mut i = 0;
        $(
            args[i] = $a as usize;
            i += 1;
        )*
        let _ = i;
        // SAFETY: every pointer handed over comes from a reference that lives through the call, or
        // from a caller that vouches for it; lengths are those of what they point to.
        result(unsafe { raw(libc::$n, args) })
    }};
}

/// A descriptor of the process.
pub type Fd = libc::c_int;

/// socket(2).
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<Fd> {
    call!(SYS_socket, domain, kind, protocol).map(|fd| fd as Fd)
}

/// connect(2) to `address`, the bytes of a sockaddr.
pub fn connect(fd: Fd, address: &[u8]) -> Result<()> {
    call!(SYS_connect, fd, address.as_ptr(), address.len()).map(drop)
}

/// bind(2) to `address`, the bytes of a sockaddr.
pub fn bind(fd: Fd, address: &[u8]) -> Result<()> {
    call!(SYS_bind, fd, address.as_ptr(), address.len()).map(drop)
}

/// getpeername(2): fills `address`, gives the length.
pub fn getpeername(fd: Fd, address: &mut [u8]) -> Result<usize> {
    let mut len = address.len() as libc::socklen_t;
    call!(SYS_getpeername, fd, address.as_mut_ptr(), &raw mut len).map(|_| len as usize)
}

/// getsockname(2): fills `address`, gives the length.
pub fn getsockname(fd: Fd, address: &mut [u8]) -> Result<usize> {
    let mut len = address.len() as libc::socklen_t;
    call!(SYS_getsockname, fd, address.as_mut_ptr(), &raw mut len).map(|_| len as usize)
}

/// getsockopt(2): fills `value`, gives the length.
pub fn getsockopt_bytes(fd: Fd, level: i32, name: i32, value: &mut [u8]) -> Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    call!(
        SYS_getsockopt,
        fd,
        level,
        name,
        value.as_mut_ptr(),
        &raw mut len
    )
    .map(|_| len as usize)
}

/// getsockopt(2) of an int.
pub fn getsockopt(fd: Fd, level: i32, name: i32) -> Result<i32> {
    let mut v = [0u8; 4];
    getsockopt_bytes(fd, level, name, &mut v).map(|_| i32::from_ne_bytes(v))
}

/// setsockopt(2).
pub fn setsockopt_bytes(fd: Fd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    call!(SYS_setsockopt, fd, level, name, value.as_ptr(), value.len()).map(drop)
}

/// setsockopt(2) of an int.
pub fn setsockopt(fd: Fd, level: i32, name: i32, value: i32) -> Result<()> {
    setsockopt_bytes(fd, level, name, &value.to_ne_bytes())
}

/// SO_COOKIE (socket(7)): a number that the kernel gives to no other socket of this network namespace.
pub fn cookie(fd: Fd) -> Result<u64> {
    let mut v = [0u8; 8];
    getsockopt_bytes(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut v).map(|_| u64::from_ne_bytes(v))
}

/// send(2) without SIGPIPE.
pub fn send(fd: Fd, data: &[u8], flags: i32) -> Result<usize> {
    let flags = flags | libc::MSG_NOSIGNAL;
    call!(SYS_sendto, fd, data.as_ptr(), data.len(), flags, 0, 0)
}

/// recv(2).
pub fn recv(fd: Fd, buf: &mut [u8], flags: i32) -> Result<usize> {
    call!(SYS_recvfrom, fd, buf.as_mut_ptr(), buf.len(), flags, 0, 0)
}

/// shutdown(2).
pub fn shutdown(fd: Fd, how: i32) -> Result<()> {
    call!(SYS_shutdown, fd, how).map(drop)
}

/// ppoll(2) with a timeout in milliseconds (negative: none) and without a signal mask.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i64) -> Result<usize> {
    ppoll(fds, timeout_ms, core::ptr::null())
}

/// ppoll(2) with a timeout in milliseconds (negative: none) and the caller's signal mask, which
/// may be null.
pub fn ppoll(
    fds: &mut [libc::pollfd],
    timeout_ms: i64,
    mask: *const libc::sigset_t,
) -> Result<usize> {
    let mut ts = libc::timespec {
        tv_sec: timeout_ms / 1000,
        tv_nsec: (timeout_ms % 1000) * 1_000_000,
    };
    let ts = if timeout_ms < 0 {
        core::ptr::null_mut()
    } else {
        &raw mut ts
    };
    // The kernel's sigset is 8 bytes.
    call!(SYS_ppoll, fds.as_mut_ptr(), fds.len(), ts, mask, 8)
}

/// epoll_ctl(2).
pub fn epoll_ctl(epfd: Fd, op: i32, fd: Fd, event: Option<&mut libc::epoll_event>) -> Result<()> {
    let event = event.map_or(core::ptr::null_mut(), core::ptr::from_mut);
    call!(SYS_epoll_ctl, epfd, op, fd, event).map(drop)
}

/// fcntl(2) with an int argument.
pub fn fcntl(fd: Fd, cmd: i32, arg: i32) -> Result<i32> {
    call!(SYS_fcntl, fd, cmd, arg).map(|v| v as i32)
}

/// Whether the descriptor is in non-blocking mode; false if it is none.
pub fn is_nonblocking(fd: Fd) -> bool {
    fcntl(fd, libc::F_GETFL, 0).is_ok_and(|f| f & libc::O_NONBLOCK != 0)
}

/// dup3(2).
pub fn dup3(old: Fd, new: Fd, flags: i32) -> Result<Fd> {
    call!(SYS_dup3, old, new, flags).map(|fd| fd as Fd)
}

/// close(2). The descriptor is gone whatever it gives.
pub fn close(fd: Fd) {
    let _ = call!(SYS_close, fd);
}

/// openat(2) relative to the working directory, close-on-exec.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    let flags = flags | libc::O_CLOEXEC;
    call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, mode).map(|fd| fd as Fd)
}

/// openat(2) relative to `dir`, close-on-exec.
pub fn openat(dir: Fd, path: &CStr, flags: i32) -> Result<Fd> {
    let flags = flags | libc::O_CLOEXEC;
    call!(SYS_openat, dir, path.as_ptr(), flags, 0).map(|fd| fd as Fd)
}

/// Where an open file is, as /proc/self/fd has it (proc(5)): fills `buf`, gives the length.
pub fn descriptor_path(fd: Fd, buf: &mut [u8; 4096]) -> Result<usize> {
    let mut link = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
    let digits = Decimal::new(u64::from(fd.unsigned_abs()));
    let digits = digits.bytes();
    link[14..14 + digits.len()].copy_from_slice(digits);
    let to = buf.as_mut_ptr();
    call!(SYS_readlinkat, libc::AT_FDCWD, link.as_ptr(), to, buf.len())
}

/// pread(2).
pub fn pread(fd: Fd, buf: &mut [u8], offset: u64) -> Result<usize> {
    call!(SYS_pread64, fd, buf.as_mut_ptr(), buf.len(), offset)
}

/// read(2).
pub fn read(fd: Fd, buf: &mut [u8]) -> Result<usize> {
    call!(SYS_read, fd, buf.as_mut_ptr(), buf.len())
}

/// write(2).
pub fn write(fd: Fd, data: &[u8]) -> Result<usize> {
    call!(SYS_write, fd, data.as_ptr(), data.len())
}

/// fstat(2).
pub fn fstat(fd: Fd) -> Result<libc::stat> {
    // SAFETY: struct stat is plain integers, for which zero is a value.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    call!(SYS_fstat, fd, &raw mut st).map(|_| st)
}

/// The inode of a process's pidfd: on pidfs (Linux 6.9) a number that no other process has since boot.
/// `None` where pidfds have no inodes of their own, or cannot be had.
pub fn pidfd_inode(pid: u32) -> Option<u64> {
    const PID_FS_MAGIC: libc::__fsword_t = 0x5049_4446;
    let fd = call!(SYS_pidfd_open, pid, 0).ok()? as Fd;
    // SAFETY: struct statfs is plain integers, for which zero is a value.
    let mut fs: libc::statfs = unsafe { core::mem::zeroed() };
    let known = call!(SYS_fstatfs, fd, &raw mut fs);
    let inode = fstat(fd).map(|st| st.st_ino);
    close(fd);
    match known {
        Ok(_) if fs.f_type == PID_FS_MAGIC => inode.ok(),
        _ => None,
    }
}

/// newfstatat(2), following symbolic links.
pub fn stat(path: &CStr) -> Result<libc::stat> {
    // SAFETY: as in `fstat`.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    call!(
        SYS_newfstatat,
        libc::AT_FDCWD,
        path.as_ptr(),
        &raw mut st,
        0
    )
    .map(|_| st)
}

/// fgetxattr(2): whether the open file has the extended attribute.
pub fn has_xattr(fd: Fd, name: &CStr) -> bool {
    call!(SYS_fgetxattr, fd, name.as_ptr(), 0, 0).is_ok()
}

/// mmap(2) of anonymous memory, readable and writable, private.
pub fn map_anonymous(len: usize) -> Result<*mut u8> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    call!(SYS_mmap, 0, len, prot, flags, -1isize, 0).map(|p| p as *mut u8)
}

/// mmap(2) of a file's first `len` bytes, readable and writable, shared.
pub fn map_shared(fd: Fd, len: usize) -> Result<*mut u8> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    call!(SYS_mmap, 0, len, prot, libc::MAP_SHARED, fd, 0).map(|p| p as *mut u8)
}

/// munmap(2).
///
/// # Safety
/// Nothing may use the memory afterwards.
pub unsafe fn unmap(at: *mut u8, len: usize) {
    let _ = call!(SYS_munmap, at, len);
}

/// getpid(2).
pub fn getpid() -> u32 {
    call!(SYS_getpid).unwrap_or(0) as u32
}

/// geteuid(2).
pub fn geteuid() -> u32 {
    call!(SYS_geteuid).unwrap_or(0) as u32
}

/// getegid(2).
pub fn getegid() -> u32 {
    call!(SYS_getegid).unwrap_or(0) as u32
}

/// faccessat(2) with X_OK: whether the file may be executed.
pub fn may_execute(path: &CStr) -> bool {
    call!(SYS_faccessat, libc::AT_FDCWD, path.as_ptr(), libc::X_OK).is_ok()
}

/// getdents64(2): fills `buf` with entries, gives how many bytes.
pub fn getdents(fd: Fd, buf: &mut [u8]) -> Result<usize> {
    call!(SYS_getdents64, fd, buf.as_mut_ptr(), buf.len())
}

/// execve(2); gives only the error.
///
/// # Safety
/// A C string, and two arrays of C strings that end with null.
pub unsafe fn execve(
    path: *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
) -> Errno {
    call!(SYS_execve, path, argv, envp)
        .err()
        .unwrap_or(Errno::ENOSYS)
}

/// execveat(2); gives only the error.
///
/// # Safety
/// As [`execve`].
pub unsafe fn execveat(
    dir: Fd,
    path: *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    flags: i32,
) -> Errno {
    call!(SYS_execveat, dir, path, argv, envp, flags)
        .err()
        .unwrap_or(Errno::ENOSYS)
}

/// prctl(PR_GET_NO_NEW_PRIVS): whether setuid bits and file capabilities have no effect here.
pub fn no_new_privs() -> bool {
    call!(SYS_prctl, libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == Ok(1)
}

/// Milliseconds of CLOCK_MONOTONIC (clock_gettime(2)).
pub fn now_ms() -> i64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let _ = call!(SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut ts);
    ts.tv_sec * 1000 + ts.tv_nsec / 1_000_000
}

/// rt_sigprocmask(2): blocks every signal, gives the mask that was.
pub fn block_signals() -> u64 {
    let all = !0u64;
    let mut old = 0u64;
    let _ = call!(
        SYS_rt_sigprocmask,
        libc::SIG_SETMASK,
        &raw const all,
        &raw mut old,
        8
    );
    old
}

/// rt_sigprocmask(2): puts back the mask that [`block_signals`] gave.
pub fn restore_signals(old: u64) {
    let _ = call!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const old, 0, 8);
}

/// rt_sigaction(2), looking only: the handler and its flags. The kernel's struct starts with the two.
pub fn signal_action(signal: i32) -> Result<(usize, u64)> {
    let mut act = [0u64; 4];
    call!(SYS_rt_sigaction, signal, 0, act.as_mut_ptr(), 8).map(|_| (act[0] as usize, act[1]))
}

/// FUTEX_WAIT (futex(2)) while `*word` is `value`; returns early for any reason.
pub fn futex_wait(word: &core::sync::atomic::AtomicU32, value: u32) {
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let _ = call!(SYS_futex, word.as_ptr(), op, value, 0, 0, 0);
}

/// FUTEX_WAKE (futex(2)) of one waiter.
pub fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    let _ = call!(SYS_futex, word.as_ptr(), op, 1, 0, 0, 0);
}

/// uname(2): this machine's own name (`nodename`), filled into `buf`; its length.
pub fn nodename(buf: &mut [u8; 65]) -> usize {
    // SAFETY: struct utsname is arrays of bytes, for which zero is a value.
    let mut u: libc::utsname = unsafe { core::mem::zeroed() };
    if call!(SYS_uname, &raw mut u).is_err() {
        return 0;
    }
    let mut len = 0;
    for c in u.nodename.iter().take(64).take_while(|c| **c != 0) {
        buf[len] = *c as u8;
        len += 1;
    }
    len
}

/// Ends the process at once with SIGABRT, as abort(3), without running anything of the program's.
pub fn abort() -> ! {
    let pid = getpid();
    // A handler of the program's must not keep the process alive: SIGKILL follows.
    let _ = call!(SYS_kill, pid, libc::SIGABRT);
    loop {
        let _ = call!(SYS_kill, pid, libc::SIGKILL);
    }
}
