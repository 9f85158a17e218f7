//! Carries out what [`crate::rescue`] finds to be due for layers that no peer holds: another peer is asked to read the
//! origin, or this one does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_proto::scheduler::inventory::State;
use d7y_store::Layer;
use d7y_transfer::FailureCode;
use d7y_types::Sha256Digest;

use crate::directory::Refill;
use crate::failure::{OpenFailure, chain};
use crate::fetch::Parent;
use crate::layers::{Layers, WATCH_EVERY, inventory_state};
use crate::receive::NoRefill;
use crate::rescue::{End, Reason, turn_after};

/// How long a seed waits for what no parent holds before it reads the origin: parents are being dialled.
const ORPHANED: Duration = Duration::from_millis(500);

/// Whether another peer reads a layer again.
enum Answer {
    Yes,
    No,
    /// None was reached.
    Nothing,
}

impl From<Answer> for End {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Yes | Answer::No => Self::Elsewhere,
            Answer::Nothing => Self::Unanswered,
        }
    }
}

impl Layers {
    /// Somebody waits for chunks of a layer that no peer holds; said again and again for as long as that is so.
    pub fn wait_for(&self, layer: &Layer) {
        self.cases.lock().somebody_waits(layer.digest(), count(layer), Instant::now());
    }

    /// Why nobody who read the layer again since then has filled it.
    pub fn rescue_failure(&self, layer: &Layer, since: Instant) -> Option<OpenFailure> {
        self.cases.lock().failure(layer.digest(), since)
    }

    /// Somebody gave the order to have the layer here: what was tried before is no reason to wait.
    pub fn begin_anew(&self, layer: Sha256Digest) {
        self.cases.lock().begin_anew(layer, Instant::now());
    }

    /// Another peer's readers want chunks that no peer holds. Says whether this one sees to it.
    pub fn asked_to_refill(&self, layer: &Layer, asker: &str) -> Result<(), OpenFailure> {
        let (digest, now) = (layer.digest(), Instant::now());
        let mut cases = self.cases.lock();
        if self.is_whole(layer) {
            return Ok(());
        }
        // The asker tries somebody else.
        if let Some(failure) = cases.refusal(digest, now) {
            return Err(failure);
        }
        if !cases.is_waiting(digest, now) {
            cases.asked(digest, now);
            return Ok(());
        }
        // Both want it: one of the two goes.
        match !self.directory.is_connected() && self.directory.outranks(asker, digest) {
            true => Err(OpenFailure::new(FailureCode::Unavailable, "this peer waits for the same chunks")),
            false => Ok(()),
        }
    }

    /// Does what is due for a layer.
    pub async fn rescue(&self, layer: &Arc<Layer>, reason: Reason) -> Result<End, OpenFailure> {
        if self.is_whole(layer) {
            return Ok(End::Whole);
        }
        if reason == Reason::Alone {
            return self.refill(layer, reason).await;
        }
        let plan = self.directory.plan(layer.digest()).await;
        match (plan.refill, reason) {
            (Refill::Myself, Reason::Asked) => self.fill(layer).await,
            (Refill::Myself, Reason::Early) => Ok(End::Unanswered),
            (Refill::Myself, _) => self.refill(layer, reason).await,
            (Refill::Other(parent), Reason::Early | Reason::Turn | Reason::Readers) => {
                Ok(self.ask_to_refill(&[parent], layer).await.into())
            }
            (_, Reason::Asked) if self.config.seed || !plan.leased => self.fill(layer).await,
            _ if plan.leased => Ok(End::Unanswered),
            _ => {
                // The first configured seed that takes it on, in an order that is the same for all.
                let seeds = self.directory.static_seeds(layer.digest()).await;
                match self.ask_to_refill(&seeds, layer).await {
                    Answer::No | Answer::Nothing if reason == Reason::Readers => {
                        self.refill(layer, reason).await
                    }
                    answer => Ok(answer.into()),
                }
            }
        }
    }

    /// Asks one peer after the other to read the layer again, until one of them sees to it.
    async fn ask_to_refill(&self, peers: &[Parent], layer: &Arc<Layer>) -> Answer {
        let mut answer = Answer::Nothing;
        for peer in peers {
            let (layer, peer) = (layer.reference(), peer.address);
            match self.receiver.ask_to_refill(peer, layer).await {
                Ok(()) => {
                    tracing::debug!(layer = %layer.digest, %peer, "another peer sees to what no peer holds");
                    return Answer::Yes;
                }
                Err(error) => {
                    tracing::debug!(layer = %layer.digest, %peer, error = chain(&error), "it does not read the origin again");
                    if matches!(error, NoRefill::Refused(_)) {
                        answer = Answer::No;
                    }
                }
            }
        }
        answer
    }

    /// Another peer wants what this one lacks: it is fetched where this one can, before the origin is read.
    async fn fill(&self, layer: &Arc<Layer>) -> Result<End, OpenFailure> {
        self.confirmer.start(layer);
        self.reuser.look_and_take(layer).await;
        let bits = if self.config.seed { layer.shareable() } else { layer.readable() };
        let missing = (0..bits.len()).filter(|number| !bits.get(*number)).collect();
        self.fetcher.complete(layer.clone(), missing).await;
        let (mut have, mut since) = (count(layer), Instant::now());
        let reachable = self.find_parents(layer).await;
        let here = || !layer.claimed().is_empty() || !layer.with_twins().is_empty();
        loop {
            let patience = match here() {
                true => self.config.origin_fallback_after,
                false if !reachable => self.orphaned(Duration::ZERO),
                false if self.fetcher.is_orphan(layer.digest()).await => self.orphaned(ORPHANED),
                false => self.config.origin_fallback_after,
            };
            if since.elapsed() >= patience {
                return self.refill(layer, Reason::Asked).await;
            }
            tokio::time::sleep(WATCH_EVERY).await;
            if self.is_whole(layer) {
                return Ok(End::Whole);
            }
            if count(layer) > have {
                (have, since) = (count(layer), Instant::now());
            }
        }
    }

    /// How long nothing may come of what no parent holds before the origin is read for it. A node is asked only where no
    /// seed is left: one of them may be back soon.
    fn orphaned(&self, at_a_seed: Duration) -> Duration {
        if self.config.seed { at_a_seed } else { turn_after(self.config.origin_fallback_after) }
    }

    async fn refill(&self, layer: &Arc<Layer>, reason: Reason) -> Result<End, OpenFailure> {
        let _slot = match self.ingests.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                let slot = self.ingests.acquire().await.expect("never closed");
                // Meanwhile somebody may have come back who has it all.
                if self.is_whole(layer) {
                    return Ok(End::Whole);
                }
                if reason != Reason::Asked && !self.fetcher.is_orphan(layer.digest()).await {
                    return Ok(End::Elsewhere);
                }
                slot
            }
        };
        let _under_way = self.under_way();
        // So that the peers that follow the layer hear of what arrives.
        self.fetcher.add_layer(layer.clone(), false).await;
        tracing::warn!(layer = %layer.digest(), "no peer holds what is waited for; reading the origin again");
        let Err(failure) = self.ingester.refill(layer, &self.fetcher).await else {
            return Ok(if self.is_whole(layer) { End::Whole } else { End::Partly });
        };
        tracing::warn!(layer = %layer.digest(), error = failure.message, "the origin did not help");
        // Somebody else may have the lease.
        self.directory.announce(layer.digest(), State::Failed);
        self.directory.announce(layer.digest(), inventory_state(layer));
        Err(failure)
    }
}

/// Grows with everything that arrives of a layer.
fn count(layer: &Layer) -> u32 {
    layer.readable().count() + layer.shareable().count()
}
