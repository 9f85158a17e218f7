//! What a peer fetches next, and from whom. No I/O, no clock, no randomness of its own: the peer feeds events in
//! and carries out the requests that come out; the simulator does the same for many peers at once.

mod bits;
mod layer;
mod layers;
mod parent;
mod planner;

pub use bits::Bits;
pub use parent::ParentRole;
pub use planner::{Limits, ParentId, Planner, Request};

use d7y_types::Sha256Digest;

/// A layer is known by the digest of its blob.
pub type LayerKey = Sha256Digest;

/// Who is waiting for a chunk. A lower lane is served when no higher one has anything to ask for; a preheat is besides let
/// through now and then, or it would never end on a node whose containers never rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// A process is blocked in a read.
    Demand = 0,
    /// An access trace, or read-ahead behind a sequential reader, says that a read will come.
    Prefetch = 1,
    /// Somebody has asked for the whole layer and waits for its end.
    Preheat = 2,
    /// The rest of the layer, so that the node no longer depends on others.
    Background = 3,
}

impl Lane {
    pub const COUNT: usize = 4;
    pub const ALL: [Self; Self::COUNT] = [Self::Demand, Self::Prefetch, Self::Preheat, Self::Background];
}
