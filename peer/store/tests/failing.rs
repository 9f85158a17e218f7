//! A disk that refuses what is written, for another reason than room.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod fixture;

use std::fs;

use fixture::{fixture, open};

/// A write or two that failed are told once, and over when the disk takes something again.
#[test]
fn a_refused_write_is_told_and_over_when_the_next_one_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let (fixture, store) = (fixture(1), open(directory.path(), 1 << 30));
    let staging = directory.path().join("staging");
    fs::remove_dir(&staging).unwrap();
    fs::write(&staging, "in the way").unwrap();
    assert!(store.stage(&fixture.reference).is_err());
    fs::remove_file(&staging).unwrap();
    fs::create_dir(&staging).unwrap();
    assert!(store.check_directories().is_err(), "it is told");
    store.check_directories().unwrap();
    let _staged = store.stage(&fixture.reference).unwrap();
    assert_eq!(fs::read_dir(&staging).unwrap().count(), 1, "only what is staged");
}

mod privileged {
    use std::process::Command;

    use d7y_store::StoreError;
    use nix::unistd::{AccessFlags, access};

    use crate::fixture::scratch::{Scratch, run};
    use crate::fixture::{commit, fixture, open};

    /// As after an error of the disk: what is open for writing stays so, and whoever asks may write.
    #[test]
    fn a_file_system_that_has_shut_itself_down_is_an_alarm_although_access_is_granted() {
        if !nix::unistd::geteuid().is_root() {
            return d7y_skip::test("root");
        }
        let scratch = Scratch::new(&["mkfs.ext4", "-q"], 512 << 20);
        let mounted = &scratch.mounted;
        let (fixture, store) = (fixture(1), open(&mounted.join("store"), 1 << 30));
        let layer = commit(&store, &fixture, 1);
        store.check_directories().unwrap();
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(mounted));
        let granted = access(mounted, AccessFlags::W_OK).is_ok();
        let refused = store.keep(&layer, 3, &fixture.frames[3], &fixture.data[3]);
        assert!(matches!(refused, Err(StoreError::Io { .. })), "{refused:?}");
        for look in 0..3 {
            let found = store.check_directories();
            assert!(matches!(found, Err(StoreError::Io { .. })), "look {look}, access granted: {granted}");
        }
    }
}
