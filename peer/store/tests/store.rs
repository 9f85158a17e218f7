//! The store over restarts, damage and a full disk.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod fixture;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use d7y_image::{Chunk, Codec};
use d7y_store::{Layer, Recovered, Store, StoreError, StoreOptions, decode_chunk};
use d7y_types::{BLOCK_BYTES, ByteRange, ChunkHash};

use fixture::{CHUNK_BYTES, commit, fixture, open};

#[test]
fn only_the_owner_enters_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let _store = open(directory.path(), 1 << 30);
    for name in ["layers", "staging"] {
        let mode = std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
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
    store.push(&staging, fixture.index.chunks[0], &fixture.frames[0], &fixture.data[0]).unwrap();
    let mut forged = fixture.index.chunks[1];
    forged.hash = ChunkHash([9; 32]);
    store.push(&staging, forged, &fixture.frames[1], &fixture.data[1]).unwrap();
    let layer = store.commit(&staging, &fixture.index, &fixture.sealed).unwrap();
    assert!(layer.readable().get(0));
    assert!(!layer.readable().get(1));
}

/// Chunks of zeros count as here, whatever the pack's length.
#[test]
fn a_layer_of_which_only_the_index_is_here_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = fixture(1);
    drop(commit(&open(directory.path(), 1 << 30), &fixture, 0));
    let store = open(directory.path(), 1 << 30);
    let layer = store.layer(fixture.reference.digest).expect("the layer is still there");
    assert_eq!(bits(&layer)[0], [false, false, true, false]);
}

/// As when an upstream goes on with another builder, or lies: each record fits its own frame, the index is genuine.
#[test]
fn staged_bytes_do_not_show_where_the_index_says_zeros() {
    let directory = tempfile::tempdir().unwrap();
    let (fixture, store) = (fixture(1), open(directory.path(), 1 << 30));
    let staging = store.stage(&fixture.reference).unwrap();
    store.push(&staging, fixture.index.chunks[0], &fixture.frames[0], &fixture.data[0]).unwrap();
    let garbage = vec![0xee; CHUNK_BYTES];
    let mut previous = fixture.index.chunks[0];
    for _ in 1..4 {
        let chunk = Chunk {
            device_block: previous.device_block + previous.blocks,
            blocks: 16,
            pack_offset: previous.pack_offset + u64::from(previous.frame_bytes),
            frame_bytes: CHUNK_BYTES as u32,
            codec: Codec::Raw,
            hash: ChunkHash(*blake3::hash(&garbage).as_bytes()),
        };
        store.push(&staging, chunk, &garbage, &garbage).unwrap();
        previous = chunk;
    }
    let layer = store.commit(&staging, &fixture.index, &fixture.sealed).unwrap();
    let readable: Vec<bool> = (0..4).map(|n| layer.readable().get(n)).collect();
    assert_eq!(readable, [true, false, true, false]);
    let mut read = vec![1; CHUNK_BYTES];
    layer.read_device(&mut read, 2 * CHUNK_BYTES as u64).unwrap();
    assert!(read.iter().all(|byte| *byte == 0), "staged bytes lie in the hole");
    assert_eq!(layer.read_frame(0).unwrap(), fixture.frames[0]);
}

/// As a kill leaves a layer whose files are being unlinked one by one.
#[test]
fn bits_do_not_outlive_their_data() {
    let cut = |name: &'static str| move |layer: &Path| fs::write(layer.join(name), "").unwrap();
    let unlink = |name: &'static str| move |layer: &Path| fs::remove_file(layer.join(name)).unwrap();
    let damages: [&dyn Fn(&Path); 6] = [
        &unlink("device"),
        &unlink("pack"),
        &unlink("device.bits"),
        &unlink("reference.json"),
        &cut("device"),
        &cut("pack"),
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let (fixture, store) = (fixture(1), open(directory.path(), 1 << 30));
        let paths = commit(&store, &fixture, 4).paths();
        drop(store);
        damage(paths.device.parent().unwrap());
        let store = open(directory.path(), 1 << 30);
        assert!(store.layer(fixture.reference.digest).is_none(), "damage {n} went unseen");
        let layer = commit(&store, &fixture, 4);
        let mut read = vec![0; CHUNK_BYTES];
        layer.read_device(&mut read, 0).unwrap();
        assert_eq!(read, fixture.data[0]);
    }
}

#[test]
fn what_lies_in_the_way_of_a_layer_gives_way() {
    let directory = tempfile::tempdir().unwrap();
    let (fixture, store) = (fixture(1), open(directory.path(), 1 << 30));
    let layer = directory.path().join("layers").join(fixture.reference.digest.to_hex());
    fs::create_dir(&layer).unwrap();
    fs::write(layer.join("device"), "of a layer that could not be removed").unwrap();
    let layer = commit(&store, &fixture, 4);
    assert!(layer.paths().device.exists() && layer.readable().is_full());
    assert_eq!(fs::read_dir(directory.path().join("staging")).unwrap().count(), 0, "nothing is left over");
}

fn crash(layer: &Path, boot: &str) {
    fs::write(layer.join("boot"), boot).unwrap();
}

fn bits(layer: &Layer) -> [Vec<bool>; 2] {
    [layer.readable(), layer.shareable()].map(|bits| (0..4).map(|n| bits.get(n)).collect())
}

/// Opening hashes nothing: a chunk counts again once somebody asked for it to be confirmed.
#[test]
fn a_new_boot_withdraws_what_the_disk_lost() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = fixture(1);
    let store = open(directory.path(), 1 << 30);
    let layer = commit(&store, &fixture, 4);
    let (paths, kept) = (layer.paths(), layer.kept_bytes());
    drop((layer, store));
    let device = fs::OpenOptions::new().write(true).open(&paths.device).unwrap();
    device.write_all_at(&[0xff], CHUNK_BYTES as u64 + 7).unwrap();
    crash(paths.device.parent().unwrap(), "another boot");

    let store = open(directory.path(), 1 << 30);
    let layer = store.layer(fixture.reference.digest).unwrap();
    let zeros = vec![false, false, true, false];
    assert_eq!(bits(&layer), [zeros.clone(), zeros], "no other process may read what was not confirmed");
    assert_eq!(layer.kept_bytes(), kept, "it takes its space all the same");
    assert_eq!(layer.claimed(), [0, 1, 3]);

    layer.confirm(0).unwrap();
    assert_eq!(bits(&layer), [vec![true, false, true, false], vec![true, false, true, false]]);
    layer.confirm(1).unwrap();
    assert!(!layer.readable().get(1), "the damaged chunk must be fetched again");
    assert!(layer.frame(1).is_some(), "its frame is whole");
    assert_eq!(layer.kept_bytes(), kept - CHUNK_BYTES as u64);
    assert_eq!(store.recover(&layer, 1).unwrap(), Recovered::Here);
    assert_eq!(store.recover(&layer, 3).unwrap(), Recovered::Here);
    assert!(layer.readable().is_full() && layer.kept_bytes() == kept);
}

#[test]
fn claims_outlive_kills_and_crashes_until_they_are_settled() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = fixture(1);
    let store = open(directory.path(), 1 << 30);
    let path = commit(&store, &fixture, 4).paths().device.parent().unwrap().to_owned();
    drop(store);
    crash(&path, "another boot");
    let again = |settled: &[u32]| {
        let store = open(directory.path(), 1 << 30);
        let layer = store.layer(fixture.reference.digest).unwrap();
        settled.iter().for_each(|n| layer.confirm(*n).unwrap());
        layer
    };
    again(&[0]);
    assert_eq!(again(&[]).claimed(), [1, 3], "after a kill");
    crash(&path, "one more boot");
    assert_eq!(again(&[]).claimed(), [0, 1, 3], "after a crash nothing is sure");
    // Killed in the middle of setting the bits aside.
    crash(&path, "yet another boot");
    fs::remove_file(path.join("device.bits")).unwrap();
    let layer = again(&[]);
    assert!(layer.begin_confirming());
    assert!(!layer.begin_confirming(), "one is enough");
    drop(layer);
    again(&[0, 1, 3]).end_confirming().unwrap();
    assert!(again(&[]).readable().is_full() && !path.join("device.claims").exists());
}

#[test]
fn a_damaged_frame_is_given_to_nobody_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = fixture(1);
    let options =
        StoreOptions { directory: directory.path().to_owned(), limit_bytes: 1 << 30, devices: false };
    let store = Store::open(options).unwrap();
    let layer = commit(&store, &fixture, 4);
    let kept = layer.kept_bytes();
    let pack = fs::OpenOptions::new().write(true).open(layer.paths().device.with_file_name("pack")).unwrap();
    pack.write_all_at(&[0xff; 4], 0).unwrap();
    assert_eq!(store.recover(&layer, 0).unwrap(), Recovered::No);
    assert!(layer.frame(0).is_none());
    assert_eq!(store.recover(&layer, 1).unwrap(), Recovered::Here);
    store.keep(&layer, 0, &fixture.frames[0], &fixture.data[0]).unwrap();
    assert_eq!(layer.read_frame(0).unwrap(), fixture.frames[0]);
    assert_eq!(layer.kept_bytes(), kept + 2 * CHUNK_BYTES as u64);
}

/// What comes from the swarm before its turn is kept, counted once, and not hashed again.
#[test]
fn a_claimed_chunk_that_is_fetched_is_counted_once() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = fixture(1);
    let store = open(directory.path(), 1 << 30);
    let layer = commit(&store, &fixture, 4);
    let (path, kept) = (layer.paths().device.parent().unwrap().to_owned(), layer.kept_bytes());
    drop((layer, store));
    crash(&path, "another boot");
    let store = open(directory.path(), 1 << 30);
    let layer = store.layer(fixture.reference.digest).unwrap();
    store.keep(&layer, 0, &fixture.frames[0], &fixture.data[0]).unwrap();
    assert_eq!((layer.kept_bytes(), layer.claimed()), (kept, vec![1, 3]));
    assert!(layer.readable().get(0) && layer.frame(0).is_some());
}

#[test]
fn the_limit_evicts_idle_layers_and_spares_pinned_ones() {
    let directory = tempfile::tempdir().unwrap();
    let (old, pinned, new) = (fixture(1), fixture(20), fixture(40));
    let store = open(directory.path(), (CHUNK_BYTES * 8) as u64);
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

/// Whatever bit it is: a mode, a size, the hash of a chunk.
#[test]
fn a_layer_with_a_damaged_index_is_dropped_and_the_rest_kept() {
    let good = fixture(1);
    let bad = fixture(20);
    let places = [0, 150, bad.sealed.len() - 200, bad.sealed.len() - 97, bad.sealed.len() - 1];
    for at in places {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), 1 << 30);
        commit(&store, &good, 4);
        let broken = commit(&store, &bad, 4).paths().index;
        drop(store);
        let mut sealed = bad.sealed.clone();
        sealed[at] ^= 1;
        fs::write(broken, sealed).unwrap();
        let store = open(directory.path(), 1 << 30);
        assert!(store.layer(good.reference.digest).is_some());
        assert!(store.layer(bad.reference.digest).is_none(), "a flip at {at} went unseen");
    }
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

/// What a directory takes on disk, in bytes.
fn on_disk(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    let inside = match metadata.is_dir() {
        true => fs::read_dir(path).unwrap().map(|entry| on_disk(&entry.unwrap().path())).sum(),
        false => 0,
    };
    metadata.blocks() * 512 + inside
}

/// The smallest layers, so that what is not chunks weighs most.
#[test]
fn the_limit_counts_all_that_layers_take_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let limit_bytes = 1 << 20;
    let store = open(directory.path(), limit_bytes);
    for name in 0..40 {
        drop(commit(&store, &fixture(name), 0));
        let (used, kept) = (on_disk(&directory.path().join("layers")), store.usage().kept_bytes);
        assert!(used <= kept + BLOCK_BYTES && kept <= limit_bytes, "{used} bytes on disk, {kept} counted");
    }
    assert!(store.usage().evicted_layers > 0, "indexes alone fill it");
}

#[test]
fn the_index_has_room_before_chunks_and_others_before_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = fixture(1);
    // What the layer's chunks take, and no more.
    let frames: usize = fixture.frames.iter().map(Vec::len).sum();
    let limit_bytes = (3 * CHUNK_BYTES + frames) as u64;
    let store = open(directory.path(), limit_bytes);
    let layer = commit(&store, &fixture, 4);
    assert_eq!(bits(&layer)[0], [true, true, true, false]);
    let kept = store.usage().kept_bytes;
    assert!(kept <= limit_bytes, "{kept} bytes of {limit_bytes}");

    store.pin([fixture.reference.digest]);
    assert!(matches!(store.count_beside(limit_bytes - kept + 1), Err(StoreError::Full)));
    assert_eq!(store.usage().kept_bytes, kept);
    store.count_beside(limit_bytes - kept).unwrap();
    assert_eq!(store.usage().kept_bytes, limit_bytes);
    store.pin([]);
    store.count_beside(limit_bytes).unwrap();
    assert!(store.layer(fixture.reference.digest).is_none(), "layers give way");
}

/// Whoever deletes the cache under a running peer takes its lock along.
#[test]
fn a_store_that_was_deleted_is_still_one_peers_own() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("store");
    let options = StoreOptions { directory: place.clone(), limit_bytes: 1 << 30, devices: true };
    let (fixture, first) = (fixture(1), open(&place, 1 << 30));
    fs::remove_dir_all(&place).unwrap();
    first.check_directories().unwrap();
    assert!(!place.exists(), "nothing is put in the way of who deletes");
    let staging = first.stage(&fixture.reference).unwrap();
    assert!(matches!(Store::open(options.clone()), Err(StoreError::Locked(_))));
    assert_eq!(fs::read_to_string(place.join("format")).unwrap(), "1\n");

    drop(staging);
    fs::remove_dir_all(&place).unwrap();
    let second = Store::open(options).unwrap();
    assert!(matches!(first.check_directories(), Err(StoreError::Locked(_))), "it is told");
    assert!(matches!(first.stage(&fixture.reference), Err(StoreError::Locked(_))));
    second.stage(&fixture.reference).unwrap();
    drop(second);
    first.check_directories().unwrap();
    first.stage(&fixture.reference).unwrap();
}

/// Each finds its layers by their names, which are the same.
#[test]
fn a_store_that_was_deleted_evicts_nothing_of_the_peer_that_came_after() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("store");
    let (fixture, first) = (fixture(1), open(&place, 1 << 30));
    commit(&first, &fixture, 1);
    fs::remove_dir_all(&place).unwrap();
    let second = open(&place, 1 << 30);
    let layer = commit(&second, &fixture, 1);
    first.set_limit(0);
    let _ = first.count_beside(0);
    assert!(first.layers().is_empty(), "its own is forgotten");
    assert!(layer.paths().index.exists());
}
