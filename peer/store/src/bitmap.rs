use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::uncached::forget_cached;

/// A set of chunk numbers, most often kept in a file: bit `n % 8` of byte `n / 8`, and behind these bytes all of them once
/// more. A bit counts at the next start where both copies have it ([`crate::claims`]): a flip in one makes none.
///
/// Other processes read the file, so a byte is written only after the data that it vouches for.
#[derive(Debug)]
pub struct Bitmap {
    file: Option<File>,
    bytes: Vec<AtomicU8>,
    len: u32,
    count: AtomicU32,
    /// Held over a change and its writes: the last write must hold all bits, and who has the lock finds the file as the
    /// memory is.
    writing: Mutex<()>,
}

impl Bitmap {
    /// Loads what the file holds; a file that is too short counts as zeros there.
    pub fn load(file: File, len: u32) -> io::Result<Self> {
        let bytes = read_padded(&file, len.div_ceil(8) as usize)?;
        Ok(Self { file: Some(file), ..Self::in_memory(bytes, len) })
    }

    /// A set that is not kept anywhere.
    pub(crate) fn in_memory(mut bytes: Vec<u8>, len: u32) -> Self {
        bytes.resize(len.div_ceil(8) as usize, 0);
        if let (Some(last), spare @ 1..) = (bytes.last_mut(), len % 8) {
            *last &= (1 << spare) - 1;
        }
        let count = bytes.iter().map(|byte| byte.count_ones()).sum();
        let bytes = bytes.into_iter().map(AtomicU8::new).collect();
        Self { file: None, bytes, len, count: AtomicU32::new(count), writing: Mutex::new(()) }
    }

    pub fn get(&self, n: u32) -> bool {
        n < self.len && self.bytes[n as usize / 8].load(Ordering::Acquire) >> (n % 8) & 1 == 1
    }

    /// True when the bit was not set before.
    pub fn set(&self, n: u32) -> io::Result<bool> {
        let _writing = self.writing.lock();
        let fresh = self.mark(n);
        if fresh {
            // The bit itself last: killed in between, the copies differ and the chunk is hashed.
            let bytes = self.bytes.len();
            self.write_byte(n as usize / 8, bytes)?;
            self.write_byte(n as usize / 8, 0)?;
        }
        Ok(fresh)
    }

    /// True when the bit was set before.
    pub fn clear(&self, n: u32) -> io::Result<bool> {
        let _writing = self.writing.lock();
        let before = self.bytes[n as usize / 8].fetch_and(!(1 << (n % 8)), Ordering::AcqRel);
        let held = before >> (n % 8) & 1 == 1;
        if held {
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.write_byte(n as usize / 8, 0)?;
            self.write_byte(n as usize / 8, self.bytes.len())?;
        }
        Ok(held)
    }

    pub fn set_all(&self, chunks: impl Iterator<Item = u32>) -> io::Result<()> {
        let _writing = self.writing.lock();
        for n in chunks {
            self.mark(n);
        }
        self.write_all()
    }

    /// Writes the file anew when it is not what this set is: true when it was not.
    pub(crate) fn mend(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        // Before the lock: whoever sets a bit does not wait for the disk.
        forget_cached(file)?;
        let _writing = self.writing.lock();
        let mended = read_padded(file, 2 * self.bytes.len())? != self.to_bytes().repeat(2);
        if mended {
            self.write_all()?;
        }
        Ok(mended)
    }

    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.iter().map(|byte| byte.load(Ordering::Acquire)).collect()
    }

    fn mark(&self, n: u32) -> bool {
        let before = self.bytes[n as usize / 8].fetch_or(1 << (n % 8), Ordering::AcqRel);
        let fresh = before >> (n % 8) & 1 == 0;
        if fresh {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
        fresh
    }

    /// Under the lock, as [`Self::write_all`].
    fn write_byte(&self, number: usize, copy: usize) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.write_all_at(&[self.bytes[number].load(Ordering::Acquire)], (copy + number) as u64)
    }

    fn write_all(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let bytes = self.to_bytes();
        file.write_all_at(&bytes, bytes.len() as u64)?;
        file.write_all_at(&bytes, 0)
    }
}

/// The beginning of a file; what lies behind its end is zeros.
fn read_padded(file: &File, bytes: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0u8; bytes];
    let mut at = 0;
    while at < bytes {
        match file.read_at(&mut out[at..], at as u64)? {
            0 => break,
            n => at += n,
        }
    }
    Ok(out)
}
