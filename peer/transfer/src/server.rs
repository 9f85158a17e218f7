use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d7y_types::{LayerRef, Sha256Digest};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::codec::{
    FailureCode, Header, Kind, Lane, PROTOCOL_VERSION, SEND_BUFFER_BYTES, WireError, encode_numbers, frame,
    numbers, read_frame,
};
use crate::lanes::{LaneReceivers, Lanes, Outgoing, lanes, write_lanes};

/// A part of a file.
#[derive(Debug, Clone)]
pub struct Region {
    pub file: Arc<File>,
    pub offset: u64,
    pub length: u32,
}

/// What opening a layer yields, in this order: any number of chunks, then the index or a failure.
#[derive(Debug)]
pub enum Opening {
    Staged { number: u32, record: [u8; 40], region: Region },
    Index(Bytes),
    Failed { code: FailureCode, message: String },
}

/// What a peer holds of a layer, now and from now on.
#[derive(Debug)]
pub struct Holding {
    pub bits: Vec<u8>,
    pub news: broadcast::Receiver<u32>,
}

/// The content behind a server.
pub trait Provider: Send + Sync + 'static {
    /// Starts or joins the work that yields the layer's index.
    fn open(&self, layer: LayerRef) -> mpsc::Receiver<Opening>;
    fn frame(&self, layer: Sha256Digest, number: u32) -> Option<Region>;
    fn holding(&self, layer: Sha256Digest) -> Option<Holding>;
    /// Called after frames of this many bytes were handed to a socket.
    fn uploaded(&self, bytes: u64);
    fn peer_id(&self) -> String;
}

#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections served at once; more are closed at accept.
    pub connections: usize,
    /// A client that says nothing at all for this long after connecting is cut off.
    pub hello: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { connections: 4096, hello: Duration::from_secs(5) }
    }
}

/// Layers that one connection may bind.
const MAX_BINDS: usize = 4096;
const INDEX_PART_BYTES: usize = 256 << 10;
/// A Have frame carries at most this many chunk numbers.
const HAVE_BATCH: usize = 1024;

/// Serves until cancelled, then cuts the connections: clients ask other parents.
pub async fn serve<P: Provider>(
    listener: TcpListener,
    provider: Arc<P>,
    limits: ServerLimits,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                    let (provider, hello) = (provider.clone(), limits.hello);
                    connections.spawn(async move {
                        let _slot = slot;
                        if let Err(error) = serve_connection(socket, provider, hello).await {
                            tracing::debug!(%error, "peer connection ended");
                        }
                    });
                }
                // Out of descriptors or memory: waiting is all that helps.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn serve_connection<P: Provider>(
    socket: TcpStream,
    provider: Arc<P>,
    hello: Duration,
) -> Result<(), WireError> {
    socket.set_nodelay(true)?;
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
    let (reader, mut writer) = socket.into_split();
    let mut reader = BufReader::new(reader);
    let first = tokio::time::timeout(hello, read_frame(&mut reader)).await;
    let (header, _) = first.map_err(|_| WireError::Protocol("no hello in time"))??;
    if header.kind != Kind::Hello || header.number != PROTOCOL_VERSION {
        return Err(WireError::Protocol("not a hello of version 1"));
    }
    let me = provider.peer_id();
    let answer = Header::new(Kind::Hello, 0, PROTOCOL_VERSION, me.len());
    writer.write_all(&frame(answer, me.as_bytes())).await?;
    let (lanes, receivers) = lanes();
    let sending = send_all(receivers, writer, provider.clone());
    let connection = Connection { provider, lanes, binds: HashMap::new(), tasks: JoinSet::new() };
    // Whichever half ends first ends the other: dropping the connection aborts its tasks.
    tokio::select! {
        result = connection.read_requests(reader) => result,
        result = sending => Ok(result?),
    }
}

fn send_all<P: Provider>(
    receivers: LaneReceivers,
    writer: tokio::net::tcp::OwnedWriteHalf,
    provider: Arc<P>,
) -> impl Future<Output = std::io::Result<()>> {
    write_lanes(receivers, writer, provider)
}

struct Connection<P> {
    provider: Arc<P>,
    lanes: Lanes,
    binds: HashMap<u32, Sha256Digest>,
    tasks: JoinSet<()>,
}

impl<P: Provider> Connection<P> {
    async fn read_requests(mut self, mut reader: BufReader<OwnedReadHalf>) -> Result<(), WireError> {
        loop {
            let (header, payload) = read_frame(&mut reader).await?;
            match header.kind {
                Kind::Open => self.open(header.stream, &payload)?,
                Kind::Bind => self.bind(header.stream, &payload).await?,
                Kind::Get => self.get(header, &payload).await?,
                _ => return Err(WireError::Protocol("a client sent a server's frame")),
            }
        }
    }

    fn open(&mut self, stream: u32, payload: &[u8]) -> Result<(), WireError> {
        let layer =
            serde_json::from_slice(payload).map_err(|_| WireError::Protocol("not a layer reference"))?;
        if self.tasks.len() >= MAX_BINDS {
            return Err(WireError::Protocol("too many layers on one connection"));
        }
        self.tasks.spawn(forward_opening(self.provider.open(layer), self.lanes.clone(), stream));
        Ok(())
    }

    async fn bind(&mut self, stream: u32, payload: &[u8]) -> Result<(), WireError> {
        let digest = payload.try_into().map_err(|_| WireError::Protocol("not a digest"))?;
        let digest = Sha256Digest(digest);
        if self.binds.len() >= MAX_BINDS {
            return Err(WireError::Protocol("too many layers on one connection"));
        }
        self.binds.insert(stream, digest);
        let holding = self.provider.holding(digest);
        let bits = holding.as_ref().map_or(&[][..], |holding| &holding.bits);
        // Bits of a huge layer travel in parts; `number` is the part's first byte.
        for (n, part) in bits.chunks(INDEX_PART_BYTES).enumerate() {
            let header = Header::new(Kind::Holding, stream, (n * INDEX_PART_BYTES) as u32, part.len());
            self.lanes.send(Lane::Demand, Outgoing::Ready(frame(header, part))).await;
        }
        let end = Header::new(Kind::Holding, stream, bits.len() as u32, 0);
        self.lanes.send(Lane::Demand, Outgoing::Ready(frame(end, &[]))).await;
        if let Some(holding) = holding {
            self.tasks.spawn(forward_news(holding.news, self.lanes.clone(), stream));
        }
        Ok(())
    }

    async fn get(&mut self, request: Header, payload: &[u8]) -> Result<(), WireError> {
        let digest = self.binds.get(&request.stream).copied();
        let digest = digest.ok_or(WireError::Protocol("a stream that no layer was bound to"))?;
        for number in numbers(payload) {
            let outgoing = match self.provider.frame(digest, number) {
                Some(region) => {
                    let header = Header::new(Kind::Frame, request.stream, number, region.length as usize);
                    Outgoing::Stored { header, prefix: Bytes::new(), region }
                }
                None => Outgoing::Ready(frame(Header::new(Kind::Missing, request.stream, number, 0), &[])),
            };
            if !self.lanes.send(request.lane, outgoing).await {
                return Ok(());
            }
        }
        Ok(())
    }
}

async fn forward_opening(mut openings: mpsc::Receiver<Opening>, lanes: Lanes, stream: u32) {
    while let Some(opening) = openings.recv().await {
        match opening {
            Opening::Staged { number, record, region } => {
                let length = record.len() + region.length as usize;
                let header = Header::new(Kind::Staged, stream, number, length);
                let prefix = Bytes::copy_from_slice(&record);
                if !lanes.send(Lane::Background, Outgoing::Stored { header, prefix, region }).await {
                    return;
                }
            }
            Opening::Index(sealed) => {
                for part in sealed.chunks(INDEX_PART_BYTES) {
                    let header = Header::new(Kind::Index, stream, 0, part.len());
                    lanes.send(Lane::Demand, Outgoing::Ready(frame(header, part))).await;
                }
                let end = Header::new(Kind::IndexEnd, stream, 0, 0);
                lanes.send(Lane::Demand, Outgoing::Ready(frame(end, &[]))).await;
            }
            Opening::Failed { code, message } => {
                let header = Header::new(Kind::Failed, stream, code as u32, message.len());
                lanes.send(Lane::Demand, Outgoing::Ready(frame(header, message.as_bytes()))).await;
            }
        }
    }
}

async fn forward_news(mut news: broadcast::Receiver<u32>, lanes: Lanes, stream: u32) {
    loop {
        let mut batch = match news.recv().await {
            Ok(number) => vec![number],
            // The client lags behind: it learns of the skipped chunks by asking for them.
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        while batch.len() < HAVE_BATCH
            && let Ok(number) = news.try_recv()
        {
            batch.push(number);
        }
        let payload = encode_numbers(&batch);
        let header = Header::new(Kind::Have, stream, 0, payload.len());
        if !lanes.send(Lane::Demand, Outgoing::Ready(frame(header, &payload))).await {
            return;
        }
    }
}
