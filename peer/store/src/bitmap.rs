use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use parking_lot::Mutex;

/// A set of chunk numbers, most often kept in a file: bit `n % 8` of byte `n / 8`.
///
/// Other processes read the file, so a byte is written only after the data that it vouches for.
#[derive(Debug)]
pub struct Bitmap {
    file: Option<File>,
    bytes: Vec<AtomicU8>,
    len: u32,
    count: AtomicU32,
    /// Serialises the writes of one byte to the file: the last write must hold all bits.
    writing: Mutex<()>,
}

impl Bitmap {
    /// Loads what the file holds; a file that is too short counts as zeros there.
    pub fn load(file: File, len: u32) -> io::Result<Self> {
        let mut bytes = vec![0u8; len.div_ceil(8) as usize];
        let mut at = 0;
        while at < bytes.len() {
            match file.read_at(&mut bytes[at..], at as u64)? {
                0 => break,
                n => at += n,
            }
        }
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
        let fresh = self.mark(n);
        if fresh {
            self.write_byte(n as usize / 8)?;
        }
        Ok(fresh)
    }

    /// True when the bit was set before.
    pub fn clear(&self, n: u32) -> io::Result<bool> {
        let before = self.bytes[n as usize / 8].fetch_and(!(1 << (n % 8)), Ordering::AcqRel);
        let held = before >> (n % 8) & 1 == 1;
        if held {
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.write_byte(n as usize / 8)?;
        }
        Ok(held)
    }

    pub fn set_all(&self, chunks: impl Iterator<Item = u32>) -> io::Result<()> {
        for n in chunks {
            self.mark(n);
        }
        let Some(file) = &self.file else { return Ok(()) };
        let _writing = self.writing.lock();
        file.write_all_at(&self.to_bytes(), 0)
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

    fn write_byte(&self, at: usize) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let _writing = self.writing.lock();
        file.write_all_at(&[self.bytes[at].load(Ordering::Acquire)], at as u64)
    }
}
