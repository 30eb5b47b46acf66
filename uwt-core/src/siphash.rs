//! SipHash-2-4 (Aumasson and Bernstein, 2012): a keyed hash for tables and for circuit identities.
//!
//! Keyed with the run's random secret, so that nobody outside the run can choose names that collide
//! in the name table, or compute another run's identities.

/// A SipHash-2-4 key.
pub type Key = [u8; 16];

fn word(bytes: &[u8]) -> u64 {
    let mut w = [0u8; 8];
    for (to, from) in w.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(w)
}

struct State([u64; 4]);

impl State {
    fn round(&mut self) {
        let [a, b, c, d] = &mut self.0;
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(13) ^ *a;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*d);
        *d = d.rotate_left(16) ^ *c;
        *a = a.wrapping_add(*d);
        *d = d.rotate_left(21) ^ *a;
        *c = c.wrapping_add(*b);
        *b = b.rotate_left(17) ^ *c;
        *c = c.rotate_left(32);
    }

    fn absorb(&mut self, m: u64) {
        self.0[3] ^= m;
        self.round();
        self.round();
        self.0[0] ^= m;
    }

    fn finish(&self) -> u64 {
        self.0[0] ^ self.0[1] ^ self.0[2] ^ self.0[3]
    }
}

fn absorb_all(key: &Key, data: &[u8], wide: bool) -> State {
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut s = State([
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ]);
    if wide {
        s.0[1] ^= 0xee;
    }
    let mut chunks = data.chunks_exact(8);
    for c in &mut chunks {
        s.absorb(word(c));
    }
    s.absorb(word(chunks.remainder()) | ((data.len() as u64) << 56));
    s
}

/// The 64-bit hash of `data` under `key`.
pub fn hash64(key: &Key, data: &[u8]) -> u64 {
    let mut s = absorb_all(key, data, false);
    s.0[2] ^= 0xff;
    for _ in 0..4 {
        s.round();
    }
    s.finish()
}

/// The 128-bit hash of `data` under `key`, for identities, where a collision would join circuits.
pub fn hash128(key: &Key, data: &[u8]) -> [u8; 16] {
    let mut s = absorb_all(key, data, true);
    let mut out = [0u8; 16];
    s.0[2] ^= 0xee;
    for _ in 0..4 {
        s.round();
    }
    out[..8].copy_from_slice(&s.finish().to_le_bytes());
    s.0[1] ^= 0xdd;
    for _ in 0..4 {
        s.round();
    }
    out[8..].copy_from_slice(&s.finish().to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the reference implementation (vectors.h): key 00..0f, input 00..n.
    #[test]
    fn reference_vectors() {
        let mut key = [0u8; 16];
        for (i, k) in key.iter_mut().enumerate() {
            *k = i as u8;
        }
        let input: [u8; 15] = core::array::from_fn(|i| i as u8);
        assert_eq!(hash64(&key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(hash64(&key, &input), 0xa129_ca61_49be_45e5);
        assert_eq!(
            hash128(&key, &[]),
            [
                0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55,
                0x02, 0x93
            ]
        );
    }
}
