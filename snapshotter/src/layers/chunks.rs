use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};

use d7y_image::{Chunk, Codec};
use d7y_types::{BLOCK_BYTES, ByteRange};

/// Bytes of a bitmap that are read at once: more than the chunks of one FUSE read need.
const BITMAP_READ_BYTES: usize = 64;

/// Where the chunks of a device begin: 4 bytes a chunk.
#[derive(Debug)]
pub struct ChunkTable {
    /// The first block of each chunk, and the end of the device.
    starts: Vec<u32>,
}

impl ChunkTable {
    pub fn new(chunks: &[Chunk]) -> Self {
        let end = chunks.last().map_or(0, |chunk| chunk.device_block + chunk.blocks);
        Self { starts: chunks.iter().map(|chunk| chunk.device_block).chain([end]).collect() }
    }

    pub fn len(&self) -> u32 {
        (self.starts.len() - 1) as u32
    }

    pub fn device_bytes(&self) -> u64 {
        self.starts.last().map_or(0, |end| u64::from(*end) * BLOCK_BYTES)
    }

    /// The chunks that overlap a range of the device.
    pub fn overlapping(&self, range: ByteRange) -> Range<u32> {
        let first_block = range.offset / BLOCK_BYTES;
        let end_block = range.end().div_ceil(BLOCK_BYTES);
        let first = self.starts.partition_point(|start| u64::from(*start) <= first_block).saturating_sub(1);
        let end = self.starts.partition_point(|start| u64::from(*start) < end_block);
        let end = end.min(self.len() as usize);
        if range.is_empty() || first >= end { 0..0 } else { first as u32..end as u32 }
    }

    /// The bytes of a run of chunks.
    pub fn bytes_of(&self, chunks: Range<u32>) -> ByteRange {
        let at = |chunk: u32| u64::from(self.starts[chunk as usize]) * BLOCK_BYTES;
        ByteRange::new(at(chunks.start), at(chunks.end) - at(chunks.start))
    }
}

/// Which chunks can be read from the device: what was seen in the peer's bitmap file, which only gains bits while
/// the layer is pinned; where the disk has lost a chunk, the peer writes it anew, whether its bit is seen or not.
#[derive(Debug)]
pub struct Present {
    file: File,
    seen: Vec<AtomicU8>,
}

impl Present {
    /// Chunks of zeros need not be fetched: they count as present.
    pub fn new(file: File, chunks: &[Chunk]) -> Self {
        let seen: Vec<AtomicU8> = (0..chunks.len().div_ceil(8)).map(|_| AtomicU8::new(0)).collect();
        for (number, _) in chunks.iter().enumerate().filter(|(_, chunk)| chunk.codec == Codec::Zero) {
            seen[number / 8].fetch_or(1 << (number % 8), Ordering::Relaxed);
        }
        Self { file, seen }
    }

    /// The run from the first to the last chunk that is missing; nothing when all are present. Reads the file only
    /// where memory does not know the chunk yet.
    pub fn missing(&self, chunks: Range<u32>) -> io::Result<Option<Range<u32>>> {
        match self.missing_in_memory(chunks.clone()) {
            None => Ok(None),
            Some(unknown) => {
                self.refresh(unknown.clone())?;
                Ok(self.missing_in_memory(unknown))
            }
        }
    }

    fn missing_in_memory(&self, chunks: Range<u32>) -> Option<Range<u32>> {
        let absent =
            |chunk: &u32| self.seen[*chunk as usize / 8].load(Ordering::Acquire) >> (chunk % 8) & 1 == 0;
        let first = chunks.clone().find(absent)?;
        let last = chunks.rev().find(absent)?;
        Some(first..last + 1)
    }

    fn refresh(&self, chunks: Range<u32>) -> io::Result<()> {
        let (mut at, end) = (chunks.start as usize / 8, (chunks.end as usize).div_ceil(8));
        while at < end {
            let mut bytes = [0; BITMAP_READ_BYTES];
            let wanted = (end - at).min(BITMAP_READ_BYTES);
            let got = self.file.read_at(&mut bytes[..wanted], at as u64)?;
            for (seen, byte) in self.seen[at..].iter().zip(&bytes[..got]) {
                seen.fetch_or(*byte, Ordering::AcqRel);
            }
            if got == 0 {
                break;
            }
            at += got;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use d7y_types::ChunkHash;

    use super::*;

    fn chunks(blocks: &[u32], codec: impl Fn(usize) -> Codec) -> Vec<Chunk> {
        let mut device_block = 0;
        let chunk = |(number, blocks): (usize, &u32)| {
            let hash = ChunkHash([0; 32]);
            let chunk = Chunk {
                device_block,
                blocks: *blocks,
                pack_offset: 0,
                frame_bytes: 0,
                codec: codec(number),
                hash,
            };
            device_block += blocks;
            chunk
        };
        blocks.iter().enumerate().map(chunk).collect()
    }

    #[test]
    fn ranges_find_their_chunks() {
        let table = ChunkTable::new(&chunks(&[1, 2, 4], |_| Codec::Raw));
        assert_eq!((table.len(), table.device_bytes()), (3, 7 * 4096));
        let expected = [
            ((0, 0), 0..0),
            ((0, 1), 0..1),
            ((0, 4096), 0..1),
            ((0, 4097), 0..2),
            ((4095, 2), 0..2),
            ((4096, 8192), 1..2),
            ((8192, 4096), 1..2),
            ((12_288, 1), 2..3),
            ((0, 1 << 20), 0..3),
            ((7 * 4096, 1), 0..0),
            ((u64::MAX, u64::MAX), 0..0),
        ];
        for ((offset, length), chunks) in expected {
            assert_eq!(table.overlapping(ByteRange::new(offset, length)), chunks, "{offset} {length}");
        }
        assert_eq!(table.bytes_of(1..3), ByteRange::new(4096, 6 * 4096));
        let empty = ChunkTable::new(&[]);
        assert_eq!((empty.len(), empty.device_bytes()), (0, 0));
        assert_eq!(empty.overlapping(ByteRange::new(0, 4096)), 0..0);
    }

    #[test]
    fn presence_is_what_the_file_says_and_zero_chunks() {
        let file = tempfile::tempfile().unwrap();
        let zero = |number| if number == 3 { Codec::Zero } else { Codec::Raw };
        let present = Present::new(file.try_clone().unwrap(), &chunks(&[1; 2000], zero));
        assert_eq!(present.missing(0..2000).unwrap(), Some(0..2000));
        assert_eq!(present.missing(3..4).unwrap(), None);
        assert_eq!(present.missing(0..0).unwrap(), None);
        file.write_all_at(&[0b0001_0111], 0).unwrap();
        assert_eq!(present.missing(0..5).unwrap(), None);
        assert_eq!(present.missing(0..6).unwrap(), Some(5..6));
        assert_eq!(present.missing(4..9).unwrap(), Some(5..9));
        file.write_all_at(&[0xff; 250], 0).unwrap();
        assert_eq!(present.missing(0..2000).unwrap(), None);
    }
}
