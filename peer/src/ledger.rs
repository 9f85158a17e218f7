//! Who gave what, by layer, since the peer started: for people who look at the node, not for decisions.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use d7y_types::Sha256Digest;
use parking_lot::Mutex;

use crate::fetch::Parent;
use crate::metrics::Source;

/// Layers that are remembered; of more, those that received nothing for longest are forgotten.
const MAX_LAYERS: usize = 4096;

/// What a layer received.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    pub origin_bytes: u64,
    pub seed_bytes: u64,
    pub node_bytes: u64,
    last: Instant,
}

#[derive(Debug, Default)]
pub struct Ledger {
    layers: Mutex<HashMap<Sha256Digest, Received>>,
    parents: Mutex<Vec<Parent>>,
}

impl Ledger {
    pub fn received(&self, layer: Sha256Digest, source: Source, bytes: u64) {
        let mut layers = self.layers.lock();
        if layers.len() >= MAX_LAYERS && !layers.contains_key(&layer) {
            let oldest = layers.iter().min_by_key(|(_, received)| received.last).map(|(layer, _)| *layer);
            oldest.and_then(|oldest| layers.remove(&oldest));
        }
        let entry = layers.entry(layer).or_insert_with(Received::nothing);
        entry.last = Instant::now();
        match source {
            Source::origin => entry.origin_bytes += bytes,
            Source::seed => entry.seed_bytes += bytes,
            Source::node => entry.node_bytes += bytes,
        }
    }

    pub fn of(&self, layer: Sha256Digest) -> Option<Received> {
        self.layers.lock().get(&layer).copied()
    }

    /// Replaces the parents with an open connection.
    pub fn set_parents(&self, parents: impl Iterator<Item = Parent>) {
        *self.parents.lock() = parents.collect();
    }

    pub fn parents(&self) -> Vec<Parent> {
        self.parents.lock().clone()
    }
}

impl Received {
    fn nothing() -> Self {
        Self { origin_bytes: 0, seed_bytes: 0, node_bytes: 0, last: Instant::now() }
    }

    /// How long ago the last bytes came.
    pub fn quiet(&self) -> Duration {
        self.last.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_add_up_by_layer_and_the_quietest_layer_is_forgotten() {
        let ledger = Ledger::default();
        let layer = |number: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_le_bytes());
            Sha256Digest(digest)
        };
        ledger.received(layer(0), Source::seed, 5);
        ledger.received(layer(0), Source::seed, 2);
        ledger.received(layer(0), Source::origin, 1);
        let found = ledger.of(layer(0)).unwrap();
        assert_eq!((found.origin_bytes, found.seed_bytes, found.node_bytes), (1, 7, 0));
        for number in 1..=MAX_LAYERS {
            ledger.received(layer(number), Source::node, 1);
        }
        assert!(ledger.of(layer(0)).is_none() && ledger.of(layer(1)).is_some());
        assert_eq!(ledger.layers.lock().len(), MAX_LAYERS);
    }
}
