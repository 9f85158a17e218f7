//! Chunks that other layers of this node hold are taken from there, not from the swarm.
//!
//! Before the fetch loop hears of a layer, the store is asked which of its missing chunks lie in other layers; the loop
//! then does not fetch them. A reader that wants one gets it at once (`Store::recover`). The others follow one turn after
//! the other, where the rest of a layer is fetched without being asked for; who takes turns rests as long as it worked.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_store::{Layer, Store, StoreError};
use tokio::sync::Mutex;

use crate::failure::chain;
use crate::fetch::Fetcher;
use crate::news::News;

/// Chunks taken in one turn, some 4 MiB. Layers take turns.
const TURN_CHUNKS: usize = 64;

#[derive(Clone)]
pub struct Reuser {
    pub store: Arc<Store>,
    pub fetcher: Fetcher,
    pub news: Arc<News>,
    pub tasks: Tasks,
    /// Whether chunks are taken before somebody asks for them.
    pub background: bool,
    /// One layer looks at the others at a time.
    pub looking: Arc<Mutex<()>>,
    /// One layer takes chunks at a time.
    pub turn: Arc<Mutex<()>>,
}

impl Reuser {
    /// Finds out what other layers hold of this one: once per layer, before anything of it is fetched.
    pub async fn look(&self, layer: &Arc<Layer>) {
        if layer.has_looked_for_twins() {
            return;
        }
        let _looking = self.looking.lock().await;
        if layer.has_looked_for_twins() {
            return;
        }
        let (store, found, began) = (self.store.clone(), layer.clone(), Instant::now());
        let found = tokio::task::spawn_blocking(move || store.find_twins(&found)).await.unwrap_or(0);
        let us = began.elapsed().as_micros() as u64;
        tracing::debug!(layer = %layer.digest(), found, us, "looked for its chunks in other layers");
        if found > 0 && self.background {
            self.take_soon(layer);
        }
    }

    /// Looks, and takes all that there is, whatever the configuration says of the background: somebody wants the whole
    /// layer here.
    pub async fn look_and_take(&self, layer: &Arc<Layer>) {
        self.look(layer).await;
        if !self.background && !layer.with_twins().is_empty() {
            self.take_soon(layer);
        }
    }

    fn take_soon(&self, layer: &Arc<Layer>) {
        let (this, layer) = (self.clone(), layer.clone());
        let stopping = self.tasks.shutdown().stopping();
        self.tasks.spawn("take chunks from other layers", OnEnd::Expected, async move {
            stopping.run_until_cancelled(this.take_all(layer)).await;
            Ok::<_, Infallible>(())
        });
    }

    async fn take_all(self, layer: Arc<Layer>) {
        for numbers in layer.with_twins().chunks(TURN_CHUNKS) {
            let turn = self.turn.lock().await;
            if !self.store.holds(&layer) {
                return;
            }
            let (store, to, numbers) = (self.store.clone(), layer.clone(), numbers.to_vec());
            let began = Instant::now();
            let take =
                move || numbers.into_iter().try_for_each(|number| store.take_twin(&to, number).map(drop));
            let taken = tokio::task::spawn_blocking(take).await;
            let took = began.elapsed();
            drop(turn);
            if let Ok(Err(error)) = taken {
                if !matches!(error, StoreError::Full) {
                    tracing::warn!(layer = %layer.digest(), error = chain(&error), "chunks cannot be taken from other layers");
                }
                // Readers still find them there.
                return;
            }
            tokio::time::sleep(took).await;
        }
        tracing::debug!(layer = %layer.digest(), bytes = layer.reused_bytes(), "took from other layers what they had");
        let shared = (0..layer.chunks().len() as u32).filter(|number| layer.shareable().get(*number));
        shared.for_each(|number| self.news.announce(layer.pack(), number));
        // What was not there after all.
        self.fetcher.add_layer(layer.clone(), true).await;
    }
}
