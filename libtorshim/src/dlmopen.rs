//! dlmopen(3): no second libc. What is loaded into a namespace of its own brings a libc without the shim.

use crate::hook::hooks;
use crate::log;
use core::ffi::{c_char, c_int, c_long, c_void};
use redhook::real;

/// The namespace in which the program and the shim are.
const LM_ID_BASE: c_long = 0;

hooks! {
    unsafe fn dlmopen(namespace: c_long, file: *const c_char, flags: c_int) -> *mut c_void => on_dlmopen {
        if namespace != LM_ID_BASE {
            log::refused!("dlmopen: a library in a namespace of its own would not be held");
            return core::ptr::null_mut();
        }
        // SAFETY: the program's own arguments.
        unsafe { real!(dlmopen)(namespace, file, flags) }
    }
}
