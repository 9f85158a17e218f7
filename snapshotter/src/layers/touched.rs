use std::fs::{File, OpenOptions};
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use d7y_image::{NodeId, NodeKind, Tree};
use d7y_types::ByteRange;
use parking_lot::Mutex;
use rustix::fs::{Advice, OFlags, fadvise};

/// The grain: what the kernel reads of a served device at once (`mounts::LAZY_READ_AHEAD_KB`). A bit for each, so 8 KiB
/// for a layer of 8 GiB.
const SEGMENT_BYTES: u64 = 128 << 10;
const WORD_BITS: u64 = 64;
/// What is noted where: the first so many bytes, which a start reads, not what a scan reads later.
const NOTED_BYTES: u64 = 128 << 20;

/// Which parts of a layer's device the kernel was given first, and how much in all.
#[derive(Debug, Default)]
pub struct Touched {
    bytes: AtomicU64,
    segments: Mutex<Vec<u64>>,
}

impl Touched {
    pub fn note(&self, range: ByteRange) {
        if self.bytes.fetch_add(range.length, Ordering::Relaxed) >= NOTED_BYTES {
            return;
        }
        let mut segments = self.segments.lock();
        for segment in segments_of(range) {
            let word = (segment / WORD_BITS) as usize;
            if segments.len() <= word {
                segments.resize(word + 1, 0);
            }
            segments[word] |= 1 << (segment % WORD_BITS);
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The touched parts of a range, in order.
    fn within(&self, range: ByteRange) -> Vec<ByteRange> {
        let segments = self.segments.lock();
        let is_touched = |segment: &u64| {
            let word = segments.get((segment / WORD_BITS) as usize).copied().unwrap_or(0);
            word >> (segment % WORD_BITS) & 1 == 1
        };
        let mut found: Vec<ByteRange> = Vec::new();
        for segment in segments_of(range).filter(is_touched) {
            let (start, end) = (segment * SEGMENT_BYTES, (segment + 1) * SEGMENT_BYTES);
            let (start, end) = (start.max(range.offset), end.min(range.end()));
            match found.last_mut() {
                Some(last) if last.end() == start => last.length += end - start,
                _ => found.push(ByteRange::new(start, end - start)),
            }
        }
        found
    }

    /// Has the kernel read, into the cache of a mount of the layer, what it was given for another mount of it; up to
    /// `budget` bytes. Returns what it read.
    pub fn read_ahead(&self, mounted: &Path, tree: &Tree, budget: u64) -> u64 {
        let (mut read, mut open) = (0, vec![(NodeId::ROOT, PathBuf::from(mounted))]);
        while let Some((directory, path)) = open.pop() {
            for (name, id) in tree.children(directory).into_iter().flatten() {
                let path = path.join(std::ffi::OsString::from_vec(name.to_vec()));
                match tree.node(*id).kind {
                    NodeKind::Directory { .. } => open.push((*id, path)),
                    NodeKind::Regular { device_offset, size } if read < budget => {
                        let parts = self.within(ByteRange::new(device_offset, size));
                        read += read_ahead(&path, device_offset, &parts);
                    }
                    _ => {}
                }
            }
        }
        read
    }
}

/// It is advice: what cannot be read now is read later, or never.
fn read_ahead(path: &Path, device_offset: u64, parts: &[ByteRange]) -> u64 {
    if parts.is_empty() {
        return 0;
    }
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(path) else { return 0 };
    parts.iter().map(|part| advise(&file, part.offset - device_offset, part.length)).sum()
}

fn advise(file: &File, offset: u64, length: u64) -> u64 {
    let advised = fadvise(file, offset, NonZeroU64::new(length), Advice::WillNeed);
    if advised.is_ok() { length } else { 0 }
}

fn segments_of(range: ByteRange) -> std::ops::Range<u64> {
    if range.is_empty() { 0..0 } else { range.offset / SEGMENT_BYTES..range.end().div_ceil(SEGMENT_BYTES) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_that_were_given() {
        let touched = Touched::default();
        let (range, segment) = (ByteRange::new, SEGMENT_BYTES);
        assert_eq!(touched.within(range(0, 10 * segment)), []);
        touched.note(range(segment + 5, 10));
        touched.note(range(2 * segment, 1));
        touched.note(range(200 * segment - 1, 2));
        touched.note(range(7, 0));
        assert_eq!(touched.bytes(), 13);
        let expected = [range(segment, 2 * segment), range(199 * segment, 2 * segment)];
        assert_eq!(touched.within(range(0, 1000 * segment)), expected);
        assert_eq!(touched.within(range(segment + 9, segment)), [range(segment + 9, segment)]);
        assert_eq!(touched.within(range(3 * segment, segment)), []);
        assert_eq!(touched.within(range(segment, 0)), []);
        touched.note(range(0, NOTED_BYTES));
        let scan = range(NOTED_BYTES, NOTED_BYTES);
        touched.note(scan);
        assert_eq!(touched.within(scan), []);
        assert_eq!(touched.bytes(), 13 + 2 * NOTED_BYTES);
    }
}
