/// A fixed-size set of chunk numbers; bit `n` of byte `n / 8`, least significant first, as on disk and on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bits {
    bytes: Vec<u8>,
    len: u32,
}

impl Bits {
    pub fn new(len: u32) -> Self {
        Self { bytes: vec![0; len.div_ceil(8) as usize], len }
    }

    /// `None` when the bytes are not exactly those that `len` bits need, or a bit past the end is set.
    pub fn from_bytes(bytes: Vec<u8>, len: u32) -> Option<Self> {
        let spare = (8 - len % 8) % 8;
        let clean = spare == 0 || bytes.last().is_none_or(|last| u32::from(*last) >> (8 - spare) == 0);
        (bytes.len() == len.div_ceil(8) as usize && clean).then_some(Self { bytes, len })
    }

    pub fn all(len: u32) -> Self {
        let mut bits = Self::new(len);
        (0..len).for_each(|n| bits.set(n));
        bits
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// False past the end.
    pub fn get(&self, n: u32) -> bool {
        n < self.len && self.bytes[n as usize / 8] >> (n % 8) & 1 == 1
    }

    /// Ignores numbers past the end.
    pub fn set(&mut self, n: u32) {
        if n < self.len {
            self.bytes[n as usize / 8] |= 1 << (n % 8);
        }
    }

    pub fn clear(&mut self, n: u32) {
        if n < self.len {
            self.bytes[n as usize / 8] &= !(1 << (n % 8));
        }
    }

    pub fn count(&self) -> u32 {
        self.bytes.iter().map(|byte| byte.count_ones()).sum()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_refuse_what_does_not_fit() {
        assert!(Bits::from_bytes(vec![0xff, 0x01], 9).is_some());
        assert!(Bits::from_bytes(vec![0xff, 0x02], 9).is_none());
        assert!(Bits::from_bytes(vec![0xff], 9).is_none());
        assert_eq!(Bits::all(9).count(), 9);
        assert!(!Bits::all(9).get(9));
    }
}
