use d7y_image::{Chunk, Codec};
use d7y_types::ChunkHash;

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the frame does not decode to a chunk of {0} bytes")]
    Decode(u64),
    #[error("the chunk's BLAKE3 is not the one in the index")]
    Hash,
}

/// Decodes a frame and checks it against the chunk's hash: nothing is readable or forwarded before this.
pub fn decode_chunk(chunk: &Chunk, frame: &[u8]) -> Result<Vec<u8>, VerifyError> {
    let bytes = chunk.bytes() as usize;
    if frame.len() != chunk.frame_bytes as usize {
        return Err(VerifyError::Decode(chunk.bytes()));
    }
    let data = match chunk.codec {
        Codec::Zero => return Ok(vec![0; bytes]),
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
