use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Hosts that are counted by name. Redirects may name any number of them; the rest share one entry.
const MAX_HOSTS: usize = 256;
/// Requests for tokens, and HEAD requests, at a time.
const QUICK_PER_HOST: usize = 4;
/// The name of that entry.
const OTHER_HOSTS: &str = "other";

/// What was asked of each host since the start, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginStats {
    pub hosts: Vec<HostStats>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStats {
    /// With the port where it is not the scheme's own.
    pub host: String,
    /// Requests sent, those for tokens and those answered with an error included.
    pub requests: u64,
    /// Bytes of bodies received, whatever became of them.
    pub bytes: u64,
}

/// The hosts spoken to, with their connection slots and counters.
#[derive(Debug)]
pub(crate) struct Hosts {
    bulk_per_host: usize,
    by_name: Mutex<HashMap<String, Arc<Host>>>,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub name: String,
    /// For the bodies of blobs.
    pub bulk: Arc<Semaphore>,
    /// For short requests, which must not wait behind blobs.
    pub quick: Arc<Semaphore>,
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
}

impl Hosts {
    pub fn new(bulk_per_host: usize) -> Self {
        Self { bulk_per_host, by_name: Mutex::default() }
    }

    pub fn get(&self, name: &str) -> Arc<Host> {
        let mut hosts = self.by_name.lock();
        let name = if hosts.contains_key(name) || hosts.len() < MAX_HOSTS { name } else { OTHER_HOSTS };
        let host = hosts.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Host {
                name: name.to_owned(),
                bulk: Arc::new(Semaphore::new(self.bulk_per_host)),
                quick: Arc::new(Semaphore::new(QUICK_PER_HOST)),
                requests: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
            })
        });
        host.clone()
    }

    pub fn stats(&self) -> OriginStats {
        let hosts = self.by_name.lock();
        let mut hosts: Vec<_> = hosts
            .iter()
            .map(|(name, host)| HostStats {
                host: name.clone(),
                requests: host.requests.load(Ordering::Relaxed),
                bytes: host.bytes.load(Ordering::Relaxed),
            })
            .collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        OriginStats { hosts }
    }
}
