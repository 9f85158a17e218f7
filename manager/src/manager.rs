use std::time::Duration;

use d7y_chassis::Spans;
use d7y_chassis::obstacle::DirectoryLock;
use d7y_manager_db::entity::{member, peer};
use d7y_manager_db::{Database, DbError, Kind, Timestamp, Vault};
use d7y_origin::Origin;
use tokio::sync::Notify;

use crate::metrics::Metrics;

/// Intervals without a word after which a member is in no view.
const MISSED_INTERVALS: u32 = 3;

/// What all parts of the daemon share.
#[derive(Debug)]
pub(crate) struct Manager {
    pub db: Database,
    pub vault: Vault,
    pub origin: Origin,
    pub settings: Settings,
    pub metrics: Metrics,
    pub spans: Spans,
    /// There is a new job.
    pub new_job: Notify,
    /// Held by whatever still uses the database.
    pub _lock: DirectoryLock,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// How often members keep alive.
    pub interval: Duration,
    /// How often peers ask for their cluster.
    pub refresh: Duration,
    /// How long, and how many, ended jobs are kept.
    pub keep_for: Duration,
    pub keep_most: u64,
}

impl Settings {
    /// How long a member may be silent.
    pub fn patience(self) -> Duration {
        self.interval * MISSED_INTERVALS
    }
}

impl Manager {
    /// Members of a kind that are not silent.
    pub async fn alive(&self, kind: Kind) -> Result<Vec<member::Model>, DbError> {
        self.db.alive(kind, self.horizon()).await
    }

    /// Peers of the schedulers that are not silent.
    pub async fn peers(&self) -> Result<Vec<peer::Model>, DbError> {
        self.db.peers(self.horizon()).await
    }

    fn horizon(&self) -> Timestamp {
        Timestamp::now().minus(self.settings.patience())
    }
}
