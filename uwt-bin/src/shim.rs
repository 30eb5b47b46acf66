//! Finds libtorshim.so and proves that it is whole, of this version, and nobody else's to change.

use crate::refusal::{Refusal, Result};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The shim's file name.
pub const NAME: &str = "libtorshim.so";

/// Debian's name for this architecture's library folder.
#[cfg(target_arch = "x86_64")]
const MULTIARCH: &str = "x86_64-linux-gnu";
/// Debian's name for this architecture's library folder.
#[cfg(target_arch = "aarch64")]
const MULTIARCH: &str = "aarch64-linux-gnu";

#[cfg(target_arch = "x86_64")]
const MACHINE: [u8; 2] = [62, 0];
#[cfg(target_arch = "aarch64")]
const MACHINE: [u8; 2] = [183, 0];

fn refuse(path: &Path, why: &str) -> Refusal {
    Refusal::new(
        format!("{}: the shim cannot be used", path.display()),
        format!("{why}; without it the command's traffic would go beside Tor"),
        "install uwt again, or run make build; nothing was run",
    )
}

/// Where the shim is: beside the launcher (build tree), else in the library folder of its prefix.
/// Always absolute.
pub fn find() -> Result<PathBuf> {
    let exe = std::env::current_exe().map_err(|e| {
        Refusal::new(
            "the launcher cannot tell where it is",
            e.to_string(),
            "mount /proc",
        )
    })?;
    let folder = exe.parent().unwrap_or(Path::new("/"));
    let beside = folder.join(NAME);
    // /proc/self/exe is absolute and without links, so what is made of it is too.
    let prefix = folder.parent().unwrap_or(Path::new("/"));
    let installed = prefix.join("lib").join(MULTIARCH).join("uwt").join(NAME);
    let found = [&beside, &installed].into_iter().find(|p| p.exists());
    found.cloned().ok_or_else(|| {
        let why = format!("it is missing, here and at {}", installed.display());
        refuse(&beside, &why)
    })
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut w = [0; 8];
    w.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(w)
}

/// Proves that `path` will be preloaded: ld.so only warns and runs on if not.
pub fn prove(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_bytes();
    if bytes
        .iter()
        .any(|b| matches!(b, b':' | b' ' | b'\n' | b';'))
    {
        return Err(refuse(
            path,
            "LD_PRELOAD cannot carry a path with a space or a colon (ld.so(8))",
        ));
    }
    let file = File::open(path).map_err(|e| refuse(path, &e.to_string()))?;
    let meta = file.metadata().map_err(|e| refuse(path, &e.to_string()))?;
    let me = nix::unistd::geteuid().as_raw();
    if !meta.is_file() || (meta.uid() != 0 && meta.uid() != me) || meta.mode() & 0o002 != 0 {
        return Err(refuse(
            path,
            "it is not root's or yours, or anybody may write it",
        ));
    }
    // The header, the program headers and the version's note lie in the first page.
    let mut head = [0u8; 4096];
    let n = file
        .read_at(&mut head, 0)
        .map_err(|e| refuse(path, &e.to_string()))?;
    if n < 64 || !head.starts_with(b"\x7fELF\x02\x01") || head[18..20] != MACHINE {
        return Err(refuse(
            path,
            "it is not a 64-bit library for this architecture",
        ));
    }
    // The section headers come last in the file: a truncated one ends before them.
    let count = u64::from(u16::from_le_bytes([head[60], head[61]]));
    let end = u64_at(&head, 40).saturating_add(count * 64);
    if count == 0 || end > meta.len() {
        return Err(refuse(path, "it is cut off"));
    }
    let note = concat!("uwt-torshim ", env!("CARGO_PKG_VERSION"), "\0").as_bytes();
    if !head[..n].windows(note.len()).any(|w| w == note) {
        let why = concat!(
            "it is not libtorshim ",
            env!("CARGO_PKG_VERSION"),
            ", this launcher's version"
        );
        return Err(refuse(path, why));
    }
    Ok(())
}
