/// A range of bytes `[offset, offset + length)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    pub offset: u64,
    pub length: u64,
}

impl ByteRange {
    pub fn new(offset: u64, length: u64) -> Self {
        Self { offset, length }
    }

    /// The first byte past the range; saturates, so a hostile offset cannot wrap.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    pub fn is_empty(self) -> bool {
        self.length == 0
    }
}
