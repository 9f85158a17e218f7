//! Layers on their way to an index.
//!
//! At most one opening of a layer runs at a time, whoever asks for it: the snapshotter of this node, or other peers.
//! All of them watch its progress; peers are also given the chunks that are staged meanwhile (cut-through). A failed
//! opening is remembered for a moment, so that a crowd of askers costs the origin one refusal and not one each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_store::{Layer, Staging};
use d7y_types::Sha256Digest;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::failure::OpenFailure;

/// How long a refusal stands before the origin or the swarm is asked again.
const FAILURE_STANDS: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub enum Outcome {
    Ready(Arc<Layer>),
    Failed(OpenFailure),
}

/// How often whoever works on a layer says so while there is nothing else to say.
pub const WORKING_EVERY: Duration = Duration::from_secs(3);

/// What can be seen of an opening from outside.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The peer that the layer is received from at present, the one that it receives it from, and so on.
    pub chain: Arc<[String]>,
    /// Grows whenever whoever reads the origin shows that it is at work, through whatever peers in between. A peer
    /// adds nothing of its own to what it only waits for: peers that waited for each other would wait for ever.
    pub signs: u64,
    /// Where chunks are staged, once they are; replaced when another source is tried.
    pub staging: Option<Arc<Staging>>,
    pub staged_chunks: u32,
    pub outcome: Option<Outcome>,
}

/// The writing end of an opening's progress.
#[derive(Debug, Clone)]
pub struct Reporter(Arc<watch::Sender<Progress>>);

impl Reporter {
    pub fn staging(&self, staging: &Arc<Staging>) {
        self.0.send_modify(|progress| {
            progress.staging = Some(staging.clone());
            progress.staged_chunks = 0;
        });
    }

    pub fn staged(&self, chunks: u32) {
        self.0.send_modify(|progress| {
            progress.staged_chunks = chunks;
            progress.signs += 1;
        });
    }

    pub fn working(&self) {
        self.0.send_modify(|progress| progress.signs += 1);
    }

    /// Says of whom the layer is received from now on, and of whom that peer receives it.
    pub fn follows(&self, chain: impl IntoIterator<Item = String>) {
        let chain: Arc<[String]> = chain.into_iter().collect();
        self.0.send_if_modified(|progress| {
            let new = progress.chain != chain;
            progress.chain = chain;
            new
        });
    }

    /// Shows that this very peer is at work, for as long as it is.
    pub async fn while_working<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut every = tokio::time::interval(WORKING_EVERY);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = every.tick() => self.working(),
            }
        }
    }

    fn end(&self, outcome: Outcome) {
        self.0.send_modify(|progress| {
            progress.staging = None;
            progress.outcome = Some(outcome);
        });
    }
}

struct Opening {
    progress: watch::Receiver<Progress>,
    failed_at: Option<Instant>,
}

#[derive(Default)]
pub struct Openings(Mutex<HashMap<Sha256Digest, Opening>>);

/// Whether the caller has to do the work.
pub enum Join {
    Follow(watch::Receiver<Progress>),
    Lead(watch::Receiver<Progress>, Reporter),
}

impl Openings {
    /// Joins the opening of a layer, or makes the caller its leader.
    pub fn join(&self, layer: Sha256Digest) -> Join {
        let mut openings = self.0.lock();
        openings.retain(|_, opening| opening.failed_at.is_none_or(|at| at.elapsed() < FAILURE_STANDS));
        if let Some(opening) = openings.get(&layer) {
            return Join::Follow(opening.progress.clone());
        }
        let (send, progress) = watch::channel(Progress::default());
        openings.insert(layer, Opening { progress: progress.clone(), failed_at: None });
        Join::Lead(progress, Reporter(Arc::new(send)))
    }

    /// The opening that runs now, if one does.
    pub fn running(&self, layer: Sha256Digest) -> Option<watch::Receiver<Progress>> {
        self.0.lock().get(&layer).map(|opening| opening.progress.clone())
    }

    pub fn end(&self, layer: Sha256Digest, reporter: &Reporter, outcome: Outcome) {
        let mut openings = self.0.lock();
        match &outcome {
            // From now on the store has the layer.
            Outcome::Ready(_) => drop(openings.remove(&layer)),
            Outcome::Failed(_) => {
                if let Some(opening) = openings.get_mut(&layer) {
                    opening.failed_at = Some(Instant::now());
                }
            }
        }
        drop(openings);
        reporter.end(outcome);
    }
}

/// Waits for the outcome of an opening.
pub async fn outcome(mut progress: watch::Receiver<Progress>) -> Outcome {
    let ended = progress.wait_for(|progress| progress.outcome.is_some()).await;
    let lost = || OpenFailure::new(d7y_transfer::FailureCode::Unavailable, "the peer is stopping; try again");
    match ended {
        Ok(progress) => progress.outcome.clone().unwrap_or_else(|| Outcome::Failed(lost())),
        Err(_) => Outcome::Failed(lost()),
    }
}
