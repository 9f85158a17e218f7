//! Layers on their way to an index.
//!
//! At most one opening of a layer runs at a time, whoever asks for it: the snapshotter of this node, or other peers.
//! All of them watch its progress; peers are also given the chunks that are staged meanwhile (cut-through). A failed
//! opening is remembered for a moment, so that a crowd of askers costs the origin one refusal and not one each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_store::{Layer, Staging};
use d7y_types::{LayerRef, Sha256Digest};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::OpenFailure;

/// How long a refusal stands before the origin or the swarm is asked again.
const FAILURE_STANDS: Duration = Duration::from_secs(5);

/// Refusals after which whoever reads the origin is believed: one alone may come from a peer that is being restarted.
const REFUSALS: u32 = 2;

/// How long a layer has to show how it fares itself before others of its repository speak for it.
const OWN_WORD: Duration = Duration::from_millis(250);

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
    /// Whether bytes of the layer have come: from the origin, or from a peer to which they come from there.
    pub supplied: bool,
    /// How often a peer that reads the origin for others has said that it cannot, and what it said last.
    pub refused: (u32, Arc<str>),
    pub outcome: Option<Outcome>,
}

impl Progress {
    /// Whether this very peer is reading the layer from its origin.
    pub fn reads_origin(&self) -> bool {
        self.staging.is_some() && self.chain.is_empty()
    }
}

/// Whether a layer can be had, as far as its opening shows.
#[derive(Debug, Clone)]
pub enum Supply {
    Shown,
    Failed(OpenFailure),
    /// Nobody has given any of it, for this reason.
    NotShown(Arc<str>),
}

/// The writing end of an opening's progress.
#[derive(Debug, Clone)]
pub struct Reporter {
    progress: Arc<watch::Sender<Progress>>,
    given_up: CancellationToken,
}

impl Reporter {
    /// Returns when nobody needs the layer any more.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    pub fn supplied(&self) {
        self.progress.send_if_modified(|progress| !std::mem::replace(&mut progress.supplied, true));
    }

    /// A peer that reads the origin for others says that it cannot.
    pub fn refused(&self, why: &str) {
        self.progress.send_modify(|progress| progress.refused = (progress.refused.0 + 1, why.into()));
    }

    pub fn staging(&self, staging: &Arc<Staging>) {
        self.progress.send_modify(|progress| {
            progress.staging = Some(staging.clone());
            progress.staged_chunks = 0;
        });
    }

    pub fn staged(&self, chunks: u32) {
        self.progress.send_modify(|progress| {
            progress.staged_chunks = chunks;
            progress.signs += 1;
        });
    }

    pub fn working(&self) {
        self.progress.send_modify(|progress| progress.signs += 1);
    }

    /// Says of whom the layer is received from now on, and of whom that peer receives it.
    pub fn follows(&self, chain: impl IntoIterator<Item = String>) {
        let chain: Arc<[String]> = chain.into_iter().collect();
        self.progress.send_if_modified(|progress| {
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
        self.progress.send_modify(|progress| {
            progress.staging = None;
            progress.outcome = Some(outcome);
        });
    }
}

struct Opening {
    /// Registry and repository.
    source: (String, String),
    progress: watch::Receiver<Progress>,
    given_up: CancellationToken,
    failed_at: Option<Instant>,
}

impl Opening {
    fn is_supplied(&self) -> bool {
        let progress = self.progress.borrow();
        progress.supplied && progress.outcome.is_none()
    }
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
    pub fn join(&self, layer: &LayerRef) -> Join {
        let mut openings = self.0.lock();
        openings.retain(|_, opening| opening.failed_at.is_none_or(|at| at.elapsed() < FAILURE_STANDS));
        if let Some(opening) = openings.get(&layer.digest) {
            return Join::Follow(opening.progress.clone());
        }
        let (send, progress) = watch::channel(Progress::default());
        let given_up = CancellationToken::new();
        let opening = Opening {
            source: (layer.registry.clone(), layer.repository.clone()),
            progress: progress.clone(),
            given_up: given_up.clone(),
            failed_at: None,
        };
        openings.insert(layer.digest, opening);
        Join::Lead(progress, Reporter { progress: Arc::new(send), given_up })
    }

    /// Waits until it shows whether somebody can give the layer; without that the opening is given up. One that waits for
    /// its turn behind others from the same repository, and was not refused itself, is as good as they are.
    pub async fn supply(&self, layer: &LayerRef, within: Duration) -> Supply {
        let Some(progress) = self.running(layer.digest) else { return Supply::Shown };
        let shows = |progress: &Progress| {
            progress.supplied || progress.outcome.is_some() || progress.refused.0 >= REFUSALS
        };
        let mut own = progress.clone();
        let waits_its_turn = || progress.borrow().refused.0 == 0 && self.is_read(layer);
        let shown = async {
            match tokio::time::timeout(OWN_WORD, own.wait_for(shows)).await {
                Ok(word) => return word.ok().map(|progress| progress.clone()),
                Err(_) if waits_its_turn() => return None,
                Err(_) => {}
            }
            own.wait_for(shows).await.ok().map(|progress| progress.clone())
        };
        let refused = match tokio::time::timeout(within, shown).await {
            Ok(Some(Progress { outcome: Some(Outcome::Failed(failure)), .. })) => {
                return Supply::Failed(failure);
            }
            Ok(Some(Progress { supplied: false, outcome: None, refused: (_, why), .. })) => why,
            Ok(_) => return Supply::Shown,
            Err(_) if waits_its_turn() => return Supply::Shown,
            Err(_) => progress.borrow().refused.1.clone(),
        };
        if let Some(opening) = self.0.lock().get(&layer.digest) {
            opening.given_up.cancel();
        }
        Supply::NotShown(match refused.is_empty() {
            true => "neither the registry nor a peer has sent anything of the layer".into(),
            false => refused,
        })
    }

    /// Whether any layer of the same repository is on its way.
    fn is_read(&self, layer: &LayerRef) -> bool {
        let same =
            |opening: &&Opening| opening.source.0 == layer.registry && opening.source.1 == layer.repository;
        self.0.lock().values().filter(same).any(Opening::is_supplied)
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

/// Far more than passes between the end of the openings and that of the connections.
const CONNECTIONS_CLOSE: Duration = Duration::from_secs(1);

/// Waits for the outcome of an opening.
pub async fn outcome(mut progress: watch::Receiver<Progress>) -> Outcome {
    let lost = || OpenFailure::new(d7y_transfer::FailureCode::Unavailable, "the peer is stopping; try again");
    if let Ok(progress) = progress.wait_for(|progress| progress.outcome.is_some()).await {
        return progress.outcome.clone().unwrap_or_else(|| Outcome::Failed(lost()));
    }
    // At the end of this process its connections close, and who asked asks the successor. Told of a failure first, a
    // snapshotter would leave the layer to containerd.
    tokio::time::sleep(CONNECTIONS_CLOSE).await;
    Outcome::Failed(lost())
}

#[cfg(test)]
mod tests {
    use d7y_transfer::FailureCode;
    use d7y_types::Compression;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(15);

    #[tokio::test]
    async fn an_opening_that_ends_with_the_process_is_left_to_the_successor() {
        let (sender, progress) = watch::channel(Progress::default());
        drop(sender);
        let began = Instant::now();
        assert!(matches!(outcome(progress).await, Outcome::Failed(_)));
        assert!(began.elapsed() >= CONNECTIONS_CLOSE, "who asked is told before the connection closes");
    }

    fn layer(number: u8, repository: &str) -> LayerRef {
        LayerRef {
            registry: "r.example".into(),
            repository: repository.into(),
            digest: Sha256Digest([number; 32]),
            diff_id: Sha256Digest([number; 32]),
            size: 1,
            compression: Compression::Gzip,
        }
    }

    fn lead(openings: &Openings, layer: &LayerRef) -> Reporter {
        match openings.join(layer) {
            Join::Lead(_, reporter) => reporter,
            Join::Follow(_) => panic!("somebody leads already"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_gives_is_given_up_in_time() {
        let openings = Openings::default();
        let one = layer(1, "a");
        let reporter = lead(&openings, &one);
        let began = tokio::time::Instant::now();
        let working = async { reporter.while_working(std::future::pending::<()>()).await };
        let supply = tokio::select! {
            supply = openings.supply(&one, WITHIN) => supply,
            () = working => unreachable!(),
        };
        assert!(matches!(supply, Supply::NotShown(_)), "being at work shows nothing: {supply:?}");
        assert_eq!(began.elapsed(), WITHIN);
        reporter.given_up().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_shows_that_a_layer_can_be_had_and_that_it_cannot() {
        let openings = Openings::default();
        let (one, two, other) = (layer(1, "a"), layer(2, "a"), layer(3, "b"));
        assert!(matches!(openings.supply(&one, WITHIN).await, Supply::Shown), "it is in the store by now");
        let [first, _second, third] = [&one, &two, &other].map(|layer| lead(&openings, layer));
        first.refused("busy");
        let soon = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            first.supplied();
        };
        let (supply, ()) = tokio::join!(openings.supply(&one, WITHIN), soon);
        assert!(matches!(supply, Supply::Shown), "one refusal is none: {supply:?}");
        let supply = openings.supply(&two, Duration::ZERO).await;
        assert!(matches!(supply, Supply::Shown), "it waits behind the first: {supply:?}");
        third.refused("gone");
        third.refused("cannot be reached");
        let began = tokio::time::Instant::now();
        match openings.supply(&other, WITHIN).await {
            Supply::NotShown(why) => assert_eq!(&*why, "cannot be reached"),
            supply => panic!("another repository: {supply:?}"),
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        openings.end(one.digest, &first, Outcome::Failed(OpenFailure::new(FailureCode::Unavailable, "no")));
        assert!(matches!(openings.supply(&one, WITHIN).await, Supply::Failed(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_layer_that_is_refused_itself_is_not_spoken_for_by_others() {
        let openings = Openings::default();
        let [base, upper, failed] = [1, 2, 3].map(|number| layer(number, "a"));
        let [read, refused, ended] = [&base, &upper, &failed].map(|layer| lead(&openings, layer));
        read.supplied();
        let soon = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            refused.refused("not found");
            tokio::time::sleep(Duration::from_secs(1)).await;
            refused.refused("not found");
        };
        let (supply, ()) = tokio::join!(openings.supply(&upper, WITHIN), soon);
        assert!(matches!(supply, Supply::NotShown(_)), "{supply:?}");
        let failure = OpenFailure::new(FailureCode::NotFound, "no");
        openings.end(failed.digest, &ended, Outcome::Failed(failure));
        let supply = openings.supply(&failed, WITHIN).await;
        assert!(matches!(supply, Supply::Failed(_)), "{supply:?}");
    }
}
