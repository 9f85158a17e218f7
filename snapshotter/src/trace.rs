//! In which order an image's containers touch the chunks of its layers, seen from the reads that reach the FUSE file.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use d7y_proto::local::{RecordTrace, TraceRun};
use d7y_types::Sha256Digest;
use parking_lot::Mutex;

/// Runs per trace; a trace is advice, and the later part of it is worth the least.
pub const MAX_RUNS: usize = 64 << 10;
/// Images recorded at once; others go without a trace.
const MAX_RECORDINGS: usize = 16;
/// Images remembered as recorded; when there are more, some may be recorded again.
const MAX_DONE: usize = 4096;

/// The recordings that are going on.
#[derive(Debug, Default)]
pub struct Recorder {
    active: AtomicUsize,
    recordings: Mutex<HashMap<Sha256Digest, Recording>>,
    done: Mutex<HashSet<Sha256Digest>>,
}

#[derive(Debug, Default)]
struct Recording {
    /// The chunks seen, as a bitmap that grows.
    layers: HashMap<Sha256Digest, Vec<u64>>,
    runs: Vec<Run>,
    touched: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Run {
    layer: Sha256Digest,
    chunks: Range<u32>,
}

impl Recorder {
    /// Begins to record an image; false when that has been done already or too many are being recorded.
    pub fn begin(&self, manifest: Sha256Digest, layers: impl IntoIterator<Item = Sha256Digest>) -> bool {
        let mut recordings = self.recordings.lock();
        let known = recordings.contains_key(&manifest) || self.done.lock().contains(&manifest);
        if known || recordings.len() >= MAX_RECORDINGS {
            return false;
        }
        let layers = layers.into_iter().map(|layer| (layer, Vec::new())).collect();
        recordings.insert(manifest, Recording { layers, ..Recording::default() });
        self.active.store(recordings.len(), Ordering::Release);
        true
    }

    /// Whether the image has been recorded since this snapshotter started.
    pub fn is_done(&self, manifest: Sha256Digest) -> bool {
        self.done.lock().contains(&manifest)
    }

    /// Notes chunks that a read touched. Cheap while nothing is recorded.
    pub fn touch(&self, layer: Sha256Digest, chunks: Range<u32>) {
        if self.active.load(Ordering::Acquire) == 0 {
            return;
        }
        for recording in self.recordings.lock().values_mut() {
            recording.touch(layer, chunks.clone());
        }
    }

    /// How many chunks have been touched so far.
    pub fn touched(&self, manifest: Sha256Digest) -> u64 {
        self.recordings.lock().get(&manifest).map_or(0, |recording| recording.touched)
    }

    /// What has been recorded so far; nothing when nothing was touched.
    pub fn so_far(&self, manifest: Sha256Digest) -> Option<RecordTrace> {
        self.recordings.lock().get(&manifest).and_then(|recording| recording.trace(manifest))
    }

    /// Ends a recording; nothing when nothing was touched.
    pub fn end(&self, manifest: Sha256Digest) -> Option<RecordTrace> {
        let mut recordings = self.recordings.lock();
        let recording = recordings.remove(&manifest)?;
        self.active.store(recordings.len(), Ordering::Release);
        let mut done = self.done.lock();
        if done.len() >= MAX_DONE {
            done.clear();
        }
        done.insert(manifest);
        recording.trace(manifest)
    }
}

impl Recording {
    fn trace(&self, manifest: Sha256Digest) -> Option<RecordTrace> {
        let run = |Run { layer, chunks }: &Run| TraceRun {
            layer: layer.0.to_vec(),
            first_chunk: chunks.start,
            chunks: chunks.end - chunks.start,
        };
        let runs: Vec<_> = self.runs.iter().map(run).collect();
        let manifest_digest = manifest.0.to_vec();
        (!runs.is_empty()).then_some(RecordTrace { manifest_digest, runs })
    }

    fn touch(&mut self, layer: Sha256Digest, chunks: Range<u32>) {
        let Some(seen) = self.layers.get_mut(&layer) else { return };
        for chunk in chunks {
            let (word, bit) = (chunk as usize / 64, 1 << (chunk % 64));
            if seen.len() <= word {
                seen.resize(word + 1, 0);
            }
            if seen[word] & bit != 0 {
                continue;
            }
            let full = self.runs.len() >= MAX_RUNS;
            match self.runs.last_mut() {
                Some(last) if last.layer == layer && last.chunks.end == chunk => last.chunks.end += 1,
                _ if full => return,
                _ => self.runs.push(Run { layer, chunks: chunk..chunk + 1 }),
            }
            seen[word] |= bit;
            self.touched += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_touches_are_kept_in_order_as_runs() {
        let (image, a, b, foreign) =
            (Sha256Digest([0; 32]), Sha256Digest([1; 32]), Sha256Digest([2; 32]), Sha256Digest([3; 32]));
        let recorder = Recorder::default();
        recorder.touch(a, 0..9);
        assert!(recorder.begin(image, [a, b]));
        assert!(!recorder.begin(image, [a, b]));
        for (layer, chunks) in [(a, 5..7), (a, 7..8), (foreign, 0..1), (b, 100..101), (a, 4..9), (a, 5..7)] {
            recorder.touch(layer, chunks);
        }
        let trace = recorder.end(image).unwrap();
        let runs: Vec<_> = trace.runs.iter().map(|run| (run.layer[0], run.first_chunk, run.chunks)).collect();
        assert_eq!(runs, [(1, 5, 3), (2, 100, 1), (1, 4, 1), (1, 8, 1)]);
        assert_eq!(recorder.end(image), None);
        assert!(recorder.is_done(image) && !recorder.is_done(foreign));
        assert!(!recorder.begin(image, [a]), "an image was recorded twice");
        assert!(recorder.begin(foreign, [a]));
        assert_eq!(recorder.end(foreign), None, "an empty trace was sent");
    }

    #[test]
    fn traces_and_recordings_are_bounded() {
        let recorder = Recorder::default();
        let images: Vec<_> = (0..=MAX_RECORDINGS as u8).map(|n| Sha256Digest([n; 32])).collect();
        let layer = Sha256Digest([200; 32]);
        let begun = images.iter().filter(|image| recorder.begin(**image, [layer])).count();
        assert_eq!(begun, MAX_RECORDINGS);
        for chunk in 0..(2 * MAX_RUNS as u32 + 10) {
            recorder.touch(layer, 2 * chunk..2 * chunk + 1);
        }
        assert_eq!(recorder.end(images[0]).unwrap().runs.len(), MAX_RUNS);
    }
}
