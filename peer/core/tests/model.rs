//! The planner against a model that knows only what it was told: any events, in any order.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use d7y_peer_core::{Bits, Lane, LayerKey, Limits, ParentId, ParentRole, Planner, Request};
use d7y_types::Sha256Digest;
use proptest::prelude::*;

const LAYERS: u8 = 2;
const CHUNKS: u32 = 48;
const PARENTS: u32 = 4;
/// Fits several, one, or none of the frames.
const WINDOWS: [u64; Lane::COUNT] = [900, 500, 250, 250];
const MIN_WEIGHT_BYTES: u64 = 64;

#[derive(Debug, Clone)]
enum Event {
    Want { layer: u8, first: u32, count: u32, lane: Lane },
    WantRest(u8),
    Join { parent: u32, role: bool },
    Lose(u32),
    Holds { layer: u8, parent: u32, bits: u64 },
    Gains { layer: u8, parent: u32, chunk: u32 },
    Deliver(usize),
    Refuse(usize),
    RefuseUnasked { layer: u8, chunk: u32, parent: u32 },
    ComeByItself { layer: u8, chunk: u32 },
    Drop { layer: u8, chunk: u32 },
    GiveUp { layer: u8, chunk: u32 },
    RemoveLayer(u8),
    AddLayer(u8),
    Pass(u64),
}

/// Layers past the last are unknown, and numbers past the end are sent by buggy or hostile peers.
fn event() -> impl Strategy<Value = Event> {
    let layer = || 0..=LAYERS;
    let parent = || 0..=PARENTS;
    let chunk = || prop_oneof![20 => 0..CHUNKS, 1 => CHUNKS..CHUNKS + 3, 1 => u32::MAX - 2..=u32::MAX];
    let lane = prop::sample::select(Lane::ALL.to_vec());
    let count = prop_oneof![4 => 1..5_u32, 1 => 1..60_u32];
    prop_oneof![
        8 => (layer(), chunk(), count, lane)
            .prop_map(|(layer, first, count, lane)| Event::Want { layer, first, count, lane }),
        1 => layer().prop_map(Event::WantRest),
        2 => (parent(), any::<bool>()).prop_map(|(parent, role)| Event::Join { parent, role }),
        1 => parent().prop_map(Event::Lose),
        3 => (layer(), parent(), any::<u64>())
            .prop_map(|(layer, parent, bits)| Event::Holds { layer, parent, bits }),
        4 => (layer(), parent(), chunk())
            .prop_map(|(layer, parent, chunk)| Event::Gains { layer, parent, chunk }),
        12 => any::<usize>().prop_map(Event::Deliver),
        2 => any::<usize>().prop_map(Event::Refuse),
        1 => (layer(), chunk(), parent())
            .prop_map(|(layer, chunk, parent)| Event::RefuseUnasked { layer, chunk, parent }),
        1 => (layer(), chunk()).prop_map(|(layer, chunk)| Event::ComeByItself { layer, chunk }),
        1 => (layer(), chunk()).prop_map(|(layer, chunk)| Event::Drop { layer, chunk }),
        2 => (layer(), chunk()).prop_map(|(layer, chunk)| Event::GiveUp { layer, chunk }),
        1 => layer().prop_map(Event::RemoveLayer),
        1 => (0..LAYERS).prop_map(Event::AddLayer),
        4 => (0..4_000_u64).prop_map(Event::Pass),
    ]
}

fn key(layer: u8) -> LayerKey {
    Sha256Digest([layer; 32])
}

/// Zeros, tiny frames and such as fit no window but demand's.
fn frame_bytes(chunk: u32) -> u32 {
    [0, 30, 100, 220, 700][chunk as usize % 5]
}

fn weight(chunk: u32) -> u64 {
    u64::from(frame_bytes(chunk)).max(MIN_WEIGHT_BYTES)
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    parent: u32,
    lane: Lane,
    since: Instant,
}

/// What was said about a layer.
#[derive(Debug, Default)]
struct Said {
    present: BTreeSet<u32>,
    wanted: BTreeMap<u32, Lane>,
    holders: BTreeMap<u32, BTreeSet<u32>>,
}

struct Model {
    planner: Planner,
    layers: BTreeMap<u8, Said>,
    parents: BTreeSet<u32>,
    flights: BTreeMap<(u8, u32), Flight>,
    now: Instant,
    last_urgent: Option<Instant>,
    last_preheat: Option<Instant>,
    limits: Limits,
}

impl Model {
    fn new() -> Self {
        let limits = Limits { window_bytes: WINDOWS, ..Limits::default() };
        let mut model = Self {
            planner: Planner::new(limits.clone(), 1_000_003),
            layers: BTreeMap::new(),
            parents: BTreeSet::new(),
            flights: BTreeMap::new(),
            now: Instant::now(),
            last_urgent: None,
            last_preheat: None,
            limits,
        };
        (0..LAYERS).for_each(|layer| model.add_layer(layer));
        model
    }

    fn add_layer(&mut self, layer: u8) {
        let sizes = (0..CHUNKS).map(frame_bytes).collect();
        self.planner.add_layer(key(layer), sizes, &Bits::new(CHUNKS));
        let zeros = (0..CHUNKS).filter(|n| frame_bytes(*n) == 0).collect();
        self.layers.entry(layer).or_insert(Said { present: zeros, ..Said::default() });
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Want { layer, first, count, lane } => {
                self.want(layer, (first..=first.saturating_add(count - 1)).collect(), lane);
            }
            Event::WantRest(layer) => {
                self.planner.want_rest(key(layer), self.now);
                self.note_wanted(layer, (0..CHUNKS).collect(), Lane::Background);
            }
            Event::Join { parent, role } => self.join(parent, role),
            Event::Lose(parent) => self.lose(parent),
            Event::Holds { layer, parent, bits } => self.holds(layer, parent, bits),
            Event::Gains { layer, parent, chunk } => {
                self.planner.add_holding(key(layer), ParentId(parent), [chunk]);
                if let Some(held) = self.layers.get_mut(&layer).and_then(|l| l.holders.get_mut(&parent)) {
                    held.extend(Some(chunk).filter(|n| *n < CHUNKS));
                }
            }
            Event::Deliver(nth) => {
                if let Some(((layer, chunk), _)) = self.nth_flight(nth) {
                    self.arrive(layer, chunk);
                }
            }
            Event::Refuse(nth) => {
                if let Some(((layer, chunk), flight)) = self.nth_flight(nth) {
                    self.refuse(layer, chunk, flight.parent);
                }
            }
            Event::RefuseUnasked { layer, chunk, parent } => self.refuse(layer, chunk, parent),
            Event::ComeByItself { layer, chunk } => self.arrive(layer, chunk),
            Event::Drop { layer, chunk } => self.drop_chunk(layer, chunk),
            Event::GiveUp { layer, chunk } => {
                self.planner.demote(key(layer), chunk);
                if let Some(wanted) = self.layers.get_mut(&layer).and_then(|said| said.wanted.get_mut(&chunk))
                {
                    *wanted = Lane::Background;
                }
            }
            Event::RemoveLayer(layer) => {
                self.planner.remove_layer(key(layer));
                self.layers.remove(&layer);
                self.flights.retain(|(of, _), _| *of != layer);
            }
            Event::AddLayer(layer) => self.add_layer(layer),
            Event::Pass(ms) => self.now += Duration::from_millis(ms),
        }
    }

    fn want(&mut self, layer: u8, chunks: Vec<u32>, lane: Lane) {
        self.planner.want(key(layer), chunks.iter().copied(), lane, self.now);
        self.note_wanted(layer, chunks, lane);
    }

    fn note_wanted(&mut self, layer: u8, chunks: Vec<u32>, lane: Lane) {
        let Some(said) = self.layers.get_mut(&layer) else { return };
        for chunk in chunks.into_iter().filter(|n| *n < CHUNKS && !said.present.contains(n)) {
            let wanted = said.wanted.entry(chunk).or_insert(lane);
            *wanted = lane.min(*wanted);
        }
        if lane < Lane::Preheat {
            self.last_urgent = Some(self.now);
        }
    }

    fn join(&mut self, parent: u32, seed: bool) {
        let role = if seed { ParentRole::Seed } else { ParentRole::Node };
        self.planner.add_parent(ParentId(parent), role);
        self.parents.insert(parent);
    }

    fn lose(&mut self, parent: u32) {
        self.planner.remove_parent(ParentId(parent));
        self.parents.remove(&parent);
        self.layers.values_mut().for_each(|said| drop(said.holders.remove(&parent)));
        self.flights.retain(|_, flight| flight.parent != parent);
    }

    fn holds(&mut self, layer: u8, parent: u32, raw: u64) {
        let held: BTreeSet<u32> = (0..CHUNKS).filter(|n| raw >> n & 1 == 1).collect();
        let mut bits = Bits::new(CHUNKS);
        held.iter().for_each(|n| bits.set(*n));
        self.planner.set_holding(key(layer), ParentId(parent), bits);
        if let Some(said) = self.layers.get_mut(&layer).filter(|_| self.parents.contains(&parent)) {
            said.holders.insert(parent, held);
        }
    }

    fn arrive(&mut self, layer: u8, chunk: u32) {
        self.planner.arrived(key(layer), chunk, self.now);
        if let Some(said) = self.layers.get_mut(&layer).filter(|_| chunk < CHUNKS) {
            said.present.insert(chunk);
            said.wanted.remove(&chunk);
            self.flights.remove(&(layer, chunk));
        }
    }

    fn drop_chunk(&mut self, layer: u8, chunk: u32) {
        self.planner.dropped(key(layer), chunk, self.now);
        self.arrive_and_go(layer, chunk);
    }

    fn arrive_and_go(&mut self, layer: u8, chunk: u32) {
        let Some(said) = self.layers.get_mut(&layer).filter(|_| chunk < CHUNKS) else { return };
        said.wanted.remove(&chunk);
        self.flights.remove(&(layer, chunk));
        if frame_bytes(chunk) > 0 {
            said.present.remove(&chunk);
        }
    }

    fn refuse(&mut self, layer: u8, chunk: u32, parent: u32) {
        self.planner.refused(key(layer), chunk, ParentId(parent));
        if let Some(held) = self.layers.get_mut(&layer).and_then(|said| said.holders.get_mut(&parent)) {
            held.remove(&chunk);
        }
        if self.flights.get(&(layer, chunk)).is_some_and(|flight| flight.parent == parent) {
            self.flights.remove(&(layer, chunk));
        }
    }

    fn nth_flight(&self, nth: usize) -> Option<((u8, u32), Flight)> {
        let at = nth.checked_rem(self.flights.len())?;
        self.flights.iter().nth(at).map(|(key, flight)| (*key, *flight))
    }

    /// Asks the planner and holds its answer against what was said.
    fn plan(&mut self) -> usize {
        let (now, overdue) = (self.now, self.limits.overdue);
        self.flights.retain(|_, flight| now.duration_since(flight.since) < overdue);
        let requests = self.planner.next_requests(now);
        assert!(requests.is_sorted_by_key(|request| request.lane), "lanes out of order: {requests:?}");
        let starved =
            self.last_preheat.is_none_or(|at| now.duration_since(at) >= self.limits.preheat_patience);
        let passes = |request: &&Request| starved && request.lane == Lane::Preheat;
        for request in &requests {
            let disturbed = self.flights.values().any(|flight| flight.lane < Lane::Preheat);
            assert!(request.lane != Lane::Preheat || starved || !disturbed, "a preheat beside readers");
            self.take(request);
        }
        if requests.iter().any(|request| request.lane == Lane::Preheat) {
            self.last_preheat = Some(now);
        }
        if let Some(lowest) = requests.iter().rfind(|request| !passes(request)).map(|request| request.lane) {
            for (layer, chunk, wanted) in self.waiting() {
                let held = !self.holders_of(layer, chunk).is_empty();
                assert!(wanted >= lowest || !held, "{lowest:?} went before chunk {chunk} in {wanted:?}");
            }
        }
        self.check_state();
        requests.iter().map(|request| request.chunks.len()).sum()
    }

    fn take(&mut self, request: &Request) {
        let Request { parent: ParentId(parent), layer, lane, ref chunks } = *request;
        let layer = (0..LAYERS).find(|n| key(*n) == layer).expect("a layer that nobody knows");
        let quiet = self.last_urgent.is_none_or(|at| self.now.duration_since(at) >= self.limits.quiet);
        assert!(lane != Lane::Background || quiet, "background although it is not quiet");
        for &chunk in chunks {
            let said = &self.layers[&layer];
            assert!(!said.present.contains(&chunk), "chunk {chunk} is here already");
            match said.wanted.get(&chunk) {
                Some(wanted) => {
                    assert!(lane <= *wanted, "chunk {chunk} wanted in {wanted:?}, asked in {lane:?}")
                }
                // Read ahead, and perhaps given up since.
                None => assert_ne!(lane, Lane::Demand, "nobody wants chunk {chunk}"),
            }
            assert!(self.holders_of(layer, chunk).contains(&parent), "{parent} does not hold {chunk}");
            let outstanding = self.outstanding(parent, lane);
            let most = self.limits.window_bytes[lane as usize];
            assert!(
                outstanding == 0 || outstanding + weight(chunk) <= most,
                "window of {parent} in {lane:?}"
            );
            let flight = Flight { parent, lane, since: self.now };
            let before = self.flights.insert((layer, chunk), flight);
            assert!(before.is_none(), "chunk {chunk} is under way already");
        }
    }

    fn outstanding(&self, parent: u32, lane: Lane) -> u64 {
        let at = self.flights.iter().filter(|(_, flight)| flight.parent == parent && flight.lane == lane);
        at.map(|((_, chunk), _)| weight(*chunk)).sum()
    }

    fn holders_of(&self, layer: u8, chunk: u32) -> BTreeSet<u32> {
        let holders = self.layers[&layer].holders.iter();
        holders.filter(|(_, held)| held.contains(&chunk)).map(|(parent, _)| *parent).collect()
    }

    /// Wanted, and neither here nor under way.
    fn waiting(&self) -> Vec<(u8, u32, Lane)> {
        let wanted =
            self.layers.iter().flat_map(|(layer, said)| said.wanted.iter().map(move |w| (*layer, w)));
        let waiting = wanted.filter(|(layer, (chunk, _))| !self.flights.contains_key(&(*layer, **chunk)));
        waiting.map(|(layer, (chunk, lane))| (layer, *chunk, *lane)).collect()
    }

    fn orphans(&self, layer: u8) -> bool {
        let demand = self.waiting().into_iter().filter(|(of, _, lane)| *of == layer && *lane == Lane::Demand);
        demand.into_iter().any(|(_, chunk, _)| self.holders_of(layer, chunk).is_empty())
    }

    fn check_state(&self) {
        for (layer, said) in &self.layers {
            for chunk in 0..CHUNKS {
                let present = self.planner.is_present(key(*layer), chunk);
                assert_eq!(present, said.present.contains(&chunk), "chunk {chunk}");
            }
            assert_eq!(self.planner.is_complete(key(*layer)), said.present.len() == CHUNKS as usize);
            // It may find out later, when what is before them in the queue has gone.
            assert!(!self.planner.has_orphans(key(*layer), Lane::Demand) || self.orphans(*layer));
        }
    }

    /// Lets everything arrive that can.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.now += self.limits.quiet;
            let asked = self.plan();
            if asked == 0 && self.flights.is_empty() {
                return;
            }
            while let Some(((layer, chunk), _)) = self.nth_flight(0) {
                self.arrive(layer, chunk);
            }
        }
        panic!("the planner never comes to rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_planner_keeps_its_word_whatever_happens(events in prop::collection::vec(event(), 1..150)) {
        let mut model = Model::new();
        for event in events {
            model.apply(event);
            model.plan();
        }
        model.settle();
        for (layer, chunk, _) in model.waiting() {
            prop_assert!(model.holders_of(layer, chunk).is_empty(), "chunk {} was forgotten", chunk);
        }
        for layer in 0..LAYERS {
            let expected = model.layers.contains_key(&layer) && model.orphans(layer);
            prop_assert_eq!(model.planner.has_orphans(key(layer), Lane::Demand), expected);
        }
        model.join(PARENTS + 1, true);
        (0..LAYERS).for_each(|layer| model.holds(layer, PARENTS + 1, u64::MAX));
        model.settle();
        prop_assert_eq!(model.waiting(), []);
    }
}
