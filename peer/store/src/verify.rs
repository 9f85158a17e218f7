use std::cell::RefCell;
use std::io;

use d7y_image::{Chunk, Codec, MAX_CHUNK_BYTES};
use d7y_types::ChunkHash;
use zstd::bulk::Decompressor;

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the frame does not decode to a chunk of {0} bytes")]
    Decode(u64),
    #[error("the chunk's BLAKE3 is not the one in the index")]
    Hash,
}

/// Decodes a frame and checks it against the chunk's hash: nothing is readable or forwarded before this. A chunk of zeros,
/// which may be as long as the device, yields nothing.
pub fn decode_chunk(chunk: &Chunk, frame: &[u8]) -> Result<Vec<u8>, VerifyError> {
    let bytes = chunk.bytes() as usize;
    if chunk.codec != Codec::Zero && chunk.bytes() > MAX_CHUNK_BYTES {
        return Err(VerifyError::Decode(chunk.bytes()));
    }
    if frame.len() != chunk.frame_bytes as usize {
        return Err(VerifyError::Decode(chunk.bytes()));
    }
    let data = match chunk.codec {
        Codec::Zero => return Ok(Vec::new()),
        Codec::Raw => frame.to_vec(),
        Codec::Zstd => decompress(frame, bytes).map_err(|_| VerifyError::Decode(chunk.bytes()))?,
    };
    if data.len() != bytes {
        return Err(VerifyError::Decode(chunk.bytes()));
    }
    if hash(&data) != chunk.hash {
        return Err(VerifyError::Hash);
    }
    Ok(data)
}

/// A decoder's tables (160 KiB) cost as much to set up as a small chunk to decode: each thread keeps its own.
fn decompress(frame: &[u8], bytes: usize) -> io::Result<Vec<u8>> {
    thread_local! {
        static DECODER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECODER.with_borrow_mut(|decoder| {
        let decoder = match decoder {
            Some(decoder) => decoder,
            None => decoder.insert(Decompressor::new()?),
        };
        decoder.decompress(frame, bytes)
    })
}

pub(crate) fn hash(data: &[u8]) -> ChunkHash {
    ChunkHash(*blake3::hash(data).as_bytes())
}
