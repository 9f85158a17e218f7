//! Everything that a file system says of a tree, in memory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{lgetxattr, llistxattr};
use sha2::{Digest, Sha256};

/// The kernel's limits on names and on one value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 64 << 10;

/// Readers at a time: enough that a lazy file system is not read one round trip after the other.
const READERS: usize = 4;

/// What a path is. Names are bytes: tar allows any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// File type and permissions, as stat has them.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub kind: Kind,
    /// The least path of the same inode; its own when it has no other name.
    pub first_name: Vec<u8>,
}

/// What only some types have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sizes of directories differ between file systems and mean nothing.
    Directory,
    File {
        size: u64,
        sha256: [u8; 32],
    },
    Symlink {
        target: Vec<u8>,
    },
    Device {
        rdev: u64,
    },
    /// Fifos and sockets.
    Other,
}

/// A path, what it is, and the device and number of its inode.
type Read = (Vec<u8>, Entry, (u64, u64));

/// Every path below a root, the root itself as the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

impl Tree {
    /// Reads everything, contents included, without crossing into other mounts.
    ///
    /// # Errors
    /// Whatever cannot be read, with its path.
    pub fn scan(root: &Path) -> Result<Self> {
        let mut found = Vec::new();
        let device = fs::symlink_metadata(root).with_context(|| format!("cannot stat {}", root.display()))?;
        list(root, PathBuf::new(), &device, &mut found)?;
        let next = AtomicUsize::new(0);
        let read = || -> Result<Vec<Read>> {
            let mut mine = Vec::new();
            while let Some((path, meta)) = found.get(next.fetch_add(1, Ordering::Relaxed)) {
                let whole = if path.as_os_str().is_empty() { root.to_path_buf() } else { root.join(path) };
                let entry =
                    entry(&whole, path, meta).with_context(|| format!("cannot read {}", whole.display()))?;
                mine.push((path.as_os_str().as_bytes().to_vec(), entry, (meta.dev(), meta.ino())));
            }
            Ok(mine)
        };
        let parts = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
            let join = |reader: std::thread::ScopedJoinHandle<'_, _>| {
                reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            readers.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        Ok(Self::assemble(parts.into_iter().flatten().collect()))
    }

    fn assemble(mut read: Vec<Read>) -> Self {
        read.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let mut first_names: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
        let mut entries = BTreeMap::new();
        for (path, mut entry, inode) in read {
            if entry.kind != Kind::Directory {
                entry.first_name = first_names.entry(inode).or_insert_with(|| path.clone()).clone();
            }
            entries.insert(path, entry);
        }
        Self { entries }
    }

    /// Bytes of all regular files, each inode once.
    pub fn file_bytes(&self) -> u64 {
        let firsts = self.entries.iter().filter(|(path, entry)| **path == entry.first_name);
        firsts.map(|(_, entry)| if let Kind::File { size, .. } = entry.kind { size } else { 0 }).sum()
    }
}

fn list(
    root: &Path,
    relative: PathBuf,
    device: &Metadata,
    found: &mut Vec<(PathBuf, Metadata)>,
) -> Result<()> {
    let whole = root.join(&relative);
    let meta = fs::symlink_metadata(&whole).with_context(|| format!("cannot stat {}", whole.display()))?;
    let descend = meta.is_dir() && same_mount(&meta, device);
    found.push((relative.clone(), meta));
    if !descend {
        return Ok(());
    }
    for entry in fs::read_dir(&whole).with_context(|| format!("cannot list {}", whole.display()))? {
        list(root, relative.join(entry?.file_name()), device, found)?;
    }
    Ok(())
}

/// overlayfs gives its directories one device number, and files that of their layer.
fn same_mount(meta: &Metadata, root: &Metadata) -> bool {
    meta.dev() == root.dev()
}

fn entry(whole: &Path, path: &Path, meta: &Metadata) -> Result<Entry> {
    let file_type = meta.mode() & libc::S_IFMT;
    let kind = match file_type {
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFREG => Kind::File { size: meta.len(), sha256: sha256(whole)? },
        libc::S_IFLNK => Kind::Symlink { target: fs::read_link(whole)?.into_os_string().as_bytes().to_vec() },
        libc::S_IFCHR | libc::S_IFBLK => Kind::Device { rdev: meta.rdev() },
        _ => Kind::Other,
    };
    Ok(Entry {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        xattrs: xattrs(whole)?,
        kind,
        first_name: path.as_os_str().as_bytes().to_vec(),
    })
}

fn sha256(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = std::io::Read::read(&mut file, &mut buffer)?;
        if length == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..length]);
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = [0_u8; XATTR_BYTES];
    let length = llistxattr(path, &mut names)?;
    let mut value = [0_u8; XATTR_BYTES];
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let length = lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
            Ok((name.to_vec(), value[..length].to_vec()))
        })
        .collect()
}
