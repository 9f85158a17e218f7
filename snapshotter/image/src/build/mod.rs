//! Builds the index of a plain OCI layer while its blob streams past, once.
//!
//! The caller's thread reads, hashes, decompresses and parses; [`encode::WORKERS`] threads hash and compress
//! chunks; one thread hands finished chunks to the sink, in device order and without waiting for the next read.

mod device;
mod encode;
mod source;

use std::io::{BufReader, Read};

use d7y_types::{LayerRef, Sha256Digest};

use crate::bootstrap::{WriteError, write_bootstrap};
use crate::index::{Chunk, LayerIndex, MAX_BOOTSTRAP_BYTES, MAX_CHUNK_BYTES};
use crate::layer::{LayerBuilder, LayerError, TreeLimits};
use crate::tar::{EntryKind, Extent, TarError, TarReader};
use crate::tree::{NodeKind, Tree};
use device::Device;
use source::{Plain, SourceFailure};

/// The chunk size for ordinary files: a page fault in a small file costs little more than the file.
pub const CHUNK_BYTES: u32 = 64 << 10;
/// The chunk size for large files: fewer requests and a better ratio where reads are long.
pub const LARGE_CHUNK_BYTES: u32 = 128 << 10;
/// Files longer than this are large.
pub const LARGE_FILE_BYTES: u64 = 4 << 20;
/// zstd's default: 3 gives gzip's ratio at several times its speed.
pub const ZSTD_LEVEL: i32 = 3;
/// What a stream is read in.
const READ_BYTES: usize = 64 << 10;

/// Takes the chunks of a layer as they are made. It runs on a thread of its own.
pub trait ChunkSink: Send {
    /// Called once for each chunk, in device order. `data` is what belongs on the device (padding included),
    /// `frame` what belongs in the pack at `chunk.pack_offset`; both are empty for a chunk of zeros. An error
    /// stops the build.
    fn chunk(&mut self, number: u32, chunk: &Chunk, frame: &[u8], data: &[u8]) -> std::io::Result<()>;
}

#[derive(Debug, Clone)]
pub struct BuildOptions {
    pub zstd_level: i32,
    /// Uncompressed; a multiple of 4,096, at most [`MAX_CHUNK_BYTES`].
    pub chunk_bytes: u32,
    /// For files longer than [`LARGE_FILE_BYTES`].
    pub large_chunk_bytes: u32,
    pub limits: Limits,
}

/// What one layer may cost its builder. A layer that breaks a limit is refused, whatever its digest.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Tar entries, and files and directories together: each takes about 300 bytes of memory.
    pub entries: u32,
    /// Names, link targets and extended attributes; they must fit in one bootstrap.
    pub metadata_bytes: u64,
    /// Bytes of the uncompressed tar.
    pub uncompressed_bytes: u64,
    /// Uncompressed bytes for each compressed one, once `ratio_from_bytes` are reached. Deflate ends at 1,032:
    /// beyond 1,000 a layer is zeros.
    pub expansion_ratio: u64,
    pub ratio_from_bytes: u64,
    /// Length of the device, holes included.
    pub device_bytes: u64,
    /// Chunks in the index, which takes 40 bytes for each.
    pub chunks: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 1 << 20,
            metadata_bytes: 128 << 20,
            uncompressed_bytes: 256 << 30,
            expansion_ratio: 1000,
            ratio_from_bytes: 1 << 30,
            device_bytes: 8 << 40,
            chunks: 1_600_000,
        }
    }
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            zstd_level: ZSTD_LEVEL,
            chunk_bytes: CHUNK_BYTES,
            large_chunk_bytes: LARGE_CHUNK_BYTES,
            limits: Limits::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the layer's bytes have digest {found}, not {expected}; fetch it again, or from another source")]
    DigestMismatch { expected: Sha256Digest, found: Sha256Digest },
    #[error(
        "the uncompressed layer has digest {found}, but the image's config says {expected}; do not trust the image"
    )]
    DiffIdMismatch { expected: Sha256Digest, found: Sha256Digest },
    #[error("the layer is longer than the {expected} bytes that its manifest says; do not trust the source")]
    Size { expected: u64 },
    #[error("the layer ended after {found} of {expected} bytes; fetch it again")]
    Truncated { expected: u64, found: u64 },
    #[error("the layer breaks a limit: {0}")]
    Limit(&'static str),
    #[error("the layer does not decompress; rebuild the image")]
    Decompress(#[source] std::io::Error),
    #[error("the layer's tar cannot be read at byte {offset}; rebuild the image")]
    Tar {
        offset: u64,
        #[source]
        source: TarError,
    },
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("the layer cannot be described as an EROFS image")]
    Bootstrap(#[from] WriteError),
    #[error("the layer's bytes could not be read")]
    Read(#[source] std::io::Error),
    #[error("a finished chunk could not be stored")]
    Sink(#[source] std::io::Error),
    #[error("a chunk could not be compressed")]
    Compress(#[source] std::io::Error),
    #[error("the build options make no sense: {0}")]
    Options(&'static str),
}

/// Reads a layer's blob to its end and returns its index, if size, digest and diff id are those of `spec`.
///
/// Chunks go to `sink` before the digests are known: what it stores counts only when an index follows. The source
/// is not read past `spec.size` and one byte. When the content is unusable, the rest of the blob is still read, to
/// tell a damaged transfer ([`BuildError::DigestMismatch`]) from a bad image.
pub fn build_layer(
    spec: &LayerRef,
    compressed: impl Read,
    sink: &mut impl ChunkSink,
    options: &BuildOptions,
) -> Result<LayerIndex, BuildError> {
    check_options(options)?;
    let (tree, chunks) = encode::run(sink, options, |encoder| {
        let plain = Plain::new(spec, compressed, &options.limits).map_err(BuildError::Decompress)?;
        let mut tar = TarReader::new(BufReader::with_capacity(READ_BYTES, plain));
        let read = read_layer(&mut tar, Device::new(encoder, options));
        let failed_at = tar.entry_offset();
        tar.into_inner().into_inner().finish(spec, read, failed_at)
    })?;
    assemble(spec, &tree, chunks)
}

fn check_options(options: &BuildOptions) -> Result<(), BuildError> {
    let sound = |bytes: u32| {
        bytes > 0
            && u64::from(bytes) <= MAX_CHUNK_BYTES
            && u64::from(bytes).is_multiple_of(d7y_types::BLOCK_BYTES)
    };
    match sound(options.chunk_bytes) && sound(options.large_chunk_bytes) {
        true => Ok(()),
        false => Err(BuildError::Options("chunks must be whole blocks of 4,096 bytes, at most 1 MiB")),
    }
}

/// Why reading a layer stopped.
enum Stop {
    Tar(TarError),
    Layer(LayerError),
    Build(BuildError),
}

fn read_layer<R: Read>(tar: &mut TarReader<R>, mut device: Device<'_>) -> Result<Tree, Stop> {
    let Limits { entries, metadata_bytes, .. } = device.limits();
    let mut layer = LayerBuilder::new(TreeLimits { entries: *entries, metadata_bytes: *metadata_bytes });
    while let Some(entry) = tar.next_entry().map_err(Stop::Tar)? {
        let mut device_offset = 0;
        if let EntryKind::Regular { size } = entry.kind
            && LayerBuilder::wants_content(&entry).map_err(Stop::Layer)?
        {
            device_offset = device.begin_file(size).map_err(Stop::Build)?;
            copy_content(tar, &mut device)?;
        }
        layer.apply(entry, device_offset).map_err(Stop::Layer)?;
    }
    device.finish().map_err(Stop::Build)?;
    Ok(layer.finish())
}

fn copy_content<R: Read>(tar: &mut TarReader<R>, device: &mut Device<'_>) -> Result<(), Stop> {
    while let Some(extent) = tar.next_extent() {
        match extent {
            Extent::Hole(bytes) => device.hole(bytes).map_err(Stop::Build)?,
            Extent::Data(mut left) => {
                while left > 0 {
                    let room = device.room(left);
                    left -= room.len() as u64;
                    tar.read_data(room).map_err(Stop::Tar)?;
                    device.filled().map_err(Stop::Build)?;
                }
            }
        }
    }
    device.end_file().map_err(Stop::Build)
}

impl<R: Read> Plain<R> {
    /// Reads to the end whatever `read` came to, and settles what is wrong, if anything.
    fn finish(
        mut self,
        spec: &LayerRef,
        read: Result<Tree, Stop>,
        failed_at: u64,
    ) -> Result<Tree, BuildError> {
        let read = match read {
            Err(Stop::Build(error)) => return Err(error),
            Err(Stop::Layer(error)) => Err(BuildError::Layer(error)),
            Err(Stop::Tar(TarError::Io(error))) => Err(BuildError::Decompress(error)),
            Err(Stop::Tar(source)) => Err(BuildError::Tar { offset: failed_at, source }),
            Ok(tree) => self.drain().map(|()| tree).map_err(BuildError::Decompress),
        };
        match self.take_failure() {
            Some(SourceFailure::Limit(what)) => return Err(BuildError::Limit(what)),
            Some(SourceFailure::Read(error)) => return Err(BuildError::Read(error)),
            None => {}
        }
        let (diff_id, blob) = self.digests();
        let (bytes, digest) = blob.map_err(BuildError::Read)?;
        if bytes > spec.size {
            return Err(BuildError::Size { expected: spec.size });
        }
        if bytes < spec.size {
            return Err(BuildError::Truncated { expected: spec.size, found: bytes });
        }
        if digest != spec.digest {
            return Err(BuildError::DigestMismatch { expected: spec.digest, found: digest });
        }
        let tree = read?;
        if diff_id != spec.diff_id {
            return Err(BuildError::DiffIdMismatch { expected: spec.diff_id, found: diff_id });
        }
        Ok(tree)
    }
}

fn assemble(spec: &LayerRef, tree: &Tree, chunks: Vec<Chunk>) -> Result<LayerIndex, BuildError> {
    let written = write_bootstrap(tree)?;
    if written.bytes.len() > MAX_BOOTSTRAP_BYTES {
        return Err(BuildError::Limit("its bootstrap is larger than 256 MiB"));
    }
    let nids = tree.nodes.iter().zip(&written.nids);
    let implied = |node: &crate::tree::Node| matches!(node.kind, NodeKind::Directory { implied: true, .. });
    let mut implied: Vec<u64> =
        nids.filter(|(node, nid)| **nid != 0 && implied(node)).map(|(_, nid)| *nid).collect();
    implied.sort_unstable();
    Ok(LayerIndex { layer: spec.digest, diff_id: spec.diff_id, chunks, implied, bootstrap: written.bytes })
}
