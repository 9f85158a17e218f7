//! The peer: all bytes of a node. Origins, swarm, verification, decompression, cache.
//!
//! One `Layers` decides how a layer is come by (`ingest` from its origin, `receive` from another peer); the fetch
//! loop (`fetch`) brings single chunks; `serve` is what other peers see, `local` what this node's snapshotter sees.
//! Everything on disk belongs to the store. All tasks are supervised and end at shutdown; nothing needs flushing,
//! because bits are written after the data that they vouch for.
//!
//! A stop begins with leaving scheduler and manager and with closing the listeners. Reads of the node, answers to other
//! peers and reads of origins that are under way then hold it up (`DrainGuard`); whoever is connected is served meanwhile,
//! but for nothing else is waited. Then the connections end, between two frames where the other side takes them.

mod config;
mod confirm;
mod control;
mod directory;
mod failure;
mod fetch;
mod ingest;
mod layers;
mod ledger;
mod local;
mod metrics;
mod news;
mod openings;
mod parked;
mod patience;
mod preheat;
mod program;
mod receive;
mod refill;
mod rescue;
mod reuse;
mod scrub;
mod serve;
mod start;
#[cfg(test)]
mod testing;
mod trace;
mod trust;
pub mod view;

pub use config::{Config, Role};
pub use metrics::described as described_metrics;
pub use program::main;
pub use start::{DAEMON, Running, start};
