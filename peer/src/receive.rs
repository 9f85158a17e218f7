//! Opening a layer at another peer: chunks while it is still being read there, then its signed index.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use d7y_image::{Chunk, TrustError};
use d7y_store::{Layer, Staging, Store, StoreError};
use d7y_transfer::{ClientError, FailureCode, OpenStream, Opened, Purpose};
use d7y_types::LayerRef;

use crate::failure::{OpenFailure, chain};
use crate::fetch::Parent;
use crate::metrics::{Metrics, Source};
use crate::openings::{Reporter, WORKING_EVERY};
use crate::patience::{Patience, Sign};
use crate::trust::Trust;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A parent that is at work says so; one that hangs, or follows a peer that does, is given up.
const IDLE_TIMEOUT: Duration = WORKING_EVERY.saturating_mul(5);
/// A parent that is at work for this long without a chunk is given up too: a queue of layers takes minutes, not hours.
const WORKING_COUNTS: Duration = Duration::from_secs(600);

/// Peers that receive a layer one from the other: more are not what any scheduler makes of them.
const LONGEST_CHAIN: usize = 32;

#[derive(Clone)]
pub struct Receiver {
    pub peer_id: Arc<str>,
    pub store: Arc<Store>,
    pub trust: Arc<Trust>,
    pub metrics: Arc<Metrics>,
}

/// Why a peer that was asked does not read a layer again.
#[derive(Debug, thiserror::Error)]
pub enum NoRefill {
    #[error("{0}")]
    Refused(String),
    /// It was not reached, or gave no answer.
    #[error("the peer does not answer")]
    Unanswered(#[from] ClientError),
}

impl Receiver {
    pub async fn receive(
        &self,
        parent: Parent,
        layer: &LayerRef,
        reporter: &Reporter,
        patience: &mut Patience,
    ) -> Result<Arc<Layer>, OpenFailure> {
        let unreachable = |error: ClientError| OpenFailure::new(FailureCode::Unavailable, chain(&error));
        let Parent { address: from, seed } = parent;
        let connected = OpenStream::connect(from, &self.peer_id, layer, CONNECT_TIMEOUT).await;
        match connected {
            Ok(_) => patience.reached(from),
            Err(_) => patience.not_reached(from, Instant::now()),
        }
        let mut stream = connected.map_err(unreachable)?;
        let parent = stream.peer_id().to_string();
        reporter.follows([parent.clone()]);
        let mut staged = Staged::begin(self, layer, reporter)?;
        let mut advanced = Instant::now();
        loop {
            match stream.next(IDLE_TIMEOUT).await.map_err(unreachable)? {
                Opened::Staged { number, record, frame } => {
                    advanced = Instant::now();
                    reporter.supplied();
                    patience.sign(from, Sign::Chunk, advanced);
                    staged.push(number, &record, frame).await?;
                }
                Opened::Working if advanced.elapsed() > WORKING_COUNTS => {
                    patience.failed(from);
                    let problem = "the peer that reads the layer gets nowhere";
                    return Err(OpenFailure::new(FailureCode::Unavailable, problem));
                }
                Opened::Working => {
                    reporter.working();
                    patience.sign(from, Sign::Working, Instant::now());
                }
                Opened::Following(chain) if chain.len() >= LONGEST_CHAIN => {
                    patience.failed(from);
                    let problem = "too many peers wait for each other one behind the other";
                    return Err(OpenFailure::new(FailureCode::Unavailable, problem));
                }
                Opened::Following(chain) => {
                    reporter.follows(std::iter::once(parent.clone()).chain(chain));
                }
                Opened::Index(sealed) => return self.commit(layer, staged.staging, sealed).await,
                Opened::Failed { code, message } => {
                    if seed || patience.has_worked(from) {
                        reporter.refused(&message);
                    }
                    patience.failed(from);
                    return Err(OpenFailure::new(code, message));
                }
            }
        }
    }

    /// Asks a peer to read a layer again of which no peer holds what this one wants. Ok when it sees to it.
    pub async fn ask_to_refill(&self, at: SocketAddr, layer: &LayerRef) -> Result<(), NoRefill> {
        let stream = OpenStream::connect_for(Purpose::Refill, at, &self.peer_id, layer, CONNECT_TIMEOUT);
        match stream.await?.next(IDLE_TIMEOUT).await? {
            Opened::Failed { message, .. } => Err(NoRefill::Refused(message)),
            Opened::Staged { .. } | Opened::Working | Opened::Following(_) | Opened::Index(_) => Ok(()),
        }
    }

    /// Takes the index of a layer that is here from a peer that has the same chunks, in place of one that the disk has
    /// damaged.
    pub async fn receive_index(&self, from: SocketAddr, layer: &Arc<Layer>) -> Result<(), OpenFailure> {
        let unreachable = |error: ClientError| OpenFailure::new(FailureCode::Unavailable, chain(&error));
        let stream = OpenStream::connect(from, &self.peer_id, layer.reference(), CONNECT_TIMEOUT);
        let sealed = match stream.await.map_err(unreachable)?.next(IDLE_TIMEOUT).await.map_err(unreachable)? {
            Opened::Index(sealed) => sealed,
            Opened::Failed { code, message } => return Err(OpenFailure::new(code, message)),
            Opened::Staged { .. } | Opened::Working | Opened::Following(_) => {
                return Err(OpenFailure::new(
                    FailureCode::Unavailable,
                    "it is only opening the layer itself",
                ));
            }
        };
        self.trust.open(&sealed).map_err(|error| OpenFailure::internal(&error))?;
        let (store, layer) = (self.store.clone(), layer.clone());
        let mended = tokio::task::spawn_blocking(move || store.mend_index(&layer, &sealed)).await;
        let mended = mended.map_err(|panic| OpenFailure::internal(&panic))?;
        mended.map_err(|error| OpenFailure::internal(&error))
    }

    async fn commit(
        &self,
        layer: &LayerRef,
        staging: Arc<Staging>,
        sealed: Bytes,
    ) -> Result<Arc<Layer>, OpenFailure> {
        let (this, layer) = (self.clone(), layer.clone());
        let commit = move || {
            let index = this.trust.open(&sealed).map_err(|error| match error {
                TrustError::UnknownKey => OpenFailure::new(FailureCode::Untrusted, chain(&error)),
                _ => OpenFailure::internal(&error),
            })?;
            if index.layer != layer.digest || index.diff_id != layer.diff_id {
                let problem =
                    "the index that a parent sent is of another layer, or the image's config is wrong";
                return Err(OpenFailure::new(FailureCode::Corrupt, problem));
            }
            this.store.commit(&staging, &index, &sealed).map_err(|error| OpenFailure::internal(&error))
        };
        let done = tokio::task::spawn_blocking(commit).await;
        done.unwrap_or_else(|panic| Err(OpenFailure::internal(&panic)))
    }
}

/// Chunks taken in advance, in order. The first gap or full disk ends the taking; what is missing is fetched later.
struct Staged {
    store: Arc<Store>,
    staging: Arc<Staging>,
    reporter: Reporter,
    metrics: Arc<Metrics>,
    previous: Option<Chunk>,
    taking: bool,
}

impl Staged {
    fn begin(receiver: &Receiver, layer: &LayerRef, reporter: &Reporter) -> Result<Self, OpenFailure> {
        let staging = receiver.store.stage(layer).map_err(|error| OpenFailure::internal(&error))?;
        let staging = Arc::new(staging);
        reporter.staging(&staging);
        let (reporter, metrics) = (reporter.clone(), receiver.metrics.clone());
        let store = receiver.store.clone();
        Ok(Self { store, staging, reporter, metrics, previous: None, taking: true })
    }

    async fn push(&mut self, number: u32, record: &[u8; 40], frame: Bytes) -> Result<(), OpenFailure> {
        if !self.taking || number != self.staging.len() {
            self.taking = false;
            return Ok(());
        }
        let malformed = || OpenFailure::new(FailureCode::Internal, "a parent sent a malformed chunk record");
        let chunk = Chunk::decode(record, self.previous.as_ref()).ok_or_else(malformed)?;
        let (store, staging) = (self.store.clone(), self.staging.clone());
        let bytes = frame.len() as u64;
        let kept = tokio::task::spawn_blocking(move || {
            let data = match chunk.frame_bytes {
                0 => Vec::new(),
                _ => d7y_store::decode_chunk(&chunk, &frame).map_err(|_| None)?,
            };
            store.push(&staging, chunk, &frame, &data).map_err(Some)
        });
        match kept.await.unwrap_or(Err(None)) {
            Ok(staged) => self.reporter.staged(staged + 1),
            Err(Some(StoreError::Full)) => self.taking = false,
            Err(Some(error)) => return Err(OpenFailure::internal(&error)),
            Err(None) => {
                self.metrics.rejected(Source::seed);
                return Err(OpenFailure::new(
                    FailureCode::Internal,
                    "a parent sent a chunk that fails its digest",
                ));
            }
        }
        self.metrics.received_chunk(Source::seed, bytes);
        self.metrics.ledger.received(self.staging.reference().digest, Source::seed, bytes);
        self.previous = Some(chunk);
        Ok(())
    }
}
