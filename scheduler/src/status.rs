//! Why a session ended, and the gRPC status that says so.

use std::time::Duration;

use d7y_scheduler_core::{PeerId, Refusal};
use tonic::Status;

use crate::convert::WireError;

#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SessionEnd {
    #[error("the peer closed the session")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the session's first message is not Announce, or did not come within {0:?}")]
    NoAnnounce(Duration),
    #[error(transparent)]
    Malformed(#[from] WireError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("nothing came from the peer for {0:?}, three heartbeat intervals")]
    Silent(Duration),
    #[error("the peer does not read what the scheduler sends")]
    NotReading,
    #[error("the same peer id was announced in a newer session")]
    Replaced,
    #[error(
        "the peer at {address} has the id {peer:?} already; give this one another host name, or set peerId"
    )]
    Taken { peer: PeerId, address: String },
    #[error("the scheduler is shutting down; reconnect later or to another one")]
    Draining,
}

impl SessionEnd {
    /// All that [`SessionEnd::reason`] says.
    pub const REASONS: [&str; 10] = [
        "closed",
        "broken",
        "no_announce",
        "malformed",
        "refused",
        "silent",
        "not_reading",
        "replaced",
        "taken",
        "draining",
    ];

    /// The label in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken(_) => "broken",
            Self::NoAnnounce(_) => "no_announce",
            Self::Malformed(_) => "malformed",
            Self::Refused(_) => "refused",
            Self::Silent(_) => "silent",
            Self::NotReading => "not_reading",
            Self::Replaced => "replaced",
            Self::Taken { .. } => "taken",
            Self::Draining => "draining",
        }
    }

    /// None for an orderly end.
    pub fn status(&self) -> Option<Status> {
        let text = match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        };
        Some(match self {
            Self::Closed => return None,
            Self::Broken(_) => Status::cancelled(text),
            Self::NoAnnounce(_) | Self::Malformed(_) => Status::invalid_argument(text),
            Self::Refused(_) | Self::NotReading => Status::resource_exhausted(text),
            Self::Silent(_) => Status::deadline_exceeded(text),
            Self::Replaced => Status::aborted(text),
            Self::Taken { .. } => Status::already_exists(text),
            Self::Draining => Status::unavailable(text),
        })
    }
}
