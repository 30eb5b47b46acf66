//! dlsym(3) and dlvsym(3): whoever looks up a function that we hook gets the hook.
//!
//! torsocks and proxychains let `dlsym(libc, "connect")` past. RTLD_NEXT and RTLD_DEFAULT mean
//! something else for each caller, so libc's dlsym must see the caller's own return address: the
//! entry points are assembly that asks [`answer`] and, where it has none, jumps on to libc's.

use crate::{hook, real};
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

/// What a caller at `caller` gets for `name`; null if libc is to answer.
unsafe extern "C" fn answer(name: *const c_char, caller: usize) -> *const c_void {
    if REAL_DLSYM.load(Ordering::Acquire).is_null() {
        REAL_DLVSYM.store(real::libc_symbol(c"dlvsym").cast_mut(), Ordering::Release);
        REAL_DLSYM.store(real::libc_symbol(c"dlsym").cast_mut(), Ordering::Release);
    }
    if name.is_null() {
        return core::ptr::null();
    }
    // SAFETY: dlsym's second argument is a C string.
    let name = unsafe { CStr::from_ptr(name) };
    if is_ours(caller) {
        return real::libc_symbol(name);
    }
    match name.to_bytes() {
        b"dlsym" => dlsym as *const c_void,
        b"dlvsym" => dlvsym as *const c_void,
        b"execl" => execl as *const c_void,
        b"execlp" => execlp as *const c_void,
        b"execle" => execle as *const c_void,
        bytes => hook::find(bytes).unwrap_or(core::ptr::null()),
    }
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
    ($name:literal, $real:ident) => {
        // rdi, rsi, rdx are the arguments; at (%rsp) stands the caller's return address. Four pushes
        // leave the stack as aligned as a call wants it.
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ",@function"),
            concat!($name, ":"),
            "push rdi", "push rsi", "push rdx",
            "mov rdi, rsi",
            "mov rsi, [rsp + 24]",
            "call {answer}",
            "pop rdx", "pop rsi", "pop rdi",
            "test rax, rax",
            "jnz 2f",
            "mov rax, [rip + {real}]",
            "jmp rax",
            "2: ret",
            answer = sym answer,
            real = sym $real,
        );
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! entry {
    ($name:literal, $real:ident) => {
        // x0..x2 are the arguments, x30 the caller's return address.
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ",%function"),
            concat!($name, ":"),
            "stp x29, x30, [sp, #-48]!",
            "stp x0, x1, [sp, #16]",
            "str x2, [sp, #32]",
            "mov x0, x1",
            "mov x1, x30",
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
            answer = sym answer,
            real = sym $real,
        );
    };
}

entry!("dlsym", REAL_DLSYM);
entry!("dlvsym", REAL_DLVSYM);
