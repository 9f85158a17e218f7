use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d7y_image::{Chunk, LayerIndex};
use d7y_types::{LayerRef, Sha256Digest};
use parking_lot::Mutex;
use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;

use crate::error::StoreError;
use crate::layer::Layer;
use crate::staging::{Keep, Staging};

const FORMAT_VERSION: u32 = 1;
/// Free space that is left to others on the file system, so that d7y is never what fills a disk.
pub const RESERVE_BYTES: u64 = 256 << 20;

#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub directory: PathBuf,
    /// Most bytes on disk.
    pub limit_bytes: u64,
    /// Nodes mount devices; a pure seed only passes frames on.
    pub devices: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub kept_bytes: u64,
    pub limit_bytes: u64,
    pub layers: usize,
    pub evicted_layers: u64,
    /// How often there was no room for something, and no layer that could be evicted, since the start.
    pub lacked_room: u64,
    /// Of frames that were taken from other layers instead of being fetched, since the start.
    pub reused_bytes: u64,
    /// Chunks, frames and files that were found not to be what was written, since the start.
    pub damaged_chunks: u64,
}

/// What came of looking for a chunk on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    No,
    /// It lay in the layer's own files.
    Here,
    OtherLayer,
}

/// All layers of this peer. Cheap to share; every method blocks on disk for as long as its I/O takes.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
    limit_bytes: AtomicU64,
    boot: String,
    layers: Mutex<HashMap<Sha256Digest, Arc<Layer>>>,
    pinned: Mutex<HashSet<Sha256Digest>>,
    clock: AtomicU64,
    evicted_layers: AtomicU64,
    lacked_room: AtomicU64,
    staged: AtomicU64,
    staged_bytes: Arc<AtomicU64>,
    /// What is in the directory besides layers.
    beside_bytes: AtomicU64,
    /// Of layers that are being deleted.
    leaving_bytes: AtomicU64,
    /// Held by who makes room; taken before `layers`.
    evicting: Mutex<()>,
    /// Whether files of this file system can share blocks.
    clones: bool,
    pub(crate) reused_bytes: AtomicU64,
    pub(crate) damaged_chunks: AtomicU64,
    /// What was written last and refused, for want of anything but room.
    refused: Mutex<Option<Refused>>,
    lock: Mutex<Lock>,
}

/// A write that the disk refused.
#[derive(Debug)]
struct Refused {
    path: PathBuf,
    errno: Errno,
    /// Nobody has been told.
    news: bool,
}

impl Store {
    /// Opens or creates a store and everything in it. A damaged layer is dropped with a warning: it can be fetched
    /// again, and one bad layer must not keep the peer from starting. A layer that cannot be opened for another reason
    /// stays on disk; a lack of descriptors or memory is no layer's fault and keeps the store from opening.
    pub fn open(options: StoreOptions) -> Result<Self, StoreError> {
        let directory = &options.directory;
        fs::create_dir_all(directory).map_err(StoreError::io(directory))?;
        let lock = Lock::take(directory)?;
        check_format(directory)?;
        let staging = directory.join("staging");
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(StoreError::io(&staging))?;
        }
        make_private_directories(directory)?;
        let store = Self {
            limit_bytes: AtomicU64::new(options.limit_bytes),
            options,
            boot: boot_id(),
            layers: Mutex::default(),
            pinned: Mutex::default(),
            clock: AtomicU64::new(1),
            evicted_layers: AtomicU64::new(0),
            lacked_room: AtomicU64::new(0),
            staged: AtomicU64::new(0),
            staged_bytes: Arc::default(),
            beside_bytes: AtomicU64::new(0),
            leaving_bytes: AtomicU64::new(0),
            evicting: Mutex::default(),
            clones: can_clone(&staging),
            reused_bytes: AtomicU64::new(0),
            damaged_chunks: AtomicU64::new(0),
            refused: Mutex::default(),
            lock: Mutex::new(lock),
        };
        store.open_layers()?;
        Ok(store)
    }

    pub fn layer(&self, digest: Sha256Digest) -> Option<Arc<Layer>> {
        let layer = self.layers.lock().get(&digest).cloned()?;
        layer.touch(self.clock.fetch_add(1, Ordering::Relaxed));
        Some(layer)
    }

    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Where others may keep what [`Self::count_beside`] is told of.
    pub fn directory(&self) -> &Path {
        &self.options.directory
    }

    pub fn layers(&self) -> Vec<Arc<Layer>> {
        self.layers.lock().values().cloned().collect()
    }

    /// Whether this is still the store's own; false after an eviction.
    pub fn holds(&self, layer: &Arc<Layer>) -> bool {
        self.layers.lock().get(&layer.digest()).is_some_and(|held| Arc::ptr_eq(held, layer))
    }

    /// Forgets a layer of which somebody has deleted files under this process, so that it can be opened anew. A pinned one
    /// stays: whoever has it mounted reads on through the files that are open.
    pub fn forget_if_deleted(&self, layer: &Arc<Layer>) -> bool {
        let paths = layer.paths();
        let whole = [paths.index, paths.device, paths.device_bits].iter().all(|path| path.exists());
        if whole || self.pinned.lock().contains(&layer.digest()) || !self.holds(layer) {
            return false;
        }
        tracing::warn!(layer = %layer.digest(), "somebody has deleted a layer from the store; it is fetched again");
        self.layers.lock().remove(&layer.digest());
        true
    }

    /// Room for a layer whose index is still to come.
    pub fn stage(&self, layer: &LayerRef) -> Result<Staging, StoreError> {
        self.make_directories()?;
        let directory = self.staging_path(&layer.digest.to_hex());
        let keep = if self.options.devices { Keep::FramesAndDevice } else { Keep::Frames };
        self.noted(Staging::create(directory, layer.clone(), keep, self.staged_bytes.clone()))
    }

    /// Adds the next chunk of a layer being staged and returns its number. The hash is the sender's claim; `data` must
    /// have been checked against it.
    pub fn push(
        &self,
        staging: &Staging,
        chunk: Chunk,
        frame: &[u8],
        data: &[u8],
    ) -> Result<u32, StoreError> {
        self.make_room(staging.cost(frame, data), staging.reference().digest)?;
        self.noted(staging.push(chunk, frame, data))
    }

    /// Turns a staged layer into a layer. `index` must have been verified; `sealed` is its encoding.
    pub fn commit(
        &self,
        staging: &Staging,
        index: &LayerIndex,
        sealed: &[u8],
    ) -> Result<Arc<Layer>, StoreError> {
        let overhead = Layer::overhead_bytes(sealed.len(), index.chunks.len());
        match self.keep_to_limit(overhead, Some(index.layer)) {
            // Chunks can be fetched again; without its index there is no layer.
            Err(StoreError::Full) => {
                staging.shrink(overhead)?;
                self.keep_to_limit(overhead, Some(index.layer))?;
            }
            other => other?,
        }
        staging.count(overhead);
        staging.settle(index, sealed, &self.boot)?;
        let target = self.layer_path(index.layer);
        let layer = Arc::new(Layer::open(&staging.directory, &self.boot)?.moved_to(target.clone()));
        layer.touch(self.clock.fetch_add(1, Ordering::Relaxed));
        let mut layers = self.layers.lock();
        if let Some(layer) = layers.get(&index.layer) {
            return Ok(layer.clone());
        }
        // Whoever deleted the store may have done so since.
        self.make_directories()?;
        // What could not be opened at the start is no use to anybody.
        let leftover = self.set_aside(&target)?;
        fs::rename(&staging.directory, &target).map_err(StoreError::io(&target))?;
        layers.insert(index.layer, layer.clone());
        staging.hand_over();
        drop(layers);
        leftover.iter().for_each(|path| delete(path));
        Ok(layer)
    }

    /// Keeps a verified chunk, evicting layers that nobody uses when the limit is near.
    pub fn keep(&self, layer: &Layer, number: u32, frame: &[u8], data: &[u8]) -> Result<(), StoreError> {
        self.make_room((frame.len() + data.len()) as u64, layer.digest())?;
        self.noted(layer.keep(number, frame, data))
    }

    /// Keeps only the uncompressed form of a verified chunk: its frame is not the one in the index.
    pub fn keep_data(&self, layer: &Layer, number: u32, data: &[u8]) -> Result<(), StoreError> {
        self.make_room(data.len() as u64, layer.digest())?;
        self.noted(layer.keep_data(number, data))
    }

    /// Makes a chunk readable from what is here of it: what an earlier boot wrote, a frame, or another layer.
    pub fn recover(&self, layer: &Layer, number: u32) -> Result<Recovered, StoreError> {
        layer.confirm_data(number)?;
        if layer.readable().get(number) {
            return Ok(Recovered::Here);
        }
        if self.recover_frame(layer, number)? {
            return Ok(Recovered::Here);
        }
        if self.take_twin(layer, number)? {
            return Ok(Recovered::OtherLayer);
        }
        // Somebody else may have brought it meanwhile.
        Ok(if layer.readable().get(number) { Recovered::Here } else { Recovered::No })
    }

    fn recover_frame(&self, layer: &Layer, number: u32) -> Result<bool, StoreError> {
        layer.confirm_frame(number)?;
        if !layer.shareable().get(number) {
            return Ok(false);
        }
        let frame = layer.read_frame(number)?;
        let Ok(data) = crate::decode_chunk(&layer.chunks()[number as usize], &frame) else {
            layer.withdraw_frame(number)?;
            self.found_damage(layer, number);
            return Ok(false);
        };
        self.make_room(data.len() as u64, layer.digest())?;
        self.noted(layer.keep_data(number, &data))?;
        Ok(true)
    }

    pub(crate) fn found_damage(&self, layer: &Layer, number: u32) {
        self.damaged_chunks.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(layer = %layer.digest(), chunk = number, "a chunk on disk is not what it was");
    }

    /// Whether what is wanted here is what can be mounted, rather than only what can be passed on.
    pub(crate) fn keeps_devices(&self) -> bool {
        self.options.devices
    }

    /// Whether the store's file system shares blocks between files.
    pub fn clones(&self) -> bool {
        self.clones
    }

    /// A lower limit is reached with the next chunks: each evicts until there is room again.
    pub fn set_limit(&self, limit_bytes: u64) {
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// Layers that must not be evicted: those that are mounted. Replaces the earlier set.
    pub fn pin(&self, digests: impl IntoIterator<Item = Sha256Digest>) {
        *self.pinned.lock() = digests.into_iter().collect();
    }

    pub fn usage(&self) -> Usage {
        let layers = self.layers.lock();
        Usage {
            kept_bytes: layers.values().map(|layer| layer.kept_bytes()).sum::<u64>()
                + self.staged_bytes.load(Ordering::Relaxed)
                + self.beside_bytes.load(Ordering::Relaxed)
                + self.leaving_bytes.load(Ordering::Relaxed),
            limit_bytes: self.limit_bytes.load(Ordering::Relaxed),
            layers: layers.len(),
            evicted_layers: self.evicted_layers.load(Ordering::Relaxed),
            lacked_room: self.lacked_room.load(Ordering::Relaxed),
            reused_bytes: self.reused_bytes.load(Ordering::Relaxed),
            damaged_chunks: self.damaged_chunks.load(Ordering::Relaxed),
        }
    }

    /// Counts what others keep in the store's directory towards the limit, instead of what they said before. Refused
    /// when there is no room: then the earlier number stands.
    pub fn count_beside(&self, bytes: u64) -> Result<(), StoreError> {
        let before = self.beside_bytes.swap(bytes, Ordering::Relaxed);
        self.keep_to_limit(0, None).inspect_err(|_| self.beside_bytes.store(before, Ordering::Relaxed))
    }

    pub(crate) fn make_room(&self, bytes: u64, user: Sha256Digest) -> Result<(), StoreError> {
        self.keep_to_limit(bytes, Some(user))?;
        match free_bytes(&self.options.directory) {
            Some(free) if free < RESERVE_BYTES + bytes => Err(self.full()),
            _ => Ok(()),
        }
    }

    /// Evicts until so many bytes more are within the limit.
    fn keep_to_limit(&self, bytes: u64, user: Option<Sha256Digest>) -> Result<(), StoreError> {
        let lacks_room = || {
            let Usage { kept_bytes, limit_bytes, .. } = self.usage();
            kept_bytes + bytes > limit_bytes
        };
        if lacks_room() {
            // One at a time, and until the space is free: others wait for it here rather than evict more.
            let _evicting = self.evicting.lock();
            while lacks_room() {
                if !self.evict_one(user)? {
                    return Err(self.full());
                }
            }
        }
        Ok(())
    }

    fn full(&self) -> StoreError {
        self.lacks_room();
        StoreError::Full
    }

    /// Counts that what is wanted here does not fit, or not all of it at once.
    pub fn lacks_room(&self) {
        self.lacked_room.fetch_add(1, Ordering::Relaxed);
    }

    /// Drops the layer that was used longest ago, of those that nobody needs.
    fn evict_one(&self, user: Option<Sha256Digest>) -> Result<bool, StoreError> {
        let mut layers = self.layers.lock();
        let pinned = self.pinned.lock();
        let idle =
            layers.values().filter(|layer| Some(layer.digest()) != user && !pinned.contains(&layer.digest()));
        let Some(oldest) = idle.min_by_key(|layer| layer.last_used()).map(|layer| layer.digest()) else {
            return Ok(false);
        };
        // Deleted in place and killed half-way, bits could outlive their data.
        let leaving = self.set_aside(&self.layer_path(oldest))?;
        let bytes = layers.remove(&oldest).map_or(0, |layer| layer.kept_bytes());
        self.leaving_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.evicted_layers.fetch_add(1, Ordering::Relaxed);
        drop((layers, pinned));
        leaving.iter().for_each(|path| delete(path));
        self.leaving_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok(true)
    }

    /// Drops a layer that could not be opened again, so that it is fetched anew. False when it is mounted: it stays.
    pub fn drop_damaged(&self, layer: &Arc<Layer>) -> Result<bool, StoreError> {
        let mut layers = self.layers.lock();
        if self.pinned.lock().contains(&layer.digest()) {
            return Ok(false);
        }
        let held = layers.get(&layer.digest()).is_some_and(|held| Arc::ptr_eq(held, layer));
        let leaving = if held { self.set_aside(&self.layer_path(layer.digest()))? } else { None };
        if held {
            layers.remove(&layer.digest());
        }
        drop(layers);
        leaving.iter().for_each(|path| delete(path));
        Ok(true)
    }

    fn open_layers(&self) -> Result<(), StoreError> {
        let directory = self.options.directory.join("layers");
        for entry in fs::read_dir(&directory).map_err(StoreError::io(&directory))? {
            let path = entry.map_err(StoreError::io(&directory))?.path();
            match self.open_layer(&path) {
                Ok(layer) => {
                    if layer.bits_damaged {
                        self.found_damaged_file(&layer, "device.bits or pack.bits");
                    }
                    self.layers.lock().insert(layer.digest(), Arc::new(layer));
                }
                Err(error) if error.is_shortage() => return Err(error),
                Err(error) if error.is_damage() => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(path = %path.display(), error, "a damaged layer is dropped and will be refetched");
                    self.damaged_chunks.fetch_add(1, Ordering::Relaxed);
                    self.set_aside(&path)?.iter().for_each(|path| delete(path));
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(path = %path.display(), error, "a layer cannot be opened; it stays on disk unused");
                }
            }
        }
        Ok(())
    }

    fn open_layer(&self, path: &Path) -> Result<Layer, StoreError> {
        let layer = Layer::open(path, &self.boot)?;
        match path == self.layer_path(layer.digest()) {
            true => Ok(layer),
            false => Err(StoreError::Damaged { path: path.to_owned(), problem: "it holds another layer" }),
        }
    }

    fn layer_path(&self, digest: Sha256Digest) -> PathBuf {
        self.options.directory.join("layers").join(digest.to_hex())
    }

    /// Whether layers can be made and chunks be kept: a disk may become read-only or fail, and somebody may delete the
    /// directory where it cannot be made again, or start another peer there. Says nothing about room.
    pub fn check_directories(&self) -> Result<(), StoreError> {
        for path in ["layers", "staging"].map(|name| self.options.directory.join(name)) {
            // What is missing is made with the next layer, and not while somebody is still deleting.
            let may_write = |ancestor: &Path| access(ancestor, Access::WRITE_OK | Access::EXEC_OK);
            let first = path.ancestors().map(may_write).find(|found| *found != Err(Errno::NOENT));
            if let Some(Err(refused)) = first {
                return Err(StoreError::io(path)(refused.into()));
            }
        }
        if lock_path(&self.options.directory).exists() {
            self.claim()?;
        }
        self.check_writes()
    }

    /// A file system that has shut itself down after an error lets itself be asked (access(2)) as ever, and refuses what is
    /// written. So a refusal is told at least once, and until something is taken again.
    fn check_writes(&self) -> Result<(), StoreError> {
        let Some(last) = self.refused.lock().take() else { return Ok(()) };
        // Not under the lock: a disk may take its time to refuse, and others note what it refused them.
        let probe = self.options.directory.join("staging").join("probe");
        let written = File::create(&probe).and_then(|file| {
            file.write_all_at(&[0; 4096], 0)?;
            file.sync_data()
        });
        let _ = fs::remove_file(&probe);
        if written.is_ok() && !last.news {
            return Ok(());
        }
        let told = StoreError::io(&last.path)(last.errno.into());
        let news = last.news;
        self.refused.lock().get_or_insert(Refused { news: false, ..last });
        match written {
            _ if news => Err(told),
            // Room is another matter, and what is missing is made with the next layer.
            Err(error) if error.kind() != io::ErrorKind::NotFound => match StoreError::io(&probe)(error) {
                StoreError::Full => Ok(()),
                other => Err(other),
            },
            _ => Ok(()),
        }
    }

    fn noted<T>(&self, written: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Io { path, source }) = &written
            && let Some(errno) = Errno::from_io_error(source)
            // Whoever deletes the store is no fault of the disk's.
            && errno != Errno::NOENT
        {
            *self.refused.lock() = Some(Refused { path: path.clone(), errno, news: true });
        }
        written
    }

    fn make_directories(&self) -> Result<(), StoreError> {
        self.noted(make_private_directories(&self.options.directory))?;
        self.claim()
    }

    /// Whoever deleted the directory took its lock and its version along: another peer could have it then.
    fn claim(&self) -> Result<(), StoreError> {
        let directory = &self.options.directory;
        let mut lock = self.lock.lock();
        if !lock.is_of(directory) {
            let again = Lock::take(directory)?;
            check_format(directory)?;
            *lock = again;
        }
        Ok(())
    }

    /// A fresh name in the directory that is emptied at start.
    fn staging_path(&self, name: &str) -> PathBuf {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        self.options.directory.join("staging").join(format!("{name}.{number}"))
    }

    /// Takes a layer's name away from its directory in one step; what is there then only needs to be deleted.
    /// Leaves the directory of another peer alone, that has made its store where this one's was deleted.
    fn set_aside(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        if !self.lock.lock().is_of(&self.options.directory) {
            return Ok(None);
        }
        let aside = self.staging_path("gone");
        match fs::rename(path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(other) => Err(StoreError::io(path)(other)),
        }
    }
}

/// What is left of it goes at the next start.
fn delete(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "cannot delete what the store has dropped");
    }
}

/// Layers of private images, and with them what only their users may read.
fn make_private_directories(directory: &Path) -> Result<(), StoreError> {
    for directory in [directory.join("layers"), directory.join("staging")] {
        if !directory.exists() {
            fs::create_dir_all(&directory).map_err(StoreError::io(&directory))?;
        }
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&directory, private).map_err(StoreError::io(&directory))?;
    }
    Ok(())
}

/// One process per store. Unlocked by its drop: closing is not enough while a child that was just forked
/// still has the descriptor, until its exec (flock(2)).
#[derive(Debug)]
struct Lock(File);

impl Lock {
    fn take(directory: &Path) -> Result<Lock, StoreError> {
        let path = lock_path(directory);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(StoreError::io(&path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Locked(directory.to_owned()))?;
        Ok(Lock(file))
    }

    /// Whether it is still the file of this name that is locked.
    fn is_of(&self, directory: &Path) -> bool {
        let [held, there] = [self.0.metadata(), fs::metadata(lock_path(directory))]
            .map(|file| file.ok().map(|file| (file.dev(), file.ino())));
        held.is_some() && held == there
    }
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.join("lock")
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "cannot unlock the store");
        }
    }
}

fn check_format(directory: &Path) -> Result<(), StoreError> {
    if !stored_format(directory)? {
        let path = directory.join("format");
        fs::write(&path, format!("{FORMAT_VERSION}\n")).map_err(StoreError::io(path))?;
    }
    Ok(())
}

/// Whether the directory holds a store, without opening it; one of another version is an error.
pub fn stored_format(directory: &Path) -> Result<bool, StoreError> {
    let path = directory.join("format");
    let mut found = String::new();
    match File::open(&path) {
        Ok(file) => file.take(64).read_to_string(&mut found).map_err(StoreError::io(&path))?,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(other) => return Err(StoreError::io(path)(other)),
    };
    let found = found.trim();
    if found == FORMAT_VERSION.to_string() {
        return Ok(true);
    }
    Err(StoreError::Version { path: directory.to_owned(), found: found.to_owned(), expected: FORMAT_VERSION })
}

/// Tried with two small files: what a file system can also depends on how it was made.
fn can_clone(directory: &Path) -> bool {
    let [from, to] = ["clone.from", "clone.to"].map(|name| directory.join(name));
    let cloned = fs::write(&from, [1; 4096])
        .and_then(|()| Ok((File::open(&from)?, File::create(&to)?)))
        .is_ok_and(|(from, to)| rustix::fs::ioctl_ficlone(to, from).is_ok());
    [from, to].iter().for_each(|path| drop(fs::remove_file(path)));
    cloned
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| "unknown".into(), |id| id.trim().to_owned())
}

fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

    use super::*;

    #[test]
    fn a_dropped_store_is_unlocked_while_a_forked_child_has_the_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let lock = Lock::take(directory.path()).unwrap();
        let of_child = lock.0.try_clone().unwrap();
        assert!(matches!(Lock::take(directory.path()), Err(StoreError::Locked(_))));
        drop(lock);
        Lock::take(directory.path()).unwrap();
        drop(of_child);
    }
}
