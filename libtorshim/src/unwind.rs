//! Stands in for the unwinder, so that the shim needs no library but libc.
//!
//! std's panic machinery refers to it, for backtraces and for `panic = "unwind"`; the shim has neither:
//! its panic hook (log.rs) ends the process first. The symbols are local to the library (exports.map
//! names what is exported), so a program's own C++ exceptions never meet them.

use core::arch::global_asm;

#[cfg(target_arch = "x86_64")]
macro_rules! stub {
    ($($name:literal),* $(,)?) => {
        // 0 for those that give a value: no frame, no data; what must not return, does not.
        $(global_asm!(concat!(".hidden ", $name), concat!(".globl ", $name), concat!($name, ":"), "xor eax, eax", "ret");)*
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! stub {
    ($($name:literal),* $(,)?) => {
        $(global_asm!(concat!(".hidden ", $name), concat!(".globl ", $name), concat!($name, ":"), "mov x0, #0", "ret");)*
    };
}

/// Gives no frame. In Rust, unlike the others, so that link-time optimisation sees that the callback
/// is never called and leaves out what it would call: std's symbolizer, 190 KB.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_callback: *const (), _data: *mut ()) -> core::ffi::c_int {
    0
}
// Only the library itself may find it.
global_asm!(".hidden _Unwind_Backtrace");

stub!(
    "_Unwind_GetIP",
    "_Unwind_GetIPInfo",
    "_Unwind_GetCFA",
    "_Unwind_FindEnclosingFunction",
    "_Unwind_GetRegionStart",
    "_Unwind_GetTextRelBase",
    "_Unwind_GetDataRelBase",
    "_Unwind_GetLanguageSpecificData",
    "_Unwind_SetGR",
    "_Unwind_SetIP",
);

#[cfg(target_arch = "x86_64")]
macro_rules! never {
    ($($name:literal),* $(,)?) => {
        $(global_asm!(concat!(".hidden ", $name), concat!(".globl ", $name), concat!($name, ":"), "ud2");)*
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! never {
    ($($name:literal),* $(,)?) => {
        $(global_asm!(concat!(".hidden ", $name), concat!(".globl ", $name), concat!($name, ":"), "brk #1");)*
    };
}

never!(
    "_Unwind_Resume",
    "_Unwind_RaiseException",
    "_Unwind_DeleteException",
);
