//! Whether there is room, and whether what lies there is ours.

use std::io;
use std::path::Path;

use d7y_chassis::ByteSize;
use d7y_store::{RESERVE_BYTES, StoreError};

use super::check::{Check, Mend};
use super::machine::{Machine, Space};
use super::settings::Settings;

/// Below this a node soon fetches without keeping.
const LITTLE_BYTES: u64 = 4 * RESERVE_BYTES;
/// Share of inodes in per cent that should be free: a container's writable layer takes one per file.
const LITTLE_INODES_PERCENT: u64 = 2;
const SUDO: &str = "sudo d7y doctor";

pub fn check(settings: &Settings, machine: &impl Machine) -> Vec<Check> {
    let directory = &settings.peer.store.directory;
    let mut checks = vec![layout(directory), writable(settings)];
    let existing = existing(directory);
    match machine.space(existing) {
        Ok(space) => {
            checks.push(room("disk.store", existing, space, || lower_limit(settings, space)));
            checks.push(limit(settings, space));
        }
        Err(error) => checks.push(unknown("disk.store", existing, &error)),
    }
    if settings.mounts() {
        let existing = self::existing(&settings.snapshotter.root_directory);
        checks.push(match machine.space(existing) {
            Ok(space) => room("disk.snapshots", existing, space, || Mend::run("crictl rmi --prune")),
            Err(error) => unknown("disk.snapshots", existing, &error),
        });
    }
    checks
}

/// The directory, or the one that it will be made in.
fn existing(directory: &Path) -> &Path {
    directory.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"))
}

fn layout(directory: &Path) -> Check {
    const NAME: &str = "store.layout";
    let shown = directory.display();
    let error = match d7y_store::stored_format(directory) {
        Ok(true) => return Check::ok(NAME, format!("{shown} is of this version")),
        Ok(false) => return Check::ok(NAME, format!("{shown} is made at the peer's first start")),
        Err(error) => error,
    };
    let mend = match &error {
        StoreError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Mend::run(SUDO),
        _ => Mend::run(format!("systemctl stop d7y-peer; mv {shown} {shown}.old; systemctl start d7y-peer")),
    };
    Check::failed(NAME, format!("{:#}", anyhow::Error::from(error)), mend)
}

/// Tried, as the peer will: the mode says nothing of a disk that has become read-only.
fn writable(settings: &Settings) -> Check {
    const NAME: &str = "store.writable";
    let directory = &settings.peer.store.directory;
    let shown = directory.display();
    let nearest = directory.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let Err(error) = tempfile::Builder::new().prefix(".d7y-doctor-").tempdir_in(nearest) else {
        return Check::ok(NAME, format!("a directory was made in {}", nearest.display()));
    };
    let detail = format!("{shown}: {error}");
    match error.kind() {
        io::ErrorKind::PermissionDenied => Check::warning(NAME, detail, Mend::run(SUDO)),
        io::ErrorKind::ReadOnlyFilesystem => {
            let mend = format!("mount -o remount,rw $(findmnt -nT {} -o TARGET)", nearest.display());
            Check::failed(NAME, detail, Mend::run(mend))
        }
        // What is full has a line of its own.
        io::ErrorKind::StorageFull => Check::failed(NAME, detail, Mend::run("crictl rmi --prune")),
        _ => {
            let mend = settings.set_peer("store.directory: DIRECTORY THAT THE PEER CAN WRITE IN");
            Check::failed(NAME, detail, mend)
        }
    }
}

fn room(name: &'static str, existing: &Path, space: Space, more: impl Fn() -> Mend) -> Check {
    let shown = existing.display();
    let detail = format!("{} free at {shown}", rounded(space.free_bytes));
    if space.free_bytes < RESERVE_BYTES {
        return Check::failed(name, format!("{detail}: reads go on, but nothing is kept"), more());
    }
    if space.free_bytes < LITTLE_BYTES {
        return Check::warning(name, detail, more());
    }
    if space.inodes > 0
        && space.inodes_free.saturating_mul(100) < space.inodes.saturating_mul(LITTLE_INODES_PERCENT)
    {
        let detail = format!("{} inodes free at {shown}", space.inodes_free);
        return Check::warning(name, detail, Mend::run("crictl rmi --prune"));
    }
    Check::ok(name, detail)
}

fn unknown(name: &'static str, existing: &Path, error: &io::Error) -> Check {
    let shown = existing.display();
    Check::failed(name, format!("{shown}: {error}"), Mend::run(format!("findmnt -T {shown}; dmesg | tail")))
}

/// A limit that the disk cannot hold is never reached: then the full disk evicts, and hits its neighbours too.
fn limit(settings: &Settings, space: Space) -> Check {
    const NAME: &str = "store.limit";
    let limit = settings.peer.store.limit;
    let detail = format!("store.limit is {limit}, the file system holds {}", rounded(space.size_bytes));
    match limit.as_u64() > space.size_bytes {
        true => Check::warning(NAME, detail, lower_limit(settings, space)),
        false => Check::ok(NAME, detail),
    }
}

/// Half of what holds now: the peer evicts down to it as soon as it hears of it.
fn lower_limit(settings: &Settings, space: Space) -> Mend {
    let half_bytes = settings.peer.store.limit.as_u64().min(space.size_bytes) / 2;
    let half = match half_bytes >> 30 {
        0 => ByteSize::mib((half_bytes >> 20).max(1)),
        gib => ByteSize::gib(gib),
    };
    Mend::set(format!("store.limit: {half}"), &settings.peer_file, "systemctl reload d7y-peer")
}

fn rounded(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    if gib >= 1.0 { format!("{gib:.1} GiB") } else { format!("{} MiB", bytes >> 20) }
}
