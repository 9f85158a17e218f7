use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d7y_image::{LayerIndex, MAX_INDEX_BYTES, TrustError, open_unchanged};
use d7y_peer_client::{ClientError, Link, LocalClient};
use d7y_proto::local::LayerOpened;
use d7y_types::{ByteRange, LayerRef, Sha256Digest};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};

use crate::layers::chunks::{ChunkTable, Present};
use crate::layers::registry::Backing;
use crate::layers::touched::Touched;

/// A layer's device as the peer keeps it on this node's disk.
#[derive(Debug)]
pub struct Device {
    /// Says where everything lies: two indexes of one layer may differ in that.
    pub layout: Sha256Digest,
    /// The connection over which it was opened: another peer process may have another index.
    link: Link,
    file: File,
    table: ChunkTable,
    present: Present,
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("the peer cannot open layer {layer}")]
    Peer { layer: Sha256Digest, source: ClientError },
    #[error("cannot read what the peer keeps of layer {layer} at {path}")]
    File { layer: Sha256Digest, path: String, source: io::Error },
    #[error(
        "the peer's index of layer {layer} is not as it was signed; restart d7y-peer to have it fetched anew"
    )]
    Index { layer: Sha256Digest, source: TrustError },
    #[error("the peer's index is of layer {found}, not of {layer}")]
    OtherLayer { layer: Sha256Digest, found: Sha256Digest },
    #[error("the peer did not answer in time to open layer {layer}; is d7y-peer running?")]
    Busy { layer: Sha256Digest },
    #[error("opening layer {layer} was interrupted")]
    Interrupted { layer: Sha256Digest },
}

impl Device {
    pub fn bytes(&self) -> u64 {
        self.table.device_bytes()
    }

    pub fn chunks(&self) -> u32 {
        self.table.len()
    }

    pub fn chunks_in(&self, range: ByteRange) -> std::ops::Range<u32> {
        self.table.overlapping(range)
    }

    /// The part of a range that must be fetched before the range can be read; nothing when it can be read now.
    pub fn missing(&self, range: ByteRange) -> io::Result<Option<ByteRange>> {
        let Some(missing) = self.present.missing(self.table.overlapping(range))? else { return Ok(None) };
        let chunks = self.table.bytes_of(missing);
        let offset = chunks.offset.max(range.offset);
        Ok(Some(ByteRange::new(offset, chunks.end().min(range.end()) - offset)))
    }

    /// Whether all of it can be read now, and so for good: the peer only adds chunks, mends them in place, and removes a layer whole, which
    /// leaves an open or mounted file as it is. The peer has hashed whatever an earlier boot of the machine claimed
    /// before it opens a layer at all.
    pub fn is_complete(&self) -> io::Result<bool> {
        Ok(self.present.missing(0..self.table.len())?.is_none())
    }

    /// Whether the peer that answers now is the one that opened the device. Only then do offsets mean the same to
    /// both.
    pub fn is_current(&self, peer: &LocalClient) -> bool {
        self.link == *peer.link().borrow()
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// A range of which `fetched` came past the disk; the rest of it must be present.
    pub fn assemble(&self, range: ByteRange, part: ByteRange, fetched: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = vec![0; range.length as usize];
        let start = (part.offset - range.offset) as usize;
        let end = start + fetched.len();
        self.file.read_exact_at(&mut out[..start], range.offset)?;
        out[start..end].copy_from_slice(fetched);
        self.file.read_exact_at(&mut out[end..], part.end())?;
        Ok(out)
    }

    /// What the device takes on disk, in bytes.
    pub fn stored_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

/// A layer whose device may be open already; opening happens when it is needed, and again after the peer restarted.
#[derive(Debug)]
pub struct DeviceSlot {
    pub layer: LayerRef,
    open: RwLock<Option<Arc<Device>>>,
    /// The kernel does not mount the device itself.
    refuses_direct: AtomicBool,
    /// One opening at a time; the others take what it brought.
    opening: tokio::sync::Mutex<()>,
    /// What the kernel was given of it.
    pub touched: Touched,
}

impl DeviceSlot {
    pub fn new(layer: LayerRef) -> Self {
        let (open, refuses_direct, opening, touched) = Default::default();
        Self { layer, open, refuses_direct, opening, touched }
    }

    /// How a new mount of the device may stand, `wanted` being the best that its user can take.
    pub fn backing(&self, device: &Device, wanted: Backing) -> Backing {
        let direct = wanted == Backing::Direct
            && !self.refuses_direct.load(Ordering::Relaxed)
            && device.is_complete().unwrap_or(false);
        if direct { Backing::Direct } else { Backing::Served }
    }

    /// Further mounts are served ones.
    pub fn refuse_direct(&self) {
        self.refuses_direct.store(true, Ordering::Relaxed);
    }

    /// The device, if it is open.
    pub fn ready(&self) -> Option<Arc<Device>> {
        self.open.read().clone()
    }

    /// The device as the peer that answers now has it; opened if it is not, or only by a peer before.
    pub async fn device(&self, peer: &LocalClient, deadline: Instant) -> Result<Arc<Device>, DeviceError> {
        if let Some(device) = self.current(peer) {
            return Ok(device);
        }
        let opening = tokio::time::timeout_at(deadline.into(), self.opening.lock()).await;
        let _opening = opening.map_err(|_| DeviceError::Busy { layer: self.layer.digest })?;
        match self.current(peer) {
            Some(device) => Ok(device),
            None => Ok(self.reopen(peer, deadline).await?.0),
        }
    }

    fn current(&self, peer: &LocalClient) -> Option<Arc<Device>> {
        self.ready().filter(|device| device.is_current(peer))
    }

    /// Opens the device and returns the index too.
    pub async fn reopen(
        &self,
        peer: &LocalClient,
        deadline: Instant,
    ) -> Result<(Arc<Device>, LayerIndex), DeviceError> {
        let layer = self.layer.digest;
        let mut link = peer.link();
        let wait = link.wait_for(|link| matches!(link, Link::Up(_)));
        let link = match tokio::time::timeout_at(deadline.into(), wait).await {
            Ok(Ok(link)) => *link,
            _ => return Err(DeviceError::Busy { layer }),
        };
        let opened = peer.open_layer(&self.layer, remaining(deadline)).await;
        let opened = opened.map_err(|source| DeviceError::Peer { layer, source })?;
        let loaded = tokio::task::spawn_blocking(move || load(layer, link, &opened));
        let (device, index) = loaded.await.map_err(|_| DeviceError::Interrupted { layer })??;
        let device = Arc::new(device);
        *self.open.write() = Some(Arc::clone(&device));
        Ok((device, index))
    }

    /// The next user opens the device anew.
    pub fn close(&self) {
        *self.open.write() = None;
    }
}

pub fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn load(layer: Sha256Digest, link: Link, opened: &LayerOpened) -> Result<(Device, LayerIndex), DeviceError> {
    let index_file = open(layer, &opened.index_path)?;
    let sealed = read_index(&index_file).map_err(|source| DeviceError::File {
        layer,
        path: opened.index_path.clone(),
        source,
    })?;
    let index = open_unchanged(&sealed).map_err(|source| DeviceError::Index { layer, source })?;
    if index.layer != layer {
        return Err(DeviceError::OtherLayer { layer, found: index.layer });
    }
    let device = Device {
        layout: layout(&index),
        link,
        file: open(layer, &opened.device_path)?,
        table: ChunkTable::new(&index.chunks),
        present: Present::new(open(layer, &opened.bitmap_path)?, &index.chunks),
    };
    Ok((device, index))
}

fn open(layer: Sha256Digest, path: &str) -> Result<File, DeviceError> {
    File::open(Path::new(path)).map_err(|source| DeviceError::File { layer, path: path.into(), source })
}

fn read_index(file: &File) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut sealed = Vec::new();
    file.take(MAX_INDEX_BYTES as u64 + 1).read_to_end(&mut sealed)?;
    Ok(sealed)
}

fn layout(index: &LayerIndex) -> Sha256Digest {
    let mut hash = Sha256::new();
    for chunk in &index.chunks {
        hash.update(chunk.blocks.to_le_bytes());
        hash.update(chunk.hash.0);
    }
    hash.update(&index.bootstrap);
    Sha256Digest(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use d7y_image::IndexSigner;

    use super::*;

    #[test]
    fn an_index_that_is_not_as_it_was_signed_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let layer = Sha256Digest([3; 32]);
        let index = LayerIndex {
            layer,
            diff_id: Sha256Digest([4; 32]),
            chunks: Vec::new(),
            implied: Vec::new(),
            bootstrap: vec![5; 4096],
        };
        let sealed = IndexSigner::from_hex(&"1".repeat(64)).unwrap().seal(&index).unwrap();
        let opened =
            LayerOpened { index_path: path("index"), device_path: path("device"), bitmap_path: path("bits") };
        std::fs::write(&opened.device_path, "").unwrap();
        std::fs::write(&opened.bitmap_path, "").unwrap();
        std::fs::write(&opened.index_path, &sealed).unwrap();
        assert_eq!(load(layer, Link::Down, &opened).unwrap().1, index);
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            std::fs::write(&opened.index_path, bad).unwrap();
            let found = load(layer, Link::Down, &opened);
            assert!(matches!(found, Err(DeviceError::Index { .. })), "a flip at {at} went unseen");
        }
    }
}
