//! What other peers see of this one.

use std::sync::Arc;

use bytes::Bytes;
use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_store::{FrameLocation, Layer};
use d7y_transfer::{FailureCode, Holding, Opening, Provider, Region};
use d7y_types::{LayerRef, Sha256Digest};
use tokio::sync::{mpsc, watch};

use crate::failure::{OpenFailure, chain};
use crate::layers::{Asker, Layers, Open};
use crate::news::News;
use crate::openings::{Outcome, Progress};

/// Staged chunks announced ahead of the socket, per follower.
const FOLLOW_AHEAD: usize = 32;

pub struct Uploads {
    pub peer_id: Arc<str>,
    pub layers: Arc<Layers>,
    pub news: Arc<News>,
    pub tasks: Tasks,
}

impl Provider for Uploads {
    fn open(&self, layer: LayerRef) -> mpsc::Receiver<Opening> {
        let (send, receive) = mpsc::channel(FOLLOW_AHEAD);
        let layers = self.layers.clone();
        self.tasks.spawn("serve an opening", OnEnd::Expected, async move {
            let last = match layers.open(&layer, Asker::Peer).await {
                Ok(Open::Ready(ready)) => index_of(&ready),
                Ok(Open::Following(progress)) => follow(progress, &send).await,
                Err(failure) => failed(failure),
            };
            // An asker that went away needs no answer.
            let _ = send.send(last).await;
            Ok::<_, std::convert::Infallible>(())
        });
        receive
    }

    fn frame(&self, layer: Sha256Digest, number: u32) -> Option<Region> {
        self.layers.store.layer(layer)?.frame(number).map(region)
    }

    fn holding(&self, layer: Sha256Digest) -> Option<Holding> {
        let known = self.layers.store.layer(layer)?;
        // Listening first: what arrives in between is said twice rather than never.
        let news = self.news.follow(layer);
        Some(Holding { bits: known.shareable().to_bytes(), news })
    }

    fn uploaded(&self, bytes: u64) {
        self.layers.metrics.uploaded_bytes.inc_by(bytes);
    }

    fn peer_id(&self) -> String {
        self.peer_id.to_string()
    }
}

/// Passes staged chunks on as they are made, until the index is known.
async fn follow(mut progress: watch::Receiver<Progress>, send: &mpsc::Sender<Opening>) -> Opening {
    let mut next = 0;
    let mut from = None;
    loop {
        let now = progress.borrow_and_update().clone();
        if let Some(outcome) = now.outcome {
            return match outcome {
                Outcome::Ready(layer) => index_of(&layer),
                Outcome::Failed(failure) => failed(failure),
            };
        }
        let staging = now.staging.filter(|_| next < now.staged_chunks);
        let Some(staging) = staging else {
            if progress.changed().await.is_err() {
                return failed(OpenFailure::new(FailureCode::Unavailable, "the peer is stopping"));
            }
            continue;
        };
        // Another source was tried: its chunks need not be those that were sent.
        let same = from.get_or_insert_with(|| staging.clone());
        if !Arc::ptr_eq(same, &staging) {
            next = u32::MAX;
            continue;
        }
        if let Some((chunk, location)) = staging.chunk(next) {
            let staged = Opening::Staged { number: next, record: chunk.encode(), region: region(location) };
            if send.send(staged).await.is_err() {
                return failed(OpenFailure::new(FailureCode::Unavailable, "the asker is gone"));
            }
        }
        next += 1;
    }
}

fn index_of(layer: &Layer) -> Opening {
    match layer.sealed_index() {
        Ok(sealed) => Opening::Index(Bytes::from(sealed)),
        Err(error) => failed(OpenFailure::new(FailureCode::Internal, chain(&error))),
    }
}

fn failed(failure: OpenFailure) -> Opening {
    Opening::Failed { code: failure.code, message: failure.message }
}

fn region(location: FrameLocation) -> Region {
    Region { file: location.file, offset: location.offset, length: location.length }
}
