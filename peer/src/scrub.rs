//! Goes round all layers on this disk and looks for damage, slowly enough not to be felt.
//!
//! One task, one layer after the other, in no order: a peer that is restarted often begins elsewhere each time. What the
//! store cannot mend itself is fetched, and asked for again and again when nobody gives it: who has the device mounted asks
//! nobody. Nothing is remembered over a restart.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use d7y_store::{Layer, Scrub, Scrubbed, StoreError};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::ScrubConfig;
use crate::failure::chain;
use crate::layers::{Layers, Lost};

/// Chunks read in one turn, 1 to 2 MiB.
const TURN_CHUNKS: usize = 16;
/// A start is when containers start, too: they have the disk first.
const FIRST_AFTER: Duration = Duration::from_secs(600);
/// So many times the patience of a node pass before what nobody gave is asked for again.
const ASK_AGAIN: u32 = 60;

pub struct Scrubber {
    layers: Arc<Layers>,
    settings: watch::Receiver<ScrubConfig>,
    /// Data that the disk lost and nobody gave: no more than the layers have chunks.
    owed: Vec<Owed>,
    asked: Instant,
}

struct Owed {
    layer: Weak<Layer>,
    chunks: Vec<u32>,
}

impl Scrubber {
    pub fn new(layers: Arc<Layers>, settings: watch::Receiver<ScrubConfig>) -> Self {
        Self { layers, settings, owed: Vec::new(), asked: Instant::now() }
    }

    pub async fn run(mut self) {
        let started = Instant::now();
        rest(&mut self.settings, started, FIRST_AFTER).await;
        loop {
            let began = Instant::now();
            // Weak: a pass takes hours, and an evicted layer must not keep its space.
            let layers: Vec<_> = self.layers.store.layers().iter().map(Arc::downgrade).collect();
            for layer in layers.iter().filter_map(Weak::upgrade) {
                // Since the pass began another may have taken its place, under the same name.
                if !self.layers.store.holds(&layer) {
                    continue;
                }
                if let Err(error) = self.scrub(&layer).await
                    && self.layers.store.holds(&layer)
                {
                    tracing::warn!(layer = %layer.digest(), error = chain(&error), "a layer cannot be scrubbed");
                }
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.layers.metrics.scrub_finished.set(now.as_secs());
            loop {
                let again = self.asked + self.layers.config.origin_fallback_after * ASK_AGAIN;
                tokio::select! {
                    () = rest(&mut self.settings, began, Duration::MAX) => break,
                    () = tokio::time::sleep_until(again), if !self.owed.is_empty() => {}
                }
                self.ask_again().await;
            }
        }
    }

    /// At its time, one layer after the other.
    async fn ask_again(&mut self) {
        if self.owed.is_empty() || self.asked.elapsed() < self.layers.config.origin_fallback_after * ASK_AGAIN
        {
            return;
        }
        for Owed { layer, mut chunks } in std::mem::take(&mut self.owed) {
            let Some(layer) = layer.upgrade().filter(|layer| self.layers.store.holds(layer)) else {
                continue;
            };
            chunks.retain(|number| !layer.readable().get(*number));
            self.refetch(&layer, Lost { data: chunks, frames: Vec::new() }).await;
        }
        self.asked = Instant::now();
    }

    async fn scrub(&mut self, layer: &Arc<Layer>) -> Result<(), StoreError> {
        let (store, of) = (self.layers.store.clone(), layer.clone());
        let begun = blocking(move || {
            let scrub = Scrub::begin(&store, &of)?;
            let index_whole = scrub.check_files()?;
            Ok((scrub, index_whole))
        });
        let Some((mut scrub, index_whole)) = begun.await? else { return Ok(()) };
        if !index_whole && !self.layers.replace_index(layer).await? {
            tracing::warn!(layer = %layer.digest(), "a mounted layer has a damaged index; restart d7y-peer to have it fetched anew");
        }
        let numbers: Vec<u32> = (0..layer.chunks().len() as u32).collect();
        for numbers in numbers.chunks(TURN_CHUNKS) {
            if !self.layers.store.holds(layer) {
                return Ok(());
            }
            let (numbers, began) = (numbers.to_vec(), Instant::now());
            let looks = {
                // Hashing for readers has its turn, too.
                let _turn = self.layers.confirmer.turn.acquire().await.expect("never closed");
                let look = move || {
                    let looks: Result<Vec<(u32, Scrubbed)>, StoreError> =
                        numbers.into_iter().map(|number| Ok((number, scrub.check(number)?))).collect();
                    looks.map(|looks| (scrub, looks))
                };
                blocking(look).await?
            };
            let Some((again, looks)) = looks else { return Ok(()) };
            scrub = again;
            self.found(layer, &looks).await;
            self.ask_again().await;
            let bytes = looks.iter().map(|(_, look)| look.read_bytes).sum();
            self.pace(began, bytes).await;
        }
        Ok(())
    }

    async fn found(&mut self, layer: &Arc<Layer>, looks: &[(u32, Scrubbed)]) {
        let of = |lost: fn(&Scrubbed) -> bool| {
            looks.iter().filter(|(_, look)| lost(look)).map(|(number, _)| *number).collect::<Vec<u32>>()
        };
        let lost = Lost { data: of(|look| look.data_lost), frames: of(|look| look.frame_lost) };
        self.refetch(layer, lost).await;
    }

    async fn refetch(&mut self, layer: &Arc<Layer>, lost: Lost) {
        if lost.data.is_empty() && lost.frames.is_empty() {
            return;
        }
        let mut chunks = lost.data.clone();
        let Err(error) = self.layers.refetch(layer, lost).await else { return };
        tracing::warn!(layer = %layer.digest(), error = chain(&error), "damaged chunks are not fetched yet");
        chunks.retain(|number| !layer.readable().get(*number));
        if self.owed.is_empty() {
            self.asked = Instant::now();
        }
        let layer = Arc::downgrade(layer);
        match self.owed.iter_mut().find(|owed| owed.layer.ptr_eq(&layer)) {
            Some(owed) => owed.chunks.extend(chunks),
            None => self.owed.push(Owed { layer, chunks }),
        }
    }

    /// Waits until so many bytes may have been read since then.
    async fn pace(&mut self, began: Instant, bytes: u64) {
        self.layers.metrics.scrubbed_bytes.inc_by(bytes);
        let rate = self.settings.borrow().rate.as_u64();
        if rate == 0 {
            rest(&mut self.settings, began, Duration::ZERO).await;
            return;
        }
        let owed = Duration::from_secs_f64(bytes as f64 / rate as f64);
        tokio::time::sleep(owed.saturating_sub(began.elapsed())).await;
    }
}

/// Until the interval, or less, has passed since then, and for as long as scrubbing is off.
async fn rest(settings: &mut watch::Receiver<ScrubConfig>, since: Instant, most: Duration) {
    loop {
        let ScrubConfig { rate, interval } = settings.borrow_and_update().clone();
        let left = interval.get().min(most).saturating_sub(since.elapsed());
        if rate.as_u64() > 0 && left.is_zero() {
            return;
        }
        let wait = if rate.as_u64() > 0 { left } else { Duration::MAX };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = settings.changed() => if changed.is_err() {
                // The daemon stops.
                std::future::pending().await
            },
        }
    }
}

/// Nothing when the daemon stops.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<Option<T>, StoreError> {
    tokio::task::spawn_blocking(work).await.ok().transpose()
}

#[cfg(test)]
mod tests {
    use d7y_chassis::config::ByteSize;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pass_begins_at_its_time_unless_switched_off() {
        let (changes, mut settings) = watch::channel(ScrubConfig::default());
        let mut rested = async |most| {
            let began = Instant::now();
            rest(&mut settings, began, most).await;
            began.elapsed().as_secs()
        };
        assert_eq!(rested(FIRST_AFTER).await, 600);
        assert_eq!(rested(Duration::MAX).await, 24 * 3600);
        let set = |mib: u64, hours: u64| {
            changes.send_modify(|now| {
                now.rate = ByteSize::mib(mib);
                now.interval = d7y_chassis::HumanDuration::from_secs(hours * 3600);
            });
        };
        set(0, 24);
        let changing = async {
            tokio::time::sleep(Duration::from_secs(100 * 3600)).await;
            set(1, 101);
        };
        assert_eq!(tokio::join!(rested(Duration::MAX), changing).0, 101 * 3600);
    }
}
