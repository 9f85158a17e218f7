use std::os::fd::OwnedFd;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

/// The largest message of a frame, in bytes: a trace of 65,536 runs and the longest list of pinned layers fit.
pub const MAX_FRAME_BYTES: usize = 16 << 20;
pub(crate) const HEADER_BYTES: usize = 12;
const DESCRIPTOR_FLAG: u32 = 1 << 31;

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the local socket failed")]
    Io(#[from] std::io::Error),
    #[error("a frame of {0} bytes is larger than the {MAX_FRAME_BYTES} bytes allowed")]
    TooLarge(usize),
    #[error("the connection ended in the middle of a frame")]
    CutShort,
    #[error("a frame announces a descriptor that did not come, or descriptors came unannounced")]
    Descriptors,
}

/// One message, not yet decoded.
#[derive(Debug)]
pub(crate) struct Frame {
    pub id: u64,
    pub message: Bytes,
    pub descriptor: Option<OwnedFd>,
}

pub(crate) struct Header {
    pub message_bytes: usize,
    pub id: u64,
    pub has_descriptor: bool,
}

impl Header {
    /// Takes the header off the buffer, or nothing while it is incomplete.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        if buffer.len() < HEADER_BYTES {
            return Ok(None);
        }
        let length = buffer.get_u32_le();
        let message_bytes = (length & !DESCRIPTOR_FLAG) as usize;
        if message_bytes > MAX_FRAME_BYTES {
            return Err(FrameError::TooLarge(message_bytes));
        }
        Ok(Some(Self {
            message_bytes,
            id: buffer.get_u64_le(),
            has_descriptor: length & DESCRIPTOR_FLAG != 0,
        }))
    }
}

/// The header of a frame that carries a message of this many bytes.
pub(crate) fn header(
    id: u64,
    message: &[u8],
    has_descriptor: bool,
) -> Result<[u8; HEADER_BYTES], FrameError> {
    if message.len() > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge(message.len()));
    }
    let flag = if has_descriptor { DESCRIPTOR_FLAG } else { 0 };
    let mut out = [0; HEADER_BYTES];
    out[..4].copy_from_slice(&(message.len() as u32 | flag).to_le_bytes());
    out[4..].copy_from_slice(&id.to_le_bytes());
    Ok(out)
}

pub(crate) fn encode(message: &impl Message) -> Result<Bytes, FrameError> {
    match message.encoded_len() {
        bytes if bytes > MAX_FRAME_BYTES => Err(FrameError::TooLarge(bytes)),
        _ => Ok(message.encode_to_vec().into()),
    }
}
