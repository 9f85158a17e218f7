use d7y_types::{LayerRef, Sha256Digest};

use crate::codec::{Header, Kind, Lane, WireError, numbers};

/// What a client asks, parsed.
#[derive(Debug)]
pub(crate) enum Request {
    Open { stream: u32, layer: LayerRef },
    Bind { stream: u32, layer: Sha256Digest },
    Get { stream: u32, lane: Lane, chunks: Vec<u32> },
}

impl Request {
    pub fn parse(header: Header, payload: &[u8]) -> Result<Self, WireError> {
        let Header { stream, lane, .. } = header;
        match header.kind {
            Kind::Open => {
                let layer = serde_json::from_slice(payload);
                let layer = layer.map_err(|_| WireError::Protocol("not a layer reference"))?;
                Ok(Self::Open { stream, layer })
            }
            Kind::Bind => {
                let digest = payload.try_into().map_err(|_| WireError::Protocol("not a digest"))?;
                Ok(Self::Bind { stream, layer: Sha256Digest(digest) })
            }
            Kind::Get => Ok(Self::Get { stream, lane, chunks: numbers(payload)? }),
            _ => Err(WireError::Protocol("a client sent a server's frame")),
        }
    }
}
