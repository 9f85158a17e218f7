use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::layer::{ChunkState, LayerState};
use crate::layers::{LayerId, Layers};
use crate::parent::{Parent, ParentRole, guess};
use crate::{Bits, Lane, LayerKey};

/// Chunks that wait for a parent's window and are passed over in one call. More would cost time on every arrival.
const LOOK_PAST: usize = 8;

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
    /// Bytes asked of one parent and not yet received, by lane. A demand waits behind at most the lower ones.
    pub window_bytes: [u64; Lane::COUNT],
    /// Background waits until no reader has wanted anything for this long.
    pub quiet: Duration,
    /// A preheat waits while something more urgent is under way, but not longer than this for its next window.
    pub preheat_patience: Duration,
    /// A chunk asked for this long ago is asked of somebody else.
    pub overdue: Duration,
    /// A parent that was late this long ago, has not said a word since, and is late again, hangs.
    pub hanging: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_bytes: [8 << 20, 512 << 10, 256 << 10, 256 << 10],
            quiet: Duration::from_secs(2),
            preheat_patience: Duration::from_millis(250),
            overdue: Duration::from_secs(5),
            hanging: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    /// Where it was asked for.
    lane: Lane,
    /// Who waits for it by now.
    wanted: Lane,
    parent: ParentId,
    since: Instant,
}

/// Owns what is wanted, what is under way and who holds what.
#[derive(Debug)]
pub struct Planner {
    limits: Limits,
    layers: Layers,
    /// Chunks in the order asked for, by lane. An entry whose chunk has moved on is stale and skipped.
    queues: [VecDeque<(LayerId, u32)>; Lane::COUNT],
    parents: HashMap<ParentId, Parent>,
    /// Bounded by the parents' windows.
    in_flight: HashMap<(LayerId, u32), InFlight>,
    /// What was asked for, oldest first. An entry that `in_flight` does not have so is stale and skipped.
    asked: VecDeque<((LayerId, u32), Instant)>,
    last_urgent: Option<Instant>,
    last_preheat: Option<Instant>,
    hanging: BTreeSet<ParentId>,
    /// Spreads the background order of different peers, so that they have something to trade.
    rotation: u64,
}

impl Planner {
    pub fn new(limits: Limits, rotation: u64) -> Self {
        Self {
            limits,
            layers: Layers::default(),
            queues: Default::default(),
            parents: HashMap::new(),
            in_flight: HashMap::new(),
            asked: VecDeque::new(),
            last_urgent: None,
            last_preheat: None,
            hanging: BTreeSet::new(),
            rotation,
        }
    }

    /// `frame_bytes` holds the transfer size of each chunk, 0 for chunks of zeros (which are never fetched).
    pub fn add_layer(&mut self, layer: LayerKey, frame_bytes: Vec<u32>, present: &Bits) {
        self.layers.add(layer, || LayerState::new(frame_bytes, present, self.rotation));
    }

    pub fn remove_layer(&mut self, layer: LayerKey) {
        let Some(id) = self.layers.id(layer) else { return };
        self.requeue(|(of, _), _| *of == id);
        self.layers.remove(layer);
    }

    pub fn add_parent(&mut self, parent: ParentId, role: ParentRole) {
        self.parents.entry(parent).or_insert_with(|| Parent::new(role));
    }

    /// What was under way at the parent is wanted again.
    pub fn remove_parent(&mut self, parent: ParentId) {
        self.parents.remove(&parent);
        self.hanging.remove(&parent);
        self.layers.iter_mut().for_each(|layer| drop(layer.holders.remove(&parent)));
        self.requeue(|_, flight| flight.parent == parent);
    }

    /// What the parent holds of a layer; replaces what it said before.
    pub fn set_holding(&mut self, layer: LayerKey, parent: ParentId, bits: Bits) {
        let known = self.parents.contains_key(&parent);
        let Some((id, state)) = self.layers.get_mut(layer) else { return };
        if known && state.len() == bits.len() {
            state.holders.insert(parent, bits);
            let found = state.unheld_of(parent);
            self.queue_unheld(id, found);
        }
    }

    /// What came to the parent since it said what it holds.
    pub fn add_holding(&mut self, layer: LayerKey, parent: ParentId, chunks: impl IntoIterator<Item = u32>) {
        let Some((id, state)) = self.layers.get_mut(layer) else { return };
        let Some(bits) = state.holders.get_mut(&parent) else { return };
        let chunks: Vec<u32> = chunks.into_iter().collect();
        chunks.iter().for_each(|chunk| bits.set(*chunk));
        self.queue_unheld(id, chunks);
    }

    pub fn is_present(&self, layer: LayerKey, chunk: u32) -> bool {
        self.layers.get(layer).is_some_and(|s| s.chunks.get(chunk as usize) == Some(&ChunkState::Present))
    }

    /// Whether all chunks of a known layer are on this node.
    pub fn is_complete(&self, layer: LayerKey) -> bool {
        self.layers.get(layer).is_some_and(LayerState::is_complete)
    }

    /// Queues what is missing of these chunks; demands of one call are one read, in order.
    pub fn want(&mut self, layer: LayerKey, chunks: impl IntoIterator<Item = u32>, lane: Lane, now: Instant) {
        let Some((id, state)) = self.layers.get_mut(layer) else { return };
        let len = state.len();
        let mut read: Option<Range<u32>> = None;
        for chunk in chunks.into_iter().filter(|chunk| *chunk < len) {
            if state.want(chunk, lane) {
                self.queues[lane as usize].push_back((id, chunk));
            } else if let Some(flight) = self.in_flight.get_mut(&(id, chunk)) {
                flight.wanted = flight.wanted.min(lane);
            }
            read = Some(read.map_or(chunk, |read| read.start)..chunk + 1);
        }
        if let Some(read) = read.filter(|_| lane == Lane::Demand) {
            for chunk in state.read_ahead(read) {
                if state.want(chunk, Lane::Prefetch) {
                    self.queues[Lane::Prefetch as usize].push_back((id, chunk));
                }
            }
        }
        if lane < Lane::Preheat {
            self.last_urgent = Some(now);
        }
    }

    /// Whoever waited for the chunk has given up: nothing is owed any more, but it would do no harm.
    pub fn demote(&mut self, layer: LayerKey, chunk: u32) {
        let Some((id, state)) = self.layers.get_mut(layer) else { return };
        if state.demote(chunk) {
            self.queues[Lane::Background as usize].push_back((id, chunk));
        } else if let Some(flight) = self.in_flight.get_mut(&(id, chunk)) {
            flight.wanted = Lane::Background;
        }
    }

    /// Parents that are connected and do not answer: the caller lets go of them.
    pub fn take_hanging(&mut self) -> BTreeSet<ParentId> {
        std::mem::take(&mut self.hanging)
    }

    /// Queues all that is missing of a layer in the background lane.
    pub fn want_rest(&mut self, layer: LayerKey, now: Instant) {
        let Some(all) = self.layers.get(layer).map(LayerState::all) else { return };
        self.want(layer, all, Lane::Background, now);
    }

    /// A verified chunk is on this node, from whomever.
    pub fn arrived(&mut self, layer: LayerKey, chunk: u32, now: Instant) {
        let Some((id, state)) = self.layers.get_mut(layer) else { return };
        if !state.arrived(chunk) {
            return;
        }
        if let Some(flight) = self.in_flight.remove(&(id, chunk))
            && let Some(parent) = self.parents.get_mut(&flight.parent)
        {
            parent.delivered(flight.lane, state.weight(chunk), now);
        }
    }

    /// The parent said that it has no such chunk, or sent a bad one: ask another.
    pub fn refused(&mut self, layer: LayerKey, chunk: u32, by: ParentId) {
        let Some((id, state)) = self.layers.get_mut(layer) else { return };
        if let Some(bits) = state.holders.get_mut(&by) {
            bits.clear(chunk);
        }
        self.parents.entry(by).and_modify(Parent::answered);
        if self.in_flight.get(&(id, chunk)).is_some_and(|flight| flight.parent == by) {
            self.put_back(id, chunk);
        }
    }

    /// A chunk could not be kept (disk full): it was delivered, but is absent again.
    pub fn dropped(&mut self, layer: LayerKey, chunk: u32, now: Instant) {
        self.arrived(layer, chunk, now);
        if let Some((_, state)) = self.layers.get_mut(layer) {
            state.gone(chunk);
        }
    }

    /// Whether a chunk that no parent holds is wanted in this lane or a more urgent one.
    pub fn has_orphans(&self, layer: LayerKey, lane: Lane) -> bool {
        self.layers.get(layer).is_some_and(|layer| layer.has_unheld(lane))
    }

    /// Requests to send now, highest lane first.
    pub fn next_requests(&mut self, now: Instant) -> Vec<Request> {
        self.requeue_overdue(now);
        let mut requests = Vec::new();
        let plan = |lane| self.plan_lane(lane, now, &mut requests);
        let readers_served = [Lane::Demand, Lane::Prefetch].into_iter().all(plan);
        let undisturbed = readers_served && !self.parents.values().any(Parent::is_urgent);
        let starved = self
            .last_preheat
            .is_none_or(|at| now.saturating_duration_since(at) >= self.limits.preheat_patience);
        if undisturbed || starved {
            let before = requests.len();
            let preheats_served = self.plan_lane(Lane::Preheat, now, &mut requests);
            if requests.len() > before {
                self.last_preheat = Some(now);
            }
            if readers_served && preheats_served && self.is_quiet(now) {
                self.plan_lane(Lane::Background, now, &mut requests);
            }
        }
        requests
    }

    /// When to call `next_requests` again although nothing happened.
    pub fn next_wake(&self, now: Instant) -> Duration {
        let soon = match self.last_urgent {
            Some(at) if !self.is_quiet(now) => (at + self.limits.quiet).saturating_duration_since(now),
            _ => self.limits.overdue,
        };
        let preheat = match self.queues[Lane::Preheat as usize].is_empty() {
            true => Duration::MAX,
            false => self.limits.preheat_patience,
        };
        soon.min(preheat).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.last_urgent.is_none_or(|at| now.saturating_duration_since(at) >= self.limits.quiet)
    }

    /// Assigns what waits in a lane; false when something that has holders is left for want of window.
    fn plan_lane(&mut self, lane: Lane, now: Instant, out: &mut Vec<Request>) -> bool {
        let window = self.limits.window_bytes[lane as usize];
        let guess = guess(self.parents.values());
        // What waits for the window of one parent does not keep what others hold.
        let mut blocked = Vec::new();
        while blocked.len() < LOOK_PAST
            && let Some((id, chunk)) = self.queues[lane as usize].pop_front()
        {
            let layer = self.layers.by_id(id).filter(|(_, state)| state.waits_in(chunk, lane));
            let Some((key, state)) = layer else { continue };
            match choose(&self.parents, state, chunk, Terms { lane, window_bytes: window, guess }) {
                Choice::NoWindow => blocked.push((id, chunk)),
                Choice::NoHolder => state.set_aside(chunk, lane),
                Choice::Parent(parent) => {
                    state.replace(chunk, ChunkState::InFlight);
                    let flight = InFlight { lane, wanted: lane, parent, since: now };
                    self.in_flight.insert((id, chunk), flight);
                    self.asked.push_back(((id, chunk), now));
                    let chosen = self.parents.get_mut(&parent).expect("chosen from this map");
                    chosen.asked(lane, state.weight(chunk), now);
                    append(out, parent, key, lane, chunk);
                }
            }
        }
        let done = blocked.is_empty();
        blocked.into_iter().rev().for_each(|entry| self.queues[lane as usize].push_front(entry));
        done
    }

    fn queue_unheld(&mut self, id: LayerId, chunks: Vec<u32>) {
        let Some((_, state)) = self.layers.by_id(id) else { return };
        for chunk in chunks {
            if let Some(lane) = state.take_back(chunk) {
                self.queues[lane as usize].push_back((id, chunk));
            }
        }
    }

    /// Parents that let chunks become overdue are thought slower from now on, so that others are asked.
    fn requeue_overdue(&mut self, now: Instant) {
        let mut overdue = Vec::new();
        while let Some((key, since)) = self.asked.front() {
            let flight = self.in_flight.get(key).filter(|flight| flight.since == *since);
            if flight.is_some() && now.saturating_duration_since(*since) < self.limits.overdue {
                break;
            }
            overdue.extend(flight.map(|flight| (*key, flight.parent)));
            self.asked.pop_front();
        }
        let late: BTreeSet<ParentId> = overdue.iter().map(|(_, parent)| *parent).collect();
        for parent in late {
            let Some(late) = self.parents.get_mut(&parent) else { continue };
            late.is_late(now);
            if late.hangs(now, self.limits.hanging) {
                self.hanging.insert(parent);
            }
        }
        // Backwards, so that the first is the first again.
        overdue.into_iter().rev().for_each(|((id, chunk), _)| self.put_back(id, chunk));
    }

    fn requeue(&mut self, which: impl Fn(&(LayerId, u32), &InFlight) -> bool) {
        let hit = self.in_flight.iter().filter(|(key, flight)| which(key, flight));
        let mut hit: Vec<_> = hit.map(|(key, _)| *key).collect();
        hit.sort_unstable();
        hit.into_iter().rev().for_each(|(id, chunk)| self.put_back(id, chunk));
    }

    fn put_back(&mut self, id: LayerId, chunk: u32) {
        let Some(flight) = self.in_flight.remove(&(id, chunk)) else { return };
        let Some((_, state)) = self.layers.by_id(id) else { return };
        state.replace(chunk, ChunkState::Wanted(flight.wanted));
        self.queues[flight.wanted as usize].push_front((id, chunk));
        if let Some(parent) = self.parents.get_mut(&flight.parent) {
            parent.forget(flight.lane, state.weight(chunk));
        }
    }
}

/// What a choice goes by, beside who holds the chunk.
#[derive(Clone, Copy)]
struct Terms {
    lane: Lane,
    window_bytes: u64,
    /// The rate of a parent that has shown none, in bytes per second.
    guess: f64,
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
    Terms { lane, window_bytes, guess }: Terms,
) -> Choice {
    let bytes = state.weight(chunk);
    let mut best: Option<(f64, ParentId, bool)> = None;
    for (id, bits) in &state.holders {
        let Some(parent) = parents.get(id).filter(|_| bits.get(chunk)) else { continue };
        let cost = parent.cost(lane, bytes, guess);
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
