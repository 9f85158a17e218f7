use d7y_image::{Chunk, Codec, MAX_CHUNK_BYTES};
use d7y_types::ChunkHash;

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
        Codec::Zstd => {
            zstd::bulk::decompress(frame, bytes).map_err(|_| VerifyError::Decode(chunk.bytes()))?
        }
    };
    if data.len() != bytes {
        return Err(VerifyError::Decode(chunk.bytes()));
    }
    if hash(&data) != chunk.hash {
        return Err(VerifyError::Hash);
    }
    Ok(data)
}

pub(crate) fn hash(data: &[u8]) -> ChunkHash {
    ChunkHash(*blake3::hash(data).as_bytes())
}
