use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_fuse::mounts::{self, DeviceReads, ErofsSource, MountError};
use d7y_image::{
    LayerIndex, NodeId, NodeKind, ReadError, Tree, WriteError, layer_tree, read_bootstrap, write_bootstrap,
};
use d7y_peer_client::{Link, LocalClient};
use d7y_proto::local::Reason;
use d7y_types::{LayerRef, Sha256Digest};
use futures_util::future::try_join_all;
use parking_lot::Mutex;

use crate::layers::device::{Device, DeviceError, DeviceSlot};
use crate::layers::filesystem::{DEVICES, LayerFilesystem, LayerNode, TREES};
use crate::layers::inherit::inherit;
use crate::layers::pins::Pins;
use crate::layers::reads::Source;
use crate::layers::registry::{Backing, MountId, MountKey, MountRecord, Registry};
use crate::layers::session::Driver;
use crate::meta::{MetaError, RemoteLayer};
use crate::metrics::{Metrics, MountKind};
use crate::place::Place;
use crate::starts::{Step, What};

/// How long a device may take to be opened anew after the peer restarted.
const REFRESH_DEADLINE: Duration = Duration::from_secs(30);
/// Of an entry that nobody uses: the table's own and the caller's.
const IDLE_REFERENCES: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the peer did not promise in time to keep the image's layers; is d7y-peer running?")]
    Pins,
    #[error("layer {layer} has a malformed bootstrap")]
    Read { layer: Sha256Digest, source: ReadError },
    #[error("layer {layer} cannot be written as EROFS")]
    Write { layer: Sha256Digest, source: WriteError },
    #[error("cannot prepare the mount of layer {layer}")]
    File { layer: Sha256Digest, source: io::Error },
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Registry(#[from] MetaError),
    #[error("mounting was interrupted")]
    Interrupted,
}

impl LayerError {
    /// Whether it may pass by waiting longer.
    pub fn is_of_time(&self) -> bool {
        match self {
            Self::Device(DeviceError::Peer { source, .. }) => source.reason() == Reason::Deadline,
            Self::Device(DeviceError::Busy { .. }) | Self::Pins => true,
            _ => false,
        }
    }
}

/// One layer of a chain to be stacked.
#[derive(Debug, Clone)]
pub enum ChainLayer {
    Remote(RemoteLayer),
    /// Unpacked by containerd.
    Directory(PathBuf),
}

/// A chain that is mounted. While this lives nothing of it is swept away.
#[derive(Debug)]
pub struct Mounted {
    /// overlayfs's `lowerdir`: the topmost first, no directory twice.
    pub lowers: Vec<PathBuf>,
    /// What was waited for.
    pub steps: Vec<Step>,
    /// Whether a layer stands on FUSE.
    pub is_served: bool,
    _leases: Vec<Arc<Entry>>,
}

/// All layers that are, or were, mounted.
pub struct Layers {
    parts: LayersParts,
    pins: Pins,
    slots: Mutex<HashMap<Sha256Digest, Arc<DeviceSlot>>>,
    entries: Mutex<HashMap<MountKey, Arc<Entry>>>,
    /// Which mount a layer has on which chain, as found out when it was mounted there.
    decided: Mutex<HashMap<(Sha256Digest, Sha256Digest, Backing), MountKey>>,
}

pub struct LayersParts {
    pub peer: LocalClient,
    pub registry: Registry,
    pub filesystem: Arc<LayerFilesystem>,
    pub driver: Driver,
    pub place: Place,
    pub metrics: Metrics,
}

/// One mount. The lock is held while it is mounted and unmounted, on threads that may block.
#[derive(Debug, Default)]
struct Entry(Mutex<Option<MountedAt>>);

#[derive(Debug)]
struct MountedAt {
    id: MountId,
    path: PathBuf,
    /// When a container was last known to need it.
    used: Instant,
    /// Keeps the layer pinned.
    _slot: Arc<DeviceSlot>,
}

/// What the snapshots are made of: layers, each on a chain.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Of containers, and whatever else is not committed.
    pub containers: HashSet<(Sha256Digest, Sha256Digest)>,
    /// Of all images.
    pub images: HashSet<(Sha256Digest, Sha256Digest)>,
}

/// A layer that is to be mounted, and how.
struct Wish {
    remote: RemoteLayer,
    slot: Arc<DeviceSlot>,
    /// The best that its user can take.
    backing: Backing,
    deadline: Instant,
}

/// A layer that is mounted.
struct Standing {
    entry: Arc<Entry>,
    path: PathBuf,
    backing: Backing,
    /// It was not mounted before.
    is_new: bool,
}

/// A bootstrap ready to be mounted.
struct Prepared {
    record: MountRecord,
    bootstrap: Vec<u8>,
    device: Arc<Device>,
}

impl Layers {
    pub fn new(parts: LayersParts) -> Self {
        let (pins, slots, entries, decided) = Default::default();
        Self { parts, pins, slots, entries, decided }
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Mounts what is not mounted yet: where all of a layer is here and `backing` allows it, without FUSE. `chain` has
    /// the topmost layer first.
    pub async fn mount(
        self: &Arc<Self>,
        chain: &[ChainLayer],
        backing: Backing,
        deadline: Instant,
    ) -> Result<Mounted, LayerError> {
        let backing = match self.parts.driver {
            Driver::Erofs => backing,
            Driver::Fuse => Backing::Served,
        };
        let peer = &self.parts.peer;
        // Without a peer, what is mounted still serves: what is on the node is read, and for the rest readers wait.
        if *peer.link().borrow() == Link::Down
            && let Some(mounted) = self.mounted_already(chain)
        {
            return Ok(mounted);
        }
        let slots: Vec<_> = chain.iter().map(|layer| self.slot_of(layer)).collect();
        let mut steps =
            try_join_all(slots.iter().flatten().map(|slot| wait_for_index(slot, peer, deadline))).await?;
        self.pins.add(slots.iter().flatten().map(|slot| slot.layer.digest));
        if slots.iter().any(Option::is_some) && !self.pins.agreed(deadline).await {
            return Err(LayerError::Pins);
        }
        let (mut paths, mut leases, mut is_served) = (Vec::new(), Vec::new(), false);
        for (layer, slot) in chain.iter().zip(slots).rev() {
            match (layer, slot) {
                (ChainLayer::Remote(remote), Some(slot)) => {
                    let wish = Wish { remote: remote.clone(), slot, backing, deadline };
                    let (began, layer) = (Instant::now(), Some(remote.layer.digest));
                    let Standing { entry, path, backing, is_new } = self.mount_one(wish, &paths).await?;
                    is_served |= backing == Backing::Served;
                    if is_new {
                        let what = What::Mount { backing };
                        steps.push(Step { what, layer, began, took: began.elapsed() });
                    }
                    leases.push(entry);
                    paths.insert(0, path);
                }
                (ChainLayer::Directory(path), _) => paths.insert(0, path.clone()),
                (ChainLayer::Remote(_), None) => unreachable!("every remote layer has a slot"),
            }
        }
        Ok(Mounted { lowers: without_repeats(paths), steps, is_served, _leases: leases })
    }

    /// A chain of which every layer stands already, on whatever.
    fn mounted_already(&self, chain: &[ChainLayer]) -> Option<Mounted> {
        let (mut paths, mut leases, mut is_served) = (Vec::new(), Vec::new(), false);
        for layer in chain {
            let remote = match layer {
                ChainLayer::Directory(path) => {
                    paths.push(path.clone());
                    continue;
                }
                ChainLayer::Remote(remote) => remote,
            };
            let (entry, path, backing) =
                [Backing::Direct, Backing::Served].into_iter().find_map(|backing| {
                    let key = *self.decided.lock().get(&(remote.layer.digest, remote.chain_id, backing))?;
                    let entry = self.entries.lock().get(&key).cloned()?;
                    let path = entry.0.try_lock()?.as_ref()?.path.clone();
                    Some((entry, path, key.backing))
                })?;
            is_served |= backing == Backing::Served;
            paths.push(path);
            leases.push(entry);
        }
        let (lowers, steps) = (without_repeats(paths), Vec::new());
        Some(Mounted { lowers, steps, is_served, _leases: leases })
    }

    /// `lowers` are the mounted layers below, the nearest first.
    async fn mount_one(self: &Arc<Self>, wish: Wish, lowers: &[PathBuf]) -> Result<Standing, LayerError> {
        let device = wish.slot.device(&self.parts.peer, wish.deadline).await?;
        if let Some(standing) = self.find_mounted(&wish, &device) {
            return Ok(standing);
        }
        let (device, index) = wish.slot.reopen(&self.parts.peer, wish.deadline).await?;
        let (layers, lowers) = (Arc::clone(self), lowers.to_vec());
        let mounting = tokio::task::spawn_blocking(move || {
            let prepared = prepare(&wish, device, &index, &lowers)?;
            let (key, (entry, path)) = layers.mount_as_well_as_can_be(prepared, &wish.slot)?;
            layers.decided.lock().insert((key.layer, wish.remote.chain_id, key.backing), key);
            Ok(Standing { entry, path, backing: key.backing, is_new: true })
        });
        mounting.await.map_err(|_| LayerError::Interrupted)?
    }

    fn find_mounted(&self, wish: &Wish, device: &Device) -> Option<Standing> {
        let backing = wish.slot.backing(device, wish.backing);
        let key = *self.decided.lock().get(&(wish.remote.layer.digest, wish.remote.chain_id, backing))?;
        let entry = self.entries.lock().get(&key).filter(|_| key.layout == device.layout).cloned()?;
        // Busy: it is being mounted or unmounted, which is waited for where waiting is allowed.
        let path = {
            let mut state = entry.0.try_lock()?;
            let mounted = state.as_mut()?;
            mounted.used = Instant::now();
            mounted.path.clone()
        };
        Some(Standing { entry, path, backing: key.backing, is_new: false })
    }

    /// Where the kernel refuses the device itself (not every file system can stand below EROFS), it is served.
    fn mount_as_well_as_can_be(
        &self,
        mut prepared: Prepared,
        slot: &Arc<DeviceSlot>,
    ) -> Result<(MountKey, (Arc<Entry>, PathBuf)), LayerError> {
        let mounted = match self.mount_prepared(&prepared, slot) {
            Err(LayerError::Mount(error)) if prepared.record.key.backing == Backing::Direct => {
                let (layer, cause) = (prepared.record.key.layer, &error as &dyn std::error::Error);
                tracing::warn!(%layer, error = cause, "a complete layer cannot be mounted directly and is served");
                self.parts.metrics.mounted(MountKind::Refused);
                slot.refuse_direct();
                prepared.record.key.backing = Backing::Served;
                self.mount_prepared(&prepared, slot)
            }
            mounted => mounted,
        };
        Ok((prepared.record.key, mounted?))
    }

    fn mount_prepared(
        &self,
        prepared: &Prepared,
        slot: &Arc<DeviceSlot>,
    ) -> Result<(Arc<Entry>, PathBuf), LayerError> {
        let record = &prepared.record;
        let entry = Arc::clone(self.entries.lock().entry(record.key).or_default());
        let mut state = entry.0.lock();
        if let Some(mounted) = &mut *state {
            mounted.used = Instant::now();
            let path = mounted.path.clone();
            drop(state);
            return Ok((entry, path));
        }
        let id = self.parts.registry.id(record)?;
        match self.mount_as(id, prepared, slot) {
            Ok(path) => {
                let used = Instant::now();
                *state = Some(MountedAt { id, path: path.clone(), used, _slot: Arc::clone(slot) });
                self.parts.metrics.mounted_layers.inc();
                self.parts.metrics.mounted(match record.key.backing {
                    Backing::Served => MountKind::Served,
                    Backing::Direct => MountKind::Direct,
                });
                drop(state);
                Ok((entry, path))
            }
            Err(error) => {
                self.forget(&[id]);
                drop(state);
                self.drop_unused(&record.key, &entry);
                Err(error)
            }
        }
    }

    /// Takes an entry out of the table that only the table and the caller know.
    fn drop_unused(&self, key: &MountKey, entry: &Arc<Entry>) {
        let mut entries = self.entries.lock();
        if Arc::strong_count(entry) == IDLE_REFERENCES {
            entries.remove(key);
        }
    }

    fn mount_as(
        &self,
        id: MountId,
        prepared: &Prepared,
        slot: &Arc<DeviceSlot>,
    ) -> Result<PathBuf, LayerError> {
        let Prepared { record, bootstrap, device } = prepared;
        let layer = record.key.layer;
        let file = |source| LayerError::File { layer, source };
        let place = &self.parts.place;
        write_whole(&place.bootstrap(id), bootstrap).map_err(file)?;
        let served = place.fuse().join(DEVICES).join(id.to_string());
        match (self.parts.driver, record.key.backing) {
            (Driver::Fuse, _) => {
                let tree = read_bootstrap(bootstrap).map_err(|source| LayerError::Read { layer, source })?;
                self.show(id, record, slot, Some(Arc::new(tree)));
                switch_flush_off(&served).map_err(file)?;
                Ok(place.fuse().join(TREES).join(id.to_string()))
            }
            (Driver::Erofs, Backing::Served) => {
                self.show(id, record, slot, None);
                self.mount_erofs(id, record, &served, mounts::LAZY_READ_AHEAD_KB)
            }
            // By its descriptor: under the path another peer process may have put another layout meanwhile.
            (Driver::Erofs, Backing::Direct) => {
                let device = path_of_descriptor(device.file());
                self.mount_erofs(id, record, &device, mounts::READ_AHEAD_KB)
            }
        }
    }

    fn mount_erofs(
        &self,
        id: MountId,
        record: &MountRecord,
        device: &Path,
        read_ahead_kb: u32,
    ) -> Result<PathBuf, LayerError> {
        let target = self.parts.place.mount_point(id);
        fs::create_dir_all(&target).map_err(|source| LayerError::File { layer: record.key.layer, source })?;
        let source = ErofsSource {
            bootstrap: &self.parts.place.bootstrap(id),
            devices: &[device],
            device_reads: DeviceReads::Buffered,
            read_ahead_kb,
        };
        mounts::mount_erofs(&source, &target)?;
        Ok(target)
    }

    fn show(&self, id: MountId, record: &MountRecord, slot: &Arc<DeviceSlot>, tree: Option<Arc<Tree>>) {
        let source = Arc::new(Source { slot: Arc::clone(slot), layout: record.key.layout });
        self.parts.filesystem.show(id, LayerNode { source, device_bytes: record.device_bytes, tree });
    }

    /// Shows again what an earlier snapshotter had mounted, as far as it still is, and forgets the rest. Before the
    /// session starts; `live` says that the FUSE mount outlived that snapshotter.
    pub fn adopt(&self, live: bool) -> Result<(), LayerError> {
        let mounted = mounts::mount_points_below(&self.parts.place.mount_points())?;
        let mounted: HashSet<PathBuf> = mounted.into_iter().map(|mount| mount.path).collect();
        let mut stale = Vec::new();
        for (id, record) in self.parts.registry.records() {
            if !live || !self.adopt_one(id, &record, &mounted) {
                stale.push(id);
            }
        }
        self.forget(&stale);
        let pinned = self.slots.lock().keys().copied().collect();
        self.pins.replace(pinned);
        Ok(())
    }

    fn adopt_one(&self, id: MountId, record: &MountRecord, mounted: &HashSet<PathBuf>) -> bool {
        let place = &self.parts.place;
        let (path, tree) = match self.parts.driver {
            Driver::Erofs => (place.mount_point(id), None),
            Driver::Fuse => {
                let bootstrap = fs::read(place.bootstrap(id)).ok();
                let Some(tree) = bootstrap.and_then(|bytes| read_bootstrap(&bytes).ok()) else {
                    return false;
                };
                (place.fuse().join(TREES).join(id.to_string()), Some(Arc::new(tree)))
            }
        };
        if self.parts.driver == Driver::Erofs && !is_mounted(&path, mounted) {
            return false;
        }
        let slot = self.slot(&record.layer);
        if record.key.backing == Backing::Served {
            self.show(id, record, &slot, tree);
        }
        let entry = Entry(Mutex::new(Some(MountedAt { id, path, used: Instant::now(), _slot: slot })));
        self.entries.lock().insert(record.key, Arc::new(entry));
        self.parts.metrics.mounted_layers.inc();
        true
    }

    /// Unmounts the layers that nothing needs: neither a container, nor somebody who holds a [`Mounted`]; those of an
    /// image that is still here once no container has needed them for `idle`. Blocks.
    ///
    /// `needs` is asked again under the lock of each layer that is to go: a snapshot may have come since.
    pub fn sweep(&self, needs: impl Fn() -> Needs, idle: Duration) {
        let all: Vec<_> = self.entries.lock().iter().map(|(key, entry)| (*key, Arc::clone(entry))).collect();
        let at_first = needs();
        for (key, entry) in all {
            let is_needed = |needs: &Needs, mounted: &mut MountedAt| {
                if needs_mount(&needs.containers, &key) {
                    mounted.used = Instant::now();
                    return true;
                }
                let is_recent = mounted.used.elapsed() < idle && needs_mount(&needs.images, &key);
                is_recent && !self.is_superseded(&key)
            };
            self.unmount(&key, &entry, |mounted| {
                is_needed(&at_first, mounted) || is_needed(&needs(), mounted)
            });
        }
        let layers: HashSet<_> = needs().containers.into_iter().map(|(layer, _)| layer).collect();
        self.decided.lock().retain(|_, key| self.entries.lock().contains_key(key));
        let mut slots = self.slots.lock();
        slots.retain(|layer, slot| layers.contains(layer) || Arc::strong_count(slot) > 1);
        self.pins.replace(slots.keys().copied().collect::<BTreeSet<_>>());
    }

    /// Whether the next container gets another mount of the same layer, which stands already.
    fn is_superseded(&self, key: &MountKey) -> bool {
        let direct = MountKey { backing: Backing::Direct, ..*key };
        let entry = self.entries.lock().get(&direct).filter(|_| direct != *key).cloned();
        entry.is_some_and(|entry| entry.0.try_lock().is_some_and(|state| state.is_some()))
    }

    /// Notes that a container has needed these layers until now.
    pub fn were_used(&self, layers: &HashSet<Sha256Digest>) {
        let entries: Vec<_> = {
            let entries = self.entries.lock();
            let of = entries.iter().filter(|(key, _)| layers.contains(&key.layer));
            of.map(|(_, entry)| Arc::clone(entry)).collect()
        };
        // Busy: it is being mounted, which is use, or unmounted.
        for entry in entries {
            if let Some(mut state) = entry.0.try_lock()
                && let Some(mounted) = state.as_mut()
            {
                mounted.used = Instant::now();
            }
        }
    }

    /// All of it under the entry's lock: whoever mounts the layer anew gets the same number, and must not lose what
    /// belongs to it.
    fn unmount(&self, key: &MountKey, entry: &Arc<Entry>, is_needed: impl Fn(&mut MountedAt) -> bool) {
        let mut state = entry.0.lock();
        let Some(mounted) = state.as_mut() else { return };
        // In this order: whoever lets go of a mount has stored the snapshot that needs it.
        if Arc::strong_count(entry) > IDLE_REFERENCES || is_needed(mounted) {
            return;
        }
        if self.parts.driver == Driver::Erofs
            && let Err(error) = mounts::unmount(&mounted.path)
        {
            let cause = &error as &dyn std::error::Error;
            tracing::debug!(layer = %key.layer, error = cause, "a layer stays mounted");
            return;
        }
        let id = mounted.id;
        self.forget(&[id]);
        *state = None;
        self.parts.metrics.mounted_layers.dec();
        self.drop_unused(key, entry);
    }

    /// Removes what belongs to mounts that are no more; what cannot be removed is tried again at the next start.
    fn forget(&self, ids: &[MountId]) {
        for id in ids {
            self.parts.filesystem.hide(*id);
            let _ = fs::remove_dir(self.parts.place.mount_point(*id));
            let _ = fs::remove_file(self.parts.place.bootstrap(*id));
        }
        if let Err(error) = self.parts.registry.forget(ids) {
            tracing::warn!(error = &error as &dyn std::error::Error, "mounts that are gone stay registered");
        }
    }

    /// Whether all data of a chain's layers is on this node.
    pub fn is_complete(&self, chain: &[ChainLayer]) -> bool {
        chain.iter().all(|layer| match layer {
            ChainLayer::Directory(_) => true,
            ChainLayer::Remote(remote) => {
                let device = self.slots.lock().get(&remote.layer.digest).and_then(|slot| slot.ready());
                device.is_some_and(|device| device.is_complete().unwrap_or(false))
            }
        })
    }

    /// Fills the kernel's caches of a chain's direct mounts with what it has read of its layers through FUSE, up to
    /// `budget` bytes; returns how much that was. Blocks.
    pub fn read_ahead(&self, chain: &[ChainLayer], budget: u64) -> u64 {
        let mut read = 0;
        for layer in chain {
            let ChainLayer::Remote(remote) = layer else { continue };
            let key = (remote.layer.digest, remote.chain_id, Backing::Direct);
            let entry = self.decided.lock().get(&key).and_then(|key| self.entries.lock().get(key).cloned());
            let mounted = entry.and_then(|entry| {
                let state = entry.0.lock();
                state.as_ref().map(|mounted| (mounted.id, mounted.path.clone()))
            });
            let slot = self.slots.lock().get(&remote.layer.digest).cloned();
            let (Some((id, path)), Some(slot)) = (mounted, slot) else { continue };
            let bootstrap = fs::read(self.parts.place.bootstrap(id)).ok();
            if let Some(tree) = bootstrap.and_then(|bytes| read_bootstrap(&bytes).ok()) {
                read += slot.touched.read_ahead(&path, &tree, budget.saturating_sub(read));
            }
        }
        read
    }

    /// Opens every open device anew: the peer has restarted and may have other files.
    pub async fn refresh(&self) {
        let open: Vec<_> =
            self.slots.lock().values().filter(|slot| slot.ready().is_some()).cloned().collect();
        for slot in open {
            let deadline = Instant::now() + REFRESH_DEADLINE;
            if let Err(error) = slot.reopen(&self.parts.peer, deadline).await {
                let cause = &error as &dyn std::error::Error;
                tracing::warn!(layer = %slot.layer.digest, error = cause, "a layer is not opened anew");
            }
        }
    }

    /// The layers that are mounted. Those that are being mounted or unmounted right now count as not.
    pub fn mounted(&self) -> HashSet<Sha256Digest> {
        let entries = self.entries.lock();
        let is_mounted = |entry: &Entry| entry.0.try_lock().is_some_and(|state| state.is_some());
        entries.iter().filter(|(_, entry)| is_mounted(entry)).map(|(key, _)| key.layer).collect()
    }

    /// What the layer takes on this node's disk, in bytes, as far as it is known without asking the peer.
    pub fn stored_bytes(&self, layer: Sha256Digest) -> u64 {
        let device = self.slots.lock().get(&layer).and_then(|slot| slot.ready());
        device.and_then(|device| device.stored_bytes().ok()).unwrap_or(0)
    }

    /// What the kernel asked of the layer through FUSE since the layer is known here, in bytes.
    pub fn read_bytes(&self, layer: Sha256Digest) -> u64 {
        self.slots.lock().get(&layer).map_or(0, |slot| slot.touched.bytes())
    }

    /// The names of the files that lie at offsets of a layer's device, as far as the layer is mounted. Blocks.
    pub fn files_at(&self, layer: Sha256Digest, offsets: &[u64]) -> HashMap<u64, String> {
        let entries: Vec<_> =
            self.entries.lock().iter().map(|(key, entry)| (*key, Arc::clone(entry))).collect();
        let mut ids = entries.iter().filter(|(key, _)| key.layer == layer).filter_map(|(_, entry)| {
            entry.0.try_lock().and_then(|state| state.as_ref().map(|mounted| mounted.id))
        });
        let bootstrap = ids.next().and_then(|id| fs::read(self.parts.place.bootstrap(id)).ok());
        let tree = bootstrap.and_then(|bytes| read_bootstrap(&bytes).ok());
        tree.map(|tree| files_at(&tree, offsets)).unwrap_or_default()
    }

    fn slot_of(&self, layer: &ChainLayer) -> Option<Arc<DeviceSlot>> {
        match layer {
            ChainLayer::Remote(remote) => Some(self.slot(&remote.layer)),
            ChainLayer::Directory(_) => None,
        }
    }

    fn slot(&self, layer: &LayerRef) -> Arc<DeviceSlot> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(layer.digest).or_insert_with(|| Arc::new(DeviceSlot::new(layer.clone())));
        Arc::clone(slot)
    }
}

fn needs_mount(needed: &HashSet<(Sha256Digest, Sha256Digest)>, key: &MountKey) -> bool {
    match key.chain {
        Some(chain) => needed.contains(&(key.layer, chain)),
        None => needed.iter().any(|(layer, _)| *layer == key.layer),
    }
}

/// overlayfs takes no directory twice; the topmost place counts.
fn without_repeats(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    paths
}

/// The names of the regular files that hold bytes at these offsets of the device.
fn files_at(tree: &Tree, offsets: &[u64]) -> HashMap<u64, String> {
    let (mut found, mut directories) = (HashMap::new(), vec![(NodeId::ROOT, Vec::new())]);
    while let Some((directory, path)) = directories.pop() {
        for (name, id) in tree.children(directory).into_iter().flatten() {
            let path: Vec<u8> = [path.as_slice(), b"/", name].concat();
            match tree.node(*id).kind {
                NodeKind::Directory { .. } => directories.push((*id, path)),
                NodeKind::Regular { device_offset, size } => {
                    let inside = |offset: &&u64| (device_offset..device_offset + size).contains(*offset);
                    for offset in offsets.iter().filter(inside) {
                        found.insert(*offset, String::from_utf8_lossy(&path).into_owned());
                    }
                }
                _ => {}
            }
        }
    }
    found
}

async fn wait_for_index(
    slot: &DeviceSlot,
    peer: &LocalClient,
    deadline: Instant,
) -> Result<Step, DeviceError> {
    let began = Instant::now();
    slot.device(peer, deadline).await?;
    Ok(Step { what: What::Index, layer: Some(slot.layer.digest), began, took: began.elapsed() })
}

fn prepare(
    wish: &Wish,
    device: Arc<Device>,
    index: &LayerIndex,
    lowers: &[PathBuf],
) -> Result<Prepared, LayerError> {
    let Wish { remote, slot, .. } = wish;
    let layer = remote.layer.digest;
    let mut tree = layer_tree(index).map_err(|source| LayerError::Read { layer, source })?;
    let inherited = inherit(&mut tree, lowers).map_err(|source| LayerError::File { layer, source })?;
    let bootstrap = write_bootstrap(&tree).map_err(|source| LayerError::Write { layer, source })?;
    let chain = inherited.then_some(remote.chain_id);
    let backing = slot.backing(&device, wish.backing);
    let key = MountKey { layer, layout: device.layout, chain, backing };
    let record = MountRecord { key, layer: remote.layer.clone(), device_bytes: device.bytes() };
    Ok(Prepared { record, bootstrap: bootstrap.bytes, device })
}

/// Closes a file of the FUSE mount while it is served. The answer to the first FLUSH, "no such call", ends all
/// flushing on the connection. Otherwise every close while no snapshotter runs would wait for the next one: that of a
/// process that is killed unkillably, that of a fork before exec with a lock held that `ps` needs.
fn switch_flush_off(served: &Path) -> io::Result<()> {
    fs::File::open(served).map(drop)
}

/// Names an open file for as long as it is open, even when its own name is gone.
fn path_of_descriptor(file: &fs::File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// A crash leaves the whole file or none.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes)?;
    fs::rename(&partial, path)
}

fn is_mounted(path: &Path, mounted: &HashSet<PathBuf>) -> bool {
    mounted.contains(path) || path.canonicalize().is_ok_and(|path| mounted.contains(&path))
}
