//! The layer index and its encoding.
//!
//! All integers little-endian. Chunks cover the device without a gap, and frames the pack, so only lengths are
//! stored; offsets are their running sums.
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 8 | magic `D7YINDEX` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | number of chunks |
//! | 16 | 32 | sha256 of the layer blob |
//! | 48 | 32 | sha256 of the uncompressed tar |
//! | 80 | 4 | number of implied directories |
//! | 84 | 4 | bootstrap bytes, uncompressed |
//! | 88 | 4 | bootstrap bytes as stored (one zstd frame) |
//! | 92 | 4 | reserved, 0 |
//! | 96 | 40 × chunks | blocks u32; codec in the two highest bits, frame bytes in the others, u32; BLAKE3 32 |
//! | | 8 × implied | EROFS nid of each directory that the tar only implied |
//! | | | bootstrap, zstd |
//! | | 96 | Ed25519 public key and signature of all before; zero when unsigned (`trust`) |

use d7y_types::{BLOCK_BYTES, ByteRange, ChunkHash, Sha256Digest};

use crate::trust::TRAILER_BYTES;

const MAGIC: &[u8; 8] = b"D7YINDEX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 96;
/// Size of a chunk's record, in bytes.
pub const CHUNK_RECORD_BYTES: usize = 40;
const FRAME_MASK: u32 = (1 << 30) - 1;

/// An index larger than this is refused: 64 MiB of chunks describe about 100 GiB of 64 KiB chunks.
pub const MAX_INDEX_BYTES: usize = 128 << 20;
/// A decoded bootstrap larger than this is refused: 256 MiB hold about two million files.
pub(crate) const MAX_BOOTSTRAP_BYTES: usize = 256 << 20;
/// The largest chunk that carries data; a run of zeros may be longer. Bounds the memory of one fetch.
pub const MAX_CHUNK_BYTES: u64 = 1 << 20;

/// How a frame in the pack encodes its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// All zeros: no frame at all.
    Zero = 0,
    /// The bytes as they are: zstd did not make them smaller.
    Raw = 1,
    Zstd = 2,
}

/// A range of the device that is fetched, verified and cached as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub device_block: u32,
    pub blocks: u32,
    pub pack_offset: u64,
    pub frame_bytes: u32,
    pub codec: Codec,
    /// Of the uncompressed bytes, padding to the block included. Zero chunks carry all zeros here.
    pub hash: ChunkHash,
}

impl Chunk {
    pub fn device_range(&self) -> ByteRange {
        ByteRange::new(u64::from(self.device_block) * BLOCK_BYTES, u64::from(self.blocks) * BLOCK_BYTES)
    }

    /// The chunk's record in an index, which is also how it is announced while its layer is still being read.
    pub fn encode(&self) -> [u8; CHUNK_RECORD_BYTES] {
        let mut out = [0; CHUNK_RECORD_BYTES];
        out[..4].copy_from_slice(&self.blocks.to_le_bytes());
        out[4..8].copy_from_slice(&((self.codec as u32) << 30 | self.frame_bytes).to_le_bytes());
        out[8..].copy_from_slice(&self.hash.0);
        out
    }

    /// The chunk that follows `previous` in its layer. `None` when the record is malformed.
    pub fn decode(record: &[u8; CHUNK_RECORD_BYTES], previous: Option<&Chunk>) -> Option<Self> {
        let (words, _) = record.as_chunks::<4>();
        let (blocks, packed) = (u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1]));
        let codec = match packed >> 30 {
            0 => Codec::Zero,
            1 => Codec::Raw,
            2 => Codec::Zstd,
            _ => return None,
        };
        let mut hash = ChunkHash([0; 32]);
        hash.0.copy_from_slice(&record[8..]);
        let device_block = previous.map_or(Some(0), |c| c.device_block.checked_add(c.blocks))?;
        device_block.checked_add(blocks)?;
        let pack_offset = previous.map_or(0, |c| c.pack_offset + u64::from(c.frame_bytes));
        let frame_bytes = packed & FRAME_MASK;
        let chunk = Self { device_block, blocks, pack_offset, frame_bytes, codec, hash };
        well_formed(&chunk).then_some(chunk)
    }

    /// Uncompressed length in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndex {
    pub layer: Sha256Digest,
    pub diff_id: Sha256Digest,
    /// Sorted by `device_block`; they cover the device without a gap.
    pub chunks: Vec<Chunk>,
    /// EROFS nids of directories that the tar only implied: attributes come from the layers below.
    pub implied: Vec<u64>,
    /// A standard EROFS image that holds only metadata; its data lies on external device 1.
    pub bootstrap: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the layer index is cut short or has bytes too many: {0}")]
    Length(&'static str),
    #[error("not a layer index of version 1")]
    Magic,
    #[error("the layer index breaks a limit: {0}")]
    Limit(&'static str),
    #[error("chunk {0} of the layer index is malformed")]
    Chunk(usize),
    #[error("the bootstrap in the layer index does not decode")]
    Bootstrap(#[source] std::io::Error),
}

impl LayerIndex {
    pub fn device_bytes(&self) -> u64 {
        self.chunks.last().map_or(0, |c| c.device_range().end())
    }

    pub fn pack_bytes(&self) -> u64 {
        self.chunks.last().map_or(0, |c| c.pack_offset + u64::from(c.frame_bytes))
    }

    /// The chunks that overlap a range of the device, as indices into `chunks`.
    pub fn chunks_in(&self, range: ByteRange) -> std::ops::Range<usize> {
        let first = self.chunks.partition_point(|c| c.device_range().end() <= range.offset);
        let last = self.chunks.partition_point(|c| c.device_range().offset < range.end());
        first..last.max(first)
    }

    /// The encoding without the signature trailer; `IndexSigner::seal` appends it.
    pub fn encode(&self) -> Result<Vec<u8>, IndexError> {
        if self.bootstrap.len() > MAX_BOOTSTRAP_BYTES {
            return Err(IndexError::Limit("bootstrap bytes"));
        }
        let stored = zstd::bulk::compress(&self.bootstrap, 9).map_err(IndexError::Bootstrap)?;
        let size = |len: usize, what| u32::try_from(len).map_err(|_| IndexError::Limit(what));
        let mut out =
            Vec::with_capacity(HEADER_BYTES + self.chunks.len() * CHUNK_RECORD_BYTES + stored.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&size(self.chunks.len(), "chunks")?.to_le_bytes());
        out.extend_from_slice(&self.layer.0);
        out.extend_from_slice(&self.diff_id.0);
        out.extend_from_slice(&size(self.implied.len(), "implied directories")?.to_le_bytes());
        out.extend_from_slice(&size(self.bootstrap.len(), "bootstrap")?.to_le_bytes());
        out.extend_from_slice(&size(stored.len(), "bootstrap")?.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.encode());
        }
        for nid in &self.implied {
            out.extend_from_slice(&nid.to_le_bytes());
        }
        out.extend_from_slice(&stored);
        if out.len() + TRAILER_BYTES > MAX_INDEX_BYTES {
            return Err(IndexError::Limit("index bytes"));
        }
        Ok(out)
    }

    /// Parses a sealed index. Proves only that it is well formed: trust comes from `TrustedKeys::open`.
    pub fn decode(sealed: &[u8]) -> Result<Self, IndexError> {
        if sealed.len() > MAX_INDEX_BYTES {
            return Err(IndexError::Limit("index bytes"));
        }
        let body = sealed.len().checked_sub(TRAILER_BYTES).ok_or(IndexError::Length("trailer"))?;
        let mut input = Input(&sealed[..body]);
        if input.take(8)? != MAGIC || input.u32()? != VERSION {
            return Err(IndexError::Magic);
        }
        let chunk_count = input.u32()? as usize;
        let layer = Sha256Digest(input.array()?);
        let diff_id = Sha256Digest(input.array()?);
        let implied_count = input.u32()? as usize;
        let bootstrap_bytes = input.u32()? as usize;
        let stored_bytes = input.u32()? as usize;
        input.take(4)?;
        if bootstrap_bytes > MAX_BOOTSTRAP_BYTES {
            return Err(IndexError::Limit("bootstrap bytes"));
        }
        let chunks = decode_chunks(&mut input, chunk_count)?;
        let implied = input.take(implied_count.checked_mul(8).ok_or(IndexError::Limit("implied"))?)?;
        let implied = implied.as_chunks::<8>().0.iter().map(|raw| u64::from_le_bytes(*raw)).collect();
        let stored = input.take(stored_bytes)?;
        if !input.0.is_empty() {
            return Err(IndexError::Length("bytes after the bootstrap"));
        }
        let bootstrap = zstd::bulk::decompress(stored, bootstrap_bytes).map_err(IndexError::Bootstrap)?;
        if bootstrap.len() != bootstrap_bytes {
            return Err(IndexError::Length("bootstrap"));
        }
        Ok(Self { layer, diff_id, chunks, implied, bootstrap })
    }
}

fn decode_chunks(input: &mut Input<'_>, count: usize) -> Result<Vec<Chunk>, IndexError> {
    let bytes = count.checked_mul(CHUNK_RECORD_BYTES).ok_or(IndexError::Limit("chunks"))?;
    let (records, _) = input.take(bytes)?.as_chunks::<CHUNK_RECORD_BYTES>();
    let mut chunks: Vec<Chunk> = Vec::with_capacity(count);
    for (n, record) in records.iter().enumerate() {
        chunks.push(Chunk::decode(record, chunks.last()).ok_or(IndexError::Chunk(n))?);
    }
    Ok(chunks)
}

fn well_formed(chunk: &Chunk) -> bool {
    let frame = u64::from(chunk.frame_bytes);
    chunk.blocks > 0
        && match chunk.codec {
            Codec::Zero => frame == 0 && chunk.hash.0 == [0; 32],
            Codec::Raw => frame == chunk.bytes() && chunk.bytes() <= MAX_CHUNK_BYTES,
            Codec::Zstd => frame > 0 && frame < chunk.bytes() && chunk.bytes() <= MAX_CHUNK_BYTES,
        }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], IndexError> {
        let (head, rest) = self.0.split_at_checked(bytes).ok_or(IndexError::Length("cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        self.array().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> LayerIndex {
        let chunk = |device_block, blocks, pack_offset, frame_bytes, codec| {
            let hash = ChunkHash([if codec == Codec::Zero { 0 } else { device_block as u8 }; 32]);
            Chunk { device_block, blocks, pack_offset, frame_bytes, codec, hash }
        };
        LayerIndex {
            layer: Sha256Digest([1; 32]),
            diff_id: Sha256Digest([2; 32]),
            chunks: vec![
                chunk(0, 16, 0, 700, Codec::Zstd),
                chunk(16, 1, 700, 4096, Codec::Raw),
                chunk(17, 1 << 20, 4796, 0, Codec::Zero),
                chunk(17 + (1 << 20), 1, 4796, 9, Codec::Zstd),
            ],
            implied: vec![128, 131],
            bootstrap: vec![7; 8192],
        }
    }

    fn sealed(index: &LayerIndex) -> Vec<u8> {
        let mut out = index.encode().unwrap();
        out.extend([0; TRAILER_BYTES]);
        out
    }

    #[test]
    fn an_index_survives_its_encoding() {
        let empty = LayerIndex { chunks: vec![], implied: vec![], bootstrap: vec![], ..index() };
        for index in [index(), empty] {
            assert_eq!(LayerIndex::decode(&sealed(&index)).unwrap(), index);
        }
        let (index, blocks) = (index(), 4096);
        assert_eq!(index.device_bytes(), (18 + (1 << 20)) * blocks);
        assert_eq!(index.pack_bytes(), 4805);
        let cases = [
            (0, 1, 0..1),
            (16 * blocks - 1, 2, 0..2),
            (16 * blocks, 0, 1..1),
            (17 * blocks, 5 << 30, 2..4),
            (1 << 50, 9, 4..4),
            (u64::MAX, u64::MAX, 4..4),
        ];
        for (offset, length, expected) in cases {
            assert_eq!(index.chunks_in(ByteRange::new(offset, length)), expected, "{offset}+{length}");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let cases: [(u32, u32, Codec, u8); 9] = [
            (0, 0, Codec::Zero, 0),
            (1, 1, Codec::Zero, 0),
            (1, 0, Codec::Zero, 1),
            (1, 4095, Codec::Raw, 1),
            (257, 257 * 4096, Codec::Raw, 1),
            (1, 0, Codec::Zstd, 1),
            (1, 4096, Codec::Zstd, 1),
            (257, 9, Codec::Zstd, 1),
            (u32::MAX, 0, Codec::Zero, 0),
        ];
        for (blocks, frame_bytes, codec, hash) in cases {
            let mut index = index();
            let hash = ChunkHash([hash; 32]);
            index.chunks[1] = Chunk { blocks, frame_bytes, codec, hash, ..index.chunks[1] };
            let found = LayerIndex::decode(&sealed(&index));
            assert!(found.is_err(), "{blocks} blocks, {frame_bytes} bytes, {codec:?} were accepted");
        }
    }

    #[test]
    fn hostile_bytes_give_an_error_and_not_a_panic() {
        let good = sealed(&index());
        for length in 0..good.len() {
            assert!(LayerIndex::decode(&good[..length]).is_err(), "cut to {length}");
        }
        assert!(LayerIndex::decode(&[good.as_slice(), &[0]].concat()).is_err());
        for at in 0..good.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                // Some flips give another well-formed index; what counts is that none panics.
                let _ = LayerIndex::decode(&bad);
            }
        }
        for field in [12, 80, 84, 88] {
            let mut bad = good.clone();
            bad[field..field + 4].fill(0xff);
            assert!(LayerIndex::decode(&bad).is_err(), "count at {field}");
        }
    }
}
