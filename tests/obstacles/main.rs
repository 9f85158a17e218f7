#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
//! What may be in a daemon's way at its start and its end: every daemon as it was built, every obstacle in its table.
//!
//! What is said here: each obstacle is one line of the log that names the key and the remedy, and an exit code that
//! docs/operations.md explains; what need not stop a daemon does not.

mod daemon;
mod obstacles;
mod running;
mod signals;
mod unreachable;

use daemon::{Daemon, MANAGER, PEER, SCHEDULER, SNAPSHOTTER};
use obstacles::OBSTACLES;

fn meets_every_obstacle(daemon: &Daemon) {
    for (name, obstacle) in OBSTACLES {
        eprintln!("{}: {name}", daemon.program);
        obstacle(daemon);
    }
}

#[test]
fn the_peer_meets_every_obstacle() {
    meets_every_obstacle(&PEER);
}

#[test]
fn the_scheduler_meets_every_obstacle() {
    meets_every_obstacle(&SCHEDULER);
}

#[test]
fn the_manager_meets_every_obstacle() {
    meets_every_obstacle(&MANAGER);
}

mod privileged {
    use super::*;

    #[test]
    fn the_snapshotter_meets_every_obstacle() {
        if is_root() {
            meets_every_obstacle(&SNAPSHOTTER);
        }
    }

    #[test]
    fn read_only_directories_are_refused() {
        if is_root() {
            [&PEER, &SNAPSHOTTER, &MANAGER].into_iter().for_each(obstacles::read_only);
        }
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            d7y_skip::test("root");
        }
        root
    }
}

/// The page has every code that a daemon ends with, and no other.
#[test]
fn the_exit_codes_are_documented() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("Exit codes of the daemons\n"));
    let rows = section.unwrap().lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let mut documented: Vec<i32> =
        rows.flat_map(|codes| codes.split(", ")).filter_map(|code| code.parse().ok()).collect();
    documented.sort_unstable();
    let known = [obstacles::CODES.as_slice(), &signals::CODES, &[0, 1]].concat();
    let mut known: Vec<_> = known.into_iter().collect();
    known.sort_unstable();
    assert_eq!(documented, known);
}
