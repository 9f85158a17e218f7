//! The store over restarts, damage and a full disk.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use d7y_image::{Chunk, Codec, IndexSigner, LayerIndex};
use d7y_store::{Store, StoreError, StoreOptions, decode_chunk};
use d7y_types::{BLOCK_BYTES, ByteRange, ChunkHash, Compression, LayerRef, Sha256Digest};

const CHUNK_BYTES: usize = 16 * BLOCK_BYTES as usize;

/// A layer of four chunks: three of data, one of zeros.
struct Fixture {
    reference: LayerRef,
    index: LayerIndex,
    sealed: Vec<u8>,
    frames: Vec<Vec<u8>>,
    data: Vec<Vec<u8>>,
}

fn fixture(name: u8) -> Fixture {
    let reference = LayerRef {
        registry: "registry.example".into(),
        repository: "app".into(),
        digest: Sha256Digest([name; 32]),
        diff_id: Sha256Digest([name + 100; 32]),
        size: 1000,
        compression: Compression::Gzip,
    };
    let data: Vec<Vec<u8>> =
        (0..4u8).map(|n| if n == 2 { Vec::new() } else { vec![n + name; CHUNK_BYTES] }).collect();
    let frames: Vec<Vec<u8>> = data
        .iter()
        .map(|data| if data.is_empty() { Vec::new() } else { zstd::bulk::compress(data, 3).unwrap() })
        .collect();
    let mut chunks = Vec::new();
    let mut pack_offset = 0;
    for (n, (data, frame)) in data.iter().zip(&frames).enumerate() {
        let (codec, hash) = match data.is_empty() {
            true => (Codec::Zero, ChunkHash([0; 32])),
            false => (Codec::Zstd, ChunkHash(*blake3::hash(data).as_bytes())),
        };
        let frame_bytes = frame.len() as u32;
        chunks.push(Chunk { device_block: n as u32 * 16, blocks: 16, pack_offset, frame_bytes, codec, hash });
        pack_offset += u64::from(frame_bytes);
    }
    let (layer, diff_id) = (reference.digest, reference.diff_id);
    let index = LayerIndex { layer, diff_id, chunks, implied: Vec::new(), bootstrap: vec![1; 100] };
    let sealed = IndexSigner::from_hex(&"11".repeat(32)).unwrap().seal(&index).unwrap();
    Fixture { reference, index, sealed, frames, data }
}

fn open(directory: &Path, limit_bytes: u64) -> Store {
    let options = StoreOptions { directory: directory.to_owned(), limit_bytes, devices: true };
    Store::open(options).expect("open")
}

fn commit(store: &Store, fixture: &Fixture, staged: usize) -> std::sync::Arc<d7y_store::Layer> {
    let staging = store.stage(&fixture.reference).unwrap();
    for n in 0..staged {
        store.push(&staging, fixture.index.chunks[n], &fixture.frames[n], &fixture.data[n]).unwrap();
    }
    store.commit(&staging, &fixture.index, &fixture.sealed).unwrap()
}

#[test]
fn chunks_survive_a_restart_and_missing_ones_stay_missing() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = fixture(1);
    let store = open(directory.path(), 1 << 30);
    let layer = commit(&store, &fixture, 1);
    store.keep(&layer, 3, &fixture.frames[3], &fixture.data[3]).unwrap();
    drop((layer, store));

    let store = open(directory.path(), 1 << 30);
    let layer = store.layer(fixture.reference.digest).unwrap();
    let readable: Vec<bool> = (0..4).map(|n| layer.readable().get(n)).collect();
    assert_eq!(readable, [true, false, true, true], "chunk 2 is a hole and always readable");
    assert!(layer.frame(1).is_none());
    assert_eq!(layer.read_frame(3).unwrap(), fixture.frames[3]);
    let mut read = vec![0; CHUNK_BYTES];
    layer.read_device(&mut read, 3 * CHUNK_BYTES as u64).unwrap();
    assert_eq!(read, fixture.data[3]);
    assert_eq!(layer.chunks_in(ByteRange::new(CHUNK_BYTES as u64 - 1, 2)), 0..2);
    assert_eq!(layer.reference(), &fixture.reference);
}

#[test]
fn a_staged_chunk_that_the_index_does_not_confirm_is_not_readable() {
    let directory = tempfile::tempdir().unwrap();
    let (fixture, store) = (fixture(1), open(directory.path(), 1 << 30));
    let staging = store.stage(&fixture.reference).unwrap();
    let mut forged = fixture.index.chunks[0];
    forged.hash = ChunkHash([9; 32]);
    store.push(&staging, forged, &fixture.frames[0], &fixture.data[0]).unwrap();
    store.push(&staging, fixture.index.chunks[1], &fixture.frames[1], &fixture.data[1]).unwrap();
    let layer = store.commit(&staging, &fixture.index, &fixture.sealed).unwrap();
    assert!(!layer.readable().get(0));
    assert!(layer.readable().get(1));
}

#[test]
fn a_new_boot_withdraws_what_the_disk_lost() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = fixture(1);
    let store = open(directory.path(), 1 << 30);
    let layer = commit(&store, &fixture, 4);
    let paths = layer.paths();
    drop((layer, store));
    let device = fs::OpenOptions::new().write(true).open(&paths.device).unwrap();
    device.write_all_at(&[0xff], CHUNK_BYTES as u64 + 7).unwrap();
    fs::write(paths.device.with_file_name("boot"), "another boot").unwrap();

    let store = open(directory.path(), 1 << 30);
    let layer = store.layer(fixture.reference.digest).unwrap();
    assert!(!layer.readable().get(1), "the damaged chunk must be fetched again");
    assert!(layer.readable().get(0) && layer.readable().get(3));
    assert!(layer.frame(1).is_some(), "its frame is whole");
    store.unpack(&layer, 1).unwrap();
    assert!(layer.readable().get(1));
}

#[test]
fn the_limit_evicts_idle_layers_and_spares_pinned_ones() {
    let directory = tempfile::tempdir().unwrap();
    let (old, pinned, new) = (fixture(1), fixture(20), fixture(40));
    let store = open(directory.path(), (CHUNK_BYTES * 7) as u64);
    drop(commit(&store, &old, 4));
    drop(commit(&store, &pinned, 4));
    store.pin([pinned.reference.digest]);
    let layer = commit(&store, &new, 0);
    store.keep(&layer, 0, &new.frames[0], &new.data[0]).unwrap();
    store.keep(&layer, 1, &new.frames[1], &new.data[1]).unwrap();
    assert!(store.layer(old.reference.digest).is_none(), "the idle layer is gone");
    assert!(store.layer(pinned.reference.digest).is_some());
    store.keep(&layer, 3, &new.frames[3], &new.data[3]).unwrap();
    drop(layer);
    store.pin([pinned.reference.digest, new.reference.digest]);
    let more = fixture(60);
    let layer = commit(&store, &more, 0);
    store.keep(&layer, 0, &more.frames[0], &more.data[0]).unwrap_err();
    let full = store.keep(&layer, 0, &more.frames[0], &more.data[0]);
    assert!(matches!(full, Err(StoreError::Full)), "nothing can be evicted: {full:?}");
}

#[test]
fn what_is_not_the_chunk_is_refused() {
    let fixture = fixture(1);
    let chunk = &fixture.index.chunks[0];
    assert_eq!(decode_chunk(chunk, &fixture.frames[0]).unwrap(), fixture.data[0]);
    for at in 0..fixture.frames[0].len() {
        let mut bad = fixture.frames[0].clone();
        bad[at] ^= 1;
        if let Ok(data) = decode_chunk(chunk, &bad) {
            assert_eq!(data, fixture.data[0], "byte {at} changed and something else came out");
        }
    }
    assert!(decode_chunk(chunk, &fixture.frames[1]).is_err());
    assert!(decode_chunk(chunk, &[]).is_err());
}

#[test]
fn a_store_in_use_or_of_another_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let again = StoreOptions { directory: directory.path().to_owned(), limit_bytes: 1, devices: true };
    assert!(matches!(Store::open(again.clone()), Err(StoreError::Locked(_))));
    drop(store);
    fs::write(directory.path().join("format"), "99\n").unwrap();
    assert!(matches!(Store::open(again), Err(StoreError::Version { .. })));
}

#[test]
fn a_layer_with_a_damaged_index_is_dropped_and_the_rest_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (good, bad) = (fixture(1), fixture(20));
    let store = open(directory.path(), 1 << 30);
    commit(&store, &good, 4);
    let broken = commit(&store, &bad, 4).paths().index;
    drop(store);
    fs::write(broken, "garbage").unwrap();
    let store = open(directory.path(), 1 << 30);
    assert!(store.layer(good.reference.digest).is_some());
    assert!(store.layer(bad.reference.digest).is_none());
}

/// Such a record is 40 bytes from a peer; the memory would be this node's.
#[test]
fn a_chunk_of_zeros_as_long_as_a_device_costs_nothing() {
    let mut record = [0; 40];
    record[..4].copy_from_slice(&(u32::MAX - 1).to_le_bytes());
    let zeros = Chunk::decode(&record, None).unwrap();
    assert!(decode_chunk(&zeros, &[]).unwrap().is_empty());
    let huge = Chunk { codec: Codec::Raw, frame_bytes: 1, ..zeros };
    assert!(decode_chunk(&huge, &[0]).is_err());
}
