use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d7y_types::{Caller, LayerRef, PackId};
use tokio::io::BufReader;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::codec::{
    FailureCode, Header, Kind, Lane, MAX_BINDS, MAX_REQUEST_BYTES, Purpose, WireError, encode_numbers,
    read_frame,
};
use crate::connection::{Hello, prepare_server, read_hello, send_hello};
use crate::lanes::{Lanes, Stored, lanes, write_lanes};
use crate::request::Request;
use crate::serving::{Served, Serving};

/// A part of a file.
#[derive(Debug, Clone)]
pub struct Region {
    pub file: Arc<File>,
    pub offset: u64,
    pub length: u32,
}

/// What opening a layer yields: any number of chunks and signs of life, then the index or a failure.
#[derive(Debug)]
pub enum Opening {
    Staged {
        number: u32,
        record: [u8; 40],
        region: Region,
    },
    /// There is nothing to send for the moment, but the layer is being read.
    Working,
    /// Of whom the layer is received here, of whom that peer receives it, and so on.
    Following(Vec<String>),
    Index(Bytes),
    Failed {
        code: FailureCode,
        message: String,
    },
}

/// What a peer holds of a layer, now and from now on.
#[derive(Debug)]
pub struct Holding {
    pub bits: Vec<u8>,
    pub news: broadcast::Receiver<u32>,
}

/// Who opens a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// As it says.
    pub peer_id: Arc<str>,
    pub purpose: Purpose,
}

/// The content behind a server.
pub trait Provider: Send + Sync + 'static {
    /// Starts or joins the work that yields the layer's index; dropping the receiver says that nobody asks any more.
    fn open(&self, layer: LayerRef, asker: Asker) -> mpsc::Receiver<Opening>;
    /// Where the frame of a chunk lies, at most [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES); nothing when it is not here.
    fn frame(&self, pack: PackId, number: u32) -> Option<Region>;
    /// Nothing when the layer is unknown, or has another chunk table here.
    fn holding(&self, pack: PackId) -> Option<Holding>;
    /// Called after frames of this many bytes were handed to a socket.
    fn uploaded(&self, bytes: u64);
    /// Called when all that a client asked for in somebody's name was handed to a socket.
    fn served(&self, served: &Served);
    fn peer_id(&self) -> String;
}

/// Held by what the end of a server waits for; dropped when that is done.
pub type UnderWay = Arc<dyn Send + Sync>;

/// The end of a server, in two steps.
#[derive(Clone)]
pub struct Stop {
    /// No connection is accepted from now on. Those that there are go on.
    pub closing: CancellationToken,
    /// What is asked for from now on is not answered; what was is written, and each connection ends.
    pub stopping: CancellationToken,
    /// Dropped once all that was asked for before `closing` has been handed to the sockets.
    pub under_way: UnderWay,
}

#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections served at once; more are closed at accept.
    pub connections: usize,
    /// A client that says nothing at all for this long after connecting is cut off.
    pub hello: Duration,
    /// A client that takes no byte of what it asked for for this long is cut off.
    pub stall: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { connections: 4096, hello: Duration::from_secs(5), stall: Duration::from_secs(60) }
    }
}

const PART_BYTES: usize = 256 << 10;
/// A Have frame carries at most this many chunk numbers.
const HAVE_BATCH: usize = 1024;
/// More of a failure's message than this helps nobody.
const MAX_MESSAGE_BYTES: usize = 4096;
/// What waits before the next accept when descriptors or memory ran out: others have to give them back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a client has at the very end to take what is written and to close. Below `shutdown.stopTimeout`, after which the
/// connection is cut anyhow.
const LAST_CALL: Duration = Duration::from_secs(3);

/// Serves until told to stop, in two steps: see [`Stop`].
pub async fn serve<P: Provider>(listener: TcpListener, provider: Arc<P>, limits: ServerLimits, stop: Stop) {
    let mut connections = JoinSet::new();
    stop.closing
        .clone()
        .run_until_cancelled(accept(&listener, &provider, &limits, &stop, &mut connections))
        .await;
    drop((listener, stop));
    while let Some(ended) = connections.join_next().await {
        note(ended);
    }
}

fn note(ended: Result<(), JoinError>) {
    if let Err(panic) = ended {
        tracing::error!(error = &panic as &dyn std::error::Error, "a peer's connection was lost");
    }
}

async fn accept<P: Provider>(
    listener: &TcpListener,
    provider: &Arc<P>,
    limits: &ServerLimits,
    stop: &Stop,
    connections: &mut JoinSet<()>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    loop {
        tokio::select! {
            Some(ended) = connections.join_next() => note(ended),
            accepted = listener.accept() => match accepted {
                Ok((socket, address)) => {
                    let Ok(slot) = slots.clone().try_acquire_owned() else {
                        tracing::debug!(%address, "too many peer connections; one more is refused");
                        continue;
                    };
                    let (provider, limits, stop) = (provider.clone(), limits.clone(), stop.clone());
                    connections.spawn(async move {
                        let _slot = slot;
                        if let Err(error) = serve_connection(socket, provider, limits, stop).await {
                            let error = &error as &dyn std::error::Error;
                            tracing::debug!(%address, error, "a peer's connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn serve_connection<P: Provider>(
    socket: TcpStream,
    provider: Arc<P>,
    limits: ServerLimits,
    Stop { closing, stopping, under_way }: Stop,
) -> Result<(), WireError> {
    prepare_server(&socket)?;
    let (reader, mut writer) = socket.into_split();
    let mut reader = BufReader::new(reader);
    // Who has said nothing yet has asked for nothing.
    let greeting = greet(&mut reader, &mut writer, &*provider, limits.hello);
    let Some(hello) = closing.run_until_cancelled(greeting).await else { return Ok(()) };
    let hello = hello?;
    let (lanes, receivers) = lanes();
    let mut sending = std::pin::pin!(write_lanes(receivers, writer, provider.clone(), limits.stall));
    let connection = Connection {
        provider,
        asker: hello.name(),
        understands_following: hello.understands_following(),
        lanes,
        binds: HashMap::new(),
        tasks: JoinSet::new(),
        closing,
        under_way: Some(under_way),
    };
    // Whichever half ends first ends the other: dropping the connection aborts its tasks.
    tokio::select! {
        result = connection.read_requests(&mut reader) => return result,
        result = &mut sending => return result,
        () = stopping.cancelled() => {}
    }
    // What is queued is written and the end said. With something of the client's unread here, closing at once would take back
    // what it has not received yet.
    let last_call = async {
        sending.await?;
        tokio::io::copy(&mut reader, &mut tokio::io::sink()).await?;
        Ok(())
    };
    tokio::time::timeout(LAST_CALL, last_call).await.unwrap_or(Err(WireError::Stalled))
}

async fn greet<P: Provider>(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    provider: &P,
    patience: Duration,
) -> Result<Hello, WireError> {
    let hello = tokio::time::timeout(patience, read_hello(reader)).await;
    let hello = hello.map_err(|_| WireError::Protocol("no hello in time"))??;
    // A client of another version learns from the answer why it is not served.
    send_hello(writer, &provider.peer_id()).await?;
    hello.check_version()?;
    Ok(hello)
}

struct Connection<P> {
    provider: Arc<P>,
    /// The client's peer id, as it says.
    asker: Arc<str>,
    understands_following: bool,
    lanes: Lanes,
    binds: HashMap<u32, Bound>,
    tasks: JoinSet<()>,
    closing: CancellationToken,
    /// Until the server closes and all that was asked for before is on its way.
    under_way: Option<UnderWay>,
}

#[derive(Clone, Copy)]
struct Bound {
    pack: PackId,
    known: bool,
}

impl<P: Provider> Connection<P> {
    async fn read_requests(mut self, reader: &mut BufReader<OwnedReadHalf>) -> Result<(), WireError> {
        loop {
            let (header, payload) = self.next_request(reader).await?;
            let gone = match Request::parse(header, &payload)? {
                Request::Open { .. } if !self.binds.is_empty() => {
                    return Err(WireError::Protocol("an open on a fetching connection"));
                }
                Request::Open { stream, purpose, layer } => {
                    let asker = Asker { peer_id: self.asker.clone(), purpose };
                    let openings = self.provider.open(layer, asker);
                    return self.open(stream, openings, reader).await;
                }
                Request::Bind { stream, pack } => !self.bind(stream, pack).await?,
                Request::Get { stream, lane, chunks, caller } => {
                    !self.get(stream, lane, &chunks, caller).await?
                }
            };
            if gone {
                return Ok(());
            }
        }
    }

    /// When the server closes meanwhile, what was asked for so far is followed by a mark in each lane.
    async fn next_request(
        &mut self,
        reader: &mut BufReader<OwnedReadHalf>,
    ) -> Result<(Header, Bytes), WireError> {
        let mut next = std::pin::pin!(read_frame(reader, MAX_REQUEST_BYTES));
        if self.under_way.is_some() {
            tokio::select! {
                request = &mut next => return request,
                () = self.closing.cancelled() => {}
            }
            if let Some(under_way) = self.under_way.take() {
                self.lanes.mark(&under_way).await;
            }
        }
        next.await
    }

    /// Opens a layer: all that this connection is for from now on.
    async fn open(
        mut self,
        stream: u32,
        openings: mpsc::Receiver<Opening>,
        reader: &mut BufReader<OwnedReadHalf>,
    ) -> Result<(), WireError> {
        let under_way = self.under_way.take();
        let forwarding = async {
            forward_opening(openings, &self.lanes, stream, self.understands_following).await;
            if let Some(under_way) = under_way {
                self.lanes.mark(&under_way).await;
            }
            // The client closes when it has read all of it.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = forwarding => Ok(()),
            more = read_frame(reader, MAX_REQUEST_BYTES) => {
                more?;
                Err(WireError::Protocol("a request after an open"))
            }
        }
    }

    async fn bind(&mut self, stream: u32, pack: PackId) -> Result<bool, WireError> {
        match self.binds.get(&stream) {
            None if self.binds.len() >= MAX_BINDS => {
                return Err(WireError::Protocol("too many layers on one connection"));
            }
            Some(bound) if bound.known || bound.pack != pack => {
                return Err(WireError::Protocol("a stream that stands for a layer already"));
            }
            // What was unknown may have come since.
            _ => {}
        }
        let holding = self.provider.holding(pack);
        self.binds.insert(stream, Bound { pack, known: holding.is_some() });
        let bits = holding.as_ref().map_or(&[][..], |holding| &holding.bits);
        let sent = send_holding(&self.lanes, stream, bits).await;
        if let Some(holding) = holding {
            let news = News { provider: self.provider.clone(), lanes: self.lanes.clone(), stream, pack };
            self.tasks.spawn(news.forward(holding.news));
        }
        Ok(sent)
    }

    async fn get(
        &mut self,
        stream: u32,
        lane: Lane,
        chunks: &[u32],
        caller: Option<Caller>,
    ) -> Result<bool, WireError> {
        let bound = self.binds.get(&stream).copied();
        let Bound { pack, .. } = bound.ok_or(WireError::Protocol("a stream that no layer was bound to"))?;
        let serving = caller.map(|caller| Arc::new(Serving::new(caller, &self.asker, pack, chunks.len())));
        for &number in chunks {
            let sent = match self.provider.frame(pack, number) {
                Some(region) => {
                    let header = Header::new(Kind::Frame, stream, number, region.length as usize);
                    let stored = Stored { header, prefix: Bytes::new(), region, serving: serving.clone() };
                    self.lanes.send_stored(lane, stored).await
                }
                None => {
                    let sent = self.missing(stream, pack, number).await;
                    let served = serving.as_ref().and_then(|serving| serving.answered(None));
                    served.iter().for_each(|served| self.provider.served(served));
                    sent
                }
            };
            if !sent {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// In the lane of the news: what arrived in between must not be heard of before.
    async fn missing(&self, stream: u32, pack: PackId, number: u32) -> bool {
        let missing = Header::new(Kind::Missing, stream, number, 0);
        if !self.lanes.send(Lane::Demand, missing, &[]).await {
            return false;
        }
        if self.provider.frame(pack, number).is_none() {
            return true;
        }
        let payload = encode_numbers(&[number]);
        let have = Header::new(Kind::Have, stream, 0, payload.len());
        self.lanes.send(Lane::Demand, have, &payload).await
    }
}

/// Passes on what an opening yields. An opening that ends without an outcome ends as a failure.
async fn forward_opening(
    mut openings: mpsc::Receiver<Opening>,
    lanes: &Lanes,
    stream: u32,
    understands_following: bool,
) {
    loop {
        let opening = openings.recv().await.unwrap_or_else(|| Opening::Failed {
            code: FailureCode::Unavailable,
            message: "the peer is stopping".to_owned(),
        });
        match opening {
            Opening::Staged { number, record, region } => {
                let length = record.len() + region.length as usize;
                let header = Header::new(Kind::Staged, stream, number, length);
                let prefix = Bytes::copy_from_slice(&record);
                let stored = Stored { header, prefix, region, serving: None };
                if !lanes.send_stored(Lane::Background, stored).await {
                    return;
                }
            }
            Opening::Working => {
                if !lanes.send(Lane::Demand, Header::new(Kind::Working, stream, 0, 0), &[]).await {
                    return;
                }
            }
            Opening::Following(_) if !understands_following => {}
            Opening::Following(peers) => {
                let payload = serde_json::to_vec(&peers).expect("a list of names is plain data");
                let header = Header::new(Kind::Following, stream, 0, payload.len());
                if !lanes.send(Lane::Demand, header, &payload).await {
                    return;
                }
            }
            Opening::Index(sealed) => return send_index(lanes, stream, &sealed).await,
            Opening::Failed { code, message } => {
                let message = &message.as_bytes()[..message.len().min(MAX_MESSAGE_BYTES)];
                let header = Header::new(Kind::Failed, stream, code as u32, message.len());
                lanes.send(Lane::Demand, header, message).await;
                return;
            }
        }
    }
}

async fn send_index(lanes: &Lanes, stream: u32, sealed: &[u8]) {
    for part in sealed.chunks(PART_BYTES) {
        if !lanes.send(Lane::Demand, Header::new(Kind::Index, stream, 0, part.len()), part).await {
            return;
        }
    }
    lanes.send(Lane::Demand, Header::new(Kind::IndexEnd, stream, 0, 0), &[]).await;
}

/// Bits of a huge layer travel in parts; `number` is the part's first byte.
async fn send_holding(lanes: &Lanes, stream: u32, bits: &[u8]) -> bool {
    for (n, part) in bits.chunks(PART_BYTES).enumerate() {
        let header = Header::new(Kind::Holding, stream, (n * PART_BYTES) as u32, part.len());
        if !lanes.send(Lane::Demand, header, part).await {
            return false;
        }
    }
    lanes.send(Lane::Demand, Header::new(Kind::Holding, stream, bits.len() as u32, 0), &[]).await
}

/// What tells a client of chunks that arrive here after it bound their layer.
struct News<P> {
    provider: Arc<P>,
    lanes: Lanes,
    stream: u32,
    pack: PackId,
}

impl<P: Provider> News<P> {
    async fn forward(self, mut news: broadcast::Receiver<u32>) {
        loop {
            let sent = match told(&mut news).await {
                Ok(numbers) => {
                    let payload = encode_numbers(&numbers);
                    let header = Header::new(Kind::Have, self.stream, 0, payload.len());
                    self.lanes.send(Lane::Demand, header, &payload).await
                }
                // The client lags behind: all that is here says it shorter.
                Err(RecvError::Lagged(_)) => {
                    let Some(holding) = self.provider.holding(self.pack) else { return };
                    news = holding.news;
                    send_holding(&self.lanes, self.stream, &holding.bits).await
                }
                Err(RecvError::Closed) => return,
            };
            if !sent {
                return;
            }
        }
    }
}

/// Waits for news and takes all that there are.
async fn told(news: &mut broadcast::Receiver<u32>) -> Result<Vec<u32>, RecvError> {
    let mut numbers = vec![news.recv().await?];
    while numbers.len() < HAVE_BATCH {
        match news.try_recv() {
            Ok(number) => numbers.push(number),
            Err(TryRecvError::Lagged(skipped)) => return Err(RecvError::Lagged(skipped)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    Ok(numbers)
}
