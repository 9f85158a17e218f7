use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::layer::{ChunkState, LayerState};
use crate::parent::{Parent, ParentRole};
use crate::{Bits, Lane, LayerKey};

/// A parent, as numbered by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParentId(pub u32);

/// Chunks to ask of one parent in one message.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub parent: ParentId,
    pub layer: LayerKey,
    pub lane: Lane,
    pub chunks: Vec<u32>,
}

#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes asked of one parent and not yet received, by lane. A demand waits behind at most the lower two.
    pub window_bytes: [u64; 3],
    /// Background waits until nothing of a higher lane was asked for this long.
    pub quiet: Duration,
    /// A chunk asked for this long ago is asked of somebody else.
    pub overdue: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_bytes: [8 << 20, 512 << 10, 256 << 10],
            quiet: Duration::from_secs(2),
            overdue: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    lane: Lane,
    parent: ParentId,
    since: Instant,
}

/// Owns what is wanted, what is under way and who holds what.
#[derive(Debug)]
pub struct Planner {
    limits: Limits,
    layers: HashMap<LayerKey, LayerState>,
    /// Chunks in the order asked for, by lane. An entry whose chunk has moved on is stale and skipped.
    queues: [VecDeque<(LayerKey, u32)>; 3],
    parents: HashMap<ParentId, Parent>,
    /// Bounded by the parents' windows.
    in_flight: HashMap<(LayerKey, u32), InFlight>,
    last_urgent: Option<Instant>,
    /// Spreads the background order of different peers, so that they have something to trade.
    rotation: u64,
}

impl Planner {
    pub fn new(limits: Limits, rotation: u64) -> Self {
        Self {
            limits,
            layers: HashMap::new(),
            queues: Default::default(),
            parents: HashMap::new(),
            in_flight: HashMap::new(),
            last_urgent: None,
            rotation,
        }
    }

    /// `frame_bytes` holds the transfer size of each chunk, 0 for chunks of zeros (which are never fetched).
    pub fn add_layer(&mut self, layer: LayerKey, frame_bytes: Vec<u32>, present: &Bits) {
        if let Entry::Vacant(slot) = self.layers.entry(layer) {
            slot.insert(LayerState::new(frame_bytes, present));
        }
    }

    pub fn remove_layer(&mut self, layer: LayerKey) {
        self.layers.remove(&layer);
        self.in_flight.retain(|(key, _), _| *key != layer);
    }

    pub fn add_parent(&mut self, parent: ParentId, role: ParentRole) {
        self.parents.entry(parent).or_insert_with(|| Parent::new(role));
    }

    /// What was under way at the parent is wanted again.
    pub fn remove_parent(&mut self, parent: ParentId) {
        self.parents.remove(&parent);
        self.layers.values_mut().for_each(|layer| drop(layer.holders.remove(&parent)));
        self.requeue(|flight| flight.parent == parent);
    }

    /// What the parent holds of a layer; replaces what it said before.
    pub fn set_holding(&mut self, layer: LayerKey, parent: ParentId, bits: Bits) {
        let known = self.parents.contains_key(&parent);
        if let Some(state) = self.layers.get_mut(&layer).filter(|state| known && state.len() == bits.len()) {
            state.holders.insert(parent, bits);
            self.queue_unheld(layer);
        }
    }

    pub fn add_holding(&mut self, layer: LayerKey, parent: ParentId, chunks: impl IntoIterator<Item = u32>) {
        let Some(state) = self.layers.get_mut(&layer) else { return };
        let Some(bits) = state.holders.get_mut(&parent) else { return };
        chunks.into_iter().for_each(|chunk| bits.set(chunk));
        self.queue_unheld(layer);
    }

    pub fn is_present(&self, layer: LayerKey, chunk: u32) -> bool {
        self.layers.get(&layer).is_some_and(|s| s.chunks.get(chunk as usize) == Some(&ChunkState::Present))
    }

    /// Whether all chunks of a known layer are on this node.
    pub fn is_complete(&self, layer: LayerKey) -> bool {
        self.layers.get(&layer).is_some_and(LayerState::is_complete)
    }

    pub fn want(&mut self, layer: LayerKey, chunks: impl IntoIterator<Item = u32>, lane: Lane, now: Instant) {
        let Some(state) = self.layers.get_mut(&layer) else { return };
        let mut ahead = 0..0;
        for chunk in chunks {
            if state.want(chunk, lane) {
                self.queues[lane as usize].push_back((layer, chunk));
            }
            if lane == Lane::Demand {
                ahead = state.read_ahead(chunk);
            }
        }
        for chunk in ahead {
            if state.want(chunk, Lane::Prefetch) {
                self.queues[Lane::Prefetch as usize].push_back((layer, chunk));
            }
        }
        if lane != Lane::Background {
            self.last_urgent = Some(now);
        }
    }

    /// Queues all that is missing of a layer in the background lane.
    pub fn want_rest(&mut self, layer: LayerKey, now: Instant) {
        let Some(len) = self.layers.get(&layer).map(LayerState::len) else { return };
        let start = if len == 0 { 0 } else { (self.rotation % u64::from(len)) as u32 };
        self.want(layer, (start..len).chain(0..start), Lane::Background, now);
    }

    /// A verified chunk is on this node, from whomever.
    pub fn arrived(&mut self, layer: LayerKey, chunk: u32, now: Instant) {
        let Some(state) = self.layers.get_mut(&layer) else { return };
        if !state.arrived(chunk) {
            return;
        }
        if let Some(flight) = self.in_flight.remove(&(layer, chunk))
            && let Some(parent) = self.parents.get_mut(&flight.parent)
        {
            parent.delivered(flight.lane, u64::from(state.frame_bytes[chunk as usize]), now);
        }
    }

    /// The parent said that it has no such chunk, or sent a bad one: ask another.
    pub fn refused(&mut self, layer: LayerKey, chunk: u32, by: ParentId) {
        let Some(state) = self.layers.get_mut(&layer) else { return };
        if let Some(bits) = state.holders.get_mut(&by) {
            bits.clear(chunk);
        }
        if self.in_flight.get(&(layer, chunk)).is_some_and(|flight| flight.parent == by) {
            self.put_back(layer, chunk);
        }
    }

    /// A chunk could not be kept (disk full): it was delivered, but is absent again.
    pub fn dropped(&mut self, layer: LayerKey, chunk: u32, now: Instant) {
        self.arrived(layer, chunk, now);
        if let Some(state) = self.layers.get_mut(&layer) {
            state.gone(chunk);
        }
    }

    /// Whether somebody waits for a chunk that no parent holds.
    pub fn has_orphans(&self, layer: LayerKey) -> bool {
        self.layers.get(&layer).is_some_and(LayerState::has_unheld_demand)
    }

    /// Requests to send now, highest lane first.
    pub fn next_requests(&mut self, now: Instant) -> Vec<Request> {
        let overdue = self.limits.overdue;
        self.requeue(|flight| now.saturating_duration_since(flight.since) >= overdue);
        let mut requests = Vec::new();
        for lane in Lane::ALL {
            if lane == Lane::Background && !self.is_quiet(now) {
                break;
            }
            if !self.plan_lane(lane, now, &mut requests) {
                break;
            }
        }
        requests
    }

    /// When to call `next_requests` again although nothing happened.
    pub fn next_wake(&self, now: Instant) -> Duration {
        match self.last_urgent {
            Some(at) if !self.is_quiet(now) => (at + self.limits.quiet).saturating_duration_since(now),
            _ => self.limits.overdue,
        }
        .clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.last_urgent.is_none_or(|at| now.saturating_duration_since(at) >= self.limits.quiet)
    }

    /// Assigns what waits in a lane; false when something that has holders is left for want of window.
    fn plan_lane(&mut self, lane: Lane, now: Instant, out: &mut Vec<Request>) -> bool {
        let window = self.limits.window_bytes[lane as usize];
        while let Some(&(key, chunk)) = self.queues[lane as usize].front() {
            let Some(state) = self.layers.get_mut(&key).filter(|state| state.waits_in(chunk, lane)) else {
                self.queues[lane as usize].pop_front();
                continue;
            };
            let bytes = u64::from(state.frame_bytes[chunk as usize]);
            match choose(&self.parents, state, chunk, lane, window) {
                Choice::NoWindow => return false,
                Choice::NoHolder => state.set_aside(chunk),
                Choice::Parent(parent) => {
                    state.chunks[chunk as usize] = ChunkState::InFlight;
                    self.in_flight.insert((key, chunk), InFlight { lane, parent, since: now });
                    self.parents.get_mut(&parent).expect("chosen from this map").asked(lane, bytes, now);
                    append(out, parent, key, lane, chunk);
                }
            }
            self.queues[lane as usize].pop_front();
        }
        true
    }

    fn queue_unheld(&mut self, layer: LayerKey) {
        let Some(state) = self.layers.get_mut(&layer) else { return };
        for (chunk, lane) in state.take_unheld() {
            self.queues[lane as usize].push_back((layer, chunk));
        }
    }

    fn requeue(&mut self, which: impl Fn(&InFlight) -> bool) {
        let hit: Vec<_> = self.in_flight.iter().filter(|(_, f)| which(f)).map(|(key, _)| *key).collect();
        hit.into_iter().for_each(|(layer, chunk)| self.put_back(layer, chunk));
    }

    fn put_back(&mut self, layer: LayerKey, chunk: u32) {
        let Some(flight) = self.in_flight.remove(&(layer, chunk)) else { return };
        let Some(state) = self.layers.get_mut(&layer) else { return };
        state.chunks[chunk as usize] = ChunkState::Wanted(flight.lane);
        self.queues[flight.lane as usize].push_front((layer, chunk));
        if let Some(parent) = self.parents.get_mut(&flight.parent) {
            parent.forget(flight.lane, u64::from(state.frame_bytes[chunk as usize]));
        }
    }
}

enum Choice {
    Parent(ParentId),
    NoWindow,
    NoHolder,
}

/// The holder with the shortest estimated queue. When its window is full the chunk waits for it: another holder would
/// take longer still.
fn choose(
    parents: &HashMap<ParentId, Parent>,
    state: &LayerState,
    chunk: u32,
    lane: Lane,
    window_bytes: u64,
) -> Choice {
    let bytes = u64::from(state.frame_bytes[chunk as usize]);
    let mut best: Option<(f64, ParentId, bool)> = None;
    for (id, bits) in &state.holders {
        let Some(parent) = parents.get(id).filter(|_| bits.get(chunk)) else { continue };
        let cost = parent.cost(lane, bytes);
        if best.is_none_or(|(least, at, _)| (cost, *id) < (least, at)) {
            best = Some((cost, *id, parent.has_room(lane, bytes, window_bytes)));
        }
    }
    match best {
        Some((_, parent, true)) => Choice::Parent(parent),
        Some(_) => Choice::NoWindow,
        None => Choice::NoHolder,
    }
}

fn append(out: &mut Vec<Request>, parent: ParentId, layer: LayerKey, lane: Lane, chunk: u32) {
    let open = out.iter_mut().find(|r| r.parent == parent && r.layer == layer && r.lane == lane);
    match open {
        Some(request) => request.chunks.push(chunk),
        None => out.push(Request { parent, layer, lane, chunks: vec![chunk] }),
    }
}

#[cfg(test)]
mod tests;
