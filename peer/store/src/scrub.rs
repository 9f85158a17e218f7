//! Looking for what the disk has changed since it was written (`docs/adr/0008`).
//!
//! A set bit is believed as long as the machine is up; frames are hashed whenever they are decoded, devices are mounted
//! and hashed by nobody. So one layer after the other is read from its disk and compared: its small files with what this
//! process knows, its chunks and frames with the index. Damage is mended in place, from the chunk's own frame or its own
//! data, with its bit still set: the device may be mounted, and whoever reads a mounted file cannot be held back. What
//! cannot be mended here loses its bit and is the caller's to fetch.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use d7y_image::{Chunk, Codec};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::claims::replace;
use crate::error::StoreError;
use crate::layer::{KeptReference, Layer};
use crate::store::Store;
use crate::uncached::Uncached;
use crate::verify::hash;

/// Zeros that are read at once, where a file system keeps no holes.
const ZEROS_BYTES: u64 = 128 << 10;

/// One layer being scrubbed.
#[derive(Debug)]
pub struct Scrub {
    store: Arc<Store>,
    layer: Arc<Layer>,
    device: Uncached,
    pack: Uncached,
}

/// What looking at a chunk came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbed {
    pub read_bytes: u64,
    /// What was damaged and could not be mended from what is here: it is to be fetched.
    pub data_lost: bool,
    pub frame_lost: bool,
}

impl Scrub {
    pub fn begin(store: &Arc<Store>, layer: &Arc<Layer>) -> Result<Self, StoreError> {
        let open = |name: &str| {
            let path = layer.paths().device.with_file_name(name);
            Uncached::open(&path).map_err(StoreError::io(path))
        };
        let (device, pack) = (open("device")?, open("pack")?);
        Ok(Self { store: store.clone(), layer: layer.clone(), device, pack })
    }

    pub fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    /// Compares the layer's small files with what this process knows, and writes anew what differs. False when the index
    /// is damaged: of that nothing else is here.
    pub fn check_files(&self) -> Result<bool, StoreError> {
        let (layer, store) = (&self.layer, &self.store);
        for (name, bits) in [("device.bits", layer.readable()), ("pack.bits", layer.shareable())] {
            if bits.mend().map_err(StoreError::io(layer.file(name)))? {
                store.found_damaged_file(layer, name);
            }
        }
        let reference = KeptReference::write(layer.reference());
        let unchecked = KeptReference::write_unchecked(layer.reference());
        for (name, wanted) in [("reference.json", reference.as_slice()), ("boot", store.boot().as_bytes())] {
            let path = layer.file(name);
            let found = read(&path).map_err(StoreError::io(&path))?;
            if found != wanted {
                if found != unchecked {
                    store.found_damaged_file(layer, name);
                }
                replace(&path, wanted).map_err(StoreError::io(&path))?;
            }
        }
        let path = layer.file("index");
        let sealed = read(&path).map_err(StoreError::io(&path))?;
        let whole = layer.check_index(&sealed).is_ok();
        if !whole {
            store.found_damaged_file(layer, "index");
        }
        Ok(whole)
    }

    /// Reads what is here of a chunk and mends what can be mended.
    pub fn check(&mut self, number: u32) -> Result<Scrubbed, StoreError> {
        let layer = self.layer.clone();
        let chunk = &layer.chunks()[number as usize];
        if chunk.codec == Codec::Zero {
            return self.check_zeros(number, chunk);
        }
        let mut scrubbed = Scrubbed::default();
        let frame = self.decoded_frame(number, chunk, &mut scrubbed);
        if layer.readable().get(number) {
            scrubbed.read_bytes += chunk.bytes();
            if !self.data_is(chunk) {
                self.store.found_damage(&layer, number);
                scrubbed.data_lost = !self.mend(number, chunk, frame.as_ref().and_then(|f| f.as_deref()))?;
            }
        }
        if let Some(None) = frame {
            self.store.found_damage(&layer, number);
            layer.withdraw_frame(number)?;
            scrubbed.frame_lost = !self.take_frame_from_data(number, chunk)?;
        }
        Ok(scrubbed)
    }

    /// What the frame decodes to, where there is one: nothing when it is damaged.
    fn decoded_frame(
        &mut self,
        number: u32,
        chunk: &Chunk,
        scrubbed: &mut Scrubbed,
    ) -> Option<Option<Vec<u8>>> {
        if !self.layer.shareable().get(number) {
            return None;
        }
        scrubbed.read_bytes += u64::from(chunk.frame_bytes);
        let frame = self.pack.read(chunk.pack_offset, chunk.frame_bytes as usize).ok();
        Some(frame.and_then(|frame| crate::decode_chunk(chunk, frame).ok()))
    }

    /// A disk that cannot read its sector is no better than one that reads it wrong.
    fn data_is(&mut self, chunk: &Chunk) -> bool {
        let data = self.device.read(chunk.device_range().offset, chunk.bytes() as usize);
        data.is_ok_and(|data| hash(data) == chunk.hash)
    }

    /// Writes the chunk's place anew, and gives it up when that was of no use.
    fn mend(&mut self, number: u32, chunk: &Chunk, data: Option<&[u8]>) -> Result<bool, StoreError> {
        let written =
            data.is_some_and(|data| self.layer.mend_data(number, chunk.device_range().offset, data).is_ok());
        if written && self.data_is(chunk) {
            return Ok(true);
        }
        self.layer.withdraw_data(number)?;
        Ok(false)
    }

    /// A frame that is not compressed is the data; another one could come out with another length.
    fn take_frame_from_data(&mut self, number: u32, chunk: &Chunk) -> Result<bool, StoreError> {
        if chunk.codec != Codec::Raw || !self.layer.readable().get(number) {
            return Ok(false);
        }
        let Ok(data) = self.device.read(chunk.device_range().offset, chunk.bytes() as usize) else {
            return Ok(false);
        };
        if hash(data) != chunk.hash {
            return Ok(false);
        }
        self.layer.keep_frame(number, data).map(|()| true)
    }

    /// Zeros are holes; where there are none, or something has got into one, what is there is read.
    fn check_zeros(&mut self, number: u32, chunk: &Chunk) -> Result<Scrubbed, StoreError> {
        let (mut at, end) = (chunk.device_range().offset, chunk.device_range().end());
        let (mut scrubbed, mut damaged) = (Scrubbed::default(), false);
        while let Some(found) = self.next_data(at, end)? {
            let bytes = (end - found).min(ZEROS_BYTES) as usize;
            scrubbed.read_bytes += bytes as u64;
            let zeros = self.device.read(found, bytes).is_ok_and(|data| data.iter().all(|byte| *byte == 0));
            if !zeros {
                damaged = true;
                let path = StoreError::io(self.layer.file("device"));
                self.layer.mend_data(number, found, &vec![0; bytes]).map_err(path)?;
            }
            at = found + bytes as u64;
        }
        if damaged {
            self.store.found_damage(&self.layer, number);
        }
        Ok(scrubbed)
    }

    fn next_data(&self, at: u64, end: u64) -> Result<Option<u64>, StoreError> {
        if at >= end {
            return Ok(None);
        }
        match seek(self.device.file(), SeekFrom::Data(at)) {
            Ok(found) if found < end => Ok(Some(found)),
            Ok(_) | Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(StoreError::io(self.layer.file("device"))(error.into())),
        }
    }
}

impl Store {
    /// Replaces a damaged index by the same one of another peer. The caller has verified its signature.
    pub fn mend_index(&self, layer: &Layer, sealed: &[u8]) -> Result<(), StoreError> {
        layer.check_index(sealed)?;
        let path = layer.file("index");
        replace(&path, sealed).map_err(StoreError::io(path))
    }

    pub(crate) fn found_damaged_file(&self, layer: &Layer, name: &str) {
        self.damaged_chunks.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(layer = %layer.digest(), name, "a file of a layer on disk is not what it was");
    }
}

/// From the disk; what was written meanwhile is there by then.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    crate::uncached::forget_cached(&fs::File::open(path)?)?;
    fs::read(path)
}
