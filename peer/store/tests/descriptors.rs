//! A peer that may open too few files. A process of its own: the limit is the process's.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod fixture;

use d7y_store::{Store, StoreError, StoreOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use fixture::{commit, fixture, open};

#[test]
fn a_lack_of_descriptors_costs_no_layer() {
    let directory = tempfile::tempdir().unwrap();
    let fixtures = [1, 20, 40, 60].map(fixture);
    let store = open(directory.path(), 1 << 30);
    fixtures.iter().for_each(|fixture| drop(commit(&store, fixture, 4)));
    drop(store);

    let before = getrlimit(Resource::Nofile);
    let in_use = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(in_use + 8), ..before }).unwrap();
    let options = StoreOptions { directory: directory.path().into(), limit_bytes: 1 << 30, devices: true };
    let refused = Store::open(options);
    setrlimit(Resource::Nofile, before).unwrap();
    assert!(matches!(refused, Err(StoreError::Io { .. })), "{refused:?}");

    let store = open(directory.path(), 1 << 30);
    for fixture in &fixtures {
        let layer = store.layer(fixture.reference.digest).expect("the layer is still there");
        assert!(layer.readable().is_full());
    }
}
