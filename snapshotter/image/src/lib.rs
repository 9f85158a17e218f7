//! Image formats → layer index. Pure: bytes in, bytes out; callers do the I/O.
//!
//! A layer becomes a [`LayerIndex`] (an EROFS bootstrap that holds only metadata, and a table of the chunks
//! of its *device*, the flat uncompressed data space) and a *pack*, the same chunks as zstd frames back to back.

mod index;
mod trust;

pub use index::{CHUNK_RECORD_BYTES, Chunk, Codec, IndexError, LayerIndex, MAX_CHUNK_BYTES, MAX_INDEX_BYTES};
pub use trust::{IndexSigner, TrustError, TrustedKeys};
