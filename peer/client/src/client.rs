use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use d7y_proto::local::{self, Reason, Request, Response, request, response};
use d7y_types::{ByteRange, Caller, LayerRef, Sha256Digest};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::frame::{Frame, FrameError, encode};
use crate::socket::{FrameReader, write_frame};
use d7y_proto::layer_to_wire;

/// Calls of one client at once; further ones wait for their turn within their own deadline.
const MAX_CALLS: usize = 1024;
/// Between two attempts to connect: doubles from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the peer did not answer within {0:?}; is d7y-peer running?")]
    Deadline(Duration),
    #[error("the peer refused ({reason:?}): {message}")]
    Refused { reason: Reason, message: String },
    #[error("the peer's answer does not fit the request")]
    Malformed,
    #[error("the request cannot be sent")]
    Request(#[source] FrameError),
    #[error("the descriptor cannot be duplicated")]
    Descriptor(#[source] std::io::Error),
    #[error("the runtime that drives the local socket has stopped")]
    Stopped,
}

impl ClientError {
    /// The peer's reason; a deadline of our own counts as the peer's.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { reason, .. } => *reason,
            Self::Deadline(_) => Reason::Deadline,
            Self::Malformed | Self::Stopped | Self::Request(_) | Self::Descriptor(_) => Reason::Internal,
        }
    }
}

/// Whether the peer is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Down,
    /// The number of the connection, from 1: a change means that the peer may have forgotten descriptors and pins.
    Up(u64),
}

/// A handle to the peer; clones share one connection. Must be made inside a tokio runtime.
#[derive(Clone)]
pub struct LocalClient(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    link: watch::Receiver<Link>,
    calls: Semaphore,
    _stop: DropGuard,
}

struct Shared {
    next_id: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Waiting>>,
    to_send: mpsc::Sender<u64>,
}

struct Waiting {
    message: Bytes,
    descriptor: Option<Arc<OwnedFd>>,
    /// The connection on which it was last sent; 0 for none.
    sent_on: u64,
    reply: oneshot::Sender<Frame>,
}

impl LocalClient {
    /// Starts to connect; does not wait for it.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        let (to_send, outgoing) = mpsc::channel(MAX_CALLS);
        let (link_sender, link) = watch::channel(Link::Down);
        let shared = Arc::new(Shared { next_id: AtomicU64::new(1), waiting: Mutex::default(), to_send });
        let stop = CancellationToken::new();
        let driver = Driver {
            socket: socket.as_ref().to_owned(),
            shared: Arc::clone(&shared),
            outgoing,
            link: link_sender,
            generation: 0,
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(driver.run()));
        Self(Arc::new(Inner { shared, link, calls: Semaphore::new(MAX_CALLS), _stop: stop.drop_guard() }))
    }

    /// Changes with every connect and disconnect.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.0.link.clone()
    }

    /// Sends a request and waits for its answer, through restarts of the peer, at most until the deadline.
    /// A `Failure` comes back as [`ClientError::Refused`].
    pub async fn call(&self, request: Request, deadline: Duration) -> Result<Response, ClientError> {
        Ok(self.exchange(request, None, deadline).await?.0)
    }

    /// Announces an image; true when the cluster already has an access trace of it.
    pub async fn open_image(&self, image: local::OpenImage, deadline: Duration) -> Result<bool, ClientError> {
        match self.kind(request::Kind::OpenImage(image), deadline).await? {
            response::Kind::ImageOpened(opened) => Ok(opened.has_trace),
            _ => Err(ClientError::Malformed),
        }
    }

    /// Waits until the peer has the layer's verified index.
    pub async fn open_layer(
        &self,
        layer: &LayerRef,
        deadline: Duration,
    ) -> Result<local::LayerOpened, ClientError> {
        self.open(layer, deadline, Duration::ZERO).await
    }

    /// As [`LocalClient::open_layer`], for one who still can do without the layer: what nobody has shown to be able to
    /// give within `supply` is refused as [`Reason::Unsupplied`].
    pub async fn open_if_supplied(
        &self,
        layer: &LayerRef,
        deadline: Duration,
        supply: Duration,
    ) -> Result<local::LayerOpened, ClientError> {
        self.open(layer, deadline, supply.max(deadline)).await
    }

    async fn open(
        &self,
        layer: &LayerRef,
        deadline: Duration,
        supply: Duration,
    ) -> Result<local::LayerOpened, ClientError> {
        let request = local::OpenLayer {
            layer: Some(layer_to_wire(layer)),
            deadline_ms: millis(deadline),
            supply_deadline_ms: millis(supply),
        };
        match self.kind(request::Kind::OpenLayer(request), deadline.max(supply) + ANSWER_GRACE).await? {
            response::Kind::LayerOpened(opened) => Ok(opened),
            _ => Err(ClientError::Malformed),
        }
    }

    /// Makes a range of the layer's device readable. Returns the range's bytes when the disk refused them, else none.
    pub async fn ensure_range(
        &self,
        layer: Sha256Digest,
        range: ByteRange,
        deadline: Duration,
    ) -> Result<Bytes, ClientError> {
        Ok(self.bring(layer, range, None, deadline).await?.uncached.into())
    }

    /// As [`LocalClient::ensure_range`], in somebody's name, and tells where the bytes came from.
    pub async fn bring(
        &self,
        layer: Sha256Digest,
        range: ByteRange,
        caller: Option<Caller>,
        deadline: Duration,
    ) -> Result<local::RangePresent, ClientError> {
        let (request_id, span_id) = Caller::to_raw(caller);
        let request = local::EnsureRange {
            digest: layer.0.to_vec(),
            offset: range.offset,
            length: range.length,
            deadline_ms: millis(deadline),
            request_id,
            span_id,
        };
        match self.kind(request::Kind::EnsureRange(request), deadline + ANSWER_GRACE).await? {
            response::Kind::RangePresent(present) => Ok(present),
            _ => Err(ClientError::Malformed),
        }
    }

    pub async fn record_trace(
        &self,
        trace: local::RecordTrace,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        self.done(request::Kind::RecordTrace(trace), deadline).await
    }

    /// Replaces the list of layers that the peer must not evict for us.
    pub async fn pin_layers(
        &self,
        layers: impl IntoIterator<Item = Sha256Digest>,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let digests = layers.into_iter().map(|layer| layer.0.to_vec()).collect();
        self.done(request::Kind::PinLayers(local::PinLayers { digests }), deadline).await
    }

    pub async fn status(&self, deadline: Duration) -> Result<local::Status, ClientError> {
        match self.kind(request::Kind::GetStatus(local::GetStatus {}), deadline).await? {
            response::Kind::Status(status) => Ok(status),
            _ => Err(ClientError::Malformed),
        }
    }

    /// Parks a duplicate of the descriptor with the peer.
    pub async fn put_descriptor(
        &self,
        name: &str,
        descriptor: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let duplicate = Arc::new(descriptor.try_clone_to_owned().map_err(ClientError::Descriptor)?);
        let kind = request::Kind::PutDescriptor(local::PutDescriptor { name: name.into() });
        match self.exchange(Request { kind: Some(kind) }, Some(duplicate), deadline).await?.0.kind {
            Some(response::Kind::Done(_)) => Ok(()),
            _ => Err(ClientError::Malformed),
        }
    }

    /// A duplicate of a parked descriptor; none when the peer has none of that name.
    pub async fn take_descriptor(
        &self,
        name: &str,
        deadline: Duration,
    ) -> Result<Option<OwnedFd>, ClientError> {
        let kind = request::Kind::TakeDescriptor(local::TakeDescriptor { name: name.into() });
        match self.exchange(Request { kind: Some(kind) }, None, deadline).await {
            Ok((_, Some(descriptor))) => Ok(Some(descriptor)),
            Ok((_, None)) => Err(ClientError::Malformed),
            Err(ClientError::Refused { reason: Reason::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn done(&self, kind: request::Kind, deadline: Duration) -> Result<(), ClientError> {
        match self.kind(kind, deadline).await? {
            response::Kind::Done(_) => Ok(()),
            _ => Err(ClientError::Malformed),
        }
    }

    async fn kind(&self, kind: request::Kind, deadline: Duration) -> Result<response::Kind, ClientError> {
        let response = self.call(Request { kind: Some(kind) }, deadline).await?;
        response.kind.ok_or(ClientError::Malformed)
    }

    async fn exchange(
        &self,
        request: Request,
        descriptor: Option<Arc<OwnedFd>>,
        deadline: Duration,
    ) -> Result<(Response, Option<OwnedFd>), ClientError> {
        let message = encode(&request).map_err(ClientError::Request)?;
        let reply = tokio::time::timeout(deadline, self.round_trip(message, descriptor));
        let frame = reply.await.map_err(|_| ClientError::Deadline(deadline))??;
        let response = Response::decode(frame.message).map_err(|_| ClientError::Malformed)?;
        match response.kind {
            Some(response::Kind::Failure(failure)) => {
                Err(ClientError::Refused { reason: failure.reason(), message: failure.message })
            }
            _ => Ok((response, frame.descriptor)),
        }
    }

    async fn round_trip(
        &self,
        message: Bytes,
        descriptor: Option<Arc<OwnedFd>>,
    ) -> Result<Frame, ClientError> {
        let _turn = self.0.calls.acquire().await.map_err(|_| ClientError::Stopped)?;
        let shared = &self.0.shared;
        let (reply, answer) = oneshot::channel();
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        shared.waiting.lock().insert(id, Waiting { message, descriptor, sent_on: 0, reply });
        let _forget = Forget { shared, id };
        shared.to_send.send(id).await.map_err(|_| ClientError::Stopped)?;
        answer.await.map_err(|_| ClientError::Stopped)
    }
}

/// The peer counts the deadline from when it reads the request: its answer "deadline" must still find us waiting.
const ANSWER_GRACE: Duration = Duration::from_millis(250);

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Takes a call that ended, answered or not, out of the table.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.waiting.lock().remove(&self.id);
    }
}

/// Owns the connection: connects, sends, hands out answers, connects again.
struct Driver {
    socket: PathBuf,
    shared: Arc<Shared>,
    outgoing: mpsc::Receiver<u64>,
    link: watch::Sender<Link>,
    generation: u64,
}

impl Driver {
    async fn run(mut self) {
        let mut pause = BACK_OFF.0;
        loop {
            if let Ok(stream) = UnixStream::connect(&self.socket).await {
                self.generation += 1;
                let _ = self.link.send(Link::Up(self.generation));
                let answered = self.connected(&stream).await;
                let _ = self.link.send(Link::Down);
                if answered {
                    pause = BACK_OFF.0;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Serves one connection to its end; true when the peer answered anything on it.
    async fn connected(&mut self, stream: &UnixStream) -> bool {
        let mut answered = false;
        let (shared, generation) = (Arc::clone(&self.shared), self.generation);
        let read = async {
            let mut reader = FrameReader::new(stream);
            while let Some(frame) = reader.next().await? {
                answered = true;
                shared.answer(frame);
            }
            Ok(())
        };
        let write = async {
            let unanswered: Vec<u64> = shared.waiting.lock().keys().copied().collect();
            for id in unanswered {
                shared.transmit(stream, id, generation).await?;
            }
            while let Some(id) = self.outgoing.recv().await {
                shared.transmit(stream, id, generation).await?;
            }
            Ok(())
        };
        let ended: Result<(), FrameError> = tokio::select! {
            ended = read => ended,
            ended = write => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(error = &error as &dyn std::error::Error, "the connection to the peer ended");
        }
        answered
    }
}

impl Shared {
    async fn transmit(&self, stream: &UnixStream, id: u64, generation: u64) -> Result<(), FrameError> {
        let Some((message, descriptor)) = self.take_turn(id, generation) else { return Ok(()) };
        write_frame(stream, id, &message, descriptor.as_ref().map(|fd| fd.as_fd())).await
    }

    fn take_turn(&self, id: u64, generation: u64) -> Option<(Bytes, Option<Arc<OwnedFd>>)> {
        let mut waiting = self.waiting.lock();
        let call = waiting.get_mut(&id).filter(|call| call.sent_on != generation)?;
        call.sent_on = generation;
        Some((call.message.clone(), call.descriptor.clone()))
    }

    /// Answers to calls that gave up are dropped, descriptor included.
    fn answer(&self, frame: Frame) {
        if let Some(call) = self.waiting.lock().remove(&frame.id) {
            let _ = call.reply.send(frame);
        }
    }
}
