use std::collections::HashMap;

use d7y_store::Layer;
use d7y_types::PackId;
use parking_lot::Mutex;
use tokio::sync::broadcast;

/// Chunk numbers that a slow listener may fall behind; beyond that it learns by asking.
const BACKLOG: usize = 4096;

/// Tells the peers that follow a layer which chunks arrived here.
#[derive(Debug, Default)]
pub struct News(Mutex<HashMap<PackId, broadcast::Sender<u32>>>);

impl News {
    pub fn announce(&self, pack: PackId, number: u32) {
        let mut layers = self.0.lock();
        if let Some(listeners) = layers.get(&pack)
            && listeners.send(number).is_err()
        {
            layers.remove(&pack);
        }
    }

    /// Says again what is here of a layer: it may have been evicted and read again since somebody followed it.
    pub fn announce_all(&self, layer: &Layer) {
        let shareable = layer.shareable();
        let here = (0..shareable.len()).filter(|number| shareable.get(*number));
        here.for_each(|number| self.announce(layer.pack(), number));
    }

    pub fn follow(&self, pack: PackId) -> broadcast::Receiver<u32> {
        self.0.lock().entry(pack).or_insert_with(|| broadcast::channel(BACKLOG).0).subscribe()
    }
}
