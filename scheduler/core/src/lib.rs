//! Who should fetch from whom: the scheduler's decisions, without I/O, clock or randomness.
//!
//! The daemon feeds [`Event`]s with the time since its start and carries out the [`Action`]s. All state is a
//! cache of what connected peers said; a peer that goes takes everything it said with it. The same events at
//! the same times give the same actions, so that a simulator can run this very code.
//!
//! - *Parents* of a task are connected peers that hold it whole or in part ([`choice`] says which of them).
//! - The *origin lease* of a task belongs to one peer: the one that reads the layer from its registry while
//!   nobody holds it whole. Seeds come first, by rendezvous hash, then nodes in the order of asking. The lease
//!   stays where it is until its holder goes, fails, or does not begin ([`task`]).
//! - The answer to an opened task is immediate. Later changes go to all openers at the next tick.

pub mod choice;
mod event;
mod peers;
mod preheat;
pub mod rendezvous;
mod scheduler;
mod task;
mod traces;

pub use event::{
    Action, Assignment, Event, HoldState, IndexState, Lease, Parent, PeerId, PeerIdError, PeerInfo, Refusal,
    Role,
};
pub use preheat::PreheatScope;
pub use scheduler::{Scheduler, Settings, Stats};

use std::time::Duration;

/// How often the daemon ticks; pushes for one task are at least this far apart.
pub const TICK: Duration = Duration::from_millis(50);
/// Connected peers: the largest cluster that the simulator promises, and some.
pub const MAX_PEERS: usize = 131_072;
/// Tasks known at once, held or open: some hundred bytes each.
pub const MAX_TASKS: usize = 1 << 20;
/// Tasks that one peer may say it holds or that it failed: a disk full of small layers.
pub const MAX_TASKS_PER_PEER: usize = 1 << 16;
/// Tasks that one peer may have open: a node starting hundreds of images at once.
pub const MAX_OPEN_PER_PEER: usize = 4096;
/// Openers looked at in one tick, so that a tick stays within a few milliseconds; the rest follow in the next.
pub const MAX_PUSHES_PER_TICK: usize = 4096;
/// Failures remembered per task; with more than these, the oldest may try again early.
pub const MAX_FAILED_PER_TASK: usize = 64;
/// How long a lease holder may take to say that it ingests before the lease moves on.
pub const LEASE_CLAIM: Duration = Duration::from_secs(10);
/// How long a peer that failed to ingest a task is passed over for it.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(30);
/// One trace, in bytes: far above the chunk numbers of any image that was measured.
pub const MAX_TRACE_BYTES: usize = 4 << 20;
/// Traces kept; the least recently used goes first.
pub const MAX_TRACES: usize = 4096;
/// All traces together, in bytes.
pub const MAX_TRACES_BYTES: usize = 256 << 20;
