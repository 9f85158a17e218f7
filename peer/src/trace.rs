//! Access traces: the order in which an image's containers first touched its chunks. Advisory; never trusted for
//! more than an order of fetching.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use d7y_proto::local::RecordTrace;
use d7y_store::Store;
use d7y_types::{BLOCK_BYTES, Sha256Digest};
use parking_lot::Mutex;
use prost::Message;

use crate::directory::Directory;

/// A trace of a million chunk runs is not a start-up any more.
const MAX_TRACE_BYTES: usize = 4 << 20;
/// Traces of some thousand images; the oldest go. A small store gives them only a part of its limit.
const MAX_KEPT_BYTES: u64 = 64 << 20;
const LIMIT_PART: u64 = 32;
/// Chunks prefetched for one image at most: about 4 GiB of device.
const MAX_TRACE_CHUNKS: usize = 65_536;
/// How long starting an image waits for the scheduler to say whether it knows a trace.
const LOOK_UP: Duration = Duration::from_millis(300);

pub struct Traces {
    shelf: Arc<Shelf>,
    cluster: Arc<Directory>,
}

impl Traces {
    pub fn new(store: Arc<Store>, cluster: Arc<Directory>) -> io::Result<Self> {
        let directory = store.directory().join("traces");
        Ok(Self { shelf: Arc::new(Shelf::open(directory, store)?), cluster })
    }

    /// From this node's disk, else from the cluster.
    pub async fn find(&self, image: Sha256Digest) -> Option<RecordTrace> {
        let body = match tokio::fs::read(self.shelf.path(&image.to_hex())).await {
            Ok(body) => body,
            Err(_) => self.cluster.trace(image, LOOK_UP).await?,
        };
        RecordTrace::decode(&body[..]).ok()
    }

    /// Keeps a trace and tells the cluster. The first one stays: later runs see a warm cache and record less.
    pub async fn record(&self, image: Sha256Digest, trace: &RecordTrace) -> io::Result<()> {
        let body = trace.encode_to_vec();
        if body.len() > MAX_TRACE_BYTES || trace.runs.is_empty() {
            return Ok(());
        }
        let (shelf, kept) = (self.shelf.clone(), body.clone());
        tokio::task::spawn_blocking(move || shelf.keep(image, &kept)).await.map_err(io::Error::other)??;
        self.cluster.publish_trace(image, body);
        Ok(())
    }
}

/// The traces on this node's disk, which the store's limit counts.
struct Shelf {
    directory: PathBuf,
    store: Arc<Store>,
    /// Names and sizes, oldest first.
    kept: Mutex<VecDeque<(String, u64)>>,
}

impl Shelf {
    fn open(directory: PathBuf, store: Arc<Store>) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push((metadata.modified()?, (name, blocks(metadata.len()))));
        }
        found.sort();
        let kept = found.into_iter().map(|(_, kept)| kept).collect();
        let shelf = Self { directory, store, kept: Mutex::new(kept) };
        let bytes = shelf.free(&mut shelf.kept.lock(), 0)?;
        if shelf.store.count_beside(bytes).is_err() {
            // What is mounted fills the store: traces are only advice.
            shelf.free(&mut shelf.kept.lock(), shelf.budget_bytes())?;
        }
        Ok(shelf)
    }

    /// The limit may change while the peer runs.
    fn budget_bytes(&self) -> u64 {
        (self.store.usage().limit_bytes / LIMIT_PART).min(MAX_KEPT_BYTES)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Takes a trace in when there is room for it; it is only advice.
    fn keep(&self, image: Sha256Digest, body: &[u8]) -> io::Result<()> {
        let (name, bytes) = (image.to_hex(), blocks(body.len() as u64));
        if bytes > self.budget_bytes() {
            return Ok(());
        }
        let mut kept = self.kept.lock();
        if let Some(known) = kept.iter().position(|(known, _)| *known == name) {
            fs::remove_file(self.path(&name))?;
            kept.remove(known);
        }
        let others = self.free(&mut kept, bytes)?;
        if let Err(full) = self.store.count_beside(others + bytes) {
            tracing::debug!(error = crate::failure::chain(&full), "no room for an access trace");
            return Ok(());
        }
        let fresh = self.path(&format!("{name}.new"));
        fs::write(&fresh, body)?;
        fs::rename(&fresh, self.path(&name))?;
        kept.push_back((name, bytes));
        Ok(())
    }

    /// Removes the oldest traces until there is room for so many bytes; returns what the others take.
    fn free(&self, kept: &mut VecDeque<(String, u64)>, bytes: u64) -> io::Result<u64> {
        let mut used: u64 = kept.iter().map(|(_, bytes)| bytes).sum();
        while used + bytes > self.budget_bytes()
            && let Some((name, freed)) = kept.front().cloned()
        {
            fs::remove_file(self.path(&name))?;
            kept.pop_front();
            used -= freed;
        }
        Ok(used)
    }
}

fn blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// The chunks of a trace in order, of layers that the image really has. `chunks_of` gives a layer's length.
pub fn chunks(trace: &RecordTrace, chunks_of: &HashMap<Sha256Digest, u32>) -> Vec<(Sha256Digest, u32)> {
    let mut out = Vec::new();
    for run in &trace.runs {
        let Some(layer) = <[u8; 32]>::try_from(&run.layer[..]).ok().map(Sha256Digest) else { continue };
        let Some(&len) = chunks_of.get(&layer) else { continue };
        let end = run.first_chunk.saturating_add(run.chunks).min(len);
        out.extend((run.first_chunk.min(end)..end).map(|number| (layer, number)));
        if out.len() >= MAX_TRACE_CHUNKS {
            out.truncate(MAX_TRACE_CHUNKS);
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestStore;

    #[test]
    fn traces_stay_within_a_part_of_the_stores_limit_and_are_counted() {
        let (store, directory) = (TestStore::new(), tempfile::tempdir().unwrap());
        let open = || Shelf::open(directory.path().to_owned(), store.store.clone()).unwrap();
        let names = || {
            let names = fs::read_dir(directory.path()).unwrap();
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let shelf = open();
        let room = (shelf.budget_bytes() / BLOCK_BYTES) as u8;
        assert!((2..9).contains(&room));
        for image in 0..9 {
            shelf.keep(Sha256Digest([image; 32]), &[image; 100]).unwrap();
        }
        let kept = |shelf: &Shelf| shelf.kept.lock().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let newest: Vec<_> = (9 - room..9).map(|image| Sha256Digest([image; 32]).to_hex()).collect();
        assert_eq!(kept(&shelf), newest);
        assert_eq!(names().len(), newest.len());
        assert_eq!(store.store.usage().kept_bytes, u64::from(room) * BLOCK_BYTES);

        shelf.keep(Sha256Digest([8; 32]), &[7; 50]).unwrap();
        shelf.keep(Sha256Digest([1; 32]), &vec![1; shelf.budget_bytes() as usize + 1]).unwrap();
        assert_eq!(kept(&shelf), newest, "one a name, and none that is larger than all may be");
        assert_eq!(fs::read(shelf.path(&newest[newest.len() - 1])).unwrap(), [7; 50]);

        fs::write(directory.path().join("left.new"), "by a kill").unwrap();
        drop(shelf);
        let shelf = open();
        assert_eq!(store.store.usage().kept_bytes, names().len() as u64 * BLOCK_BYTES);
        assert!(store.store.usage().kept_bytes <= shelf.budget_bytes());
    }
}
