//! Hostnames <-> virtual addresses, in memory that the processes of a run share.
//!
//! A virtual address stands for a hostname until connect(2). They come from 127.128.0.0/10: should
//! one ever slip to the kernel, it stays on loopback, so that even a mistake fails closed.
//!
//! The table is an open-addressing hash table of 2^22 slots, and *the slot is the address*: slot `i`
//! is 127.128.0.0 + i. A slot holds 0, or where the name's record starts in the heap behind the
//! slots. Writers put the record down first and claim the slot with one compare-and-swap, so there is
//! no lock that a killed process could leave held, and that a signal handler or a vfork(2) child
//! could wait for; and two processes that meet on a slot see one winner. An address never gets a
//! second name: slots are never emptied. A process killed between record and claim wastes a record.
//!
//! The memory is a memfd that the launcher makes (see [`crate::handoff::Names`]); it is sparse, and
//! a run that resolves one name touches three pages.

use crate::hostname::{NAME_MAX, canonical};
use crate::siphash::{self, Key};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicU32, Ordering};

/// The first virtual address: 127.128.0.0/10.
const BASE: u32 = 0x7f80_0000;

/// How many virtual addresses there are.
const SLOTS: usize = 1 << 22;

/// Words before the slots: magic, then the heap's fill.
const HEADER: usize = 16;

/// Where the heap starts, in words.
const HEAP: usize = HEADER + SLOTS;

/// 64 MiB of names: some two million of usual length.
const HEAP_WORDS: usize = 1 << 24;

/// How large the shared memory is, in 32-bit words.
pub const WORDS: usize = HEAP + HEAP_WORDS;

/// How large the shared memory is, in bytes.
pub const BYTES: usize = WORDS * 4;

const MAGIC: u32 = 0x7577_7401;

/// How a file of [`BYTES`] bytes starts that is zeroed otherwise and an empty table.
pub const EMPTY: [u8; 8] = {
    let (magic, fill) = (MAGIC.to_ne_bytes(), (HEAP as u32).to_ne_bytes());
    [
        magic[0], magic[1], magic[2], magic[3], fill[0], fill[1], fill[2], fill[3],
    ]
};

/// How many slots a name may be away from where its hash puts it. At three quarters full, a longer
/// way than this is a matter of 2^-100; it keeps a full table from being walked whole.
const PROBES: usize = 4096;

/// The prefix of the virtual addresses, for messages and firewall rules.
pub const PREFIX: &str = "127.128.0.0/10";

/// Why a name has no virtual address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// The memory is not a name table of this version.
    NotATable,
    /// No room for another name.
    Full,
    /// The name is empty or longer than 255 bytes.
    BadName,
}

/// A view of the table that a run's processes share.
#[derive(Clone, Copy)]
pub struct NameTable<'a> {
    words: &'a [AtomicU32],
    key: Key,
}

impl<'a> NameTable<'a> {
    /// Prepares fresh, zeroed memory of [`WORDS`] words as an empty table: its first words are [`EMPTY`].
    pub fn init(words: &[AtomicU32]) -> Result<(), TableError> {
        if words.len() != WORDS {
            return Err(TableError::NotATable);
        }
        words[1].store(HEAP as u32, Ordering::Relaxed);
        words[0].store(MAGIC, Ordering::Release);
        Ok(())
    }

    /// Takes memory that [`NameTable::init`] has prepared. `key` is the run's secret: it places the
    /// names, so that nobody outside the run can choose names that collide.
    pub fn open(words: &'a [AtomicU32], key: Key) -> Result<NameTable<'a>, TableError> {
        if words.len() != WORDS || words[0].load(Ordering::Acquire) != MAGIC {
            return Err(TableError::NotATable);
        }
        Ok(NameTable { words, key })
    }

    /// The virtual address of `name` (as given, 1 to 255 bytes), the same one each time, in every
    /// process of the run.
    pub fn address(&self, name: &[u8]) -> Result<Ipv4Addr, TableError> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(TableError::BadName);
        }
        let home = siphash::hash64(&self.key, name) as usize % SLOTS;
        let mut record = 0;
        for probe in 0..PROBES {
            let slot = (home + probe) % SLOTS;
            // 127.128.0.0 itself is left out: it looks like a network's address.
            if slot == 0 {
                continue;
            }
            let word = &self.words[HEADER + slot];
            let mut seen = word.load(Ordering::Acquire);
            if seen == 0 {
                if record == 0 {
                    record = self.write_record(name)?;
                }
                match word.compare_exchange(0, record, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Ok(address_of(slot)),
                    Err(winner) => seen = winner,
                }
            }
            if self.record_is(seen, name) {
                return Ok(address_of(slot));
            }
        }
        Err(TableError::Full)
    }

    /// Copies the name behind a virtual address into `buf` and gives it; `None` if the address
    /// stands for no name.
    pub fn name<'b>(&self, address: Ipv4Addr, buf: &'b mut [u8; NAME_MAX]) -> Option<&'b [u8]> {
        let slot = slot_of(address)?;
        let record = self.words[HEADER + slot].load(Ordering::Acquire);
        let len = self.record_len(record)?;
        for (i, b) in buf[..len].iter_mut().enumerate() {
            *b = self.record_byte(record, i)?;
        }
        Some(&buf[..len])
    }

    /// A record is one word of length, then the bytes, four to a word.
    fn write_record(&self, name: &[u8]) -> Result<u32, TableError> {
        let need = 1 + name.len().div_ceil(4) as u32;
        let fill = &self.words[1];
        let mut at = fill.load(Ordering::Relaxed);
        loop {
            let end = at.checked_add(need).ok_or(TableError::Full)?;
            if (at as usize) < HEAP || end as usize > WORDS {
                return Err(TableError::Full);
            }
            match fill.compare_exchange_weak(at, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => at = now,
            }
        }
        let record = &self.words[at as usize..(at + need) as usize];
        record[0].store(name.len() as u32, Ordering::Relaxed);
        for (word, four) in record[1..].iter().zip(name.chunks(4)) {
            let mut b = [0u8; 4];
            b[..four.len()].copy_from_slice(four);
            word.store(u32::from_le_bytes(b), Ordering::Relaxed);
        }
        Ok(at)
    }

    /// A record's length, if it lies within the heap: other processes write this memory too, and a
    /// broken one must not lead us astray.
    fn record_len(&self, record: u32) -> Option<usize> {
        if (record as usize) < HEAP {
            return None;
        }
        let len = self.words.get(record as usize)?.load(Ordering::Relaxed) as usize;
        (1..=NAME_MAX).contains(&len).then_some(len)
    }

    fn record_byte(&self, record: u32, i: usize) -> Option<u8> {
        let word = self.words.get(record as usize + 1 + i / 4)?;
        Some(word.load(Ordering::Relaxed).to_le_bytes()[i % 4])
    }

    fn record_is(&self, record: u32, name: &[u8]) -> bool {
        self.record_len(record) == Some(name.len())
            && name
                .iter()
                .enumerate()
                .all(|(i, b)| self.record_byte(record, i) == Some(*b))
    }
}

fn address_of(slot: usize) -> Ipv4Addr {
    Ipv4Addr::from(BASE + slot as u32)
}

fn slot_of(address: Ipv4Addr) -> Option<usize> {
    let offset = u32::from(address).checked_sub(BASE)? as usize;
    (offset < SLOTS).then_some(offset)
}

/// The virtual address that `ip` is, v4-mapped or not; `None` if it is none. It may still stand for
/// no name.
pub fn virtual_address(ip: IpAddr) -> Option<Ipv4Addr> {
    match canonical(ip) {
        IpAddr::V4(a) => slot_of(a).map(|_| a),
        IpAddr::V6(_) => None,
    }
}

/// The form of a virtual address for AF_INET6: v4-mapped, ::ffff:127.128.x.y.
pub fn mapped(address: Ipv4Addr) -> Ipv6Addr {
    address.to_ipv6_mapped()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;
    use std::vec::Vec;

    fn memory() -> Vec<AtomicU32> {
        let mut v = Vec::with_capacity(WORDS);
        v.resize_with(WORDS, || AtomicU32::new(0));
        v
    }

    fn table(m: &[AtomicU32]) -> NameTable<'_> {
        NameTable::init(m).expect("init");
        NameTable::open(m, [5; 16]).expect("open")
    }

    #[test]
    fn a_name_has_one_address_and_an_address_one_name() {
        let m = memory();
        let t = table(&m);
        let n = if cfg!(miri) { 50 } else { 150_000 };
        let mut seen = std::collections::HashMap::new();
        for i in 0..n {
            let name = format!("host-{i}.example");
            let a = t.address(name.as_bytes()).expect("address");
            assert!(virtual_address(a.into()).is_some());
            assert!(seen.insert(a, name).is_none(), "one address, two names");
        }
        let mut buf = [0; NAME_MAX];
        for (a, name) in &seen {
            assert_eq!(t.name(*a, &mut buf), Some(name.as_bytes()));
            assert_eq!(t.address(name.as_bytes()), Ok(*a));
        }
    }

    #[test]
    fn threads_agree() {
        let m = memory();
        let t = table(&m);
        let n = if cfg!(miri) { 10 } else { 2000 };
        let all: Vec<Vec<Ipv4Addr>> = std::thread::scope(|s| {
            let work = || {
                (0..n)
                    .map(|i| t.address(format!("n{i}").as_bytes()).expect("address"))
                    .collect()
            };
            let handles: Vec<_> = (0..4).map(|_| s.spawn(work)).collect();
            handles
                .into_iter()
                .map(|h| h.join().expect("join"))
                .collect()
        });
        assert!(all.windows(2).all(|w| w[0] == w[1]));
    }

    #[test]
    fn names_of_every_length_and_bad_ones() {
        let m = memory();
        let t = table(&m);
        let mut buf = [0; NAME_MAX];
        let long = [b'x'; 256];
        for len in [1, 2, 3, 4, 5, 63, 254, 255] {
            let a = t.address(&long[..len]).expect("address");
            assert_eq!(t.name(a, &mut buf), Some(&long[..len]));
        }
        assert_eq!(t.address(b""), Err(TableError::BadName));
        assert_eq!(t.address(&long), Err(TableError::BadName));
        assert_eq!(t.name(Ipv4Addr::new(127, 128, 0, 0), &mut buf), None);
        assert_eq!(t.name(Ipv4Addr::new(127, 0, 0, 1), &mut buf), None);
        assert_eq!(t.name(Ipv4Addr::new(127, 192, 0, 0), &mut buf), None);
    }

    #[test]
    fn a_full_heap_and_broken_memory_are_errors_not_panics() {
        let m = memory();
        let t = table(&m);
        m[1].store(WORDS as u32 - 1, Ordering::Relaxed);
        assert_eq!(t.address(b"example"), Err(TableError::Full));
        m[1].store(u32::MAX, Ordering::Relaxed);
        assert_eq!(t.address(b"example"), Err(TableError::Full));
        let mut buf = [0; NAME_MAX];
        for junk in [1, HEAP as u32 - 1, WORDS as u32 - 1, WORDS as u32, u32::MAX] {
            m[HEADER + 77].store(junk, Ordering::Relaxed);
            assert_eq!(t.name(Ipv4Addr::from(BASE + 77), &mut buf), None);
        }
        assert!(matches!(
            NameTable::open(&m[1..], [0; 16]),
            Err(TableError::NotATable)
        ));
    }

    #[test]
    fn what_is_virtual() {
        let yes = ["127.128.0.1", "127.191.255.255", "::ffff:127.128.9.9"];
        let no = ["127.0.0.1", "127.192.0.0", "127.127.255.255", "::1"];
        for a in yes {
            assert!(virtual_address(a.parse().expect(a)).is_some(), "{a}");
        }
        for a in no {
            assert!(virtual_address(a.parse().expect(a)).is_none(), "{a}");
        }
    }
}
