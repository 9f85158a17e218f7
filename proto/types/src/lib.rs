//! Ids, digests and ranges that every part of d7y shares. No I/O, no clock.

mod address;
mod digest;
mod layer;
mod pack;
mod range;
mod request;

pub use address::{AddressError, advertised};
pub use digest::{ChunkHash, DigestError, Sha256Digest};
pub use layer::{Compression, LayerRef, MediaTypeError};
pub use pack::{PackId, TableHash};
pub use range::ByteRange;
pub use request::{Caller, Ids, RequestId, SpanId};

/// The block size of every layer device and bootstrap (EROFS `blkszbits` 12), in bytes.
pub const BLOCK_BYTES: u64 = 4096;
