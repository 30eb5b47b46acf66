//! Whether ld.so will load the shim into a program: what kind of file it is (elf(5), execve(2)).
//!
//! ld.so only warns and runs on when a preload fails, and that would be an escape: what the shim
//! cannot enter is not started. Reading the file is the caller's, through a closure.

/// The kind of an executable file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Executable {
    /// Dynamic, glibc, of this machine's class and architecture: the shim enters.
    Dynamic,
    /// glibc's dynamic loader itself: it honours LD_PRELOAD for the program in its arguments.
    Loader,
    /// Starts with `#!`: the interpreter counts. See [`shebang`].
    Script,
    /// No PT_INTERP: nothing will load the shim.
    Static,
    /// A Go program, dynamic or not: its runtime makes system calls without libc.
    Go,
    /// A dynamic loader that is not glibc's (musl's, for one).
    ForeignLoader,
    /// ELF of another class (32-bit) or architecture.
    ForeignArchitecture,
    /// Neither ELF nor `#!`: execve(2) fails with ENOEXEC, and shells then run it as a script.
    Unknown,
    /// ELF, but cut off or contradicting itself.
    Malformed,
}

impl Executable {
    /// Why the shim cannot enter, for a person; `None` where it can, or where what follows decides.
    pub fn objection(self) -> Option<&'static str> {
        match self {
            Executable::Dynamic | Executable::Loader | Executable::Script | Executable::Unknown => {
                None
            }
            Executable::Static => Some("it is statically linked"),
            Executable::ForeignLoader => Some("its dynamic loader is not glibc's (musl?)"),
            Executable::ForeignArchitecture => {
                Some("it is a 32-bit program or one for another architecture")
            }
            Executable::Go => Some("it is a Go program, which makes its own system calls"),
            Executable::Malformed => Some("its ELF headers are malformed"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

/// Looks at an executable file.
///
/// `read` fills the slice from the given offset and gives how many bytes there were (pread(2)); 0
/// for an error. At most 64 program headers are looked at.
pub fn inspect(mut read: impl FnMut(u64, &mut [u8]) -> usize) -> Executable {
    let mut head = [0u8; 64];
    let got = read(0, &mut head);
    if got >= 2 && head.starts_with(b"#!") {
        return Executable::Script;
    }
    if got < 4 || !head.starts_with(b"\x7fELF") {
        return Executable::Unknown;
    }
    if got < 64 {
        return Executable::Malformed;
    }
    // EI_CLASS 2: 64-bit; EI_DATA 1: little-endian; e_type 2 or 3: EXEC, DYN.
    if head[4] != 2 || head[5] != 1 || u16_at(&head, 18) != MACHINE {
        return Executable::ForeignArchitecture;
    }
    let (offset, size, count) = (u64_at(&head, 32), u16_at(&head, 54), u16_at(&head, 56));
    if !matches!(u16_at(&head, 16), 2 | 3) || size != 56 || count == 0 || count > 64 {
        return Executable::Malformed;
    }
    let mut headers = [0u8; 64 * 56];
    let headers = &mut headers[..usize::from(count) * 56];
    if read(offset, headers) != headers.len() {
        return Executable::Malformed;
    }
    let mut dynamic = false;
    let mut interp = None;
    for ph in headers.chunks_exact(56) {
        let (file_offset, file_size) = (u64_at(ph, 8), u64_at(ph, 32));
        match u32_at(ph, 0) {
            PT_DYNAMIC => dynamic = true,
            PT_INTERP => interp = Some((file_offset, file_size)),
            PT_NOTE if is_go(&mut read, file_offset, file_size) => return Executable::Go,
            _ => {}
        }
    }
    if let Some((offset, size)) = interp {
        return interpreter(&mut read, offset, size);
    }
    // ld.so has no PT_INTERP but a dynamic section and a name of its own; a static-pie has the
    // former too. Which of the two it is, the caller tells by the file's name.
    if dynamic {
        loader_or_static(&mut read, &head)
    } else {
        Executable::Static
    }
}

/// Whether a note segment (elf(5)) holds Go's build id: owner "Go", type 4 (cmd/internal/buildid).
fn is_go(read: &mut impl FnMut(u64, &mut [u8]) -> usize, offset: u64, size: u64) -> bool {
    let mut notes = [0u8; 512];
    let want = notes.len().min(usize::try_from(size).unwrap_or(usize::MAX));
    let got = read(offset, &mut notes[..want]);
    let mut rest = &notes[..got.min(want)];
    while rest.len() >= 16 {
        let (name, description) = (u32_at(rest, 0) as usize, u32_at(rest, 4) as usize);
        if name == 4 && u32_at(rest, 8) == 4 && rest[12..16] == *b"Go\0\0" {
            return true;
        }
        let padded = |n: usize| n.checked_next_multiple_of(4);
        let Some(next) = padded(name)
            .zip(padded(description))
            .and_then(|(n, d)| n.checked_add(d)?.checked_add(12))
        else {
            return false;
        };
        rest = rest.get(next..).unwrap_or(&[]);
    }
    false
}

fn interpreter(
    read: &mut impl FnMut(u64, &mut [u8]) -> usize,
    offset: u64,
    size: u64,
) -> Executable {
    let mut path = [0u8; 256];
    let Some(want) = usize::try_from(size).ok().filter(|s| (2..=256).contains(s)) else {
        return Executable::Malformed;
    };
    if read(offset, &mut path[..want]) != want || path[want - 1] != 0 {
        return Executable::Malformed;
    }
    let path = &path[..want];
    let path = path.split(|b| *b == 0).next().unwrap_or(b"");
    if is_glibc_loader(path) {
        Executable::Dynamic
    } else {
        Executable::ForeignLoader
    }
}

/// Whether a path names glibc's dynamic loader for this architecture (ld.so(8)).
pub fn is_glibc_loader(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    if cfg!(target_arch = "x86_64") {
        name == b"ld-linux-x86-64.so.2"
    } else {
        name == b"ld-linux-aarch64.so.1"
    }
}

/// glibc's loader is a shared object (ET_DYN) that exports `_dl_argv`/`_rtld_global`; looking for the
/// soname in its first pages is enough to tell it from a static-pie, which has none.
fn loader_or_static(read: &mut impl FnMut(u64, &mut [u8]) -> usize, head: &[u8; 64]) -> Executable {
    if u16_at(head, 16) != 3 {
        return Executable::Static;
    }
    const SONAME: &[u8] = if cfg!(target_arch = "x86_64") {
        b"\0ld-linux-x86-64.so.2\0"
    } else {
        b"\0ld-linux-aarch64.so.1\0"
    };
    // The dynamic string table lies within the first 16 KiB of every glibc's ld.so.
    let mut window = [0u8; 1024 + 32];
    for page in 0..16u64 {
        let got = read(page * 1024, &mut window);
        if window[..got].windows(SONAME.len()).any(|w| w == SONAME) {
            return Executable::Loader;
        }
        if got < window.len() {
            break;
        }
    }
    Executable::Static
}

/// The interpreter, and its one optional argument, of a `#!` line (execve(2), "Interpreter scripts").
///
/// `head` is the start of the file; Linux reads at most 256 bytes. `None` if there is no interpreter.
pub fn shebang(head: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let line = head.strip_prefix(b"#!")?;
    let line = &line[..line.len().min(254)];
    let line = line.split(|b| *b == b'\n').next()?;
    let line = line.trim_ascii();
    let end = line
        .iter()
        .position(|b| matches!(b, b' ' | b'\t' | 0))
        .unwrap_or(line.len());
    let (interpreter, rest) = line.split_at(end);
    let argument = rest.split(|b| *b == 0).next().unwrap_or(b"").trim_ascii();
    if interpreter.is_empty() {
        return None;
    }
    Some((interpreter, (!argument.is_empty()).then_some(argument)))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn look(data: &[u8]) -> Executable {
        inspect(|at, buf| {
            let rest = data.get(at as usize..).unwrap_or(&[]);
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        })
    }

    /// An ELF file with one program header and, behind it, an interpreter's path.
    fn elf(kind: u32, interp: &[u8]) -> Vec<u8> {
        let mut f = std::vec![0u8; 120];
        f[..6].copy_from_slice(b"\x7fELF\x02\x01");
        f[16] = 3;
        f[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        f[32] = 64;
        f[54] = 56;
        f[56] = 1;
        f[64..68].copy_from_slice(&kind.to_le_bytes());
        f[72] = 120;
        f[96..104].copy_from_slice(&(interp.len() as u64).to_le_bytes());
        f.extend_from_slice(interp);
        f
    }

    #[test]
    fn kinds() {
        let glibc: &[u8] = if cfg!(target_arch = "x86_64") {
            b"/lib64/ld-linux-x86-64.so.2\0"
        } else {
            b"/lib/ld-linux-aarch64.so.1\0"
        };
        assert_eq!(look(&elf(PT_INTERP, glibc)), Executable::Dynamic);
        let musl = elf(PT_INTERP, b"/lib/ld-musl-x86_64.so.1\0");
        assert_eq!(look(&musl), Executable::ForeignLoader);
        assert_eq!(look(&elf(1, b"")), Executable::Static);
        assert_eq!(look(&elf(PT_DYNAMIC, b"")), Executable::Static);
        let loader = elf(
            PT_DYNAMIC,
            &[b"\0", glibc.rsplit(|b| *b == b'/').next().expect("name")].concat(),
        );
        assert_eq!(look(&loader), Executable::Loader);
        let go = b"\x04\0\0\0\x02\0\0\0\x04\0\0\0Go\0\0ab\0\0";
        let filler = b"\x04\0\0\0\x01\0\0\0\x01\0\0\0GNU\0x\0\0\0";
        assert_eq!(look(&elf(PT_NOTE, go)), Executable::Go);
        let second = [&filler[..], &go[..]].concat();
        assert_eq!(look(&elf(PT_NOTE, &second)), Executable::Go);
        assert_eq!(look(&elf(PT_NOTE, filler)), Executable::Static);
        let mut other = elf(PT_INTERP, glibc);
        other[4] = 1;
        assert_eq!(look(&other), Executable::ForeignArchitecture);
        assert_eq!(look(b"#!/bin/sh\n"), Executable::Script);
        assert_eq!(look(b"echo"), Executable::Unknown);
        assert_eq!(look(b""), Executable::Unknown);
        let whole = elf(PT_INTERP, glibc);
        for cut in 4..whole.len() {
            assert_eq!(look(&whole[..cut]), Executable::Malformed, "{cut}");
        }
    }

    #[test]
    fn shebang_lines() {
        let none: Option<&[u8]> = None;
        assert_eq!(shebang(b"#!/bin/sh\nx"), Some((&b"/bin/sh"[..], none)));
        let env = shebang(b"#! /usr/bin/env  python3 -u \n");
        assert_eq!(env, Some((&b"/usr/bin/env"[..], Some(&b"python3 -u"[..]))));
        assert_eq!(shebang(b"#!\n"), None);
        assert_eq!(shebang(b"#!"), None);
        assert_eq!(shebang(b"x"), None);
    }
}
