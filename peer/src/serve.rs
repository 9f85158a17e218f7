//! What other peers see of this one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d7y_chassis::spans::{About, Spans};
use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_store::{FrameLocation, Layer, Staging};
use d7y_transfer::{Asker as Client, FailureCode, Holding, Opening, Provider, Purpose, Region, Served};
use d7y_types::{LayerRef, PackId, Sha256Digest};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::failure::OpenFailure;
use crate::layers::{Asker, Layers, Open};
use crate::news::News;
use crate::openings::{self, Outcome, Progress, WORKING_EVERY};

/// Staged chunks announced ahead of the socket, per follower.
const FOLLOW_AHEAD: usize = 32;

/// A peer's read that was answered this late is in the log of an ordinary day.
const SLOW_ANSWER: Duration = Duration::from_secs(1);

pub struct Uploads {
    pub peer_id: Arc<str>,
    pub layers: Arc<Layers>,
    pub news: Arc<News>,
    pub tasks: Tasks,
    pub spans: Spans,
    pub promised: Promised,
}

/// Layers that are being opened here and are to be read again afterwards, because another peer has asked for it.
pub type Promised = Arc<Mutex<HashSet<Sha256Digest>>>;

impl Uploads {
    /// The layer, when its chunks here are those that the other side means.
    fn known(&self, pack: PackId) -> Option<Arc<Layer>> {
        self.layers.store.layer(pack.layer).filter(|layer| layer.pack() == pack)
    }
}

impl Provider for Uploads {
    fn open(&self, layer: LayerRef, asker: Client) -> mpsc::Receiver<Opening> {
        let (send, receive) = mpsc::channel(FOLLOW_AHEAD);
        let (layers, closing) = (self.layers.clone(), self.tasks.shutdown().closing());
        let (tasks, promised) = (self.tasks.clone(), self.promised.clone());
        self.tasks.spawn("serve an opening", OnEnd::Expected, async move {
            let last = match layers.open(&layer, Asker::Peer).await {
                Ok(Open::Ready(ready)) => match asker.purpose {
                    Purpose::Index => index_of(ready).await,
                    Purpose::Refill => refilling(&layers, &ready, &asker.peer_id),
                },
                Ok(Open::Following(progress)) if asker.purpose == Purpose::Refill => {
                    promise(
                        &tasks,
                        &promised,
                        &layers,
                        (layer.digest, progress.clone(), asker.peer_id.clone()),
                    );
                    let refilled = refilled(&layers, progress, &asker.peer_id, &send);
                    closing.run_until_cancelled(refilled).await.unwrap_or_else(stopping)
                }
                Ok(Open::Following(progress)) => {
                    let (asker, chain) = (asker.peer_id, Arc::default());
                    Follower { asker, send: &send, sent: 0, staging: None, signs: 0, chain, closing }
                        .follow(progress)
                        .await
                }
                Err(failure) => failed(failure),
            };
            // An asker that went away needs no answer.
            let _ = send.send(last).await;
            Ok::<_, std::convert::Infallible>(())
        });
        receive
    }

    fn frame(&self, pack: PackId, number: u32) -> Option<Region> {
        self.known(pack)?.frame(number).map(region)
    }

    fn holding(&self, pack: PackId) -> Option<Holding> {
        let known = self.known(pack)?;
        self.layers.confirmer.start(&known);
        // Listening first: what arrives in between is said twice rather than never.
        let news = self.news.follow(pack);
        Some(Holding { bits: known.shareable().to_bytes(), news })
    }

    fn uploaded(&self, bytes: u64) {
        self.layers.metrics.uploaded_bytes.inc_by(bytes);
    }

    fn served(&self, served: &Served) {
        let Served { caller, asker, pack, began, chunks, missing, bytes } = served;
        let (request_id, layer, ms) = (caller.request, pack.layer, began.elapsed().as_millis() as u64);
        // Quoted in the log: it is what the other side says.
        let asker = asker.as_ref();
        if began.elapsed() >= SLOW_ANSWER {
            tracing::info!(%request_id, %layer, chunks, missing, bytes, ms, asker, "a peer's read was served late");
        } else {
            tracing::debug!(%request_id, %layer, chunks, missing, bytes, ms, asker, "a peer's read was served");
        }
        self.spans.end(self.spans.child(Some(*caller)).map(|span| span.at(*began)), || {
            About::new("serve chunks")
                .text("d7y.layer", layer)
                .text("d7y.asker", asker)
                .number("d7y.chunks", (*chunks).into())
                .number("d7y.missing", (*missing).into())
                .number("d7y.bytes", *bytes)
        });
    }

    fn peer_id(&self) -> String {
        self.peer_id.to_string()
    }
}

/// A peer that follows an opening here.
struct Follower<'a> {
    asker: Arc<str>,
    send: &'a mpsc::Sender<Opening>,
    /// Staged chunks that it was sent.
    sent: u32,
    /// Where those came from. Another source's chunks need not be the same: after a change it gets no more of them.
    staging: Option<Arc<Staging>>,
    /// Signs of life that it has seen.
    signs: u64,
    /// Whom it was told this peer follows.
    chain: Arc<[String]>,
    closing: CancellationToken,
}

impl Follower<'_> {
    /// Passes staged chunks and signs of life on as they are made, until the index is known.
    async fn follow(mut self, mut progress: watch::Receiver<Progress>) -> Opening {
        let mut every = tokio::time::interval(WORKING_EVERY);
        loop {
            let now = progress.borrow_and_update().clone();
            if let Some(outcome) = now.outcome {
                return match outcome {
                    Outcome::Ready(layer) => index_of(layer).await,
                    Outcome::Failed(failure) => failed(failure),
                };
            }
            // What is read here from its origin is finished; what only passes through here comes from elsewhere too.
            let closing = self.closing.is_cancelled();
            if closing && !now.reads_origin() {
                return stopping();
            }
            if now.chain.iter().any(|peer| **peer == *self.asker) {
                return unavailable("this peer waits for the layer from the asker itself");
            }
            if self.chain != now.chain {
                self.chain = now.chain.clone();
                if self.send.send(Opening::Following(now.chain.to_vec())).await.is_err() {
                    return unavailable("the asker is gone");
                }
            }
            let passed_on = match self.next_staged(&now) {
                Some(staged) => self.send.send(staged).await.is_ok(),
                None => tokio::select! {
                    changed = progress.changed() => match changed {
                        Ok(()) => true,
                        Err(_) => return stopping(),
                    },
                    () = self.closing.cancelled(), if !closing => true,
                    () = self.send.closed() => false,
                    _ = every.tick() => self.show_signs(now.signs).await,
                },
            };
            if !passed_on {
                return unavailable("the asker is gone");
            }
        }
    }

    fn next_staged(&mut self, now: &Progress) -> Option<Opening> {
        let staging = now.staging.as_ref().filter(|_| self.sent < now.staged_chunks)?;
        if !Arc::ptr_eq(self.staging.get_or_insert_with(|| staging.clone()), staging) {
            return None;
        }
        let number = self.sent;
        let (chunk, location) = staging.chunk(number)?;
        self.sent += 1;
        Some(Opening::Staged { number, record: chunk.encode(), region: region(location) })
    }

    /// False when the asker is gone.
    async fn show_signs(&mut self, signs: u64) -> bool {
        let seen = std::mem::replace(&mut self.signs, signs);
        seen == signs || self.send.send(Opening::Working).await.is_ok()
    }
}

/// Sees to a layer once it is open, whether or not the one who asked is still there: one task for all who ask.
fn promise(tasks: &Tasks, promised: &Promised, layers: &Arc<Layers>, opening: Asked) {
    let (layer, progress, asker) = opening;
    if !promised.lock().insert(layer) {
        return;
    }
    let (promised, layers, closing) = (promised.clone(), layers.clone(), tasks.shutdown().closing());
    tasks.spawn("refill what is being opened", OnEnd::Expected, async move {
        let outcome = closing.run_until_cancelled(openings::outcome(progress)).await;
        promised.lock().remove(&layer);
        if let Some(Outcome::Ready(ready)) = outcome
            && let Err(failure) = layers.asked_to_refill(&ready, &asker)
        {
            tracing::debug!(%layer, error = failure.message, "it is not read again");
        }
        Ok::<_, std::convert::Infallible>(())
    });
}

/// Which opening, and who wants more than that.
type Asked = (Sha256Digest, watch::Receiver<Progress>, Arc<str>);

/// The asker hears once that this peer is at work and follows nothing: it has the index. What is opened here for it may
/// come without chunks, from a peer that has no more of it than the asker.
async fn refilled(
    layers: &Layers,
    mut progress: watch::Receiver<Progress>,
    asker: &str,
    send: &mpsc::Sender<Opening>,
) -> Opening {
    let mut told = false;
    loop {
        let now = progress.borrow_and_update().clone();
        match now.outcome {
            Some(Outcome::Ready(ready)) => return refilling(layers, &ready, asker),
            Some(Outcome::Failed(failure)) => return failed(failure),
            None => {}
        }
        if !told && now.signs > 0 {
            told = true;
            // Whether or not it is still there, the layer is seen to.
            let _ = send.send(Opening::Working).await;
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() {
                return stopping();
            },
            () = send.closed() => return unavailable("the asker is gone"),
        }
    }
}

fn refilling(layers: &Layers, layer: &Layer, asker: &str) -> Opening {
    match layers.asked_to_refill(layer, asker) {
        Ok(()) => Opening::Working,
        Err(failure) => failed(failure),
    }
}

fn stopping() -> Opening {
    unavailable("the peer is stopping")
}

fn unavailable(why: &str) -> Opening {
    failed(OpenFailure::new(FailureCode::Unavailable, why))
}

/// Read and hashed on the blocking pool: an index may be as large as 128 MiB.
async fn index_of(layer: Arc<Layer>) -> Opening {
    match tokio::task::spawn_blocking(move || layer.sealed_index()).await {
        Ok(Ok(sealed)) => Opening::Index(Bytes::from(sealed)),
        Ok(Err(error)) => failed(OpenFailure::internal(&error)),
        Err(panic) => failed(OpenFailure::internal(&panic)),
    }
}

fn failed(failure: OpenFailure) -> Opening {
    Opening::Failed { code: failure.code, message: failure.message }
}

fn region(location: FrameLocation) -> Region {
    Region { file: location.file, offset: location.offset, length: location.length }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a follower named `asker` gets within a minute.
    async fn followed(progress: watch::Receiver<Progress>, asker: &str) -> (usize, Option<Opening>) {
        let (send, mut received) = mpsc::channel(FOLLOW_AHEAD);
        let (asker, chain) = (asker.into(), Arc::default());
        let closing = CancellationToken::new();
        let follower = Follower { asker, send: &send, sent: 0, staging: None, signs: 0, chain, closing };
        let outcome = tokio::time::timeout(WORKING_EVERY * 20, follower.follow(progress)).await.ok();
        drop(send);
        let mut signs = 0;
        while let Some(sent) = received.recv().await {
            signs += usize::from(matches!(sent, Opening::Working));
        }
        (signs, outcome)
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_are_passed_on_and_none_are_made_up() {
        let (send, progress) = watch::channel(Progress::default());
        let (signs, outcome) = followed(progress.clone(), "node").await;
        assert_eq!((signs, outcome.is_none()), (0, true), "this peer only waits");

        let work = async {
            let mut every = tokio::time::interval(WORKING_EVERY);
            loop {
                every.tick().await;
                send.send_modify(|progress| progress.signs += 1);
            }
        };
        let (signs, _) = tokio::select! {
            followed = followed(progress.clone(), "node") => followed,
            () = work => unreachable!(),
        };
        // A tick at the very moment of a sign may see it or not.
        assert!((10..=21).contains(&signs), "{signs} signs in 20 intervals");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_follows_a_peer_that_follows_it() {
        let (send, progress) = watch::channel(Progress::default());
        send.send_modify(|progress| progress.chain = ["two".to_owned(), "one".to_owned()].into());
        let (_, outcome) = followed(progress.clone(), "one").await;
        assert!(
            matches!(outcome, Some(Opening::Failed { code: FailureCode::Unavailable, .. })),
            "{outcome:?}"
        );
        let (_, outcome) = followed(progress, "three").await;
        assert!(outcome.is_none(), "{outcome:?}");
    }
}
