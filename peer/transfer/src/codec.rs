use bytes::Bytes;
use d7y_types::Caller;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A raw chunk of 1 MiB and its record fit; a peer that announces more is cut off.
pub const MAX_PAYLOAD_BYTES: u32 = (1 << 20) + 4096;
/// A Get of [`GET_BATCH`] chunks and the longest layer reference fit; nothing larger is read from a client.
pub const MAX_REQUEST_BYTES: u32 = 16 << 10;
/// Chunk numbers in one Get.
pub(crate) const GET_BATCH: usize = 1024;
/// Layers that one connection may bind.
pub(crate) const MAX_BINDS: usize = 4096;
pub(crate) const HEADER_BYTES: usize = 16;
pub(crate) const PROTOCOL_VERSION: u32 = 1;
/// In the `stream` of a Hello, where versions that know of no extensions have 0: the sender understands GetFor.
pub(crate) const UNDERSTANDS_GET_FOR: u32 = 1;
/// Likewise: the sender understands Following.
pub(crate) const UNDERSTANDS_FOLLOWING: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Lane {
    Demand = 0,
    Prefetch = 1,
    Background = 2,
}

/// What a layer is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// To have it.
    Index = 0,
    /// The asker has the index, but no peer that it knows holds what its readers wait for: whoever is asked reads the
    /// layer again from its origin, if that is for it to do. The first answer says whether.
    Refill = 1,
}

impl Purpose {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [Self::Index, Self::Refill].into_iter().find(|purpose| *purpose as u32 == number)
    }
}

/// Why a layer could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FailureCode {
    Internal = 1,
    /// The registry refused this peer's credentials; the asker's own may do.
    Unauthorized = 2,
    NotFound = 3,
    /// The blob is not what its digests say, or breaks a limit.
    Corrupt = 4,
    /// The origin cannot be reached, or this peer cannot take the layer on now.
    Unavailable = 5,
    /// The index is signed by a key that the asker does not trust.
    Untrusted = 6,
}

impl FailureCode {
    fn from_number(number: u32) -> Self {
        match number {
            2 => Self::Unauthorized,
            3 => Self::NotFound,
            4 => Self::Corrupt,
            5 => Self::Unavailable,
            6 => Self::Untrusted,
            _ => Self::Internal,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Open = 2,
    Bind = 3,
    Get = 4,
    GetFor = 5,
    Staged = 16,
    Index = 17,
    IndexEnd = 18,
    Failed = 19,
    Frame = 20,
    Missing = 21,
    Holding = 22,
    Have = 23,
    Working = 24,
    Following = 25,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        let from_client = [Hello, Open, Bind, Get, GetFor];
        let from_server =
            [Staged, Index, IndexEnd, Failed, Frame, Missing, Holding, Have, Working, Following];
        from_client.into_iter().chain(from_server).find(|kind| *kind as u8 == byte)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub kind: Kind,
    pub lane: Lane,
    pub stream: u32,
    pub number: u32,
    pub length: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("connection lost")]
    Io(#[from] std::io::Error),
    #[error("the other side does not speak the piece protocol: {0}")]
    Protocol(&'static str),
    #[error("the other side speaks version {0} of the piece protocol, this one version {PROTOCOL_VERSION}")]
    Version(u32),
    #[error("the other side took nothing for too long")]
    Stalled,
}

impl Header {
    pub fn new(kind: Kind, stream: u32, number: u32, length: usize) -> Self {
        let length = u32::try_from(length).expect("payloads are built below MAX_PAYLOAD_BYTES");
        Self { kind, lane: Lane::Demand, stream, number, length }
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = self.kind as u8;
        out[1] = self.lane as u8;
        out[4..8].copy_from_slice(&self.stream.to_le_bytes());
        out[8..12].copy_from_slice(&self.number.to_le_bytes());
        out[12..].copy_from_slice(&self.length.to_le_bytes());
        out
    }

    fn decode(raw: &[u8; HEADER_BYTES], most_bytes: u32) -> Result<Self, WireError> {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let kind = Kind::from_byte(raw[0]).ok_or(WireError::Protocol("unknown kind of frame"))?;
        let lane = match raw[1] {
            0 => Lane::Demand,
            1 => Lane::Prefetch,
            2 => Lane::Background,
            _ => return Err(WireError::Protocol("unknown lane")),
        };
        let length = word(12);
        if length > most_bytes {
            return Err(WireError::Protocol("payload over the limit"));
        }
        Ok(Self { kind, lane, stream: word(4), number: word(8), length })
    }

    pub fn failure(&self) -> FailureCode {
        FailureCode::from_number(self.number)
    }
}

/// One frame, as bytes ready to send.
pub(crate) fn frame(header: Header, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(payload);
    out.into()
}

/// Reads one frame with a payload of at most `most_bytes`. Cancelling it loses the place in the stream.
pub(crate) async fn read_frame(
    input: &mut (impl AsyncRead + Unpin),
    most_bytes: u32,
) -> Result<(Header, Bytes), WireError> {
    let mut raw = [0; HEADER_BYTES];
    input.read_exact(&mut raw).await?;
    let header = Header::decode(&raw, most_bytes)?;
    let mut payload = vec![0; header.length as usize];
    input.read_exact(&mut payload).await?;
    Ok((header, payload.into()))
}

/// Chunk numbers as they travel.
pub(crate) fn numbers(payload: &[u8]) -> Result<Vec<u32>, WireError> {
    match payload.as_chunks::<4>() {
        (whole, []) => Ok(whole.iter().map(|raw| u32::from_le_bytes(*raw)).collect()),
        _ => Err(WireError::Protocol("not a list of chunk numbers")),
    }
}

pub(crate) fn encode_numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// The payload of a GetFor.
pub(crate) fn encode_numbers_for(caller: Caller, numbers: &[u32]) -> Vec<u8> {
    let (request, span) = Caller::to_raw(Some(caller));
    let caller = [request.to_le_bytes(), span.to_le_bytes()].concat();
    caller.into_iter().chain(encode_numbers(numbers)).collect()
}

/// Who asks, and for which chunks.
pub(crate) fn numbers_for(payload: &[u8]) -> Result<(Option<Caller>, Vec<u32>), WireError> {
    let (Some(raw), Some(rest)) = (payload.first_chunk::<16>(), payload.get(16..)) else {
        return Err(WireError::Protocol("chunks asked for by nobody"));
    };
    let word = u128::from_le_bytes(*raw);
    Ok((Caller::from_raw(word as u64, (word >> 64) as u64), numbers(rest)?))
}
