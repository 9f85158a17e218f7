//! Reads of a running container's files, each measured and compared with what the file holds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::dice::Dice;
use super::log::{FaultKind, Log};
use crate::rig::image::Files;

/// Of one read.
const READ_BYTES: usize = 128 << 10;

/// Reads the files of one container.
#[derive(Clone)]
pub struct Reader {
    pub root: PathBuf,
    pub files: Files,
    pub log: Arc<Log>,
    pub dice: Dice,
    /// Between two reads.
    pub rest: Duration,
}

impl Reader {
    /// Reads every file, in an order of its own.
    pub fn all(mut self) {
        let mut order: Vec<u32> = (0..self.files.count).collect();
        self.dice.shuffle(&mut order);
        for number in order {
            let content = self.files.content(number);
            for offset in (0..self.files.bytes).step_by(READ_BYTES) {
                self.one(number, &content, offset, Cached::Maybe);
            }
        }
    }

    /// Reads here and there until the end, past the page cache.
    pub fn on_and_on(mut self) {
        while !self.log.is_stopping() {
            let number = self.dice.below(self.files.count);
            let content = self.files.content(number);
            let blocks = u32::try_from(self.files.bytes.div_ceil(READ_BYTES)).unwrap_or(1);
            let offset = self.dice.below(blocks) as usize * READ_BYTES;
            self.one(number, &content, offset, Cached::No);
        }
    }

    fn one(&self, number: u32, content: &[u8], offset: usize, cached: Cached) {
        let path = self.root.join(Files::name(number));
        let expected = &content[offset..content.len().min(offset + READ_BYTES)];
        let began = Instant::now();
        let read = read(&path, offset as u64, expected.len(), cached);
        self.log.read(began);
        let after = began.elapsed();
        match read {
            Ok(bytes) if bytes == expected => {}
            Ok(_) => self.log.fault(FaultKind::WrongByte, format!("{} at {offset}", path.display())),
            Err(error) => {
                let what = format!("{} at {offset}, after {after:.1?}: {error}", path.display());
                self.log.fault(FaultKind::FailedRead, what);
            }
        }
        std::thread::sleep(self.rest);
    }
}

/// Whether a read may be answered by the kernel's page cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cached {
    Maybe,
    No,
}

fn read(path: &Path, offset: u64, bytes: usize, cached: Cached) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if cached == Cached::No {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    let mut buffer = vec![0; bytes];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}
