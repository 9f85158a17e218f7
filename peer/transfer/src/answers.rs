use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use d7y_types::PackId;

use crate::codec::{FailureCode, Header, Kind, MAX_BINDS, WireError, numbers};

/// A sealed index larger than this is refused before it fills memory.
const MAX_INDEX_BYTES: usize = 128 << 20;
/// The bits of 8 million chunks; an index of [`MAX_INDEX_BYTES`] describes at most 3.3 million.
const MAX_HOLDING_BYTES: usize = 1 << 20;

/// What a parent says on a fetching connection.
#[derive(Debug)]
pub enum Event {
    Frame {
        pack: PackId,
        number: u32,
        frame: Bytes,
    },
    Missing {
        pack: PackId,
        number: u32,
    },
    /// The bits of all that the parent holds; empty when it does not know the layer. Replaces what it said before.
    Holding {
        pack: PackId,
        bits: Vec<u8>,
    },
    Have {
        pack: PackId,
        numbers: Vec<u32>,
    },
}

/// What opening a layer at a parent yields.
#[derive(Debug)]
pub enum Opened {
    Staged {
        number: u32,
        record: [u8; 40],
        frame: Bytes,
    },
    /// Nothing yet, but somebody is at it.
    Working,
    /// Of whom the parent receives the layer itself, of whom that peer does, and so on.
    Following(Vec<String>),
    Index(Bytes),
    Failed {
        code: FailureCode,
        message: String,
    },
}

/// What was asked on a fetching connection and not answered yet; an answer to anything else ends the connection, so
/// that a parent cannot fill this node's memory.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    by_pack: HashMap<PackId, u32>,
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    pack: PackId,
    asked_to_bind: bool,
    /// How often each chunk was asked for.
    chunks: HashMap<u32, u32>,
    /// The parts of a Holding that is under way.
    holding: Vec<u8>,
}

/// What is to be done to bind a layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    Done,
    Ask(u32),
    /// The connection has as many layers as it may have.
    Full,
}

impl Questions {
    pub fn bind(&mut self, pack: PackId) -> Binding {
        if let Some(&number) = self.by_pack.get(&pack) {
            let stream = &mut self.streams[number as usize];
            return match std::mem::replace(&mut stream.asked_to_bind, true) {
                true => Binding::Done,
                false => Binding::Ask(number),
            };
        }
        if self.streams.len() >= MAX_BINDS {
            return Binding::Full;
        }
        let number = self.streams.len() as u32;
        self.by_pack.insert(pack, number);
        let stream = Stream { pack, asked_to_bind: true, chunks: HashMap::new(), holding: Vec::new() };
        self.streams.push(stream);
        Binding::Ask(number)
    }

    /// The next bind takes a new stream: on the old one the parent has said all that it will say of its own accord.
    pub fn unbind(&mut self, pack: PackId) {
        self.by_pack.remove(&pack);
    }

    /// Notes that chunks are asked for; nothing when the layer is not bound.
    pub fn ask(&mut self, pack: PackId, chunks: &[u32]) -> Option<u32> {
        let number = *self.by_pack.get(&pack)?;
        let asked = &mut self.streams[number as usize].chunks;
        chunks.iter().for_each(|chunk| *asked.entry(*chunk).or_default() += 1);
        Some(number)
    }

    /// The event that a frame makes; nothing while more parts have to come.
    pub fn answer(&mut self, header: Header, payload: Bytes) -> Result<Option<Event>, WireError> {
        let stream = self.streams.get_mut(header.stream as usize);
        let stream = stream.ok_or(WireError::Protocol("an answer to no question"))?;
        let (pack, number) = (stream.pack, header.number);
        match header.kind {
            Kind::Frame => {
                stream.settle(number)?;
                Ok(Some(Event::Frame { pack, number, frame: payload }))
            }
            Kind::Missing => {
                stream.settle(number)?;
                Ok(Some(Event::Missing { pack, number }))
            }
            Kind::Have => Ok(Some(Event::Have { pack, numbers: numbers(&payload)? })),
            Kind::Holding if payload.is_empty() => {
                let bits = std::mem::take(&mut stream.holding);
                // A layer that is unknown there now may be asked about again.
                stream.asked_to_bind = !bits.is_empty();
                Ok(Some(Event::Holding { pack, bits }))
            }
            Kind::Holding if stream.holding.len() + payload.len() > MAX_HOLDING_BYTES => {
                Err(WireError::Protocol("more bits than any layer has"))
            }
            Kind::Holding => {
                stream.holding.extend_from_slice(&payload);
                Ok(None)
            }
            _ => Err(WireError::Protocol("not an answer to a fetch")),
        }
    }
}

impl Stream {
    fn settle(&mut self, chunk: u32) -> Result<(), WireError> {
        let asked =
            self.chunks.get_mut(&chunk).ok_or(WireError::Protocol("a chunk that nobody asked for"))?;
        *asked -= 1;
        if *asked == 0 {
            self.chunks.remove(&chunk);
        }
        Ok(())
    }
}

/// Puts the answers to an Open together.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    index: BytesMut,
}

impl Opening {
    /// What a frame yields; nothing while more parts have to come.
    pub fn answer(&mut self, header: Header, payload: Bytes) -> Result<Option<Opened>, WireError> {
        match header.kind {
            Kind::Staged => {
                let record = payload.first_chunk().copied();
                let record = record.ok_or(WireError::Protocol("a staged chunk without its record"))?;
                let frame = payload.slice(record.len()..);
                Ok(Some(Opened::Staged { number: header.number, record, frame }))
            }
            Kind::Working => Ok(Some(Opened::Working)),
            Kind::Following => match serde_json::from_slice(&payload) {
                Ok(peers) => Ok(Some(Opened::Following(peers))),
                Err(_) => Err(WireError::Protocol("not a list of peers")),
            },
            // A frame that the parent's disk lost is skipped: the chunk is fetched later.
            Kind::Missing => Ok(None),
            Kind::Index if self.index.len() + payload.len() > MAX_INDEX_BYTES => {
                Err(WireError::Protocol("an index over the limit"))
            }
            Kind::Index => {
                self.index.extend_from_slice(&payload);
                Ok(None)
            }
            Kind::IndexEnd => Ok(Some(Opened::Index(std::mem::take(&mut self.index).freeze()))),
            Kind::Failed => {
                let message = String::from_utf8_lossy(&payload).into_owned();
                Ok(Some(Opened::Failed { code: header.failure(), message }))
            }
            _ => Err(WireError::Protocol("not an answer to an open")),
        }
    }
}
