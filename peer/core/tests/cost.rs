//! Layers of a hundred gigabytes: what a chunk costs must not grow with their number.

use std::time::{Duration, Instant};

use d7y_peer_core::{Bits, Lane, LayerKey, Limits, ParentId, ParentRole, Planner};
use d7y_types::Sha256Digest;

const LAYER: LayerKey = Sha256Digest([7; 32]);
/// 100 GiB in chunks of 64 KiB.
const CHUNKS: u32 = 1_600_000;
/// Linear planning takes seconds without optimisation, on a machine that does other things too; quadratic takes days.
const ENOUGH: Duration = Duration::from_secs(100);

struct Rig {
    planner: Planner,
    now: Instant,
    began: Instant,
    arrived: u32,
}

impl Rig {
    fn new(frame_bytes: u32) -> Self {
        let mut planner = Planner::new(Limits::default(), 77_777_777);
        planner.add_layer(LAYER, vec![frame_bytes; CHUNKS as usize], &Bits::new(CHUNKS));
        for parent in 0..4 {
            let role = if parent == 0 { ParentRole::Seed } else { ParentRole::Node };
            planner.add_parent(ParentId(parent), role);
        }
        Self { planner, now: Instant::now(), began: Instant::now(), arrived: 0 }
    }

    /// Plans and lets arrive, planning again after every few, as a busy peer does.
    fn drain(&mut self) {
        loop {
            let requests = self.planner.next_requests(self.now);
            if requests.is_empty() {
                return;
            }
            let mut asked: Vec<u32> = requests.into_iter().flat_map(|request| request.chunks).collect();
            while let Some(chunk) = asked.pop() {
                self.now += Duration::from_micros(100);
                self.planner.arrived(LAYER, chunk, self.now);
                self.arrived += 1;
                if self.arrived.is_multiple_of(4) {
                    let more = self.planner.next_requests(self.now);
                    asked.extend(more.into_iter().flat_map(|request| request.chunks));
                }
            }
            assert!(self.began.elapsed() < ENOUGH, "{} chunks took {ENOUGH:?}", self.arrived);
        }
    }
}

/// Tiny frames: as many under way at once as a window allows.
#[test]
fn a_huge_layer_streams_in_the_background() {
    let mut rig = Rig::new(20);
    rig.planner.set_holding(LAYER, ParentId(0), Bits::all(CHUNKS));
    rig.planner.set_holding(LAYER, ParentId(1), Bits::all(CHUNKS));
    rig.planner.want_rest(LAYER, rig.now);
    rig.drain();
    assert!(rig.planner.is_complete(LAYER));
}

#[test]
fn a_huge_layer_that_comes_to_its_holders_bit_by_bit() {
    let mut rig = Rig::new(30_000);
    (0..4).for_each(|parent| rig.planner.set_holding(LAYER, ParentId(parent), Bits::new(CHUNKS)));
    rig.planner.want_rest(LAYER, rig.now);
    rig.drain();
    assert_eq!(rig.arrived, 0);
    for first in (0..CHUNKS).step_by(16) {
        rig.planner.add_holding(LAYER, ParentId(first / 16 % 4), first..first + 16);
        rig.drain();
    }
    assert!(rig.planner.is_complete(LAYER));
}

#[test]
fn a_huge_layer_of_which_readers_want_all_at_once() {
    let mut rig = Rig::new(30_000);
    rig.planner.set_holding(LAYER, ParentId(0), Bits::all(CHUNKS));
    rig.planner.want_rest(LAYER, rig.now);
    rig.planner.want(LAYER, 0..CHUNKS, Lane::Prefetch, rig.now);
    rig.planner.want(LAYER, (0..CHUNKS).rev(), Lane::Demand, rig.now);
    rig.drain();
    assert!(rig.planner.is_complete(LAYER));
}
