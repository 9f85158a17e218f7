use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use d7y_types::{LayerRef, Sha256Digest};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;

use crate::codec::{
    FailureCode, Header, Kind, Lane, PROTOCOL_VERSION, WireError, encode_numbers, frame, numbers, read_frame,
};

/// Requests that wait for the socket; each is small.
const SEND_QUEUE: usize = 1024;
/// Chunk numbers in one Get.
const GET_BATCH: usize = 1024;
/// A sealed index larger than this is refused before it fills memory.
const MAX_INDEX_BYTES: usize = 128 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the peer at {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("the peer at {0} did not answer in time")]
    Timeout(SocketAddr),
    #[error("the connection to the peer at {0} broke")]
    Wire(SocketAddr, #[source] WireError),
}

/// What a parent says on a fetching connection.
#[derive(Debug)]
pub enum Event {
    Frame {
        layer: Sha256Digest,
        number: u32,
        frame: Bytes,
    },
    Missing {
        layer: Sha256Digest,
        number: u32,
    },
    /// The bits of all that the parent holds; empty when it does not know the layer.
    Holding {
        layer: Sha256Digest,
        bits: Vec<u8>,
    },
    Have {
        layer: Sha256Digest,
        numbers: Vec<u32>,
    },
}

/// What opening a layer at a parent yields.
#[derive(Debug)]
pub enum Opened {
    Staged { number: u32, record: [u8; 40], frame: Bytes },
    Index(Bytes),
    Failed { code: FailureCode, message: String },
}

/// A connection for fetching chunks. Cheap to clone; the last clone closes it.
#[derive(Debug, Clone)]
pub struct Client {
    send: mpsc::Sender<Bytes>,
    streams: Arc<Mutex<Streams>>,
    peer_id: Arc<str>,
}

#[derive(Debug, Default)]
struct Streams {
    by_layer: HashMap<Sha256Digest, u32>,
    by_number: Vec<Sha256Digest>,
}

impl Client {
    /// Connects and returns the parent's events; their end means that the connection is gone.
    pub async fn connect(
        address: SocketAddr,
        me: &str,
        timeout: Duration,
    ) -> Result<(Self, mpsc::Receiver<Event>), ClientError> {
        let (mut reader, mut writer, peer_id) = greet(address, me, timeout).await?;
        let (send, mut queue) = mpsc::channel::<Bytes>(SEND_QUEUE);
        let (events, received) = mpsc::channel(256);
        let streams = Arc::new(Mutex::new(Streams::default()));
        let names = streams.clone();
        tokio::spawn(async move {
            let sending = async {
                while let Some(bytes) = queue.recv().await {
                    writer.write_all(&bytes).await?;
                }
                Ok::<_, WireError>(())
            };
            let ended = tokio::select! {
                result = sending => result,
                result = read_events(&mut reader, &names, &events) => result,
            };
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "connection to a parent ended");
            }
        });
        Ok((Self { send, streams, peer_id }, received))
    }

    pub fn peer_id(&self) -> &str {
        &self.peer_id
    }

    /// Asks what the parent holds of a layer, now and from now on. False when the connection is gone or clogged.
    pub fn bind(&self, layer: Sha256Digest) -> bool {
        let stream = {
            let mut streams = self.streams.lock().expect("no code panics with the lock held");
            if streams.by_layer.contains_key(&layer) {
                return true;
            }
            let stream = streams.by_number.len() as u32;
            streams.by_layer.insert(layer, stream);
            streams.by_number.push(layer);
            stream
        };
        self.send.try_send(frame(Header::new(Kind::Bind, stream, 0, 32), &layer.0)).is_ok()
    }

    /// Asks for chunks of a bound layer; they come as events.
    pub fn get(&self, layer: Sha256Digest, lane: Lane, chunks: &[u32]) -> bool {
        let stream = {
            let streams = self.streams.lock().expect("no code panics with the lock held");
            streams.by_layer.get(&layer).copied()
        };
        let Some(stream) = stream else { return false };
        chunks.chunks(GET_BATCH).all(|batch| {
            let payload = encode_numbers(batch);
            let header = Header { lane, ..Header::new(Kind::Get, stream, 0, payload.len()) };
            self.send.try_send(frame(header, &payload)).is_ok()
        })
    }
}

async fn read_events(
    reader: &mut BufReader<OwnedReadHalf>,
    streams: &Mutex<Streams>,
    events: &mpsc::Sender<Event>,
) -> Result<(), WireError> {
    let mut holdings: HashMap<u32, Vec<u8>> = HashMap::new();
    loop {
        let (header, payload) = read_frame(reader).await?;
        let layer = {
            let streams = streams.lock().expect("no code panics with the lock held");
            streams.by_number.get(header.stream as usize).copied()
        };
        let layer = layer.ok_or(WireError::Protocol("an answer to no question"))?;
        let number = header.number;
        let event = match header.kind {
            Kind::Frame => Event::Frame { layer, number, frame: payload },
            Kind::Missing => Event::Missing { layer, number },
            Kind::Have => Event::Have { layer, numbers: numbers(&payload) },
            Kind::Holding if payload.is_empty() => {
                Event::Holding { layer, bits: holdings.remove(&header.stream).unwrap_or_default() }
            }
            Kind::Holding => {
                let bits = holdings.entry(header.stream).or_default();
                if bits.len() + payload.len() > MAX_INDEX_BYTES {
                    return Err(WireError::Protocol("more bits than any layer has"));
                }
                bits.extend_from_slice(&payload);
                continue;
            }
            _ => return Err(WireError::Protocol("not an answer to a fetch")),
        };
        if events.send(event).await.is_err() {
            return Ok(());
        }
    }
}

/// A connection that opens one layer.
#[derive(Debug)]
pub struct OpenStream {
    address: SocketAddr,
    reader: BufReader<OwnedReadHalf>,
    _writer: tokio::net::tcp::OwnedWriteHalf,
    index: BytesMut,
}

impl OpenStream {
    pub async fn connect(
        address: SocketAddr,
        me: &str,
        layer: &LayerRef,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let (reader, mut writer, _) = greet(address, me, timeout).await?;
        let payload = serde_json::to_vec(layer).expect("a layer reference is plain data");
        let open = frame(Header::new(Kind::Open, 0, 0, payload.len()), &payload);
        writer.write_all(&open).await.map_err(|error| ClientError::Wire(address, error.into()))?;
        Ok(Self { address, reader, _writer: writer, index: BytesMut::new() })
    }

    /// The next chunk, or the outcome. `idle` bounds the silence in between.
    pub async fn next(&mut self, idle: Duration) -> Result<Opened, ClientError> {
        let wire = |error| ClientError::Wire(self.address, error);
        loop {
            let read = tokio::time::timeout(idle, read_frame(&mut self.reader)).await;
            let (header, payload) = read.map_err(|_| ClientError::Timeout(self.address))?.map_err(wire)?;
            match header.kind {
                Kind::Staged => {
                    let (record, _) = payload
                        .split_first_chunk::<40>()
                        .ok_or_else(|| wire(WireError::Protocol("a staged chunk without its record")))?;
                    let record = *record;
                    return Ok(Opened::Staged { number: header.number, record, frame: payload.slice(40..) });
                }
                // A frame that the parent's disk lost is skipped: the chunk is fetched later.
                Kind::Missing => {}
                Kind::Index if self.index.len() + payload.len() <= MAX_INDEX_BYTES => {
                    self.index.extend_from_slice(&payload);
                }
                Kind::IndexEnd => return Ok(Opened::Index(self.index.split().freeze())),
                Kind::Failed => {
                    let message = String::from_utf8_lossy(&payload).into_owned();
                    return Ok(Opened::Failed { code: header.failure(), message });
                }
                _ => return Err(wire(WireError::Protocol("not an answer to an open"))),
            }
        }
    }
}

type Greeted = (BufReader<OwnedReadHalf>, tokio::net::tcp::OwnedWriteHalf, Arc<str>);

async fn greet(address: SocketAddr, me: &str, timeout: Duration) -> Result<Greeted, ClientError> {
    let greeting = async {
        let socket =
            TcpStream::connect(address).await.map_err(|error| ClientError::Connect(address, error))?;
        let wire = |error| ClientError::Wire(address, error);
        socket.set_nodelay(true).map_err(|error| wire(error.into()))?;
        let (reader, mut writer) = socket.into_split();
        let mut reader = BufReader::with_capacity(128 << 10, reader);
        let hello = frame(Header::new(Kind::Hello, 0, PROTOCOL_VERSION, me.len()), me.as_bytes());
        writer.write_all(&hello).await.map_err(|error| wire(error.into()))?;
        let (header, payload) = read_frame(&mut reader).await.map_err(wire)?;
        if header.kind != Kind::Hello || header.number != PROTOCOL_VERSION {
            return Err(wire(WireError::Protocol("not a hello of version 1")));
        }
        Ok((reader, writer, String::from_utf8_lossy(&payload).into()))
    };
    tokio::time::timeout(timeout, greeting).await.map_err(|_| ClientError::Timeout(address))?
}
