use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use d7y_peer_client::LocalClient;
use d7y_types::Sha256Digest;
use parking_lot::Mutex;
use tokio::sync::watch;

/// How long one attempt to tell the peer may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between attempts, while the peer refuses.
const PAUSE: Duration = Duration::from_millis(200);

/// The layers that the peer must not evict, told to it until it agrees, and again after each reconnect.
pub struct Pins {
    wanted: Mutex<BTreeSet<Sha256Digest>>,
    /// Counts the changes of `wanted`.
    version: watch::Sender<u64>,
    /// The last version that the peer has agreed to.
    agreed: watch::Sender<u64>,
}

impl Default for Pins {
    fn default() -> Self {
        let (version, agreed) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { wanted: Mutex::default(), version, agreed }
    }
}

impl Pins {
    pub fn add(&self, layers: impl IntoIterator<Item = Sha256Digest>) {
        let mut wanted = self.wanted.lock();
        let before = wanted.len();
        wanted.extend(layers);
        if wanted.len() != before {
            self.version.send_modify(|version| *version += 1);
        }
    }

    pub fn replace(&self, layers: BTreeSet<Sha256Digest>) {
        let mut wanted = self.wanted.lock();
        if *wanted != layers {
            *wanted = layers;
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Waits until the peer has agreed to everything wanted now; false when the deadline comes first.
    pub async fn agreed(&self, deadline: Instant) -> bool {
        let target = *self.version.borrow();
        let mut agreed = self.agreed.subscribe();
        let wait = agreed.wait_for(|agreed| *agreed >= target);
        tokio::time::timeout_at(deadline.into(), wait).await.is_ok_and(|waited| waited.is_ok())
    }

    /// Keeps the peer informed; never ends.
    pub async fn tell(&self, peer: &LocalClient) {
        let (mut version, mut link) = (self.version.subscribe(), peer.link());
        loop {
            let (telling, layers) = {
                link.mark_unchanged();
                let wanted = self.wanted.lock();
                (*version.borrow_and_update(), wanted.clone())
            };
            match peer.pin_layers(layers, ATTEMPT).await {
                Ok(()) => {
                    self.agreed.send_replace(telling);
                    tokio::select! {
                        _ = version.changed() => {}
                        _ = link.changed() => {}
                    }
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "layers are not pinned yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
