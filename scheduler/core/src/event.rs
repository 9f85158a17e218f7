use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use d7y_types::Sha256Digest;

/// A peer's name, unique in its cluster and stable over restarts.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a peer id has 1 to {} printable ASCII characters without spaces", PeerId::MAX_LENGTH)]
pub struct PeerIdError;

impl PeerId {
    /// A DNS name's limit, which host names and pod names obey.
    pub const MAX_LENGTH: usize = 253;

    pub fn new(text: &str) -> Result<Self, PeerIdError> {
        let valid =
            (1..=Self::MAX_LENGTH).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if valid { Ok(Self(text.into())) } else { Err(PeerIdError) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for PeerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Node,
    Seed,
}

/// How others reach a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    pub id: PeerId,
    pub role: Role,
    /// `host:port` of the piece protocol.
    pub address: String,
}

/// What a peer says it has of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldState {
    None,
    /// The index and some chunks.
    Partial,
    /// The index and every chunk.
    Complete,
    /// Reads the layer from its origin; has no index yet.
    Ingesting,
    /// Gave up reading it: the origin refused or the blob was bad.
    Failed,
}

#[derive(Debug, Clone)]
pub enum Event {
    /// A peer connected, or connected again: what it said before is forgotten.
    PeerAnnounced(PeerInfo),
    PeerGone {
        peer: PeerId,
    },
    /// Bytes that a peer has been asked to upload and has not sent yet.
    Load {
        peer: PeerId,
        upload_bytes_in_flight: u64,
    },
    TaskOpened {
        peer: PeerId,
        task: Sha256Digest,
    },
    TaskClosed {
        peer: PeerId,
        task: Sha256Digest,
    },
    Inventory {
        peer: PeerId,
        task: Sha256Digest,
        state: HoldState,
    },
    TracePublished {
        peer: PeerId,
        image: Sha256Digest,
        body: Arc<[u8]>,
    },
    TraceWanted {
        peer: PeerId,
        image: Sha256Digest,
    },
    /// Every [`crate::TICK`].
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Replaces every earlier assignment of the same task.
    Assign { to: PeerId, assignment: Assignment },
    /// `body` is empty when the cluster knows no trace.
    SendTrace { to: PeerId, image: Sha256Digest, body: Arc<[u8]> },
    /// The event was not accepted.
    Refuse { to: PeerId, reason: Refusal },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub task: Sha256Digest,
    /// At most [`crate::choice::MAX_PARENTS`].
    pub parents: Vec<Parent>,
    pub index: IndexState,
    pub lease: Lease,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub peer: Arc<PeerInfo>,
    /// Relative share of requests, 1 to 1000.
    pub weight: u32,
}

/// Whether anyone has the layer's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    Absent,
    Known,
}

/// Who reads the layer from its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// A connected peer holds the layer whole.
    Unneeded,
    Yourself(Arc<PeerInfo>),
    Peer(Arc<PeerInfo>),
    /// Everyone who could has failed lately, or the cluster is still gathering after a restart.
    Nobody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the cluster has {} peers already", crate::MAX_PEERS)]
    Peers,
    #[error("the cluster has {} tasks already", crate::MAX_TASKS)]
    Tasks,
    #[error("one peer may report {} tasks", crate::MAX_TASKS_PER_PEER)]
    TasksOfPeer,
    #[error("one peer may have {} tasks open", crate::MAX_OPEN_PER_PEER)]
    OpenTasks,
    #[error("a trace may have {} bytes", crate::MAX_TRACE_BYTES)]
    TraceSize,
}
