//! A streaming tar reader: POSIX ustar and pax, GNU long names and sparse files, star and V7.
//!
//! It accepts what containerd's reader (Go's `archive/tar`) accepts, because images are built against that one:
//! signed or unsigned checksums, a missing end of archive, one zero block instead of two. Global pax headers are
//! checked and otherwise ignored, as containerd does. In addition it takes contiguous files and the extended
//! attributes of libarchive.

mod header;
mod pax;
mod sparse;

use std::io::Read;

use header::{Dialect, Header};
use pax::Extensions;
pub use sparse::Extent;

pub(crate) const RECORD: usize = 512;
/// A pax header, a GNU long name or a sparse map larger than this is refused; it bounds what one entry can make
/// the reader hold. Go's reader has the same limit, so no image that containerd unpacks exceeds it.
pub const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// A longer path or link target cannot be unpacked (Linux `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;
/// More data ranges in one sparse file are refused; the text form of so many fills a map of 1 MiB.
pub const MAX_SPARSE_EXTENTS: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("the tar stream is malformed at byte {offset}: {what}")]
    Malformed { offset: u64, what: &'static str },
    #[error("the tar stream ends in the middle of the entry at byte {offset}")]
    CutShort { offset: u64 },
    #[error("the tar entry at byte {offset} breaks a limit: {what}")]
    Limit { offset: u64, what: &'static str },
    #[error("the tar stream cannot be read")]
    Io(#[source] std::io::Error),
}

/// One entry, with its extension headers applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As the archive has it: it may be absolute or hold `.` and `..`.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Permission, set-user-id, set-group-id and sticky bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, negative before, and nanoseconds below 1,000,000,000.
    pub mtime: (i64, u32),
    /// Full names and values, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Regular {
        /// Holes included.
        size: u64,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    /// Numbers as `NodeKind` has them.
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
}

/// Reads entries, and the content of the one read last.
pub struct TarReader<R> {
    input: R,
    /// Bytes of the stream taken so far.
    offset: u64,
    /// Where the current entry's header began.
    entry_offset: u64,
    /// Content bytes of the current entry that are still in the stream, and the padding after them.
    stored_left: u64,
    padding: u64,
    extents: std::vec::IntoIter<Extent>,
    /// Data bytes announced by `next_extent` that the caller has not read.
    extent_left: u64,
}

impl<R: Read> TarReader<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            entry_offset: 0,
            stored_left: 0,
            padding: 0,
            extents: Vec::new().into_iter(),
            extent_left: 0,
        }
    }

    pub fn into_inner(self) -> R {
        self.input
    }

    /// Where the current entry's first header began, in bytes of the stream.
    pub fn entry_offset(&self) -> u64 {
        self.entry_offset
    }

    /// The next entry; what is left of the one before is skipped. `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        self.entry_offset = self.offset;
        let (mut pax, mut long_name, mut long_link) = (Extensions::default(), None, None);
        while let Some(header) = self.header()? {
            match header.type_flag() {
                b'x' => pax = self.pax_records(&header)?,
                b'g' => drop(self.pax_records(&header)?),
                b'L' => long_name = Some(self.long_text(&header)?),
                b'K' => long_link = Some(self.long_text(&header)?),
                _ => return self.entry(&header, pax, long_name, long_link).map(Some),
            }
        }
        Ok(None)
    }

    /// The next part of the current entry's content. After `Extent::Data(n)` the caller reads those n bytes with
    /// [`read_data`](Self::read_data); `None` at the end.
    pub fn next_extent(&mut self) -> Option<Extent> {
        let extent = self.extents.next()?;
        if let Extent::Data(bytes) = extent {
            self.extent_left = bytes;
        }
        Some(extent)
    }

    /// Fills `out` from the current data extent.
    ///
    /// # Panics
    /// When `out` is longer than what is left of it.
    pub fn read_data(&mut self, out: &mut [u8]) -> Result<(), TarError> {
        let bytes = out.len() as u64;
        self.extent_left = self.extent_left.checked_sub(bytes).expect("no read past the extent");
        self.stored_left = self.stored_left.checked_sub(bytes).expect("extents add up to the stored bytes");
        self.fill(out)
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Extensions,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let malformed = |what| TarError::Malformed { offset: self.entry_offset, what };
        let text = |pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>| gnu.or(pax);
        let mut path = text(pax.path, long_name).unwrap_or_else(|| header.path());
        let link = text(pax.linkpath, long_link).unwrap_or_else(|| header.link());
        let number = |pax: Option<i64>, field: Option<i64>, what| pax.or(field).ok_or(malformed(what));
        let id = |pax, field, what| {
            number(pax, field, what).and_then(|id| u32::try_from(id).map_err(|_| malformed(what)))
        };
        let mode = header.mode().ok_or(malformed("its mode is not a number"))?;
        let uid = id(pax.uid, header.uid(), "its user id is not a number of 32 bits")?;
        let gid = id(pax.gid, header.gid(), "its group id is not a number of 32 bits")?;
        let seconds = header.mtime().ok_or(malformed("its time is not a number"));
        let mtime = pax.mtime.map_or_else(|| seconds.map(|seconds| (seconds, 0)), Ok)?;
        let size = number(pax.size, header.size(), "its size is not a number")?;
        let size = u64::try_from(size).map_err(|_| malformed("its size is negative"))?;
        let type_flag = match header.type_flag() {
            0 if path.ends_with(b"/") => b'5',
            0 | b'7' => b'0',
            other => other,
        };
        let device = || header.device().ok_or(malformed("its device number is not one that Linux has"));
        let kind = match type_flag {
            b'0' | b'S' => {
                let sparse_name = pax.sparse.name.clone();
                let size = self.start_content(header, size, pax.sparse)?;
                path = sparse_name.unwrap_or(path);
                EntryKind::Regular { size }
            }
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => EntryKind::CharDevice(device()?),
            b'4' => EntryKind::BlockDevice(device()?),
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            _ => return Err(malformed("its type is none that a layer can hold")),
        };
        let targets = match &kind {
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
            _ => 0,
        };
        if path.len() > MAX_PATH_BYTES || targets > MAX_PATH_BYTES {
            return Err(TarError::Limit {
                offset: self.entry_offset,
                what: "a path of more than 4,096 bytes",
            });
        }
        Ok(Entry { path, kind, mode: (mode & 0o7777) as u16, uid, gid, mtime, xattrs: pax.xattrs })
    }

    /// Prepares to serve a file's content; gives its length with holes.
    fn start_content(
        &mut self,
        header: &Header,
        stored: u64,
        sparse: sparse::Records,
    ) -> Result<u64, TarError> {
        self.stored_left = stored;
        self.padding = stored.wrapping_neg() % RECORD as u64;
        let map = match (header.dialect(), header.type_flag()) {
            (Dialect::Gnu, b'S') => self.old_gnu_map(header)?,
            (_, b'S') => return Err(self.malformed("a sparse file of GNU's in another format")),
            _ => self.pax_map(sparse)?,
        };
        let Some(sparse::Map { size, data }) = map else {
            self.extents = sparse::whole(stored).into_iter();
            return Ok(stored);
        };
        let malformed = |what| TarError::Malformed { offset: self.entry_offset, what };
        let extents = sparse::extents(size, &data, self.stored_left).map_err(malformed)?;
        self.extents = extents.into_iter();
        Ok(size)
    }

    /// Old GNU: the first ranges in the header, the others in blocks between header and content.
    fn old_gnu_map(&mut self, header: &Header) -> Result<Option<sparse::Map>, TarError> {
        let offset = self.entry_offset;
        let malformed = move |what| TarError::Malformed { offset, what };
        let bad = move || malformed("its sparse map is not made of numbers");
        let size = header.sparse_size().and_then(|size| u64::try_from(size).ok()).ok_or_else(bad)?;
        let (mut data, mut more) = header.sparse_ranges().ok_or_else(bad)?;
        while more {
            let mut block = [0; RECORD];
            self.fill(&mut block)?;
            let (ranges, next) = header::sparse_extension(&block).ok_or_else(bad)?;
            if data.len() + ranges.len() > MAX_SPARSE_EXTENTS {
                return Err(self.limit("a sparse file of more than 65,536 ranges"));
            }
            data.extend(ranges);
            more = next;
        }
        Ok(Some(sparse::Map { size, data }))
    }

    /// GNU in pax headers: 0.0 and 0.1 have the map there, 1.0 before the content.
    fn pax_map(&mut self, records: sparse::Records) -> Result<Option<sparse::Map>, TarError> {
        let offset = self.entry_offset;
        let malformed = move |what| TarError::Malformed { offset, what };
        let Some(form) = records.form().map_err(malformed)? else { return Ok(None) };
        let size = records.size.ok_or(malformed("a sparse file without its size"))?;
        let data = match form {
            sparse::Form::InHeader => records.ranges().map_err(malformed)?,
            sparse::Form::BeforeContent => {
                let mut text = sparse::TextMap::default();
                while !text.is_complete().map_err(malformed)? {
                    if self.stored_left < RECORD as u64 {
                        return Err(malformed("its sparse map is longer than its content"));
                    }
                    let mut block = [0; RECORD];
                    self.fill(&mut block)?;
                    self.stored_left -= RECORD as u64;
                    text.push(&block);
                }
                text.ranges().map_err(malformed)?
            }
        };
        if data.len() > MAX_SPARSE_EXTENTS {
            return Err(self.limit("a sparse file of more than 65,536 ranges"));
        }
        Ok(Some(sparse::Map { size, data }))
    }

    /// The next header block that is not zero.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; RECORD];
        if !self.fill_or_end(&mut block)? {
            return Ok(None);
        }
        if block == [0; RECORD] {
            if !self.fill_or_end(&mut block)? || block == [0; RECORD] {
                return Ok(None);
            }
            return Err(self.malformed("a single block of zeros between entries"));
        }
        Header::parse(block).map(Some).ok_or_else(|| self.malformed("the checksum of its header is wrong"))
    }

    fn pax_records(&mut self, header: &Header) -> Result<Extensions, TarError> {
        let text = self.extension(header)?;
        Extensions::parse(&text).map_err(|what| self.malformed(what))
    }

    fn long_text(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let mut text = self.extension(header)?;
        text.truncate(header::text(&text).len());
        Ok(text)
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| self.malformed("the size of an extension header is not a number"))?;
        if size > MAX_EXTENSION_BYTES {
            return Err(self.limit("an extension header of more than 1 MiB"));
        }
        let mut text = vec![0; (size as usize).next_multiple_of(RECORD)];
        self.fill(&mut text)?;
        text.truncate(size as usize);
        Ok(text)
    }

    /// Goes to the next header. An archive may end within the padding of its last file, as it may before its end.
    fn skip_content(&mut self) -> Result<(), TarError> {
        self.extents = Vec::new().into_iter();
        self.extent_left = 0;
        let content = std::mem::take(&mut self.stored_left);
        let bytes = content.saturating_add(std::mem::take(&mut self.padding));
        let skipped = std::io::copy(&mut (&mut self.input).take(bytes), &mut std::io::sink());
        let skipped = skipped.map_err(TarError::Io)?;
        self.offset += skipped;
        if skipped < content { Err(TarError::CutShort { offset: self.entry_offset }) } else { Ok(()) }
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), TarError> {
        match self.fill_or_end(out)? {
            true => Ok(()),
            false if out.is_empty() => Ok(()),
            false => Err(TarError::CutShort { offset: self.entry_offset }),
        }
    }

    /// Fills `out`; false when the stream had ended before its first byte.
    fn fill_or_end(&mut self, out: &mut [u8]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < out.len() {
            match self.input.read(&mut out[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::CutShort { offset: self.entry_offset }),
                Ok(n) => filled += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Io(error)),
            }
        }
        self.offset += filled as u64;
        Ok(true)
    }

    fn malformed(&self, what: &'static str) -> TarError {
        TarError::Malformed { offset: self.entry_offset, what }
    }

    fn limit(&self, what: &'static str) -> TarError {
        TarError::Limit { offset: self.entry_offset, what }
    }
}
