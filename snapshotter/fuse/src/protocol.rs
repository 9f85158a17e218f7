//! The FUSE wire format (`include/uapi/linux/fuse.h`, ABI 7.40): what a read-only server needs of it.
//!
//! Requests are parsed with bounds checks although the kernel writes them: the kernel may be newer than this file.
//! All integers are in the machine's byte order.

use crate::filesystem::{Attributes, Entry, FileKind, NodeId, Statistics};

/// The largest READ (and READDIR) that the kernel is told to send, in bytes: 256 pages, what
/// `/proc/sys/fs/fuse/max_pages_limit` allows by default.
pub const MAX_READ_BYTES: u32 = 1 << 20;

/// The ABI that this file implements: 7.40 is the first with [`Capabilities::HAS_RESEND`].
pub(crate) const ABI_MAJOR: u32 = 7;
pub(crate) const ABI_MINOR: u32 = 40;
/// Older kernels lack MAX_PAGES and CACHE_SYMLINKS (Linux 4.20), without which the numbers of the design do not hold.
pub(crate) const MIN_KERNEL_MINOR: u32 = 28;

pub(crate) const IN_HEADER_BYTES: usize = 40;
pub(crate) const OUT_HEADER_BYTES: usize = 16;
pub(crate) const ENTRY_BYTES: usize = 128;
pub(crate) const ATTRIBUTES_REPLY_BYTES: usize = 104;
pub(crate) const STATISTICS_BYTES: usize = 80;
pub(crate) const INIT_REPLY_BYTES: usize = 64;
const DIRENT_BYTES: usize = 24;

/// The smallest request buffer that leaves room for every request of a read-only mount. The kernel insists on 8 KiB
/// and on `max_write` plus headers; the longest that a read-only mount really sends is a BATCH_FORGET, which fills
/// whatever it is given.
pub(crate) const REQUEST_BYTES: usize = 64 << 10;
/// The largest WRITE: never sent on a read-only mount, so as small as the kernel accepts (it decides the size of the
/// request buffer, not that of reads).
const MAX_WRITE_BYTES: u32 = 4096;
const PAGE_BYTES: u32 = 4096;

/// Requests that the kernel sends ahead of need (read-ahead, asynchronous direct I/O) before it queues more on its
/// side. Every one may be waiting for the network; the default of 12 would let a dozen misses stop all read-ahead.
const MAX_BACKGROUND: u16 = 256;
/// Where the kernel begins to call the mount congested: three quarters, the ratio of the kernel's own defaults.
const CONGESTION_THRESHOLD: u16 = MAX_BACKGROUND / 4 * 3;

/// How long the kernel may keep entries and attributes, in seconds: everything served is immutable. (136 years; the
/// kernel clamps it to what its clock can express.)
const VALID_SECONDS: u64 = u32::MAX as u64;

/// `FUSE_UNIQUE_RESEND`: marks a request that the kernel has sent before.
pub(crate) const UNIQUE_RESEND: u64 = 1 << 63;

/// What INIT negotiates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    const ASYNC_READ: u64 = 1 << 0;
    const DO_READDIRPLUS: u64 = 1 << 13;
    const READDIRPLUS_AUTO: u64 = 1 << 14;
    const ASYNC_DIO: u64 = 1 << 15;
    const NO_OPEN_SUPPORT: u64 = 1 << 17;
    const PARALLEL_DIROPS: u64 = 1 << 18;
    const POSIX_ACL: u64 = 1 << 20;
    const MAX_PAGES: u64 = 1 << 22;
    const CACHE_SYMLINKS: u64 = 1 << 23;
    const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    const INIT_EXT: u64 = 1 << 30;
    const HAS_RESEND: u64 = 1 << 39;

    const WANTED: u64 = Self::ASYNC_READ
        | Self::DO_READDIRPLUS
        | Self::READDIRPLUS_AUTO
        | Self::ASYNC_DIO
        | Self::NO_OPEN_SUPPORT
        | Self::PARALLEL_DIROPS
        | Self::POSIX_ACL
        | Self::MAX_PAGES
        | Self::CACHE_SYMLINKS
        | Self::NO_OPENDIR_SUPPORT
        | Self::INIT_EXT
        | Self::HAS_RESEND;

    pub(crate) fn resend(self) -> bool {
        self.0 & Self::HAS_RESEND != 0
    }
}

/// The request cannot be understood: it is shorter than its operation demands, or its lengths contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: NodeId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    Plain,
    Plus,
}

/// READDIR or READDIRPLUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListRequest {
    pub(crate) offset: u64,
    /// Bytes that the kernel has room for.
    pub(crate) size: u32,
    pub(crate) listing: Listing,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Init(InitRequest),
    Lookup {
        name: &'a [u8],
    },
    Forget {
        lookups: u64,
    },
    BatchForget(Forgets<'a>),
    GetAttributes,
    ReadLink,
    /// OPEN and OPENDIR, answered ENOSYS once: the kernel then opens without asking, keeps pages across opens and
    /// caches directories.
    Open,
    Read {
        offset: u64,
        size: u32,
    },
    ReadDirectory(ListRequest),
    StatFs,
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    /// RELEASE and RELEASEDIR; DESTROY: nothing to do, but they want an answer.
    Release,
    /// Would change something.
    Modify,
    /// ACCESS, FLUSH and INTERRUPT among them: ENOSYS switches these off for the whole connection.
    Unsupported,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitRequest {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    max_readahead: u32,
    flags: u64,
}

/// The `(node, lookups)` pairs of a BATCH_FORGET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = (NodeId, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let mut parser = Parser(self.0);
        let pair = (NodeId(parser.u64().ok()?), parser.u64().ok()?);
        self.0 = parser.0;
        Some(pair)
    }
}

impl Header {
    /// Splits a request into its header and its body.
    pub(crate) fn parse(request: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut parser = Parser(request);
        let length = parser.u32()? as usize;
        let header = Self { opcode: parser.u32()?, unique: parser.u64()?, node: NodeId(parser.u64()?) };
        if length != request.len() || length < IN_HEADER_BYTES {
            return Err(Malformed);
        }
        Ok((header, &request[IN_HEADER_BYTES..]))
    }

    /// Whether the kernel has sent this request before, to a server that did not answer it.
    pub(crate) fn is_resent(self) -> bool {
        self.unique & UNIQUE_RESEND != 0
    }

    pub(crate) fn operation(self, body: &[u8]) -> Result<Operation<'_>, Malformed> {
        let mut body = Parser(body);
        Ok(match self.opcode {
            1 => Operation::Lookup { name: body.name()? },
            2 => Operation::Forget { lookups: body.u64()? },
            3 => Operation::GetAttributes,
            5 => Operation::ReadLink,
            14 | 27 => Operation::Open,
            15 => {
                let (offset, size) = body.read_arguments()?;
                Operation::Read { offset, size }
            }
            17 => Operation::StatFs,
            22 => {
                let size = body.xattr_size()?;
                Operation::GetXattr { name: body.name()?, size }
            }
            23 => Operation::ListXattr { size: body.xattr_size()? },
            26 => Operation::Init(body.init()?),
            28 | 44 => {
                let (offset, size) = body.read_arguments()?;
                let listing = if self.opcode == 44 { Listing::Plus } else { Listing::Plain };
                Operation::ReadDirectory(ListRequest { offset, size, listing })
            }
            18 | 29 | 38 => Operation::Release,
            42 => Operation::BatchForget(body.forgets()?),
            // SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, SETXATTR, REMOVEXATTR, CREATE,
            // FALLOCATE, RENAME2, COPY_FILE_RANGE, TMPFILE
            4 | 6 | 8..=13 | 16 | 21 | 24 | 35 | 43 | 45 | 47 | 51 => Operation::Modify,
            _ => Operation::Unsupported,
        })
    }
}

struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    /// A name ends in its only NUL; what follows is padding or an extension.
    fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
        if end == 0 {
            return Err(Malformed);
        }
        Ok(&self.0[..end])
    }

    /// `fuse_read_in`: file handle, offset, size; the rest does not matter without open files.
    fn read_arguments(&mut self) -> Result<(u64, u32), Malformed> {
        let _handle = self.u64()?;
        Ok((self.u64()?, self.u32()?))
    }

    fn xattr_size(&mut self) -> Result<u32, Malformed> {
        let size = self.u32()?;
        let _padding = self.u32()?;
        Ok(size)
    }

    fn init(&mut self) -> Result<InitRequest, Malformed> {
        let (major, minor) = (self.u32()?, self.u32()?);
        let (max_readahead, low) = (self.u32()?, u64::from(self.u32()?));
        let high = if low & Capabilities::INIT_EXT != 0 { u64::from(self.u32()?) } else { 0 };
        Ok(InitRequest { major, minor, max_readahead, flags: high << 32 | low })
    }

    fn forgets(&mut self) -> Result<Forgets<'a>, Malformed> {
        let count = self.u32()? as usize;
        let _padding = self.u32()?;
        let bytes = count.checked_mul(16).ok_or(Malformed)?;
        self.0.get(..bytes).map(Forgets).ok_or(Malformed)
    }
}

/// `fuse_out_header`. `error` is 0, a negated errno, or the code of a notification (`unique` 0).
pub(crate) fn out_header(unique: u64, error: i32, payload_bytes: usize) -> [u8; OUT_HEADER_BYTES] {
    let length =
        u32::try_from(OUT_HEADER_BYTES + payload_bytes).expect("replies are bounded by MAX_READ_BYTES");
    let mut out = [0; OUT_HEADER_BYTES];
    Encoder::new(&mut out).u32(length).i32(error).u64(unique);
    out
}

/// `fuse_init_out`, and what both sides agreed on.
pub(crate) fn init_reply(request: &InitRequest) -> ([u8; INIT_REPLY_BYTES], Capabilities) {
    let flags = request.flags & Capabilities::WANTED;
    let mut out = [0; INIT_REPLY_BYTES];
    Encoder::new(&mut out)
        .u32(ABI_MAJOR)
        .u32(ABI_MINOR)
        .u32(request.max_readahead)
        .u32(flags as u32)
        .u16(MAX_BACKGROUND)
        .u16(CONGESTION_THRESHOLD)
        .u32(MAX_WRITE_BYTES)
        .u32(1) // time granularity, ns
        .u16((MAX_READ_BYTES / PAGE_BYTES) as u16)
        .u16(0) // map_alignment: DAX, not ours
        .u32((flags >> 32) as u32);
    (out, Capabilities(flags))
}

pub(crate) fn entry_reply(entry: &Entry) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    Encoder::new(&mut out).entry(entry);
    out
}

/// An entry without a node: the kernel remembers that the name does not exist.
pub(crate) fn negative_entry_reply() -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    Encoder::new(&mut out).u64(0).u64(0).u64(VALID_SECONDS);
    out
}

pub(crate) fn attributes_reply(node: NodeId, attributes: &Attributes) -> [u8; ATTRIBUTES_REPLY_BYTES] {
    let mut out = [0; ATTRIBUTES_REPLY_BYTES];
    Encoder::new(&mut out).u64(VALID_SECONDS).u64(0).attributes(node, attributes);
    out
}

pub(crate) fn statistics_reply(statistics: &Statistics) -> [u8; STATISTICS_BYTES] {
    let mut out = [0; STATISTICS_BYTES];
    Encoder::new(&mut out)
        .u64(statistics.blocks)
        .u64(0)
        .u64(0)
        .u64(statistics.files)
        .u64(0)
        .u32(statistics.block_bytes)
        .u32(statistics.name_bytes)
        .u32(statistics.block_bytes);
    out
}

/// `fuse_getxattr_out`: how many bytes the value or the list would take.
pub(crate) fn xattr_size_reply(bytes: u32) -> [u8; 8] {
    let mut out = [0; 8];
    Encoder::new(&mut out).u32(bytes);
    out
}

/// Payload of `FUSE_NOTIFY_INVAL_INODE` for all cached pages of a node.
pub(crate) fn invalidate_node(node: NodeId) -> [u8; 24] {
    let mut out = [0; 24];
    Encoder::new(&mut out).u64(node.0);
    out
}

/// Payload of `FUSE_NOTIFY_INVAL_ENTRY`, to be followed by the name and a NUL.
pub(crate) fn invalidate_entry(parent: NodeId, name_bytes: u32) -> [u8; 16] {
    let mut out = [0; 16];
    Encoder::new(&mut out).u64(parent.0).u32(name_bytes);
    out
}

/// One record of a READDIR or READDIRPLUS reply.
pub(crate) struct DirectoryRecord<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) node: NodeId,
    pub(crate) kind: FileKind,
    /// Where to go on after this record.
    pub(crate) next: u64,
    pub(crate) plus: Plus<'a>,
}

pub(crate) enum Plus<'a> {
    /// READDIR: no entry before the record.
    No,
    /// READDIRPLUS, but without attributes: the kernel looks the name up when it needs to.
    NameOnly,
    Entry(&'a Entry),
}

impl DirectoryRecord<'_> {
    fn encoded_bytes(&self) -> usize {
        let entry = if matches!(self.plus, Plus::No) { 0 } else { ENTRY_BYTES };
        entry + (DIRENT_BYTES + self.name.len()).next_multiple_of(8)
    }

    /// Writes the record to the start of `out`. Returns its length, or nothing when it does not fit.
    pub(crate) fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let bytes = self.encoded_bytes();
        let out = out.get_mut(..bytes)?;
        out.fill(0);
        let dirent = match self.plus {
            Plus::No => out,
            Plus::NameOnly => &mut out[ENTRY_BYTES..],
            Plus::Entry(entry) => {
                Encoder::new(out).entry(entry);
                &mut out[ENTRY_BYTES..]
            }
        };
        let name_bytes = u32::try_from(self.name.len()).ok()?;
        Encoder::new(dirent).u64(self.node.0).u64(self.next).u32(name_bytes).u32(self.kind.directory_type());
        dirent[DIRENT_BYTES..][..self.name.len()].copy_from_slice(self.name);
        Some(bytes)
    }
}

/// Writes fixed-size structures; the callers' arrays have the sizes of the ABI.
struct Encoder<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Encoder<'a> {
    fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }

    fn bytes<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.out[self.at..][..N].copy_from_slice(&bytes);
        self.at += N;
        self
    }

    fn u16(self, value: u16) -> Self {
        self.bytes(value.to_ne_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(value.to_ne_bytes())
    }

    fn i32(self, value: i32) -> Self {
        self.bytes(value.to_ne_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(value.to_ne_bytes())
    }

    fn entry(self, entry: &Entry) -> Self {
        self.u64(entry.node.0)
            .u64(0) // generation: node ids are never reused for something else
            .u64(VALID_SECONDS)
            .u64(VALID_SECONDS)
            .u64(0) // nanoseconds of both
            .attributes(entry.node, &entry.attributes)
    }

    /// `fuse_attr`. The inode number is the node id.
    fn attributes(self, node: NodeId, attributes: &Attributes) -> Self {
        let modified = attributes.modified;
        self.u64(node.0)
            .u64(attributes.size)
            .u64(attributes.size.div_ceil(512))
            .u64(modified.seconds as u64)
            .u64(modified.seconds as u64)
            .u64(modified.seconds as u64)
            .u32(modified.nanoseconds)
            .u32(modified.nanoseconds)
            .u32(modified.nanoseconds)
            .u32(attributes.kind.mode_bits() | u32::from(attributes.permissions & 0o7777))
            .u32(attributes.links)
            .u32(attributes.uid)
            .u32(attributes.gid)
            .u32(attributes.rdev)
            .u32(PAGE_BYTES)
            .u32(0)
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
