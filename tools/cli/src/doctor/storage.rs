//! Whether there is room, and whether what lies there is ours.

use std::path::Path;

use d7y_chassis::ByteSize;
use d7y_store::RESERVE_BYTES;

use super::check::Check;
use super::settings::Settings;

/// Below this a node soon fetches without keeping.
const LITTLE_BYTES: u64 = 4 * RESERVE_BYTES;
/// Share of inodes in per cent that should be free: a container's writable layer takes one per file.
const LITTLE_INODES_PERCENT: u64 = 2;

pub fn check(settings: &Settings) -> Vec<Check> {
    let store = &settings.peer.store;
    let mut checks = vec![layout(&store.directory), room("disk.store", &store.directory)];
    checks.extend(limit(&store.directory, store.limit));
    if settings.mounts() {
        checks.push(room("disk.snapshots", &settings.snapshotter.root_directory));
    }
    checks
}

fn layout(directory: &Path) -> Check {
    let shown = directory.display();
    match d7y_store::stored_format(directory) {
        Ok(true) => Check::ok("store.layout", format!("{shown} is of this version")),
        Ok(false) => Check::ok("store.layout", format!("{shown} is made at the peer's first start")),
        Err(error) => {
            let mend = format!("systemctl stop d7y-peer; mv {shown} {shown}.old; systemctl start d7y-peer");
            Check::failed("store.layout", format!("{error}"), mend)
        }
    }
}

fn room(name: &'static str, directory: &Path) -> Check {
    let existing = directory.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
    let shown = existing.display();
    let stat = match rustix::fs::statvfs(existing) {
        Ok(stat) => stat,
        Err(error) => return Check::failed(name, format!("{shown}: {error}"), format!("ls -ld {shown}")),
    };
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{} free at {shown}", rounded(free_bytes));
    let mend = format!("free space: du -xh -d2 {shown}; ctr images rm; or lower store.limit");
    if free_bytes < RESERVE_BYTES {
        return Check::failed(name, format!("{detail}: reads go on, but nothing is kept"), mend);
    }
    if free_bytes < LITTLE_BYTES {
        return Check::warning(name, detail, mend);
    }
    // File systems that make inodes as they go say 0 of 0.
    if stat.f_files > 0
        && stat.f_favail.saturating_mul(100) < stat.f_files.saturating_mul(LITTLE_INODES_PERCENT)
    {
        return Check::warning(name, format!("{} inodes free at {shown}", stat.f_favail), mend);
    }
    Check::ok(name, detail)
}

/// A limit that the disk cannot hold is never reached: then the full disk evicts, and hits its neighbours too.
fn limit(directory: &Path, limit: ByteSize) -> Option<Check> {
    let existing = directory.ancestors().find(|ancestor| ancestor.is_dir())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    let size_bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
    let detail = format!("store.limit is {limit}, the file system holds {}", rounded(size_bytes));
    Some(match limit.as_u64() > size_bytes {
        true => {
            let half = ByteSize::bytes(size_bytes / 2 / (1 << 30) * (1 << 30)).max(ByteSize::gib(1));
            Check::warning(
                "store.limit",
                detail,
                format!("set store.limit to {half} or so in the peer's configuration"),
            )
        }
        false => Check::ok("store.limit", detail),
    })
}

fn rounded(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    if gib >= 1.0 { format!("{gib:.1} GiB") } else { format!("{} MiB", bytes >> 20) }
}
