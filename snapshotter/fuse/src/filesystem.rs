use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use d7y_types::ByteRange;

use crate::protocol::{DirectoryRecord, Listing, Plus};
use crate::reply::ReadReply;

/// A read-only filesystem that the kernel asks about.
///
/// Everything is immutable: what is answered once may be kept by the kernel for good. Methods are called from all
/// serving threads at once; a method that blocks occupies its thread, except that [`Filesystem::read`] may keep its
/// reply and return. A method that panics answers EIO.
///
/// Node ids are the filesystem's own, must be the same after a restart, and are what the kernel takes for identity:
/// two names of one node are hard links. They appear as inode numbers.
pub trait Filesystem: Send + Sync + 'static {
    /// Finds `name` in a directory. `None`: there is no such name and there never will be (the kernel remembers it).
    /// [`Errno::NO_ENTRY`]: there is none yet.
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>, Errno>;

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno>;

    /// Answers a read of `range`, now or later, from any thread.
    ///
    /// `range` is what the kernel asked for, at most [`crate::MAX_READ_BYTES`], and may reach past the end of the
    /// file: clip it. An answer shorter than the range tells the kernel that the file ends there, for as long as it is
    /// mounted, so it must never stand for bytes that merely could not be had: that is [`ReadReply::error`].
    fn read(&self, node: NodeId, range: ByteRange, reply: ReadReply);

    /// Lists a directory from `offset`: 0, or the [`DirectoryEntry::next`] of the last entry that the kernel took.
    /// Adds entries, `.` and `..` included, until the directory ends or the sink breaks.
    fn read_directory(&self, node: NodeId, offset: u64, sink: &mut DirectorySink<'_>) -> Result<(), Errno>;

    fn read_link(&self, _node: NodeId) -> Result<Cow<'_, [u8]>, Errno> {
        Err(Errno::INVALID)
    }

    /// The value of an extended attribute. [`Errno::NO_SYSTEM_CALL`] (the default) tells the kernel that there are
    /// none in the whole filesystem, and it stops asking.
    fn get_xattr(&self, _node: NodeId, _name: &OsStr) -> Result<Cow<'_, [u8]>, Errno> {
        Err(Errno::NO_SYSTEM_CALL)
    }

    /// The names of a node's extended attributes.
    fn list_xattr(&self, _node: NodeId, _names: &mut XattrNames) -> Result<(), Errno> {
        Err(Errno::NO_SYSTEM_CALL)
    }

    fn statfs(&self) -> Result<Statistics, Errno> {
        Ok(Statistics::default())
    }

    /// The kernel has dropped `lookups` of its references to a node.
    fn forget(&self, _node: NodeId, _lookups: u64) {}
}

/// The filesystem's own name for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory (`FUSE_ROOT_ID`). 0 is not a node.
    pub const ROOT: Self = Self(1);
}

/// A name found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub node: NodeId,
    pub attributes: Attributes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    pub kind: FileKind,
    /// The lower twelve bits of the mode.
    pub permissions: u16,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a character or block device, encoded as in EROFS inodes
    /// (`minor & 0xff | major << 8 | (minor & !0xff) << 12`); 0 for everything else.
    pub rdev: u32,
    /// In bytes.
    pub size: u64,
    /// Modification time; access and change time are reported as the same.
    pub modified: Timestamp,
}

/// Seconds since the epoch, negative before it, and nanoseconds below 1,000,000,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Fifo,
    CharacterDevice,
    Directory,
    BlockDevice,
    Regular,
    Symlink,
    Socket,
}

impl FileKind {
    /// `d_type` of `readdir(3)`.
    pub(crate) fn directory_type(self) -> u32 {
        match self {
            Self::Fifo => 1,
            Self::CharacterDevice => 2,
            Self::Directory => 4,
            Self::BlockDevice => 6,
            Self::Regular => 8,
            Self::Symlink => 10,
            Self::Socket => 12,
        }
    }

    /// The `S_IFMT` part of a mode.
    pub(crate) fn mode_bits(self) -> u32 {
        self.directory_type() << 12
    }
}

/// What `statfs(2)` reports. Nothing is free: the filesystem is read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    pub blocks: u64,
    pub files: u64,
    /// Bytes per block.
    pub block_bytes: u32,
    /// The longest name, in bytes.
    pub name_bytes: u32,
}

impl Default for Statistics {
    fn default() -> Self {
        Self { blocks: 0, files: 0, block_bytes: 4096, name_bytes: 255 }
    }
}

/// One name of a directory.
#[derive(Debug, Clone, Copy)]
pub struct DirectoryEntry<'a> {
    pub name: &'a OsStr,
    pub node: NodeId,
    pub kind: FileKind,
    /// The offset that continues after this entry; never 0.
    pub next: u64,
}

/// Takes the entries of a directory, as many as the kernel has room for.
pub struct DirectorySink<'a> {
    filesystem: &'a dyn Filesystem,
    listing: Listing,
    out: &'a mut [u8],
    used: usize,
}

impl<'a> DirectorySink<'a> {
    pub(crate) fn new(filesystem: &'a dyn Filesystem, listing: Listing, out: &'a mut [u8]) -> Self {
        Self { filesystem, listing, out, used: 0 }
    }

    /// Breaks when the entry did not fit: it was not taken, and the listing ends here.
    pub fn add(&mut self, entry: &DirectoryEntry<'_>) -> ControlFlow<()> {
        let found = match self.listing {
            Listing::Plain => None,
            Listing::Plus => self.look_up(entry),
        };
        let plus = match (self.listing, &found) {
            (Listing::Plain, _) => Plus::No,
            (Listing::Plus, None) => Plus::NameOnly,
            (Listing::Plus, Some(found)) => Plus::Entry(found),
        };
        let name = entry.name.as_bytes();
        let record = DirectoryRecord { name, node: entry.node, kind: entry.kind, next: entry.next, plus };
        match record.encode(&mut self.out[self.used..]) {
            Some(bytes) => {
                self.used += bytes;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        }
    }

    /// The kernel takes no attributes for `.` and `..`.
    fn look_up(&self, entry: &DirectoryEntry<'_>) -> Option<Entry> {
        if matches!(entry.name.as_bytes(), b"." | b"..") {
            return None;
        }
        let attributes = self.filesystem.attributes(entry.node).ok()?;
        Some(Entry { node: entry.node, attributes })
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

/// Collects the names of extended attributes.
#[derive(Debug, Default)]
pub struct XattrNames(Vec<u8>);

impl XattrNames {
    pub fn push(&mut self, name: &OsStr) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An error number of the kernel's, as a reader will see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    pub const NO_ENTRY: Self = Self(libc::ENOENT);
    pub const IO: Self = Self(libc::EIO);
    pub const INVALID: Self = Self(libc::EINVAL);
    pub const NOT_A_DIRECTORY: Self = Self(libc::ENOTDIR);
    pub const IS_A_DIRECTORY: Self = Self(libc::EISDIR);
    pub const NO_DATA: Self = Self(libc::ENODATA);
    pub const RANGE: Self = Self(libc::ERANGE);
    pub const READ_ONLY: Self = Self(libc::EROFS);
    pub const STALE: Self = Self(libc::ESTALE);
    pub const TIMED_OUT: Self = Self(libc::ETIMEDOUT);
    pub const NOT_SUPPORTED: Self = Self(libc::EOPNOTSUPP);
    pub const NO_SYSTEM_CALL: Self = Self(libc::ENOSYS);
    pub(crate) const PROTOCOL: Self = Self(libc::EPROTO);

    /// The number, positive.
    pub fn number(self) -> i32 {
        self.0
    }
}

/// Errors without a number of their own become [`Errno::IO`].
impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        error.raw_os_error().filter(|number| *number > 0).map_or(Self::IO, Self)
    }
}
