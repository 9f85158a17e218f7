//! Chunks that two layers have in common.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod fixture;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use d7y_store::{Layer, Recovered, Store, StoreOptions};

use fixture::{CHUNK_BYTES, Fixture, commit, layer_of, open};

/// A chunk that compresses to about half.
fn chunk(seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 & 0x0f
    };
    std::iter::repeat_with(next).take(CHUNK_BYTES).collect()
}

fn chunks(seeds: impl IntoIterator<Item = u32>) -> Vec<Vec<u8>> {
    seeds.into_iter().map(chunk).collect()
}

/// Two versions: of the second, chunks 1, 2 and 4 are in the first, at other places.
fn versions() -> (Fixture, Fixture) {
    let first = layer_of(1, chunks([10, 11, 12, 13]), 3);
    let second = layer_of(2, chunks([90, 12, 10, 91, 13]), 3);
    (first, second)
}

/// Both layers of a store; of the second only the index is here.
fn overlapping(directory: &Path) -> (Store, Arc<Layer>, Arc<Layer>, Fixture) {
    let (first, second) = versions();
    let store = open(directory, 1 << 30);
    let source = commit(&store, &first, 4);
    let layer = commit(&store, &second, 0);
    (store, source, layer, second)
}

fn read(layer: &Layer, number: u32) -> Vec<u8> {
    let mut data = vec![0; CHUNK_BYTES];
    layer.read_device(&mut data, u64::from(number) * CHUNK_BYTES as u64).unwrap();
    data
}

fn flip(layer: &Layer, file: &str, at: u64) {
    let path = layer.paths().device.with_file_name(file);
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn assert_taken(layer: &Layer, fixture: &Fixture, numbers: &[u32]) {
    for n in 0..layer.chunks().len() as u32 {
        let expected = numbers.contains(&n);
        assert_eq!((layer.readable().get(n), layer.shareable().get(n)), (expected, expected), "chunk {n}");
        if expected {
            assert_eq!(read(layer, n), fixture.data[n as usize], "chunk {n}");
            assert_eq!(layer.read_frame(n).unwrap(), fixture.frames[n as usize], "frame {n}");
        }
    }
}

#[test]
fn chunks_of_another_layer_are_taken_wherever_they_lie_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _source, layer, fixture) = overlapping(directory.path());
    let before = layer.kept_bytes();
    assert!(!layer.counts_on(1));
    assert_eq!(store.find_twins(&layer), 3);
    assert_eq!(layer.with_twins(), [1, 2, 4]);
    let counted: Vec<bool> = (0..5).map(|n| layer.counts_on(n)).collect();
    assert_eq!(counted, [false, true, true, false, true]);
    assert_taken(&layer, &fixture, &[]);

    assert!(store.take_twin(&layer, 1).unwrap() && !store.take_twin(&layer, 1).unwrap());
    assert_eq!(store.recover(&layer, 2).unwrap(), Recovered::OtherLayer);
    assert_eq!(store.recover(&layer, 2).unwrap(), Recovered::Here);
    assert_eq!(store.recover(&layer, 3).unwrap(), Recovered::No);
    assert!(store.take_twin(&layer, 4).unwrap());
    assert_taken(&layer, &fixture, &[1, 2, 4]);
    assert!(layer.with_twins().is_empty());
    let frames: usize = [1, 2, 4].iter().map(|n| fixture.frames[*n as usize].len()).sum();
    assert_eq!(layer.kept_bytes(), before + (3 * CHUNK_BYTES + frames) as u64, "the limit counts it in full");
    assert_eq!((store.usage().reused_bytes, store.usage().damaged_chunks), (frames as u64, 0));
    drop((layer, _source, store));
    let store = open(directory.path(), 1 << 30);
    assert_taken(&store.layer(fixture.reference.digest).unwrap(), &fixture, &[1, 2, 4]);
}

/// The other layer's bits say that it is valid; its bytes are not.
#[test]
fn damage_is_not_handed_down() {
    let directory = tempfile::tempdir().unwrap();
    let (store, source, layer, fixture) = overlapping(directory.path());
    let frame_of = |n: usize| source.chunks()[n].pack_offset + 20;
    store.find_twins(&layer);
    // Chunk 0 of the source in both forms, chunk 2 on the device, chunk 3 in the pack.
    flip(&source, "device", 7);
    flip(&source, "pack", frame_of(0));
    flip(&source, "device", 2 * CHUNK_BYTES as u64 + 7);
    flip(&source, "pack", frame_of(3));
    assert!(store.take_twin(&layer, 1).unwrap(), "its frame is whole");
    assert_eq!(store.recover(&layer, 2).unwrap(), Recovered::No);
    assert!(store.take_twin(&layer, 4).unwrap(), "its data is whole");
    assert_eq!([1, 2, 4].map(|n| layer.readable().get(n)), [true, false, true]);
    assert_eq!([1, 2, 4].map(|n| layer.shareable().get(n)), [true, false, false]);
    assert_eq!((read(&layer, 1), read(&layer, 4)), (fixture.data[1].clone(), fixture.data[4].clone()));
    assert!(source.frame(0).is_none() && source.frame(3).is_none(), "peers get neither");
    assert!(store.usage().damaged_chunks >= 3);
    assert!(!layer.counts_on(2), "it is to be fetched");
}

#[test]
fn an_evicted_layer_gives_nothing_and_a_foreign_frame_is_not_passed_on() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = versions();
    let second = layer_of(2, chunks([12, 13]), 19);
    assert_ne!(second.frames[0].len(), first.frames[2].len(), "another builder");
    let store = open(directory.path(), 1 << 30);
    let source = commit(&store, &first, 4);
    let layer = commit(&store, &second, 0);
    assert_eq!(store.find_twins(&layer), 2);
    assert!(store.take_twin(&layer, 0).unwrap());
    assert_eq!(read(&layer, 0), second.data[0]);
    assert!(layer.frame(0).is_none(), "peers would refuse the other builder's frame");

    store.pin([second.reference.digest]);
    store.set_limit(layer.kept_bytes() + CHUNK_BYTES as u64);
    store.count_beside(1).unwrap();
    assert!(!store.holds(&source));
    assert_eq!(store.recover(&layer, 1).unwrap(), Recovered::No);
    assert!(!layer.counts_on(1) && layer.with_twins().is_empty());
}

/// A seed has no devices, only what it passes on.
#[test]
fn a_store_without_devices_takes_frames_alone() {
    let directory = tempfile::tempdir().unwrap();
    let options =
        StoreOptions { directory: directory.path().to_owned(), limit_bytes: 1 << 30, devices: false };
    let store = Store::open(options).unwrap();
    let (first, second) = versions();
    commit(&store, &first, 4);
    let layer = commit(&store, &second, 0);
    assert_eq!(store.find_twins(&layer), 3);
    for n in layer.with_twins() {
        assert!(store.take_twin(&layer, n).unwrap());
        assert_eq!(layer.read_frame(n).unwrap(), second.frames[n as usize]);
    }
    assert!(!layer.readable().get(1), "nobody mounts it here");
}

/// After a crash of the machine the source's bits are only claims.
#[test]
fn what_an_earlier_boot_left_is_hashed_before_it_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let (store, source, layer, fixture) = overlapping(directory.path());
    flip(&source, "device", 7);
    flip(&source, "pack", source.chunks()[0].pack_offset + 20);
    for layer in [&source, &layer] {
        fs::write(layer.paths().device.with_file_name("boot"), "another boot").unwrap();
    }
    drop((store, source, layer));
    let store = open(directory.path(), 1 << 30);
    let layer = store.layer(fixture.reference.digest).unwrap();
    assert_eq!(store.find_twins(&layer), 3);
    assert_eq!([1, 2, 4].map(|n| store.take_twin(&layer, n).unwrap()), [true, false, true]);
    assert_taken(&layer, &fixture, &[1, 4]);
}

mod privileged {
    use super::*;
    use crate::fixture::scratch::Scratch;

    /// The second version of 200 chunks of which 10 differ: blocks of the file system that it takes.
    #[test]
    fn xfs_holds_what_two_layers_share_once() {
        if !nix::unistd::geteuid().is_root() {
            return d7y_skip::test("root");
        }
        let scratch = Scratch::new(&["mkfs.xfs", "-q", "-m", "reflink=1"], 1 << 30);
        let mounted = &scratch.mounted;
        let used = || {
            rustix::fs::syncfs(fs::File::open(mounted).unwrap()).unwrap();
            let stat = rustix::fs::statvfs(mounted).unwrap();
            (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        };
        let store = open(&mounted.join("store"), 1 << 30);
        assert!(store.clones(), "this XFS shares blocks");
        let (empty, all) = (used(), 200 * CHUNK_BYTES as u64);
        commit(&store, &layer_of(1, chunks(0..200), 3), 200);
        let one = used();
        let second = layer_of(2, chunks(10..210), 3);
        let layer = commit(&store, &second, 0);
        assert_eq!(store.find_twins(&layer), 190);
        for n in layer.with_twins() {
            assert!(store.take_twin(&layer, n).unwrap());
        }
        let (first_takes, second_takes) = (one - empty, used() - one);
        let frames: usize = second.frames[..190].iter().map(Vec::len).sum();
        println!("the first layer takes {first_takes} bytes, the second {second_takes} ({frames} in frames)");
        assert!(first_takes >= all + frames as u64);
        // XFS allocates ahead of the ends of files.
        let own = frames as u64 + all / 4;
        assert!(second_takes < own, "the devices share nothing: {second_takes} more bytes");
        for n in 0..190 {
            assert_eq!(read(&layer, n), second.data[n as usize], "chunk {n}");
        }
    }
}
