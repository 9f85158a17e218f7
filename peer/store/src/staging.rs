use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d7y_image::{Chunk, Codec, LayerIndex};
use d7y_types::LayerRef;
use parking_lot::Mutex;

use crate::bitmap::Bitmap;
use crate::error::StoreError;
use crate::layer::{FrameLocation, KeptReference};

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
        self.count(self.cost(frame, data));
        let mut chunks = self.chunks.lock();
        chunks.push(chunk);
        Ok(chunks.len() as u32 - 1)
    }

    /// Counts bytes towards the store's limit until the layer is dropped or handed over.
    pub(crate) fn count(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was counted here is counted elsewhere from now on.
    pub(crate) fn hand_over(&self) {
        self.release(self.bytes.load(Ordering::Relaxed));
    }

    fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.total_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Gives chunks up, the last first, until so many bytes are free.
    pub(crate) fn shrink(&self, bytes: u64) -> Result<(), StoreError> {
        let path = || StoreError::io(&self.directory);
        let mut chunks = self.chunks.lock();
        let mut freed = 0;
        while freed < bytes
            && let Some(last) = chunks.pop()
        {
            let data = if self.device.is_some() && last.codec != Codec::Zero { last.bytes() } else { 0 };
            freed += u64::from(last.frame_bytes) + data;
            self.pack.set_len(last.pack_offset).map_err(path())?;
            if let Some(device) = &self.device {
                device.set_len(last.device_range().offset).map_err(path())?;
            }
        }
        self.release(freed);
        Ok(())
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

    /// Writes the index and the bits of the staged chunks that it confirms. What lies behind the first that it does not
    /// is cut off: offsets are running sums, and a byte left there could lie where the index says zeros.
    pub(crate) fn settle(&self, index: &LayerIndex, sealed: &[u8], boot: &str) -> Result<(), StoreError> {
        let path = || StoreError::io(&self.directory);
        let staged = self.chunks.lock();
        let same = staged.iter().zip(&index.chunks).take_while(|(staged, wanted)| staged == wanted).count();
        let create = |name: &str| {
            let file =
                OpenOptions::new().read(true).write(true).create_new(true).open(self.directory.join(name));
            file.map_err(path())
        };
        let (made, confirmed) = match &self.device {
            Some(_) => (None, same),
            None => (Some(create("device")?), 0),
        };
        let device = self.device.as_ref().or(made.as_ref()).expect("one of the two");
        if let Some(first) = staged.get(same) {
            device.set_len(first.device_range().offset).map_err(path())?;
            self.pack.set_len(first.pack_offset).map_err(path())?;
        }
        device.set_len(index.device_bytes()).map_err(path())?;
        let len = index.chunks.len() as u32;
        let bits = |name: &str, confirmed: usize| {
            let numbers = (0u32..).zip(&index.chunks[..confirmed]);
            let numbers = numbers.filter(|(_, chunk)| chunk.codec != Codec::Zero).map(|(n, _)| n);
            Bitmap::load(create(name)?, len).and_then(|bits| bits.set_all(numbers)).map_err(path())
        };
        bits("pack.bits", same)?;
        bits("device.bits", confirmed)?;
        let reference = KeptReference::write(&self.reference);
        fs::write(self.directory.join("reference.json"), reference).map_err(path())?;
        fs::write(self.directory.join("boot"), boot).map_err(path())?;
        fs::write(self.directory.join("index"), sealed).map_err(path())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.hand_over();
        // After a commit the directory has another name and this finds nothing.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
