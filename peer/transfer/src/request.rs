use d7y_types::{Caller, LayerRef, PackId, Sha256Digest, TableHash};

use crate::codec::{Header, Kind, Lane, Purpose, WireError, numbers, numbers_for};

/// What a client asks, parsed.
#[derive(Debug)]
pub(crate) enum Request {
    Open { stream: u32, purpose: Purpose, layer: LayerRef },
    Bind { stream: u32, pack: PackId },
    Get { stream: u32, lane: Lane, chunks: Vec<u32>, caller: Option<Caller> },
}

impl Request {
    pub fn parse(header: Header, payload: &[u8]) -> Result<Self, WireError> {
        let Header { stream, lane, .. } = header;
        match header.kind {
            Kind::Open => {
                let layer = serde_json::from_slice(payload);
                let layer = layer.map_err(|_| WireError::Protocol("not a layer reference"))?;
                let purpose = Purpose::from_number(header.number);
                let purpose = purpose.ok_or(WireError::Protocol("unknown purpose of an open"))?;
                Ok(Self::Open { stream, purpose, layer })
            }
            Kind::Bind => {
                let (&[layer, table], []) = payload.as_chunks::<32>() else {
                    return Err(WireError::Protocol("not a pack's id"));
                };
                Ok(Self::Bind {
                    stream,
                    pack: PackId { layer: Sha256Digest(layer), table: TableHash(table) },
                })
            }
            Kind::Get => Ok(Self::Get { stream, lane, chunks: numbers(payload)?, caller: None }),
            Kind::GetFor => {
                let (caller, chunks) = numbers_for(payload)?;
                Ok(Self::Get { stream, lane, chunks, caller })
            }
            _ => Err(WireError::Protocol("a client sent a server's frame")),
        }
    }
}
