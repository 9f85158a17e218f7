//! What keeps a daemon from starting on this machine, beside its configuration and its ports.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Each has an exit code of its own; the message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    #[error("{} is in use: the daemon runs already; stop the other one or set another path ({key})", path.display())]
    Twice { path: PathBuf, key: &'static str },
    #[error("cannot use the directory {} (configuration key {key}): {}", path.display(), advice(.source))]
    Directory { path: PathBuf, key: &'static str, source: io::Error },
    #[error(
        "{} holds data of version {found:?}, this program writes version {expected}; start the version that wrote it, or \
         move it away",
        path.display()
    )]
    Version { path: PathBuf, found: String, expected: u32 },
}

/// Makes the directory where it is missing, and makes sure that files can be made in it.
pub fn writable_directory(path: &Path, key: &'static str) -> Result<(), Obstacle> {
    let failed = |source| Obstacle::Directory { path: path.to_owned(), key, source };
    fs::create_dir_all(path).map_err(failed)?;
    let probe = path.join(format!(".write-test-{}", std::process::id()));
    fs::File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(failed)
}

/// A directory that this process alone uses, until this is dropped.
#[derive(Debug)]
pub struct DirectoryLock(fs::File);

/// Refuses a directory that another process holds so. The file is called `lock`; what keeps it locked ends with the
/// process, however that ends.
pub fn lock(directory: &Path, key: &'static str) -> Result<DirectoryLock, Obstacle> {
    let path = directory.to_owned();
    let file = fs::File::options().create(true).truncate(false).write(true).open(directory.join("lock"));
    let file = match file {
        Ok(file) => file,
        Err(source) => return Err(Obstacle::Directory { path, key, source }),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DirectoryLock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Obstacle::Twice { path, key }),
        Err(error) => Err(Obstacle::Directory { path, key, source: error.into() }),
    }
}

impl Drop for DirectoryLock {
    /// A child that was just forked has the descriptor until its exec: closing it here is not enough (flock(2)).
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "cannot unlock the directory");
        }
    }
}

/// Compares the version of what a directory holds, kept in its file `format`, with what this program writes. An empty
/// directory is marked with it.
pub fn same_format(directory: &Path, key: &'static str, expected: u32) -> Result<(), Obstacle> {
    let path = directory.join("format");
    let failed = |source| Obstacle::Directory { path: directory.to_owned(), key, source };
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == expected.to_string() => Ok(()),
        Ok(found) => {
            let found = found.trim().chars().take(64).collect();
            Err(Obstacle::Version { path: directory.to_owned(), found, expected })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::write(&path, format!("{expected}\n")).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "its file system is read-only; remount it or set another path",
        io::ErrorKind::PermissionDenied => "not permitted; run as root, or give it to the daemon's user",
        io::ErrorKind::NotADirectory => "a part of the path is no directory; set another path",
        io::ErrorKind::AlreadyExists => "there is a file of this name; move it away or set another path",
        io::ErrorKind::NotFound => "it cannot be made; create it or set another path",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "its file system is full; free space",
        _ => "the system refused",
    }
}
