//! Decisions per second on one core: `cargo run --release -p d7y-scheduler-core --example decisions`.
//!
//! 10,000 nodes and 4 seeds; every task is held by 200 nodes. A decision is an answer to OpenTask: lease,
//! twelve parents, the allocations of the answer included.

use std::hint::black_box;
use std::time::{Duration, Instant};

use d7y_scheduler_core::{Event, HoldState, PeerId, PeerIdError, PeerInfo, Role, Scheduler, Settings};
use d7y_types::Sha256Digest;

const NODES: usize = 10_000;
const SEEDS: usize = 4;
const TASKS: usize = 1000;
const HOLDERS: usize = 200;
const ROUNDS: usize = 50;

fn main() -> Result<(), PeerIdError> {
    let mut scheduler = Scheduler::new(Settings { settle: Duration::ZERO });
    let ids = (0..NODES + SEEDS).map(|number| PeerId::new(&format!("peer-{number}")));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    for (number, id) in ids.iter().enumerate() {
        let role = if number < SEEDS { Role::Seed } else { Role::Node };
        let info = PeerInfo { id: id.clone(), role, address: format!("10.0.0.1:{number}") };
        scheduler.apply(Event::PeerAnnounced(info), Duration::ZERO);
    }
    for number in 0..TASKS {
        for holder in 0..HOLDERS {
            let peer = ids[(number * 31 + holder * 7) % ids.len()].clone();
            let state = if holder % 2 == 0 { HoldState::Complete } else { HoldState::Partial };
            scheduler.apply(Event::Inventory { peer, task: task(number), state }, Duration::ZERO);
        }
    }
    let start = Instant::now();
    for round in 0..ROUNDS {
        for number in 0..TASKS {
            let peer = ids[SEEDS + (round * 131 + number * 17) % NODES].clone();
            let opened = Event::TaskOpened { peer: peer.clone(), task: task(number) };
            black_box(scheduler.apply(opened, start.elapsed()));
            black_box(scheduler.apply(Event::TaskClosed { peer, task: task(number) }, start.elapsed()));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let decisions = scheduler.stats().decisions;
    println!("{decisions} decisions in {seconds:.3} s: {:.0} per second", decisions as f64 / seconds);
    Ok(())
}

fn task(number: usize) -> Sha256Digest {
    let mut raw = [0; 32];
    raw[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Sha256Digest(raw)
}
