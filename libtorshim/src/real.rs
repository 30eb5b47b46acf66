//! Finds libc's own functions: the one file that resolves real symbols.
//!
//! They are read from libc.so.6's symbol table in memory, not asked of dlsym(3): the shim hooks dlsym
//! itself, and RTLD_NEXT would give whatever other library happens to stand between. Redhook asks
//! `dlsym(RTLD_NEXT, ..)`; asked from inside the shim, our dlsym answers from here (see dlsym.rs).

use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

/// What is needed of a loaded object's dynamic section (elf(5)).
#[derive(Clone, Copy)]
struct Tables {
    base: usize,
    symbols: *const Symbol,
    strings: *const u8,
    versions: *const u16,
    gnu_hash: *const u32,
}

#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: usize,
}

const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const DT_GNU_HASH: usize = 0x6fff_fef5;
const DT_VERSYM: usize = 0x6fff_fff0;
const STT_GNU_IFUNC: u8 = 10;

/// Where libc's dynamic section is, and its load base; 0 until found. The dynamic linker never
/// unloads or moves libc, so they hold for the life of the process.
static LIBC_DYNAMIC: AtomicUsize = AtomicUsize::new(0);
static LIBC_BASE: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr(3) hands over a valid record whose name is a C string or null.
    let info = unsafe { &*info };
    if info.dlpi_name.is_null() {
        return 0;
    }
    // SAFETY: as above.
    let name = unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes();
    let file = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
    if file != b"libc.so.6" {
        return 0;
    }
    for i in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: dlpi_phdr points to dlpi_phnum program headers.
        let ph = unsafe { &*info.dlpi_phdr.add(i) };
        if ph.p_type == libc::PT_DYNAMIC {
            LIBC_BASE.store(info.dlpi_addr as usize, Ordering::Relaxed);
            let at = (info.dlpi_addr + ph.p_vaddr) as usize;
            LIBC_DYNAMIC.store(at, Ordering::Release);
        }
    }
    1
}

fn tables() -> Option<Tables> {
    if LIBC_DYNAMIC.load(Ordering::Acquire) == 0 {
        // SAFETY: the callback has the type that dl_iterate_phdr(3) asks for and keeps no pointer.
        unsafe { libc::dl_iterate_phdr(Some(visit), core::ptr::null_mut()) };
    }
    let at = LIBC_DYNAMIC.load(Ordering::Acquire);
    if at == 0 {
        return None;
    }
    let mut t = Tables {
        base: LIBC_BASE.load(Ordering::Relaxed),
        symbols: core::ptr::null(),
        strings: core::ptr::null(),
        versions: core::ptr::null(),
        gnu_hash: core::ptr::null(),
    };
    let mut entry = at as *const [usize; 2];
    loop {
        // SAFETY: the dynamic section is an array of (tag, value) that ends with tag 0; glibc's loader
        // has relocated its pointers to absolute addresses.
        let [tag, value] = unsafe { *entry };
        match tag {
            0 => break,
            DT_STRTAB => t.strings = value as *const u8,
            DT_SYMTAB => t.symbols = value as *const Symbol,
            DT_GNU_HASH => t.gnu_hash = value as *const u32,
            DT_VERSYM => t.versions = value as *const u16,
            _ => {}
        }
        // SAFETY: the terminating entry has not been reached.
        entry = unsafe { entry.add(1) };
    }
    let whole = !(t.strings.is_null() || t.symbols.is_null() || t.gnu_hash.is_null());
    whole.then_some(t)
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381u32, |h, b| {
        h.wrapping_mul(33).wrapping_add(u32::from(*b))
    })
}

/// The address of libc's function `name` in its default version, or null.
pub fn libc_symbol(name: &CStr) -> *const c_void {
    let null = core::ptr::null();
    let Some(t) = tables() else {
        return null;
    };
    let hash = gnu_hash(name.to_bytes());
    // SAFETY: the layout of DT_GNU_HASH: nbuckets, symoffset, bloom words, shift, the bloom filter
    // (64-bit words), the buckets, the chains. Every index below is bounded by these tables.
    unsafe {
        let buckets = *t.gnu_hash;
        let offset = *t.gnu_hash.add(1);
        let bloom = *t.gnu_hash.add(2) as usize;
        let bucket = t.gnu_hash.add(4 + bloom * 2);
        let chain = bucket.add(buckets as usize);
        let mut i = *bucket.add((hash % buckets) as usize);
        if i < offset {
            return null;
        }
        loop {
            let h = *chain.add((i - offset) as usize);
            if h | 1 == hash | 1 {
                let s = &*t.symbols.add(i as usize);
                let called = CStr::from_ptr(t.strings.add(s.name as usize).cast());
                // The high bit marks versions that are kept for old binaries only.
                let old = !t.versions.is_null() && *t.versions.add(i as usize) & 0x8000 != 0;
                if called == name && s.section != 0 && !old {
                    let at = t.base + s.value;
                    if s.info & 15 == STT_GNU_IFUNC {
                        let resolve: extern "C" fn() -> *const c_void = core::mem::transmute(at);
                        return resolve();
                    }
                    return at as *const c_void;
                }
            }
            if h & 1 != 0 {
                return null;
            }
            i += 1;
        }
    }
}

/// Whether libc has a function of this name; `name` ends with NUL.
pub fn exists(name: &str) -> bool {
    CStr::from_bytes_with_nul(name.as_bytes()).is_ok_and(|n| !libc_symbol(n).is_null())
}

/// The absolute path of the shim's own file, as ld.so loaded it; empty if it cannot be told.
pub fn own_path() -> &'static [u8] {
    // SAFETY: dladdr(3) fills a struct that lives through the call; the address is this function's own.
    let name = unsafe {
        let mut info: libc::Dl_info = core::mem::zeroed();
        if libc::dladdr(own_path as *const c_void, &raw mut info) == 0 || info.dli_fname.is_null() {
            return b"";
        }
        CStr::from_ptr(info.dli_fname).to_bytes()
    };
    // ld.so keeps the name for as long as the library is loaded, which is for ever.
    if name.starts_with(b"/") { name } else { b"" }
}
