//! A flipped byte in any file of a layer is noticed, counted, and mended or fetched again.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod fixture;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d7y_image::{Codec, IndexSigner};
use d7y_store::{Layer, Scrub, Scrubbed, Store, StoreOptions};
use d7y_types::ChunkHash;

use fixture::{CHUNK_BYTES, Fixture, commit, fixture, layer_of, open};

const FILES: [&str; 7] = ["index", "device", "device.bits", "pack", "pack.bits", "reference.json", "boot"];

/// The first byte, the last one, and some between, most by a sequence that a failure names by its place.
fn places(bytes: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bytes
    };
    let between: Vec<u64> = (0..6).map(|_| next()).collect();
    // In a device of four chunks the third quarter is zeros.
    [0, bytes - 1, bytes * 5 / 8].into_iter().chain(between).collect()
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    // Of a text, what is a text still.
    let mask = if path.ends_with("reference.json") { 1 } else { 0xff };
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
}

/// Chunks that compress to about the half, so that frames are long.
fn noise() -> Fixture {
    let mut block = blake3::Hasher::new().update(b"noise").finalize_xof();
    let mut data = |zeros: bool| {
        let mut data = vec![0; if zeros { 0 } else { CHUNK_BYTES }];
        let half = data.len() / 2;
        block.fill(&mut data[half..]);
        data
    };
    layer_of(7, (0..4).map(|n| data(n == 2)).collect(), 3)
}

/// One layer in a store, of which its first `staged` chunks are here.
struct Rig {
    directory: tempfile::TempDir,
    fixture: Fixture,
    staged: usize,
    store: Arc<Store>,
}

impl Rig {
    fn new(fixture: Fixture, staged: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(open(directory.path(), 1 << 30));
        commit(&store, &fixture, staged);
        Self { directory, fixture, staged, store }
    }

    /// What happens to the files happens while no store is open.
    fn restart(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self { directory, fixture, staged, store } = self;
        let layer = directory.path().join("layers").join(fixture.reference.digest.to_hex());
        drop(store);
        meanwhile(&layer);
        let store = Arc::new(open(directory.path(), 1 << 30));
        Self { directory, fixture, staged, store }
    }

    fn layer(&self) -> Option<Arc<Layer>> {
        self.store.layer(self.fixture.reference.digest)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("layers").join(self.fixture.reference.digest.to_hex()).join(name)
    }

    fn damaged(&self) -> u64 {
        self.store.usage().damaged_chunks
    }

    /// Goes over the layer once, and fetches what was lost, as the peer does.
    fn scrub(&self) -> Vec<Scrubbed> {
        let layer = self.layer().unwrap();
        let mut scrub = Scrub::begin(&self.store, &layer).unwrap();
        if !scrub.check_files().unwrap() {
            assert!(self.store.drop_damaged(&layer).unwrap());
            commit(&self.store, &self.fixture, self.staged);
            return Vec::new();
        }
        let looks: Vec<Scrubbed> = (0..4).map(|n| scrub.check(n).unwrap()).collect();
        for (n, look) in (0..4).zip(&looks) {
            assert_eq!(look.data_lost, self.is_here(n as usize) && !layer.readable().get(n), "chunk {n}");
            if look.data_lost || look.frame_lost {
                self.fetch(&layer, n);
            }
        }
        looks
    }

    fn is_here(&self, n: usize) -> bool {
        n < self.staged || self.fixture.data[n].is_empty()
    }

    fn fetch(&self, layer: &Layer, n: u32) {
        let (frame, data) = (&self.fixture.frames[n as usize], &self.fixture.data[n as usize]);
        self.store.keep(layer, n, frame, data).unwrap();
    }

    /// Nothing wrong is said to be here, neither in memory nor in the files that others read.
    fn assert_believes_no_lie(&self, case: &str) {
        let layer = self.layer().unwrap();
        let bits = fs::read(self.file("device.bits")).unwrap();
        for n in 0..4 {
            assert!(self.is_here(n as usize) || !layer.readable().get(n), "{case}: data of chunk {n}");
            assert!(self.is_here(n as usize) || layer.frame(n).is_none(), "{case}: frame of chunk {n}");
            let shown = bits.first().is_some_and(|bits| bits >> n & 1 == 1);
            assert!(self.is_here(n as usize) || !shown, "{case}: chunk {n} in the file");
        }
    }

    /// All that is here is as it was made.
    fn assert_whole(&self, case: &str) {
        let layer = self.layer().unwrap();
        self.assert_believes_no_lie(case);
        for n in (0..4).filter(|n| self.is_here(*n)) {
            let (frame, data) = (&self.fixture.frames[n], &self.fixture.data[n]);
            assert!(layer.readable().get(n as u32) && layer.frame(n as u32).is_some(), "{case}: chunk {n}");
            assert_eq!(&layer.read_frame(n as u32).unwrap(), frame, "{case}: frame {n}");
            let mut read = vec![1; CHUNK_BYTES];
            layer.read_device(&mut read, (n * CHUNK_BYTES) as u64).unwrap();
            let zeros = vec![0; CHUNK_BYTES];
            assert!(&read == if data.is_empty() { &zeros } else { data }, "{case}: chunk {n}");
        }
        assert_eq!(layer.sealed_index().unwrap(), self.fixture.sealed, "{case}");
        assert_eq!(layer.reference(), &self.fixture.reference, "{case}");
        let before = self.damaged();
        assert!(self.scrub().iter().all(|look| !look.data_lost && !look.frame_lost), "{case}");
        assert_eq!(self.damaged(), before, "{case}: found again");
    }
}

/// Half of the chunks, so that bits can lie; all of them where data are damaged.
fn staged_for(name: &str) -> usize {
    if name.ends_with(".bits") { 2 } else { 4 }
}

#[test]
fn a_flip_in_any_file_of_a_running_store_is_found_and_mended() {
    for name in FILES {
        let rig = Rig::new(noise(), staged_for(name));
        let kept = rig.store.usage().kept_bytes;
        for at in places(fs::metadata(rig.file(name)).unwrap().len()) {
            let (case, before) = (format!("{name}, byte {at}"), rig.damaged());
            flip(&rig.file(name), at);
            rig.scrub();
            assert_eq!(rig.damaged(), before + 1, "{case}");
            rig.assert_whole(&case);
            assert_eq!(rig.store.usage().kept_bytes, kept, "{case}");
        }
        let rig = rig.restart(|_| {});
        rig.assert_whole(name);
        assert_eq!(rig.damaged(), 0, "{name}: after a restart all is well");
    }
}

#[test]
fn a_flip_in_any_file_is_found_after_a_restart() {
    for name in FILES {
        let mut rig = Rig::new(noise(), staged_for(name));
        for at in places(fs::metadata(rig.file(name)).unwrap().len()) {
            let case = format!("{name}, byte {at}");
            rig = rig.restart(|layer| flip(&layer.join(name), at));
            let Some(layer) = rig.layer() else {
                assert!(matches!(name, "index" | "reference.json"), "{case}");
                assert_eq!(rig.damaged(), 1, "{case}");
                commit(&rig.store, &rig.fixture, rig.staged);
                continue;
            };
            if name.ends_with(".bits") {
                rig.assert_believes_no_lie(&case);
            }
            // At the first use: what is true is kept, the rest withdrawn.
            layer.claimed().into_iter().for_each(|n| layer.confirm(n).unwrap());
            layer.end_confirming().unwrap();
            rig.scrub();
            // A lost copy of a bit looks as a kill in the middle of setting it; of the boot's name nothing is known.
            assert!(rig.damaged() == 1 || matches!(name, "device.bits" | "pack.bits" | "boot"), "{case}");
            rig.assert_whole(&case);
        }
    }
}

#[test]
fn a_bit_that_one_copy_made_up_is_counted_at_once() {
    for name in ["device.bits", "pack.bits"] {
        let rig = Rig::new(noise(), 2).restart(|layer| flip(&layer.join(name), 0));
        assert_eq!(rig.damaged(), 1, "{name}");
        assert_eq!(rig.layer().unwrap().claimed(), [0, 1, 3], "{name}: hashed before it counts");
        rig.assert_believes_no_lie(name);
    }
}

/// As a store leaves it whose process was killed between the two writes of a bit, or that was older.
#[test]
fn what_only_one_copy_has_is_hashed_and_no_damage() {
    let changes: [fn(&Path); 2] = [
        |bits| OpenOptions::new().write(true).open(bits).unwrap().write_all_at(&[0], 0).unwrap(),
        |bits| OpenOptions::new().write(true).open(bits).unwrap().set_len(1).unwrap(),
    ];
    for change in changes {
        let rig = Rig::new(noise(), 4).restart(|layer| {
            change(&layer.join("device.bits"));
            change(&layer.join("pack.bits"));
        });
        let rig = rig.restart(|_| {});
        let layer = rig.layer().unwrap();
        assert_eq!((layer.claimed(), rig.damaged()), (vec![0, 1, 3], 0), "claims survive a kill");
        layer.claimed().into_iter().for_each(|n| layer.confirm(n).unwrap());
        rig.assert_whole("confirmed");
    }
}

/// It would be asked of another registry, with other credentials.
#[test]
fn a_reference_with_another_letter_is_not_believed() {
    let rig = Rig::new(noise(), 4).restart(|layer| {
        let path = layer.join("reference.json");
        let reference = fs::read_to_string(&path).unwrap();
        fs::write(path, reference.replace("registry.example", "registry.exbmple")).unwrap();
    });
    assert!(rig.layer().is_none() && rig.damaged() == 1);
}

#[test]
fn the_reference_of_an_older_store_is_no_damage() {
    let reference = serde_json::to_vec(&noise().reference).unwrap();
    let rig =
        Rig::new(noise(), 4).restart(|layer| fs::write(layer.join("reference.json"), &reference).unwrap());
    rig.assert_whole("older");
    assert_eq!(rig.damaged(), 0);
    assert_ne!(fs::read(rig.file("reference.json")).unwrap(), reference, "from now on it is checked");
}

#[test]
fn a_chunk_without_a_frame_is_given_up_and_written_anew_in_its_place() {
    let rig = Rig::new(noise(), 4);
    let layer = rig.layer().unwrap();
    let mounted = fs::File::open(rig.file("device")).unwrap();
    flip(&rig.file("device"), CHUNK_BYTES as u64);
    flip(&rig.file("pack"), layer.chunks()[1].pack_offset + 100);
    let mut scrub = Scrub::begin(&rig.store, &layer).unwrap();
    let look = scrub.check(1).unwrap();
    assert!(look.data_lost && look.frame_lost, "{look:?}");
    assert_eq!(look.read_bytes, (CHUNK_BYTES + rig.fixture.frames[1].len()) as u64);
    assert!(!layer.readable().get(1) && layer.frame(1).is_none());
    assert_eq!(rig.damaged(), 2);
    rig.fetch(&layer, 1);
    let mut read = vec![0; CHUNK_BYTES];
    mounted.read_exact_at(&mut read, CHUNK_BYTES as u64).unwrap();
    assert_eq!(read, rig.fixture.data[1], "whoever has the file open reads it");
    rig.assert_whole("fetched");
}

#[test]
fn a_raw_frame_is_mended_from_its_data() {
    let mut fixture = noise();
    let mut pack_offset = 0;
    for (chunk, data) in fixture.index.chunks.iter_mut().zip(&fixture.data) {
        chunk.pack_offset = pack_offset;
        if !data.is_empty() {
            (chunk.codec, chunk.frame_bytes) = (Codec::Raw, data.len() as u32);
        }
        pack_offset += u64::from(chunk.frame_bytes);
    }
    fixture.frames = fixture.data.clone();
    fixture.sealed = IndexSigner::from_hex(&"11".repeat(32)).unwrap().seal(&fixture.index).unwrap();
    let rig = Rig::new(fixture, 4);
    flip(&rig.file("pack"), 5);
    let mut scrub = Scrub::begin(&rig.store, &rig.layer().unwrap()).unwrap();
    assert!(!scrub.check(0).unwrap().frame_lost);
    assert_eq!(rig.damaged(), 1);
    rig.assert_whole("mended");
}

#[test]
fn a_mounted_layer_keeps_its_place_and_takes_its_index_from_a_peer() {
    let rig = Rig::new(fixture(1), 4);
    let layer = rig.layer().unwrap();
    rig.store.pin([layer.digest()]);
    flip(&rig.file("index"), 150);
    assert!(layer.sealed_index().is_err(), "no peer is given it");
    assert!(!Scrub::begin(&rig.store, &layer).unwrap().check_files().unwrap());
    assert!(!rig.store.drop_damaged(&layer).unwrap() && rig.store.holds(&layer));

    let mut other = fixture(1);
    other.index.chunks[1].hash = ChunkHash([9; 32]);
    let other = IndexSigner::from_hex(&"11".repeat(32)).unwrap().seal(&other.index).unwrap();
    rig.store.mend_index(&layer, &other).unwrap_err();
    rig.store.mend_index(&layer, &rig.fixture.sealed).unwrap();
    rig.assert_whole("mended");
}

#[test]
fn a_seed_has_frames_only() {
    let (directory, fixture) = (tempfile::tempdir().unwrap(), noise());
    let options =
        StoreOptions { directory: directory.path().to_owned(), limit_bytes: 1 << 30, devices: false };
    let store = Arc::new(Store::open(options).unwrap());
    let layer = commit(&store, &fixture, 4);
    flip(&layer.paths().device.with_file_name("pack"), 10);
    let mut scrub = Scrub::begin(&store, &layer).unwrap();
    let lost: Vec<bool> = (0..4).map(|n| scrub.check(n).unwrap().frame_lost).collect();
    assert_eq!(lost, [true, false, false, false]);
    assert!(layer.frame(0).is_none() && store.usage().damaged_chunks == 1);
}
