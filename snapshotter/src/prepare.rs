use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_chassis::OnEnd;
use d7y_peer_client::ClientError;
use d7y_proto::local::{Reason, RecordTrace};
use d7y_proto::snapshots::Mount;
use d7y_types::{LayerRef, Sha256Digest};

use crate::error::SnapshotError;
use crate::layers::Backing;
use crate::meta::{Chained, Kind, MetaError, NewSnapshot, RemoteLayer, Snapshot};
use crate::metrics::PrepareOutcome;
use crate::pulls::Pulling;
use crate::resolve::{Hints, Image, Unresolved, namespace_of};
use crate::snapshotter::{Snapshotter, blocking};
use crate::starts::{Step, What};
use crate::status::chain;

/// How long containerd's content store may take to tell whose layer it is.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the layers of a pull together may wait until somebody has shown that he can give them; then containerd pulls
/// what is left. Longer than the peer waits before it reads the origin itself (`fetch.originFallbackAfter`).
const SUPPLY_WAIT: Duration = Duration::from_secs(15);
/// The same for an image that nobody could give a moment ago.
const HOPELESS_WAIT: Duration = Duration::from_secs(1);
/// Every layer may wait this long, even when the image's wait is used up: enough to learn of a refusal.
const MIN_LAYER_WAIT: Duration = Duration::from_millis(50);
/// A start that touches nothing new for this long is handed to the peer, so that the next node need not wait for the
/// window's end.
const TRACE_QUIET: Duration = Duration::from_secs(1);
/// Quiet periods in a row after which the start is over: what comes later is the application's work.
const TRACE_QUIET_PERIODS: u32 = 3;
/// How long handing a trace to the peer may take.
const TRACE_DEADLINE: Duration = Duration::from_secs(30);

/// Why a layer is left to containerd.
struct Fallback {
    outcome: PrepareOutcome,
    why: Why,
}

enum Why {
    Itself(String),
    /// A layer below it was.
    Below,
}

enum NotLazy {
    Fallback(Fallback),
    Error(SnapshotError),
}

impl From<SnapshotError> for NotLazy {
    fn from(error: SnapshotError) -> Self {
        Self::Error(error)
    }
}

fn fallback(outcome: PrepareOutcome, why: impl Into<String>) -> NotLazy {
    NotLazy::Fallback(Fallback { outcome, why: Why::Itself(why.into()) })
}

impl Snapshotter {
    /// Prepare: AlreadyExists, once it is durable, for a layer that the peer supplies; mounts for everything else.
    pub async fn prepare(self: &Arc<Self>, new: NewSnapshot) -> Result<Vec<Mount>, SnapshotError> {
        let Some(hints) = Hints::from_labels(&new.labels) else {
            return match is_container(&new.name) {
                true => self.create_container(new).await,
                false => self.create(Kind::Active, new).await,
            };
        };
        match self.prepare_lazily(&new, &hints).await {
            Ok(()) => {
                self.metrics.prepared(PrepareOutcome::Lazy);
                Err(MetaError::AlreadyExists(hints.chain_id.to_string()).into())
            }
            Err(NotLazy::Fallback(Fallback { outcome, why })) => {
                self.metrics.prepared(outcome);
                let (chain_id, reason) = (hints.chain_id, outcome);
                match why {
                    Why::Itself(why) => tracing::warn!(
                        %chain_id,
                        ?reason,
                        "containerd downloads this layer and those above it: {why}"
                    ),
                    Why::Below => tracing::debug!(%chain_id, ?reason, "it lies above a layer that was left"),
                }
                self.create(Kind::Active, new).await
            }
            Err(NotLazy::Error(error)) => {
                if matches!(error, SnapshotError::Corrupt { .. }) {
                    self.metrics.prepared(PrepareOutcome::Corrupt);
                }
                Err(error)
            }
        }
    }

    async fn prepare_lazily(self: &Arc<Self>, new: &NewSnapshot, hints: &Hints) -> Result<(), NotLazy> {
        let parents = self.parents(&new.parent)?;
        let began = Instant::now();
        let image = self.image(&new.name, hints, &parents).await?;
        self.note(&image, None, What::Resolve, began);
        let position = position(&image, hints, &parents)
            .ok_or_else(|| fallback(PrepareOutcome::UnknownImage, "its parent is not the layer below it"))?;
        let pulling = self.pulls.asked(image.manifest, position, Instant::now());
        if let Some(outcome) = pulling.left {
            return Err(NotLazy::Fallback(Fallback { outcome, why: Why::Below }));
        }
        let layer = match self.find_layer(&image, position, pulling).await {
            Err(NotLazy::Fallback(fallback)) => {
                self.pulls.left(image.manifest, fallback.outcome);
                return Err(NotLazy::Fallback(fallback));
            }
            found => found?,
        };
        let remote = RemoteLayer {
            layer,
            chain_id: hints.chain_id,
            manifest: image.manifest,
            reference: image.reference,
        };
        let name = remote_name(hints.chain_id, parents.first().map(|row| &**row));
        let row = NewSnapshot { name, parent: new.parent.clone(), labels: new.labels.clone() };
        let snapshotter = Arc::clone(self);
        Ok(blocking(move || snapshotter.store_remote(row, remote)).await?)
    }

    async fn image(&self, key: &str, hints: &Hints, parents: &Chained) -> Result<Image, NotLazy> {
        let (Some(resolver), Some(namespace)) = (&self.resolver, namespace_of(key)) else {
            return Err(fallback(PrepareOutcome::UnknownImage, "containerd.socket is not configured"));
        };
        let likely = parents.first().and_then(|row| row.remote.as_ref()).map(|remote| remote.manifest);
        match tokio::time::timeout(RESOLVE_DEADLINE, resolver.resolve(namespace, hints, likely)).await {
            Ok(Ok(image)) => Ok(image),
            Ok(Err(error @ Unresolved::Content(_))) => {
                Err(fallback(PrepareOutcome::ContentStore, chain(&error)))
            }
            Ok(Err(error)) => Err(fallback(PrepareOutcome::UnknownImage, chain(&error))),
            Err(_) => {
                Err(fallback(PrepareOutcome::ContentStore, "containerd's content store does not answer"))
            }
        }
    }

    /// The layer, if the peer can supply it. One that is still being read counts as supplied, one that nobody has shown to
    /// have does not: once containerd is told that the layer is here, it never downloads it.
    async fn find_layer(
        &self,
        image: &Image,
        position: usize,
        pulling: Pulling,
    ) -> Result<LayerRef, NotLazy> {
        let Some(layer) = &image.layers[position] else {
            return Err(fallback(PrepareOutcome::MediaType, "its media type is not that of a tar layer"));
        };
        let layers: Vec<_> = image.layers.iter().flatten().cloned().collect();
        let began = Instant::now();
        let announced = self.announcer.announce(image.manifest, &image.reference, &layers).await;
        let announced = announced.map_err(|error| refused(layer.digest, error))?;
        self.note(image, None, What::Announce { has_trace: announced.has_trace }, began);
        let began = Instant::now();
        let left = |wait| (pulling.began + wait).saturating_duration_since(began).max(MIN_LAYER_WAIT);
        let supply_wait = if pulling.hopeless { HOPELESS_WAIT } else { SUPPLY_WAIT };
        let (index, supply) = (left(self.waits.prepare.min(supply_wait)), left(supply_wait));
        let opened = self.peer.open_if_supplied(layer, index, supply).await;
        self.note(image, Some(layer.digest), What::Index, began);
        match opened {
            Ok(_) | Err(ClientError::Refused { reason: Reason::Deadline, .. }) => Ok(layer.clone()),
            Err(error) => Err(refused(layer.digest, error)),
        }
    }

    fn note(&self, image: &Image, layer: Option<Sha256Digest>, what: What, began: Instant) {
        let step = Step { what, layer, began, took: began.elapsed() };
        self.starts.pulling(image.manifest, &image.reference, step);
    }

    /// The same layer may be there already, brought by another namespace.
    fn store_remote(&self, row: NewSnapshot, remote: RemoteLayer) -> Result<(), SnapshotError> {
        let (name, parent, chain_id) = (row.name.clone(), row.parent.clone(), remote.chain_id);
        match self.store.create_remote(row, remote) {
            Ok(_) => Ok(()),
            Err(MetaError::AlreadyExists(_)) => {
                let there = self.store.get(&name)?;
                let same = there.remote.as_ref().is_some_and(|remote| remote.chain_id == chain_id);
                match same && there.parent == parent {
                    true => Ok(()),
                    false => Err(MetaError::AlreadyExists(name).into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// On what the layers of a chain may stand. Nobody sees the reads of direct mounts: an image whose accesses are still
    /// to be recorded goes without them.
    pub(crate) async fn backing(&self, chain: &[Arc<Snapshot>]) -> Backing {
        let Some((top, layers)) = image_of(chain) else { return Backing::Direct };
        if self.waits.trace.is_zero() || self.recorder.is_done(top.manifest) {
            return Backing::Direct;
        }
        match self.announcer.announce(top.manifest, &top.reference, &layers).await {
            Ok(announced) if announced.has_trace => Backing::Direct,
            _ => Backing::Served,
        }
    }

    /// Records, in the background, what the container that starts now touches, unless the cluster knows it.
    pub(crate) fn trace_start(self: &Arc<Self>, key: &str, parent: &str) {
        let Ok(chain) = self.parents(parent) else { return };
        if !is_container(key) {
            return;
        }
        let Some((top, layers)) = image_of(&chain) else { return };
        // Before the container's first read.
        let digests = layers.iter().map(|layer| layer.digest);
        if self.waits.trace.is_zero() || !self.recorder.begin(top.manifest, digests) {
            return;
        }
        let (snapshotter, stopping, key) =
            (Arc::clone(self), self.tasks.shutdown().stopping(), key.to_owned());
        self.tasks.spawn("access trace", OnEnd::Expected, async move {
            stopping.run_until_cancelled(snapshotter.trace(&key, top, layers)).await;
            Ok::<_, Infallible>(())
        });
    }

    async fn trace(&self, key: &str, top: RemoteLayer, layers: Vec<LayerRef>) {
        let announced = self.announcer.announce(top.manifest, &top.reference, &layers).await;
        let wanted = announced.is_ok_and(|announced| !announced.has_trace);
        let handed_over = if wanted { self.watch_start(key, &top).await } else { u64::MAX };
        let touched = self.recorder.touched(top.manifest);
        if let Some(trace) = self.recorder.end(top.manifest).filter(|_| touched > handed_over) {
            self.hand_over(trace, &top).await;
        }
    }

    /// Returns when the start is over: nothing new is touched any more, the container is gone, or the window ends.
    /// Tells how many chunks the peer has been told of by then.
    async fn watch_start(&self, key: &str, top: &RemoteLayer) -> u64 {
        let end = tokio::time::Instant::now() + self.waits.trace;
        let (mut before, mut quiet, mut handed_over) = (0, 0, 0);
        while quiet < TRACE_QUIET_PERIODS && tokio::time::Instant::now() < end && self.store.get(key).is_ok()
        {
            tokio::time::sleep(TRACE_QUIET).await;
            let touched = self.recorder.touched(top.manifest);
            quiet = if touched == before && touched > 0 { quiet + 1 } else { 0 };
            before = touched;
            if quiet == 1
                && let Some(trace) = self.recorder.so_far(top.manifest)
            {
                self.hand_over(trace, top).await;
                handed_over = touched;
            }
        }
        handed_over
    }

    async fn hand_over(&self, trace: RecordTrace, top: &RemoteLayer) {
        if let Err(error) = self.peer.record_trace(trace, TRACE_DEADLINE).await {
            let cause = &error as &dyn std::error::Error;
            tracing::info!(image = top.reference, error = cause, "an access trace is lost");
        }
    }
}

/// The topmost layer of an image, which names it, and all its layers, the bottom one first. `chain` has the topmost
/// first.
fn image_of(chain: &[Arc<Snapshot>]) -> Option<(RemoteLayer, Vec<LayerRef>)> {
    let top = chain.first()?.remote.clone()?;
    let layers = chain.iter().rev().filter_map(|row| Some(row.remote.as_ref()?.layer.clone()));
    Some((top, layers.collect()))
}

/// Where the layer is in its image; nothing when the parent is not what lies below it there.
fn position(image: &Image, hints: &Hints, parents: &Chained) -> Option<usize> {
    let position = image.position(hints.chain_id)?;
    let fits = match (position.checked_sub(1), parents.first()) {
        (None, parent) => parent.is_none(),
        (Some(_), None) => false,
        (Some(below), Some(parent)) => {
            parent.remote.as_ref().is_none_or(|remote| remote.chain_id == image.chain_ids[below])
        }
    };
    fits.then_some(position)
}

fn refused(layer: Sha256Digest, error: ClientError) -> NotLazy {
    let message = chain(&error);
    let outcome = match &error {
        ClientError::Refused { reason: Reason::Corrupt, .. } => {
            return NotLazy::Error(SnapshotError::Corrupt { layer, message });
        }
        ClientError::Refused { reason: Reason::Unauthorized, .. } => PrepareOutcome::Unauthorized,
        ClientError::Refused { reason: Reason::Unsupplied | Reason::Unavailable, .. } => {
            PrepareOutcome::Unsupplied
        }
        ClientError::Deadline(_) => PrepareOutcome::PeerUnavailable,
        _ => PrepareOutcome::PeerRefused,
    };
    fallback(outcome, message)
}

/// The chain id, which all namespaces share; on a parent that containerd unpacked, one name for each parent.
fn remote_name(chain_id: Sha256Digest, parent: Option<&Snapshot>) -> String {
    match parent {
        Some(parent) if parent.name.parse::<Sha256Digest>().is_err() => format!("{chain_id}@{}", parent.id),
        _ => chain_id.to_string(),
    }
}

/// Whether a container is to start on the snapshot; its client asks for the mounts once more then. Where containerd
/// unpacks a layer (`extract-`), or gives all files to another owner (`-remap`), it mounts what Prepare answers.
pub(crate) fn is_container(key: &str) -> bool {
    let client_key = key.rsplit_once('/').map_or(key, |(_, client_key)| client_key);
    !client_key.starts_with("extract-") && !client_key.ends_with("-remap")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extractions_are_no_containers() {
        let table = [
            ("default/3/extract-259151147--maZ sha256:d9a9", false),
            ("extract-1", false),
            ("default/6/c1", true),
            ("k8s.io/6/extract", true),
            ("k8s.io/7/sha256:d9a9-0-65536-remap", false),
        ];
        for (key, expected) in table {
            assert_eq!(is_container(key), expected, "{key}");
        }
    }
}
