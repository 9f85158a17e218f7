//! A store with layers of two chunks, for tests of what is above it.

use std::sync::Arc;

use d7y_image::{Chunk, Codec, IndexSigner, LayerIndex};
use d7y_store::{Layer, Store, StoreOptions};
use d7y_types::{BLOCK_BYTES, ChunkHash, Compression, LayerRef, Sha256Digest};

const CHUNK_BLOCKS: u32 = 16;
pub const CHUNK_BYTES: usize = CHUNK_BLOCKS as usize * BLOCK_BYTES as usize;
const CHUNKS: u32 = 2;

pub struct TestStore {
    pub store: Arc<Store>,
    _directory: tempfile::TempDir,
}

impl TestStore {
    /// Has room for one layer.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let limit_bytes = 5 * CHUNK_BYTES as u64;
        let options = StoreOptions { directory: directory.path().to_owned(), limit_bytes, devices: true };
        Self { store: Arc::new(Store::open(options).unwrap()), _directory: directory }
    }

    /// A layer of which nothing is here but the index.
    pub fn commit(&self, name: u8) -> Arc<Layer> {
        let (layer, diff_id) = (Sha256Digest([name; 32]), Sha256Digest([name + 100; 32]));
        let reference = LayerRef {
            registry: "registry.example".into(),
            repository: "app".into(),
            digest: layer,
            diff_id,
            size: 1000,
            compression: Compression::Gzip,
        };
        let chunk = |number: u32| Chunk {
            device_block: number * CHUNK_BLOCKS,
            blocks: CHUNK_BLOCKS,
            pack_offset: u64::from(number) * CHUNK_BYTES as u64,
            frame_bytes: CHUNK_BYTES as u32,
            codec: Codec::Raw,
            hash: ChunkHash(*blake3::hash(&self.data(number)).as_bytes()),
        };
        let chunks = (0..CHUNKS).map(chunk).collect();
        let index = LayerIndex { layer, diff_id, chunks, implied: Vec::new(), bootstrap: vec![1; 100] };
        let sealed = IndexSigner::from_hex(&"11".repeat(32)).unwrap().seal(&index).unwrap();
        self.store.commit(&self.store.stage(&reference).unwrap(), &index, &sealed).unwrap()
    }

    /// What a chunk is, and its frame too.
    pub fn data(&self, number: u32) -> Vec<u8> {
        vec![number as u8 + 1; CHUNK_BYTES]
    }

    pub fn keep(&self, layer: &Layer, number: u32) {
        self.store.keep(layer, number, &self.data(number), &self.data(number)).unwrap();
    }

    /// Evicts a layer as the limit does: another one takes its room.
    pub fn evict(&self, layer: &Arc<Layer>) {
        let other = self.commit(99);
        (0..CHUNKS).for_each(|number| self.keep(&other, number));
        assert!(!self.store.holds(layer), "the limit evicts");
    }
}
