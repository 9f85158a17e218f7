//! Direct mounts ahead of the container that needs them.
//!
//! A container that starts while its image is still coming stands on served mounts, for good. The next one is to find
//! the image's layers mounted directly, and the kernel's caches of them filled: as soon as all of the image is here, the
//! layers are mounted again, and stay so while the image is in use and for a while after.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_chassis::OnEnd;
use d7y_types::Sha256Digest;
use parking_lot::Mutex;

use crate::layers::{Backing, ChainLayer, Mounted};
use crate::meta::Snapshot;
use crate::snapshotter::Snapshotter;

/// Between looks at whether all of an image is here, at first; later a twentieth of the time that has passed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);
/// How long the direct mounts may take.
const MOUNT_DEADLINE: Duration = Duration::from_secs(30);
/// A kernel that does not mount the device itself will not do so later either.
const ATTEMPTS: u32 = 3;

/// The most that is read into the page cache for the next container: more than a start needs, and less than the data of
/// an image that was read to its end.
const READ_AHEAD_BYTES: u64 = 256 << 20;

/// The images, by the chain that is their last, whose completion is waited for.
#[derive(Debug, Default)]
pub(crate) struct Promotions(Mutex<HashSet<Sha256Digest>>);

impl Snapshotter {
    /// Waits in the background, while the image has a container, until it is complete.
    pub(crate) fn promote_when_complete(self: &Arc<Self>, parent: &str) {
        let Ok(chain) = self.parents(parent) else { return };
        let Some(remote) = chain.iter().find_map(|row| row.remote.as_ref()) else { return };
        let (top, part) = (remote.chain_id, (remote.layer.digest, remote.chain_id));
        if self.waits.idle_mounts.is_zero() || !self.promotions.0.lock().insert(top) {
            return;
        }
        let (snapshotter, stopping) = (Arc::clone(self), self.tasks.shutdown().stopping());
        self.tasks.spawn("direct mounts", OnEnd::Expected, async move {
            stopping.run_until_cancelled(snapshotter.promote(part, &chain)).await;
            snapshotter.promotions.0.lock().remove(&top);
            Ok::<_, Infallible>(())
        });
    }

    async fn promote(self: &Arc<Self>, top: (Sha256Digest, Sha256Digest), chain: &[Arc<Snapshot>]) {
        let (layers, began, mut attempts) = (self.chain_layers(chain), Instant::now(), 0);
        while attempts < ATTEMPTS && self.needs().containers.contains(&top) {
            tokio::time::sleep((began.elapsed() / 20).clamp(LOOK_AGAIN, LOOK_AT_LEAST)).await;
            if !self.layers.is_complete(&layers) || self.backing(chain).await != Backing::Direct {
                continue;
            }
            attempts += 1;
            match self.mount_chain(chain, MOUNT_DEADLINE).await {
                Ok(mounted) if mounted.is_served => {}
                Ok(mounted) => return self.read_ahead(mounted, layers).await,
                Err(error) => {
                    let cause = &error as &dyn std::error::Error;
                    tracing::info!(error = cause, "a complete image is not mounted directly yet");
                }
            }
        }
    }

    /// What the container has read is what the next one will read.
    async fn read_ahead(self: &Arc<Self>, mounted: Mounted, layers: Vec<ChainLayer>) {
        let (snapshotter, began) = (Arc::clone(self), Instant::now());
        let reading = tokio::task::spawn_blocking(move || {
            let _mounted = mounted;
            snapshotter.layers.read_ahead(&layers, READ_AHEAD_BYTES)
        });
        if let Ok(bytes) = reading.await {
            tracing::debug!(bytes, took = ?began.elapsed(), "a complete image is mounted directly");
        }
    }
}
