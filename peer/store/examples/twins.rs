//! What it costs to find out which chunks of a new layer lie in other layers:
//! `cargo run --release -p d7y-store --example twins`.
#![allow(clippy::unwrap_used, reason = "an example may stop where it stands")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_image::{Chunk, Codec, IndexSigner, LayerIndex};
use d7y_store::{Layer, Store, StoreOptions};
use d7y_types::{BLOCK_BYTES, ChunkHash, Compression, LayerRef, Sha256Digest};

const LAYERS: u32 = 300;
const CHUNKS: u32 = 667;
const NEW: [u32; 3] = [100, 6_000, 60_000];
const ROUNDS: usize = 9;
const BLOCKS: u32 = 16;

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for name in 0..LAYERS {
        let layer = commit(&store, name, name * CHUNKS..(name + 1) * CHUNKS);
        let bits = vec![0xff; 2 * CHUNKS.div_ceil(8) as usize];
        fs::write(layer.paths().device_bits, bits).unwrap();
    }
    drop(store);
    let store = open(directory.path());
    println!("a store of {LAYERS} layers, {} chunks; half of the new layer's are in it", LAYERS * CHUNKS);
    for (name, new) in (LAYERS..).zip(NEW) {
        let first = LAYERS * CHUNKS - new / 2;
        let layer = commit(&store, name, first..first + new);
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let began = Instant::now();
                let found = store.find_twins(&layer);
                assert!(found as u32 >= new / 2, "{found}");
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!("{new:>6} chunks: median {:?}, most {:?}", times[ROUNDS / 2], times[ROUNDS - 1]);
    }
}

fn open(directory: &Path) -> Store {
    let directory = directory.to_owned();
    Store::open(StoreOptions { directory, limit_bytes: u64::MAX, devices: true }).unwrap()
}

/// A layer of which only the index is here.
fn commit(store: &Store, name: u32, chunks: std::ops::Range<u32>) -> Arc<Layer> {
    let digest = |of: u32| Sha256Digest(*blake3::hash(&of.to_le_bytes()).as_bytes());
    let (layer, diff_id) = (digest(name), digest(name + 1_000_000));
    let chunk = |(number, content): (u32, u32)| Chunk {
        device_block: number * BLOCKS,
        blocks: BLOCKS,
        pack_offset: u64::from(number * BLOCKS) * BLOCK_BYTES,
        frame_bytes: BLOCKS * BLOCK_BYTES as u32,
        codec: Codec::Raw,
        hash: ChunkHash(*blake3::hash(&content.to_be_bytes()).as_bytes()),
    };
    let chunks = (0..).zip(chunks).map(chunk).collect();
    let index = LayerIndex { layer, diff_id, chunks, implied: Vec::new(), bootstrap: vec![1; 100] };
    let sealed = IndexSigner::from_hex(&"11".repeat(32)).unwrap().seal(&index).unwrap();
    let reference = LayerRef {
        registry: "registry.example".into(),
        repository: "app".into(),
        digest: layer,
        diff_id,
        size: 1000,
        compression: Compression::Gzip,
    };
    store.commit(&store.stage(&reference).unwrap(), &index, &sealed).unwrap()
}
