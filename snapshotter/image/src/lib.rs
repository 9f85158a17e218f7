//! Image formats → layer index. Pure: bytes in, bytes out; callers do the I/O.
//!
//! A layer becomes a [`LayerIndex`] (an EROFS bootstrap that holds only metadata, and a table of the chunks
//! of its *device*, the flat uncompressed data space) and a *pack*, the same chunks as zstd frames back to back.

mod bootstrap;
mod build;
mod index;
mod inherit;
mod layer;
mod tar;
mod tree;
mod trust;

pub use bootstrap::{Bootstrap, ReadError, WriteError, layer_tree, read_bootstrap, write_bootstrap};
pub use build::{
    BuildError, BuildOptions, CHUNK_BYTES, ChunkSink, LARGE_CHUNK_BYTES, LARGE_FILE_BYTES, Limits,
    ZSTD_LEVEL, build_layer,
};
pub use index::{CHUNK_RECORD_BYTES, Chunk, Codec, IndexError, LayerIndex, MAX_CHUNK_BYTES, MAX_INDEX_BYTES};
pub use layer::LayerError;
pub use tar::{
    Entry, EntryKind, Extent, MAX_EXTENSION_BYTES, MAX_PATH_BYTES, MAX_SPARSE_EXTENTS, TarError, TarReader,
};
pub use tree::{MAX_NAME_BYTES, MODE_MASK, Node, NodeId, NodeKind, Tree, TreeError};
pub use trust::{IndexSigner, TrustError, TrustedKeys, open_unchanged};
