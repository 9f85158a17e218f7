//! What a machine that went down left on this disk counts again only once it is hashed. A chunk that a reader wants is
//! hashed at once (`Store::recover`), the rest of its layer from the first use on: a start reads nothing, and layers that
//! nobody uses are never read.

use std::convert::Infallible;
use std::sync::Arc;

use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_store::{Layer, Store};
use tokio::sync::Semaphore;

use crate::directory::Directory;
use crate::failure::chain;
use crate::fetch::Fetcher;
use crate::layers::inventory_state;
use crate::news::News;

/// Chunks hashed in one turn, some 4 MiB. Layers take turns: a large one does not hold up the others.
const TURN_CHUNKS: usize = 64;

#[derive(Clone)]
pub struct Confirmer {
    pub store: Arc<Store>,
    pub fetcher: Fetcher,
    pub news: Arc<News>,
    pub directory: Arc<Directory>,
    pub tasks: Tasks,
    /// Whether what proves damaged is to be fetched before somebody asks for it.
    pub background: bool,
    /// One thread of hashing leaves the others to readers.
    pub turn: Arc<Semaphore>,
}

impl Confirmer {
    /// Sees to it that all that earlier boots claim of a layer is confirmed or withdrawn.
    pub fn start(&self, layer: &Arc<Layer>) {
        if !layer.begin_confirming() {
            return;
        }
        let (this, layer) = (self.clone(), layer.clone());
        let stopping = self.tasks.shutdown().stopping();
        self.tasks.spawn("confirm a layer", OnEnd::Expected, async move {
            stopping.run_until_cancelled(this.confirm(layer)).await;
            Ok::<_, Infallible>(())
        });
    }

    async fn confirm(self, layer: Arc<Layer>) {
        let claimed = layer.claimed();
        for numbers in claimed.chunks(TURN_CHUNKS) {
            let _turn = self.turn.acquire().await.expect("never closed");
            if !self.store.holds(&layer) {
                return;
            }
            let (numbers, hashed) = (numbers.to_vec(), layer.clone());
            let hash = move || {
                let confirmed = numbers.iter().try_for_each(|number| hashed.confirm(*number));
                confirmed
                    .map(|()| numbers.into_iter().filter(|number| hashed.shareable().get(*number)).collect())
            };
            let shareable: Vec<u32> = match tokio::task::spawn_blocking(hash).await {
                Ok(Ok(shareable)) => shareable,
                Ok(Err(error)) => {
                    // What is left is hashed when a reader wants it, and at the next start.
                    tracing::warn!(layer = %layer.digest(), error = chain(&error), "a layer cannot be confirmed");
                    return;
                }
                Err(_) => return,
            };
            shareable.into_iter().for_each(|number| self.news.announce(layer.pack(), number));
        }
        if let Err(error) = layer.end_confirming() {
            tracing::warn!(layer = %layer.digest(), error = chain(&error), "a layer will be confirmed once more");
        }
        tracing::info!(layer = %layer.digest(), chunks = claimed.len(), "what was on disk before the boot is confirmed");
        self.directory.announce(layer.digest(), inventory_state(&layer));
        self.fetcher.add_layer(layer.clone(), self.background && !layer.readable().is_full()).await;
    }
}
