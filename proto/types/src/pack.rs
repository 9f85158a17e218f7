use std::fmt;

use crate::Sha256Digest;

/// A layer as one builder cut it up. Two honest builders may cut the same layer differently: the number of a chunk and
/// the bytes of its frame mean something only among peers whose indexes have the same chunk table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackId {
    pub layer: Sha256Digest,
    pub table: TableHash,
}

/// The BLAKE3 hash of all chunk records of an index, in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableHash(pub [u8; 32]);

impl fmt::Debug for TableHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", hex::encode(self.0))
    }
}
