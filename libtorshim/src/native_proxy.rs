//! `native_proxy = "env"`: a program that is told its proxy by ALL_PROXY gets credentials of its own.
//!
//! The launcher wrote the variable for the process that it became; a child that inherits it would share
//! its parent's circuits. What the user wrote is left alone.

use crate::state;
use core::ffi::CStr;
use uwt_core::isolation::{self, Connection};
use uwt_core::proxy_url::{self, Url};

/// Rewrites ALL_PROXY, if it is ours. Called once, before main().
pub fn renew() {
    let Some(handoff) = state::get().handoff() else {
        return;
    };
    // SAFETY: getenv(3) before main(), with no other thread.
    let value = unsafe { libc::getenv(c"ALL_PROXY".as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: getenv gives a C string.
    let ours = unsafe { CStr::from_ptr(value) }
        .to_bytes()
        .starts_with(proxy_url::OURS.as_bytes());
    if !ours {
        return;
    }
    let connection = Connection {
        host: b"",
        port: 0,
        serial: 0,
    };
    let credentials = isolation::credentials(&handoff.isolation, state::process(), connection);
    let url = Url::new(&handoff.policy.socks, credentials.as_ref());
    let mut text = [0u8; proxy_url::MAX + 1];
    if let Some(slot) = url.as_ref().and_then(|u| text.get_mut(..u.bytes().len())) {
        slot.copy_from_slice(url.as_ref().map_or(b"", |u| u.bytes()));
        // SAFETY: both are C strings; setenv(3) copies.
        unsafe { libc::setenv(c"ALL_PROXY".as_ptr(), text.as_ptr().cast(), 1) };
    }
}
