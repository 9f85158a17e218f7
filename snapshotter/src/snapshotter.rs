use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_chassis::{Spans, Tasks};
use d7y_peer_client::LocalClient;
use d7y_proto::snapshots::Mount;
use parking_lot::Mutex;

use crate::announce::Announcer;
use crate::error::SnapshotError;
use crate::layers::{Backing, ChainLayer, Layers, Mounted, Needs};
use crate::meta::{
    Chained, Committing, Filters, Kind, MetaError, NewSnapshot, Snapshot, SnapshotId, Store, Updating, Usage,
};
use crate::metrics::Metrics;
use crate::overlay::{Access, Stack, Upper};
use crate::place::Place;
use crate::promote::Promotions;
use crate::pulls::Pulls;
use crate::resolve::Resolver;
use crate::starts::Starts;
use crate::status::chain as chain_of;
use crate::trace::Recorder;
use crate::usage;

/// Between looks for layers that have been idle long enough to be unmounted.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Between questions whether the peer lacks the room that idle layers take.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// containerd's snapshotter. Everything durable is in the store; everything mounted in the layers.
pub struct Snapshotter {
    pub(crate) store: Arc<Store>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) place: Place,
    /// Without containerd's content store no image is known.
    pub(crate) resolver: Option<Resolver>,
    pub(crate) peer: LocalClient,
    pub(crate) announcer: Announcer,
    pub(crate) pulls: Pulls,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) metrics: Metrics,
    pub(crate) spans: Spans,
    pub(crate) starts: Arc<Starts>,
    pub(crate) promotions: Promotions,
    pub(crate) tasks: Tasks,
    pub(crate) waits: Waits,
    /// One clean-up at a time: two take each other's mounts for used ones and each other's directories away.
    pub(crate) cleaning: Mutex<()>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    pub prepare: Duration,
    pub start: Duration,
    pub trace: Duration,
    /// Between the end of an image's last container and the end of its mounts.
    pub idle_mounts: Duration,
}

impl Snapshotter {
    /// Makes a writable snapshot or a view, its layers mounted.
    pub async fn create(self: &Arc<Self>, kind: Kind, new: NewSnapshot) -> Result<Vec<Mount>, SnapshotError> {
        if self.store.get(&new.name).is_ok() {
            return Err(MetaError::AlreadyExists(new.name).into());
        }
        let chain = self.parents(&new.parent)?;
        let mounted = self.mount_chain(&chain, self.waits.start).await?;
        self.create_on(mounted, kind, new).await
    }

    /// Makes a container's writable snapshot. Of an image that nobody has built yet the indexes may be minutes away, and
    /// containerd holds a lock over this call that its collector and, behind that, every pull wait for. So the wait is
    /// short: what cannot be mounted by then is mounted by [`Snapshotter::mounts`], which no lock is held over, and which
    /// every client asks before it starts the container (`docs/adr/0005`).
    pub async fn create_container(self: &Arc<Self>, new: NewSnapshot) -> Result<Vec<Mount>, SnapshotError> {
        if self.store.get(&new.name).is_ok() {
            return Err(MetaError::AlreadyExists(new.name).into());
        }
        let chain = self.parents(&new.parent)?;
        let began = Instant::now();
        let mounting = self.mount_chain(&chain, self.waits.prepare.min(self.waits.start)).await;
        match mounting {
            Err(SnapshotError::Layer(error)) if error.is_of_time() => {
                let error = chain_of(&error);
                tracing::info!(snapshot = new.name, error, "layers are mounted when the container starts");
                let snapshotter = Arc::clone(self);
                blocking(move || {
                    let row = snapshotter.store.create(Kind::Active, new)?;
                    Ok(Stack { upper: None, lowers: vec![snapshotter.place.not_mounted(row.id)] }.mounts())
                })
                .await
            }
            mounting => {
                self.note_start(&new.name, &chain, began, &mounting);
                let (name, parent, mounted) = (new.name.clone(), new.parent.clone(), mounting?);
                let is_served = mounted.is_served;
                let mounts = self.create_on(mounted, Kind::Active, new).await?;
                self.container_stands(&name, &parent, is_served);
                Ok(mounts)
            }
        }
    }

    async fn create_on(
        self: &Arc<Self>,
        mounted: Mounted,
        kind: Kind,
        new: NewSnapshot,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let (snapshotter, lowers) = (Arc::clone(self), mounted.lowers.clone());
        let stack = blocking(move || {
            let row = snapshotter.store.create(kind, new)?;
            let made = snapshotter.make_directories(&row, lowers.first().map(|lower| lower.as_path()));
            if let Err(error) = made {
                snapshotter.store.remove(&row.name)?;
                return Err(error);
            }
            Ok(snapshotter.stack(&row, lowers))
        })
        .await?;
        Ok(stack.mounts())
    }

    /// The mounts of an active snapshot or view, its layers mounted again if they are not.
    pub async fn mounts(self: &Arc<Self>, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let chain = self.store.chain(key)?;
        let row = Arc::clone(&chain[0]);
        if row.kind == Kind::Committed {
            return Err(MetaError::Committed(key.into()).into());
        }
        let (began, is_first) = (Instant::now(), !self.place.upper(row.id).exists());
        let mounting = self.mount_chain(&chain[1..], self.waits.start).await;
        if row.kind == Kind::Active && is_first {
            self.note_start(key, &chain[1..], began, &mounting);
        }
        let mounted = mounting?;
        let is_served = mounted.is_served;
        let (snapshotter, lowers) = (Arc::clone(self), mounted.lowers.clone());
        let made = Arc::clone(&row);
        let stack = blocking(move || {
            snapshotter.make_directories(&made, lowers.first().map(|lower| lower.as_path()))?;
            Ok(snapshotter.stack(&made, lowers))
        });
        let mounts = stack.await?.mounts();
        if row.kind == Kind::Active {
            self.container_stands(&row.name, &row.parent, is_served);
        }
        Ok(mounts)
    }

    /// What the start of a container sets off.
    fn container_stands(self: &Arc<Self>, key: &str, parent: &str, is_served: bool) {
        self.trace_start(key, parent);
        if is_served {
            self.promote_when_complete(parent);
        }
    }

    pub async fn commit(self: &Arc<Self>, mut committing: Committing) -> Result<(), SnapshotError> {
        let snapshotter = Arc::clone(self);
        blocking(move || {
            let row = snapshotter.store.get(&committing.key);
            if let Some(active) = row.ok().filter(|row| row.kind == Kind::Active) {
                // Of one that was never mounted.
                snapshotter.make_directories(&active, None)?;
                committing.usage = snapshotter.measure(active.id)?;
            }
            snapshotter.store.commit(committing)?;
            Ok(())
        })
        .await
    }

    /// Removes the row; [`Snapshotter::clean_up`] does the rest.
    pub async fn remove(self: &Arc<Self>, key: String) -> Result<(), SnapshotError> {
        let snapshotter = Arc::clone(self);
        blocking(move || {
            let chain = snapshotter.store.chain(&key).unwrap_or_default();
            snapshotter.store.remove(&key)?;
            if chain.first().is_some_and(|row| row.kind != Kind::Committed) {
                let layers = chain.iter().filter_map(|row| Some(row.remote.as_ref()?.layer.digest));
                snapshotter.layers.were_used(&layers.collect());
            }
            Ok(())
        })
        .await
    }

    pub fn stat(&self, key: &str) -> Result<Arc<Snapshot>, SnapshotError> {
        Ok(self.store.get(key)?)
    }

    pub fn list(&self, filters: &[String]) -> Result<Vec<Arc<Snapshot>>, SnapshotError> {
        Ok(self.store.list(&Filters::parse(filters).map_err(MetaError::from)?))
    }

    pub async fn update(self: &Arc<Self>, updating: Updating) -> Result<Arc<Snapshot>, SnapshotError> {
        let snapshotter = Arc::clone(self);
        blocking(move || Ok(snapshotter.store.update(updating)?)).await
    }

    /// What the snapshot takes without its parents: of a remote layer what the node keeps of it.
    pub async fn usage(self: &Arc<Self>, key: &str) -> Result<Usage, SnapshotError> {
        let row = self.store.get(key)?;
        if let Some(remote) = &row.remote {
            return Ok(Usage { bytes: self.layers.stored_bytes(remote.layer.digest), inodes: 1 });
        }
        match row.usage {
            Some(usage) => Ok(usage),
            None => {
                let snapshotter = Arc::clone(self);
                blocking(move || snapshotter.measure(row.id)).await
            }
        }
    }

    /// Unmounts the layers under no container, and deletes the directories of no snapshot.
    pub async fn clean_up(self: &Arc<Self>) -> Result<(), SnapshotError> {
        let snapshotter = Arc::clone(self);
        blocking(move || {
            let _alone = snapshotter.cleaning.lock();
            snapshotter.sweep(snapshotter.waits.idle_mounts);
            snapshotter.delete_garbage()
        })
        .await
    }

    /// Unmounts the layers that nothing needs any more, from time to time: containerd asks for it only when something was
    /// removed. At once what no container needs, when the peer has no room for what one waits for. Never ends.
    pub async fn sweep_idle(self: &Arc<Self>) {
        let (mut swept_at, mut lacked_before) = (Instant::now(), 0);
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let status = self.peer.status(ASK_EVERY).await;
            let lacked = status.map_or(lacked_before, |status| status.lacked_room);
            let lacks_room = lacked > lacked_before;
            lacked_before = lacked;
            if !lacks_room && swept_at.elapsed() < SWEEP_EVERY {
                continue;
            }
            let idle = if lacks_room { Duration::ZERO } else { self.waits.idle_mounts };
            swept_at = Instant::now();
            let snapshotter = Arc::clone(self);
            let swept = blocking(move || {
                let _alone = snapshotter.cleaning.lock();
                snapshotter.sweep(idle);
                Ok(())
            });
            if let Err(error) = swept.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "idle layers stay mounted");
            }
        }
    }

    fn sweep(&self, idle: Duration) {
        self.layers.sweep(|| self.needs(), idle);
    }

    pub(crate) fn needs(&self) -> Needs {
        let all = self.store.list(&Filters::default());
        let part =
            |row: &Arc<Snapshot>| Some((row.remote.as_ref()?.layer.digest, row.remote.as_ref()?.chain_id));
        let top = all.iter().filter(|row| row.kind != Kind::Committed);
        let chains = top.filter_map(|row| self.store.chain(&row.name).ok());
        let containers = chains.flatten().filter_map(|row| part(&row)).collect();
        Needs { containers, images: all.iter().filter_map(part).collect() }
    }

    /// A directory is made after its row, and numbers are never used twice: one without a row is garbage. One that cannot
    /// be deleted does not keep the others.
    fn delete_garbage(&self) -> Result<(), SnapshotError> {
        let directory = self.place.snapshots();
        let entries = fs::read_dir(&directory).map_err(SnapshotError::file(&directory))?;
        let found: Vec<SnapshotId> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(SnapshotId))
            .collect();
        let alive: HashSet<_> = self.store.list(&Filters::default()).iter().map(|row| row.id).collect();
        let mut deleted = Ok(());
        for id in found.into_iter().filter(|id| !alive.contains(id)) {
            let path = self.place.snapshot(id);
            deleted = deleted.and(fs::remove_dir_all(&path).map_err(SnapshotError::file(&path)));
        }
        deleted
    }

    pub(crate) fn parents(&self, parent: &str) -> Result<Chained, SnapshotError> {
        if parent.is_empty() { Ok(Chained::new()) } else { Ok(self.store.chain(parent)?) }
    }

    pub(crate) async fn mount_chain(
        &self,
        chain: &[Arc<Snapshot>],
        within: Duration,
    ) -> Result<Mounted, SnapshotError> {
        let deadline = Instant::now() + within;
        let layers = self.chain_layers(chain);
        let backing = tokio::time::timeout_at(deadline.into(), self.backing(chain)).await;
        let backing = backing.unwrap_or(Backing::Served);
        Ok(self.layers.mount(&layers, backing, deadline).await?)
    }

    pub(crate) fn chain_layers(&self, chain: &[Arc<Snapshot>]) -> Vec<ChainLayer> {
        let layer = |row: &Arc<Snapshot>| match &row.remote {
            Some(remote) => ChainLayer::Remote(remote.clone()),
            None => ChainLayer::Directory(self.place.upper(row.id)),
        };
        chain.iter().map(layer).collect()
    }

    fn stack(&self, row: &Snapshot, lowers: Vec<std::path::PathBuf>) -> Stack {
        let own =
            |access| Upper { directory: self.place.upper(row.id), work: self.place.work(row.id), access };
        let upper = match row.kind {
            Kind::View if lowers.is_empty() => Some(own(Access::ReadOnly)),
            Kind::View => None,
            Kind::Active | Kind::Committed => Some(own(Access::ReadWrite)),
        };
        Stack { upper, lowers }
    }

    /// The root of what a container sees has the attributes of the upper directory: they are copied from below.
    fn make_directories(&self, row: &Snapshot, lower: Option<&Path>) -> Result<(), SnapshotError> {
        let (upper, work) = (self.place.upper(row.id), self.place.work(row.id));
        if upper.exists() {
            return Ok(());
        }
        let made = self.place.snapshot(row.id).join("new");
        fs::create_dir_all(&made).map_err(SnapshotError::file(&made))?;
        let attributes = lower.map_or(Ok((0o755, 0, 0)), |lower| {
            let metadata = fs::metadata(lower).map_err(SnapshotError::file(lower))?;
            Ok::<_, SnapshotError>((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
        })?;
        set_attributes(&made, attributes).map_err(SnapshotError::file(&made))?;
        fs::create_dir_all(&work).map_err(SnapshotError::file(&work))?;
        fs::rename(&made, &upper).map_err(SnapshotError::file(&upper))
    }

    fn measure(&self, id: SnapshotId) -> Result<Usage, SnapshotError> {
        let upper = self.place.upper(id);
        // One whose layers could not be mounted yet.
        if !upper.exists() {
            return Ok(Usage::default());
        }
        usage::of_directory(&upper).map_err(SnapshotError::file(&upper))
    }
}

fn set_attributes(path: &Path, (mode, uid, gid): (u32, u32, u32)) -> io::Result<()> {
    std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Runs what may wait for the disk where waiting is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(SnapshotError::Interrupted))
}
