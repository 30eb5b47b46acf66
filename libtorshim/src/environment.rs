//! The environment of a program that is about to be executed: the shim's two variables are put back.
//!
//! A program may start another with an emptied environment (`env -i`), or take LD_PRELOAD out; the new
//! program would then run unheld. Nothing here allocates from the program's heap: it runs in vfork(2)
//! children and signal handlers. An environment that is whole passes as it is.

use crate::target::Entry;
use crate::{real, state, sys};
use core::ffi::{CStr, c_char};
use uwt_core::proxy_url;

type Strings = *const *const c_char;

const PRELOAD: &[u8] = b"LD_PRELOAD=";
const HANDOFF: &[u8] = b"UWT_HANDOFF=";
const PROXY: &[u8] = b"ALL_PROXY=";
const COUNTER: &[u8] = b"uwtwrapper_counter=";

/// How many variables fit without mapping memory.
const FEW: usize = 512;

/// An environment that holds the shim's variables.
pub struct Environment {
    /// What was passed, if it was whole.
    original: Strings,
    few: [*const c_char; FEW],
    mapped: *mut *const c_char,
    mapped_len: usize,
    preload: [u8; 4096],
}

/// Whether LD_PRELOAD's value names the shim first.
fn starts_with_shim(value: &[u8], shim: &[u8]) -> bool {
    let first = value
        .split(|b| matches!(b, b':' | b' '))
        .find(|w| !w.is_empty());
    first == Some(shim)
}

/// Runs `f` on each string of an environment.
unsafe fn each(mut envp: Strings, mut f: impl FnMut(&CStr)) {
    if envp.is_null() {
        return;
    }
    // SAFETY: the caller vouches for an array of C strings that ends with null.
    unsafe {
        while !(*envp).is_null() {
            f(CStr::from_ptr(*envp));
            envp = envp.add(1);
        }
    }
}

impl Environment {
    /// An empty one, to be filled by [`Environment::fill`]: it is large and holds pointers into itself, so
    /// it stays where the caller put it.
    pub const fn new() -> Environment {
        Environment {
            original: core::ptr::null(),
            few: [core::ptr::null(); FEW],
            mapped: core::ptr::null_mut(),
            mapped_len: 0,
            preload: [0; 4096],
        }
    }

    /// Takes `envp` and puts back what it lacks; for a program that runs without the shim, takes the shim out of
    /// LD_PRELOAD, for a released one the rest of the run too. Gives the array to pass on, which lives as long as `self`; null without memory.
    ///
    /// # Safety
    /// `envp` must be null or an array of C strings that ends with null, alive as long as `self` is.
    pub unsafe fn fill(&mut self, envp: Strings, entry: Entry) -> Strings {
        let state = state::get();
        let shim = match state.handoff() {
            Some(h) => h.shim,
            // Without a handoff the program stays held all the same, and is refused everything.
            None => real::own_path(),
        };
        let wanted = state.variable().map(CStr::to_bytes);
        let (mut count, mut preload, mut handoff) = (0, false, false);
        // SAFETY: the caller's.
        unsafe {
            each(envp, |s| {
                count += 1;
                let s = s.to_bytes();
                if let Some(v) = s.strip_prefix(PRELOAD) {
                    preload = starts_with_shim(v, shim);
                } else if s.starts_with(HANDOFF) {
                    handoff = wanted.is_none() || is_handoff(s);
                }
            });
        }
        let bare = entry != Entry::Shimmed;
        let released = entry == Entry::Released;
        if (preload || shim.is_empty()) && (handoff || wanted.is_none()) && !envp.is_null() && !bare
        {
            self.original = envp;
            return envp;
        }
        let list = match self.room(count + 3) {
            Some(list) => list,
            None => return core::ptr::null(),
        };
        let mut n = 0;
        let mut old: *const c_char = core::ptr::null();
        // SAFETY: the caller's; `list` has room for `count` + 3, the strings are the caller's.
        unsafe {
            each(envp, |s| {
                let bytes = s.to_bytes();
                let ours = bytes.starts_with(HANDOFF);
                let proxy = bytes.strip_prefix(PROXY).unwrap_or(b"");
                let of_the_run = ours
                    || bytes.starts_with(COUNTER)
                    || proxy.starts_with(proxy_url::OURS.as_bytes());
                if bytes.starts_with(PRELOAD) {
                    old = s.as_ptr();
                } else if released && of_the_run {
                    // It is to know nothing of the run.
                } else if !ours || handoff {
                    *list.add(n) = s.as_ptr();
                    n += 1;
                }
            });
            let preload = self.preload_with(shim, old, bare);
            if !preload.is_null() {
                *list.add(n) = preload;
                n += 1;
            }
            if let (false, false, Some(v)) = (released, handoff, state.variable()) {
                *list.add(n) = v.as_ptr();
                n += 1;
            }
            *list.add(n) = core::ptr::null();
        }
        list
    }

    fn room(&mut self, len: usize) -> Option<*mut *const c_char> {
        if len <= FEW {
            return Some(self.few.as_mut_ptr());
        }
        let bytes = len * size_of::<*const c_char>();
        self.mapped = sys::map_anonymous(bytes).ok()?.cast();
        self.mapped_len = bytes;
        Some(self.mapped)
    }

    /// `LD_PRELOAD=SHIM:REST`, where REST is what `old` had besides the shim; without SHIM for a `bare` program, null if
    /// nothing is left then. What does not fit is dropped.
    ///
    /// # Safety
    /// `old` must be null or a C string.
    unsafe fn preload_with(
        &mut self,
        shim: &[u8],
        old: *const c_char,
        bare: bool,
    ) -> *const c_char {
        let mut len = 0;
        let mut push = |data: &[u8]| {
            let end = len + data.len();
            // The last byte stays NUL.
            if let (true, Some(to)) = (end < 4096, self.preload.get_mut(len..end)) {
                to.copy_from_slice(data);
                len = end;
                return true;
            }
            false
        };
        push(PRELOAD);
        let mut some = !bare;
        if !bare {
            push(shim);
        }
        if !old.is_null() {
            // SAFETY: the caller's.
            let value = unsafe { CStr::from_ptr(old) }.to_bytes();
            let value = value.strip_prefix(PRELOAD).unwrap_or(b"");
            let words = value.split(|b| matches!(b, b':' | b' '));
            for word in words.filter(|w| !w.is_empty() && *w != shim && w.len() < 2000) {
                if (some && !push(b":")) || !push(word) {
                    break;
                }
                some = true;
            }
        }
        match some {
            true => self.preload.as_ptr().cast(),
            false => core::ptr::null(),
        }
    }
}

/// Whether a `UWT_HANDOFF=...` is one: the launcher's for an inner run may differ from ours, a damaged
/// one is put right.
fn is_handoff(s: &[u8]) -> bool {
    let mut ports = [0; uwt_core::handoff::PORTS_MAX * 2];
    let value = s.strip_prefix(HANDOFF).unwrap_or(b"");
    let Ok(theirs) = uwt_core::handoff::Handoff::decode(value, &mut ports) else {
        return false;
    };
    // Only a handoff of this run, or of a run that was begun within it, names a table that is there.
    let n = theirs.names;
    sys::fstat(n.fd).is_ok_and(|st| (st.st_ino, st.st_dev) == (n.inode, n.device))
}

impl Drop for Environment {
    fn drop(&mut self) {
        if !self.mapped.is_null() {
            // SAFETY: the exec has failed, nothing refers to the mapping any more.
            unsafe { sys::unmap(self.mapped.cast(), self.mapped_len) };
        }
    }
}

unsafe extern "C" {
    /// The environment (environ(7)).
    static mut environ: Strings;
}

/// The program's own environment, for the calls that take none.
pub fn own() -> Strings {
    // SAFETY: reading a pointer that libc keeps valid; a program that changes it meanwhile races with
    // its own exec.
    unsafe { environ }
}

/// Before libc starts /bin/sh by itself (system(3), popen(3), wordexp(3)), with `environ`: makes the run's variables there
/// what [`Environment::fill`] makes them, where the program can see them.
pub fn renew_own(entry: Entry) {
    let mut e = Environment::new();
    let mine = own();
    // SAFETY: `environ` is an array of C strings that ends with null.
    let whole = unsafe { e.fill(mine, entry) };
    if whole == mine || whole.is_null() {
        return;
    }
    for (prefix, name) in [
        (PRELOAD, c"LD_PRELOAD"),
        (HANDOFF, c"UWT_HANDOFF"),
        (COUNTER, c"uwtwrapper_counter"),
        (PROXY, c"ALL_PROXY"),
    ] {
        let mut found: *const c_char = core::ptr::null();
        // SAFETY: `fill` gives an array of C strings that ends with null; setenv(3) copies.
        unsafe {
            each(whole, |s| {
                if s.to_bytes().starts_with(prefix) {
                    found = s.as_ptr().add(prefix.len());
                }
            });
            match found.is_null() {
                true => libc::unsetenv(name.as_ptr()),
                false => libc::setenv(name.as_ptr(), found, 1),
            };
        }
    }
}
