//! Sun RPC (rpc(3)): glibc keeps it for programs that were built before 2.32, and it connects and broadcasts
//! from inside libc, past every hook. Refused.
//!
//! libtirpc has functions of the same names, which call libc's as everybody does and so are held: where
//! it is loaded, calls go on to it. Entry points in assembly pass any arguments on unchanged.

use crate::{dlsym, log};
use core::arch::global_asm;
use core::ffi::{c_char, c_long, c_void};

/// Where a call of `name` goes on: the next library that has it, which is never libc, where these are hidden.
unsafe extern "C" fn next(name: *const c_char) -> *const c_void {
    dlsym::next(name)
}

/// Refuses, for functions that give an error's number.
pub unsafe extern "C" fn unavailable() -> c_long {
    log::refused!("a function of libc's that would reach the network beside Tor");
    -1
}

/// Refuses, for functions that give a pointer or a port: none.
pub unsafe extern "C" fn nothing() -> c_long {
    // SAFETY: no arguments.
    unsafe { unavailable() };
    0
}

#[cfg(target_arch = "x86_64")]
macro_rules! entry {
    ($name:literal, $refuse:ident) => {
        // Six argument registers are kept; with 8 bytes more the stack is aligned for the call.
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ",@function"),
            concat!($name, ":"),
            "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9",
            "sub rsp, 8",
            "lea rdi, [rip + 3f]",
            "call {next}",
            "add rsp, 8",
            "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
            "test rax, rax",
            "jz 2f",
            "jmp rax",
            "2: jmp {refuse}",
            concat!("3: .asciz \"", $name, "\""),
            next = sym next,
            refuse = sym $refuse,
        );
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! entry {
    ($name:literal, $refuse:ident) => {
        // Eight argument registers and the caller's address are kept.
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ",%function"),
            concat!($name, ":"),
            "stp x29, x30, [sp, #-80]!",
            "stp x0, x1, [sp, #16]",
            "stp x2, x3, [sp, #32]",
            "stp x4, x5, [sp, #48]",
            "stp x6, x7, [sp, #64]",
            "adr x0, 3f",
            "bl {next}",
            "mov x9, x0",
            "ldp x0, x1, [sp, #16]",
            "ldp x2, x3, [sp, #32]",
            "ldp x4, x5, [sp, #48]",
            "ldp x6, x7, [sp, #64]",
            "ldp x29, x30, [sp], #80",
            "cbz x9, 2f",
            "br x9",
            "2: b {refuse}",
            concat!("3: .asciz \"", $name, "\""),
            ".balign 4",
            next = sym next,
            refuse = sym $refuse,
        );
    };
}

entry!("callrpc", unavailable);
entry!("clnt_broadcast", unavailable);
entry!("pmap_rmtcall", unavailable);
entry!("registerrpc", unavailable);
entry!("rtime", unavailable);
entry!("clnt_create", nothing);
entry!("clnttcp_create", nothing);
entry!("clntudp_create", nothing);
entry!("clntudp_bufcreate", nothing);
entry!("pmap_getmaps", nothing);
entry!("pmap_getport", nothing);
entry!("getrpcport", nothing);

/// The refusal that stands in for `name` where a program looks it up in libc.
pub fn stand_in(name: &[u8]) -> Option<*const c_void> {
    match name {
        b"callrpc" | b"clnt_broadcast" | b"pmap_rmtcall" | b"registerrpc" | b"rtime" => {
            Some(unavailable as *const c_void)
        }
        b"clnt_create" | b"clnttcp_create" | b"clntudp_create" | b"clntudp_bufcreate"
        | b"pmap_getmaps" | b"pmap_getport" | b"getrpcport" => Some(nothing as *const c_void),
        _ => None,
    }
}
