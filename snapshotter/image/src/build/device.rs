//! Lays file content out on the device and cuts it into chunks.

use d7y_types::BLOCK_BYTES;

use super::encode::{Encoder, Job};
use super::{BuildError, BuildOptions, LARGE_FILE_BYTES, Limits};

/// The device as far as it is written. Files lie one after another, each from a block boundary; a file longer
/// than a chunk has chunks of its own, shorter neighbours share one.
pub(super) struct Device<'e> {
    encoder: &'e mut Encoder,
    options: &'e BuildOptions,
    /// Where `pending` begins, in blocks.
    block: u64,
    /// The chunk being filled.
    pending: Vec<u8>,
    /// Bytes of `pending` that hold content; the rest awaits the caller.
    filled: usize,
    /// Blocks of zeros before `pending` that no chunk covers yet.
    zero_blocks: u64,
    /// The chunk size of the current file, and how neighbours are treated.
    chunk_bytes: usize,
    alone: bool,
}

impl<'e> Device<'e> {
    pub(super) fn new(encoder: &'e mut Encoder, options: &'e BuildOptions) -> Self {
        let pending = encoder.buffer();
        let chunk_bytes = options.chunk_bytes as usize;
        Self { encoder, options, block: 0, pending, filled: 0, zero_blocks: 0, chunk_bytes, alone: false }
    }

    pub(super) fn limits(&self) -> &'e Limits {
        &self.options.limits
    }

    /// Makes room for a file of `size` bytes, holes included; gives its offset on the device.
    pub(super) fn begin_file(&mut self, size: u64) -> Result<u64, BuildError> {
        let small = u64::from(self.options.chunk_bytes);
        let start = self.block * BLOCK_BYTES + self.filled as u64;
        let end = size.checked_next_multiple_of(BLOCK_BYTES).and_then(|padded| start.checked_add(padded));
        if end.is_none_or(|end| end > self.limits().device_bytes) {
            return Err(BuildError::Limit("its files take more than limits.device_bytes"));
        }
        let padded = size.next_multiple_of(BLOCK_BYTES);
        self.alone = padded > small;
        self.chunk_bytes = self.options.chunk_bytes as usize;
        if size > LARGE_FILE_BYTES {
            self.chunk_bytes = self.options.large_chunk_bytes as usize;
        }
        if self.alone || self.filled as u64 + padded > small {
            self.flush()?;
        }
        Ok(start)
    }

    /// Room for the next bytes of the file, `wanted` at most; `filled` takes them over.
    pub(super) fn room(&mut self, wanted: u64) -> &mut [u8] {
        let room = self.chunk_bytes - self.filled;
        let room = usize::try_from(wanted).unwrap_or(usize::MAX).min(room);
        self.pending.resize(self.filled + room, 0);
        &mut self.pending[self.filled..]
    }

    /// What `room` gave is filled.
    pub(super) fn filled(&mut self) -> Result<(), BuildError> {
        self.filled = self.pending.len();
        if self.filled == self.chunk_bytes { self.flush() } else { Ok(()) }
    }

    /// The next `bytes` of the file are zeros. Whole chunks of them cost nothing.
    pub(super) fn hole(&mut self, bytes: u64) -> Result<(), BuildError> {
        let mut left = bytes;
        while left > 0 {
            let whole = left - left % self.chunk_bytes as u64;
            if self.filled == 0 && whole > 0 {
                self.zero_blocks += whole / BLOCK_BYTES;
                self.block += whole / BLOCK_BYTES;
                left -= whole;
                continue;
            }
            left -= self.room(left).len() as u64;
            self.filled()?;
        }
        Ok(())
    }

    pub(super) fn end_file(&mut self) -> Result<(), BuildError> {
        self.filled = self.filled.next_multiple_of(BLOCK_BYTES as usize);
        self.pending.resize(self.filled, 0);
        if self.alone { self.flush() } else { Ok(()) }
    }

    /// Sends what is left.
    pub(super) fn finish(mut self) -> Result<(), BuildError> {
        self.flush()?;
        self.send_zeros()
    }

    fn flush(&mut self) -> Result<(), BuildError> {
        let blocks = (self.filled as u64) / BLOCK_BYTES;
        if blocks == 0 {
            return Ok(());
        }
        self.filled = 0;
        if is_zero(&self.pending) {
            self.pending.clear();
            self.zero_blocks += blocks;
            self.block += blocks;
            return Ok(());
        }
        self.send_zeros()?;
        let data = std::mem::replace(&mut self.pending, self.encoder.buffer());
        let job = Job { device_block: block_number(self.block)?, blocks: block_number(blocks)?, data };
        self.block += blocks;
        self.encoder.submit(job)
    }

    fn send_zeros(&mut self) -> Result<(), BuildError> {
        let blocks = std::mem::take(&mut self.zero_blocks);
        if blocks == 0 {
            return Ok(());
        }
        let first = block_number(self.block - blocks)?;
        self.encoder.submit(Job { device_block: first, blocks: block_number(blocks)?, data: Vec::new() })
    }
}

fn block_number(blocks: u64) -> Result<u32, BuildError> {
    u32::try_from(blocks).map_err(|_| BuildError::Limit("its device is larger than 16 TiB"))
}

fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
