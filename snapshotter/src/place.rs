use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::layers::MountId;
use crate::meta::SnapshotId;

/// Where the snapshotter keeps things.
///
/// | Path | Content |
/// |---|---|
/// | `<root>/snapshots.redb` | metadata |
/// | `<root>/s/<snapshot id>/{fs,work}` | ordinary snapshots |
/// | `<root>/b/<mount id>` | bootstraps of mounted layers |
/// | `<run>/fuse` | the FUSE mount |
/// | `<run>/m/<mount id>` | mounted layers (EROFS driver) |
#[derive(Debug, Clone)]
pub struct Place {
    root: PathBuf,
    run: PathBuf,
}

impl Place {
    /// Makes the directories. Nobody but root may enter them: images hold programs with the set-uid bit, and files that
    /// are private inside a container and readable by a like-numbered user outside.
    pub fn create(root: &Path, run: &Path) -> io::Result<Self> {
        let place = Self { root: root.to_owned(), run: run.to_owned() };
        for directory in [place.snapshots(), place.bootstraps(), place.mount_points()] {
            std::fs::create_dir_all(&directory)?;
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
        }
        Ok(place)
    }

    pub fn database(&self) -> PathBuf {
        self.root.join("snapshots.redb")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.root.join("s")
    }

    pub fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    pub fn upper(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join("fs")
    }

    pub fn work(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join("work")
    }

    pub fn bootstraps(&self) -> PathBuf {
        self.root.join("b")
    }

    pub fn bootstrap(&self, id: MountId) -> PathBuf {
        self.bootstraps().join(id.to_string())
    }

    /// Never there: a mount of it fails, and nobody takes an empty directory for a root file system.
    pub fn not_mounted(&self, id: SnapshotId) -> PathBuf {
        self.run.join("not-mounted").join(id.to_string())
    }

    pub fn run(&self) -> &Path {
        &self.run
    }

    pub fn fuse(&self) -> PathBuf {
        self.run.join("fuse")
    }

    pub fn mount_points(&self) -> PathBuf {
        self.run.join("m")
    }

    pub fn mount_point(&self, id: MountId) -> PathBuf {
        self.mount_points().join(id.to_string())
    }
}
