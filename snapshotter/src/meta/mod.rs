//! What snapshots exist: containerd's snapshot metadata, durable before every reply.
//!
//! The rows live in one redb file and, all of them, in memory: reads never touch the disk. Numeric ids are never
//! used twice, so a directory without a row is garbage whatever it holds.

mod error;
mod filter;
mod snapshot;
mod store;

pub use error::MetaError;
pub use filter::{FilterError, Filters};
pub use snapshot::{Chained, Kind, Labels, RemoteLayer, Snapshot, SnapshotId, Timestamp, Usage};
pub use store::{Committing, NewSnapshot, Store, Updating};

#[cfg(test)]
mod tests;
