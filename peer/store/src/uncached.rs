use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use d7y_types::BLOCK_BYTES;
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::Errno;

/// A file read from its disk, whatever the page cache has of it.
///
/// With O_DIRECT: the kernel writes out what is dirty in the range first, and leaves in the cache what readers have
/// there. Where a file system refuses that, the cache is told to forget.
#[derive(Debug)]
pub(crate) struct Uncached {
    file: File,
    direct: bool,
    buffer: Vec<u8>,
}

impl Uncached {
    pub fn open(path: &Path) -> io::Result<Self> {
        let direct = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
        let (file, direct) = match direct {
            Err(refused) if is_invalid(&refused) => (File::open(path)?, false),
            file => (file?, true),
        };
        Ok(Self { file, direct, buffer: Vec::new() })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn read(&mut self, offset: u64, bytes: usize) -> io::Result<&[u8]> {
        if self.direct {
            match self.read_direct(offset, bytes) {
                Err(refused) if is_invalid(&refused) => {
                    let flags = rustix::fs::fcntl_getfl(&self.file)?;
                    rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                    self.direct = false;
                }
                Err(other) => return Err(other),
                Ok(start) => return Ok(&self.buffer[start..start + bytes]),
            }
        }
        forget_cached(&self.file)?;
        self.buffer.resize(bytes, 0);
        self.file.read_exact_at(&mut self.buffer, offset)?;
        Ok(&self.buffer)
    }

    /// Reads whole blocks to an address that is a multiple of a block's; says where in the buffer the range begins.
    fn read_direct(&mut self, offset: u64, bytes: usize) -> io::Result<usize> {
        let first = offset - offset % BLOCK_BYTES;
        let (skip, block) = ((offset - first) as usize, BLOCK_BYTES as usize);
        let whole = (skip + bytes).next_multiple_of(block);
        self.buffer.resize(self.buffer.len().max(whole + block), 0);
        let aligned = self.buffer.as_ptr().align_offset(block);
        let target = &mut self.buffer[aligned..aligned + whole];
        let mut got = 0;
        // The last block of a file may be a part of one.
        while got < skip + bytes {
            match self.file.read_at(&mut target[got..], first + got as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => got += n,
            }
        }
        Ok(aligned + skip)
    }
}

/// Lets the next read of a file come from its disk. Dirty pages would stay.
pub(crate) fn forget_cached(file: &File) -> io::Result<()> {
    file.sync_data()?;
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_read_in_either_way() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..20_001u32).map(|n| (n % 251) as u8).collect();
        path.as_file().write_all_at(&bytes, 0).unwrap();
        let mut direct = Uncached::open(path.path()).unwrap();
        let mut buffered =
            Uncached { file: File::open(path.path()).unwrap(), direct: false, buffer: Vec::new() };
        for uncached in [&mut direct, &mut buffered] {
            for (offset, length) in [(0, 4096), (0, 20_001), (1, 1), (4095, 2), (8192, 5000), (19_000, 1001)]
            {
                let read = uncached.read(offset as u64, length).unwrap();
                assert_eq!(read, &bytes[offset..offset + length], "{offset} {length}");
            }
            uncached.read(20_000, 2).unwrap_err();
        }
    }
}
