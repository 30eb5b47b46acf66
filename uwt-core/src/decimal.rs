//! Numbers in decimal, without an allocator.

/// A number's decimal digits.
pub struct Decimal {
    digits: [u8; 20],
    at: usize,
}

impl Decimal {
    /// The digits of `n`: 1 to 20 of them.
    pub fn new(mut n: u64) -> Decimal {
        let mut d = Decimal {
            digits: [b'0'; 20],
            at: 20,
        };
        while n > 0 || d.at == d.digits.len() {
            d.at -= 1;
            d.digits[d.at] = b'0' + (n % 10) as u8;
            n /= 10;
        }
        d
    }

    /// The most significant first.
    pub fn bytes(&self) -> &[u8] {
        &self.digits[self.at..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits() {
        for (n, text) in [
            (0, "0"),
            (7, "7"),
            (10, "10"),
            (u64::MAX, "18446744073709551615"),
        ] {
            assert_eq!(Decimal::new(n).bytes(), text.as_bytes());
        }
    }
}
