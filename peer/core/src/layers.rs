use std::collections::HashMap;

use crate::LayerKey;
use crate::layer::LayerState;

/// A layer's number within a planner: a queue of a million chunks holds this instead of a digest. Not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LayerId(u32);

/// The layers that a planner knows.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    ids: HashMap<LayerKey, LayerId>,
    /// By id; empty where a layer was removed.
    states: Vec<Option<(LayerKey, LayerState)>>,
}

impl Layers {
    /// Adds a layer unless it is known.
    pub fn add(&mut self, key: LayerKey, make: impl FnOnce() -> LayerState) {
        let states = &mut self.states;
        self.ids.entry(key).or_insert_with(|| {
            states.push(Some((key, make())));
            LayerId(states.len() as u32 - 1)
        });
    }

    pub fn remove(&mut self, key: LayerKey) {
        if let Some(LayerId(at)) = self.ids.remove(&key) {
            self.states[at as usize] = None;
        }
    }

    pub fn id(&self, key: LayerKey) -> Option<LayerId> {
        self.ids.get(&key).copied()
    }

    pub fn get(&self, key: LayerKey) -> Option<&LayerState> {
        self.states[self.id(key)?.0 as usize].as_ref().map(|(_, state)| state)
    }

    pub fn get_mut(&mut self, key: LayerKey) -> Option<(LayerId, &mut LayerState)> {
        let id = self.id(key)?;
        self.by_id(id).map(|(_, state)| (id, state))
    }

    pub fn by_id(&mut self, id: LayerId) -> Option<(LayerKey, &mut LayerState)> {
        self.states[id.0 as usize].as_mut().map(|(key, state)| (*key, state))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut LayerState> {
        self.states.iter_mut().flatten().map(|(_, state)| state)
    }
}
