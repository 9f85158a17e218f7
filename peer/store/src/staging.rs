use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d7y_image::{Chunk, LayerIndex};
use d7y_types::{ChunkHash, LayerRef};
use parking_lot::Mutex;

use crate::bitmap::Bitmap;
use crate::error::StoreError;
use crate::layer::FrameLocation;

/// A layer whose index is not known yet: chunks arrive in device order while somebody reads the layer.
///
/// Nothing of it is readable. When the index comes, the chunks that it confirms are taken over. Dropped without
/// `commit`, the files go away.
#[derive(Debug)]
pub struct Staging {
    reference: LayerRef,
    pub(crate) directory: PathBuf,
    device: Option<File>,
    pack: Arc<File>,
    chunks: Mutex<Vec<Chunk>>,
    bytes: AtomicU64,
    /// What all layers being staged take together; the store's limit counts it.
    total_bytes: Arc<AtomicU64>,
}

/// Whether the uncompressed form is wanted too: nodes mount it, seeds only pass frames on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Frames,
    FramesAndDevice,
}

impl Staging {
    pub(crate) fn create(
        directory: PathBuf,
        reference: LayerRef,
        keep: Keep,
        total_bytes: Arc<AtomicU64>,
    ) -> Result<Self, StoreError> {
        fs::create_dir_all(&directory).map_err(StoreError::io(&directory))?;
        let open = |name: &str| {
            let path = directory.join(name);
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
            file.map_err(StoreError::io(path))
        };
        let device = match keep {
            Keep::Frames => None,
            Keep::FramesAndDevice => Some(open("device")?),
        };
        let pack = Arc::new(open("pack")?);
        let (chunks, bytes) = (Mutex::default(), AtomicU64::new(0));
        Ok(Self { reference, directory, device, pack, chunks, bytes, total_bytes })
    }

    pub fn reference(&self) -> &LayerRef {
        &self.reference
    }

    pub(crate) fn push(&self, chunk: Chunk, frame: &[u8], data: &[u8]) -> Result<u32, StoreError> {
        let path = || StoreError::io(&self.directory);
        self.pack.write_all_at(frame, chunk.pack_offset).map_err(path())?;
        if let Some(device) = &self.device {
            device.write_all_at(data, chunk.device_range().offset).map_err(path())?;
        }
        let bytes = self.cost(frame, data);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut chunks = self.chunks.lock();
        chunks.push(chunk);
        Ok(chunks.len() as u32 - 1)
    }

    pub(crate) fn cost(&self, frame: &[u8], data: &[u8]) -> u64 {
        (frame.len() + if self.device.is_some() { data.len() } else { 0 }) as u64
    }

    pub fn len(&self) -> u32 {
        self.chunks.lock().len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A staged chunk and its frame, for peers that follow along.
    pub fn chunk(&self, number: u32) -> Option<(Chunk, FrameLocation)> {
        let chunk = *self.chunks.lock().get(number as usize)?;
        let (offset, length) = (chunk.pack_offset, chunk.frame_bytes);
        Some((chunk, FrameLocation { file: self.pack.clone(), offset, length }))
    }

    /// Writes the index and the bits of every staged chunk that the index confirms.
    pub(crate) fn settle(&self, index: &LayerIndex, sealed: &[u8], boot: &str) -> Result<(), StoreError> {
        let path = || StoreError::io(&self.directory);
        let staged = self.chunks.lock();
        let confirmed = |n: &u32| {
            let (staged, wanted) = (staged.get(*n as usize), index.chunks.get(*n as usize));
            matches!((staged, wanted), (Some(a), Some(b)) if a == b && b.hash != ChunkHash([0; 32]))
        };
        let len = index.chunks.len() as u32;
        let bits = |name: &str| {
            let file =
                OpenOptions::new().read(true).write(true).create_new(true).open(self.directory.join(name));
            Bitmap::load(file.map_err(path())?, len).map_err(path())
        };
        bits("pack.bits")?.set_all((0..len).filter(confirmed)).map_err(path())?;
        let device_bits = bits("device.bits")?;
        if self.device.is_some() {
            device_bits.set_all((0..len).filter(confirmed)).map_err(path())?;
        }
        let reference = serde_json::to_vec(&self.reference).expect("a layer reference is plain data");
        fs::write(self.directory.join("reference.json"), reference).map_err(path())?;
        fs::write(self.directory.join("boot"), boot).map_err(path())?;
        fs::write(self.directory.join("index"), sealed).map_err(path())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.total_bytes.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        // After a commit the directory has another name and this finds nothing.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
