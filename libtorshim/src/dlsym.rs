//! dlsym(3) and dlvsym(3): whoever looks up a function that we hook gets the hook.
//!
//! torsocks and proxychains let `dlsym(libc, "connect")` past. RTLD_NEXT and RTLD_DEFAULT mean
//! something else for each caller, so libc's dlsym must see the caller's own return address: the
//! entry points are assembly that asks [`answer`] and, where it has none, jumps on to libc's.

use crate::{hook, real, rpc};
use core::arch::global_asm;
use core::ffi::{CStr, c_char, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

static REAL_DLSYM: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
static REAL_DLVSYM: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

unsafe extern "C" {
    /// First byte of this library (ld(1)).
    static __ehdr_start: u8;
    /// First byte behind this library's data (ld(1)).
    static _end: u8;
}

fn is_ours(address: usize) -> bool {
    let start = (&raw const __ehdr_start) as usize;
    let end = (&raw const _end) as usize;
    (start..end).contains(&address)
}

/// libc's own dlsym and dlvsym, as functions.
type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *const c_void;
type Dlvsym = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *const c_void;

/// Finds libc's own, once.
fn find_real() {
    if REAL_DLSYM.load(Ordering::Acquire).is_null() {
        REAL_DLVSYM.store(real::libc_symbol(c"dlvsym").cast_mut(), Ordering::Release);
        REAL_DLSYM.store(real::libc_symbol(c"dlsym").cast_mut(), Ordering::Release);
    }
}

/// Whether an address is in glibc: libc.so.6, or one of the libraries that were parts of it.
fn is_glibcs(address: *const c_void) -> bool {
    // SAFETY: dladdr(3) takes any address and fills a struct that lives through the call; the name is a C
    // string that lives as long as the library.
    let name = unsafe {
        let mut info: libc::Dl_info = core::mem::zeroed();
        if libc::dladdr(address, &raw mut info) == 0 || info.dli_fname.is_null() {
            return false;
        }
        CStr::from_ptr(info.dli_fname).to_bytes()
    };
    let file = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
    const PARTS: [&[u8]; 5] = [b"libc", b"libpthread", b"libresolv", b"libanl", b"libdl"];
    PARTS.iter().any(|p| {
        let rest = file.strip_prefix(*p);
        rest.is_some_and(|r| r.starts_with(b".so") || r.starts_with(b"-2."))
    })
}

/// The next definition of `name` behind the shim, as libc's dlsym(RTLD_NEXT) gives it; null if there is none.
pub fn next(name: *const c_char) -> *const c_void {
    find_real();
    // SAFETY: libc's dlsym, by its own type; `name` is a C string of ours.
    unsafe {
        let real: Dlsym = core::mem::transmute(REAL_DLSYM.load(Ordering::Acquire));
        real(libc::RTLD_NEXT, name)
    }
}

/// The stand-in for a function that has no hook because nobody calls it by name: NSS's own resolver, the
/// resolver's inner calls, Sun RPC.
fn private(name: &[u8]) -> Option<*const c_void> {
    const INNER: [&[u8]; 5] = [
        b"_nss_dns_",
        b"__res_context_",
        b"__nss_hosts_lookup",
        b"__libc_rpc_",
        b"__libc_clnt",
    ];
    match INNER.iter().any(|p| name.starts_with(p)) {
        true => Some(rpc::unavailable as *const c_void),
        false => rpc::stand_in(name),
    }
}

/// What stands in for libc's function `name`, if anything does.
fn stand_in(name: &[u8]) -> Option<*const c_void> {
    match name {
        b"dlsym" => Some(dlsym as *const c_void),
        b"dlvsym" => Some(dlvsym as *const c_void),
        b"execl" => Some(execl as *const c_void),
        b"execlp" => Some(execlp as *const c_void),
        b"execle" => Some(execle as *const c_void),
        bytes => hook::find(bytes).or_else(|| private(bytes)),
    }
}

/// What a caller gets; null if libc is to answer. `found` asks libc, in a library that the caller names.
fn answer(
    handle: *mut c_void,
    name: *const c_char,
    caller: usize,
    found: impl FnOnce() -> *const c_void,
) -> *const c_void {
    let null = core::ptr::null();
    if name.is_null() {
        return null;
    }
    // SAFETY: dlsym's second argument is a C string.
    let name = unsafe { CStr::from_ptr(name) };
    if is_ours(caller) {
        return real::libc_symbol(name);
    }
    let Some(stand_in) = stand_in(name.to_bytes()) else {
        return null;
    };
    if handle == libc::RTLD_NEXT || handle == libc::RTLD_DEFAULT {
        return stand_in;
    }
    // A plugin may have a function of its own by this name: only libc's is taken.
    let found = found();
    if is_glibcs(found) { stand_in } else { found }
}

unsafe extern "C" fn answer_dlsym(
    handle: *mut c_void,
    name: *const c_char,
    _version: *const c_char,
    caller: usize,
) -> *const c_void {
    find_real();
    answer(handle, name, caller, || {
        // SAFETY: libc's dlsym, by its own type, with the caller's arguments.
        unsafe {
            let real: Dlsym = core::mem::transmute(REAL_DLSYM.load(Ordering::Acquire));
            real(handle, name)
        }
    })
}

unsafe extern "C" fn answer_dlvsym(
    handle: *mut c_void,
    name: *const c_char,
    version: *const c_char,
    caller: usize,
) -> *const c_void {
    find_real();
    answer(handle, name, caller, || {
        // SAFETY: libc's dlvsym, by its own type, with the caller's arguments.
        unsafe {
            let real: Dlvsym = core::mem::transmute(REAL_DLVSYM.load(Ordering::Acquire));
            real(handle, name, version)
        }
    })
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char) -> *mut c_void;
    // exec.rs has these three, in assembly too.
    fn execl();
    fn execlp();
    fn execle();
}

#[cfg(target_arch = "x86_64")]
macro_rules! entry {
    ($name:literal, $answer:ident, $real:ident) => {
        // rdi, rsi, rdx are the arguments; at (%rsp) stands the caller's return address. Four pushes
        // leave the stack as aligned as a call wants it.
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ",@function"),
            concat!($name, ":"),
            "push rdi", "push rsi", "push rdx",
            "mov rcx, [rsp + 24]",
            "call {answer}",
            "pop rdx", "pop rsi", "pop rdi",
            "test rax, rax",
            "jnz 2f",
            "mov rax, [rip + {real}]",
            "jmp rax",
            "2: ret",
            answer = sym $answer,
            real = sym $real,
        );
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! entry {
    ($name:literal, $answer:ident, $real:ident) => {
        // x0..x2 are the arguments, x30 the caller's return address.
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ",%function"),
            concat!($name, ":"),
            "stp x29, x30, [sp, #-48]!",
            "stp x0, x1, [sp, #16]",
            "str x2, [sp, #32]",
            "mov x3, x30",
            "bl {answer}",
            "mov x9, x0",
            "ldp x0, x1, [sp, #16]",
            "ldr x2, [sp, #32]",
            "ldp x29, x30, [sp], #48",
            "cbnz x9, 2f",
            "adrp x9, {real}",
            "ldr x9, [x9, #:lo12:{real}]",
            "br x9",
            "2: mov x0, x9",
            "ret",
            answer = sym $answer,
            real = sym $real,
        );
    };
}

entry!("dlsym", answer_dlsym, REAL_DLSYM);
entry!("dlvsym", answer_dlvsym, REAL_DLVSYM);
