//! Why the last starts took as long as they did: what was waited for between the first Prepare of an image and the
//! reads of its containers.
//!
//! In memory only and bounded: the last [`MAX_IMAGES`] images and [`MAX_STARTS`] containers; of each container the reads
//! of its first [`WINDOW`], counted, and the [`MAX_WAITS`] slowest one by one. Reads that the kernel or the disk answers
//! are not seen: nobody waited for them.

use std::collections::{HashSet, VecDeque};
use std::mem::discriminant;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use d7y_proto::local::Source;
use d7y_types::{ByteRange, RequestId, Sha256Digest};
use parking_lot::Mutex;

use crate::layers::Backing;

/// Images whose pulls are remembered.
const MAX_IMAGES: usize = 64;
/// Prepares of an image this long after the one before belong to another pull.
const PULL_PAUSE: Duration = Duration::from_secs(60);
/// Containers whose starts are remembered.
const MAX_STARTS: usize = 64;
/// Reads of a start that are remembered one by one.
pub const MAX_WAITS: usize = 16;
/// Reads this long after the container's Prepare still belong to its start.
const WINDOW: Duration = Duration::from_secs(120);

/// What is remembered. Cheap where nothing was missing.
#[derive(Debug, Default)]
pub struct Starts {
    images: Mutex<VecDeque<Pull>>,
    starts: Mutex<VecDeque<Start>>,
    /// Starts that may still be within their window.
    open: AtomicUsize,
}

/// The Prepares of an image's layers, until containerd had them all.
#[derive(Debug, Clone)]
pub struct Pull {
    pub manifest: Sha256Digest,
    pub reference: String,
    pub began: Instant,
    pub steps: Vec<Step>,
}

/// The start of one container.
#[derive(Debug, Clone)]
pub struct Start {
    /// containerd's key of the container's snapshot: `namespace/number/name`.
    pub container: String,
    pub reference: String,
    pub manifest: Sha256Digest,
    pub layers: HashSet<Sha256Digest>,
    pub at: SystemTime,
    pub began: Instant,
    pub steps: Vec<Step>,
    pub reads: Reads,
}

#[derive(Debug, Clone)]
pub struct Step {
    pub what: What,
    pub layer: Option<Sha256Digest>,
    pub began: Instant,
    pub took: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Which image a layer belongs to was asked of containerd's content store.
    Resolve,
    /// The peer was told of the image; whether the cluster knows its access trace.
    Announce {
        has_trace: bool,
    },
    /// A layer's index was waited for.
    Index,
    Mount {
        backing: Backing,
    },
    Failed(String),
}

/// Reads that had to wait for the peer.
#[derive(Debug, Clone, Default)]
pub struct Reads {
    pub missed: u64,
    pub failed: u64,
    pub waited: Duration,
    pub first: Option<Instant>,
    pub last: Option<Instant>,
    pub by_source: Vec<BySource>,
    /// The slowest first.
    pub slowest: Vec<Wait>,
}

#[derive(Debug, Clone)]
pub struct BySource {
    pub source: Source,
    pub reads: u64,
    pub bytes: u64,
    pub waited: Duration,
}

/// A read that waited.
#[derive(Debug, Clone)]
pub struct Wait {
    pub request: RequestId,
    pub layer: Sha256Digest,
    pub range: ByteRange,
    pub began: Instant,
    pub took: Duration,
    pub source: Source,
    /// The peer that gave the last part, `host:port`; empty when none did.
    pub parent: String,
    pub failed: bool,
}

/// As metrics and timelines name it.
pub fn source_name(source: Source) -> &'static str {
    match source {
        // Another read, or a prefetch, had it brought meanwhile.
        Source::Unspecified => "shared",
        Source::Origin => "origin",
        Source::Seed => "seed",
        Source::Node => "node",
        Source::Layer => "layer",
    }
}

impl Starts {
    /// Notes a step of an image's pull.
    pub fn pulling(&self, manifest: Sha256Digest, reference: &str, step: Step) {
        let mut images = self.images.lock();
        let known = images.iter().position(|pull| pull.manifest == manifest);
        if let Some(at) = known {
            let pull = &mut images[at];
            if pull.steps.last().is_some_and(|last| step.began < last.began + last.took + PULL_PAUSE) {
                pull.note(step);
                return;
            }
            images.remove(at);
        }
        if images.len() == MAX_IMAGES {
            images.pop_front();
        }
        let (reference, began) = (reference.to_owned(), step.began);
        images.push_back(Pull { manifest, reference, began, steps: vec![step] });
    }

    /// Notes a container that starts.
    pub fn starting(&self, start: Start) {
        let mut starts = self.starts.lock();
        if starts.len() == MAX_STARTS {
            starts.pop_front();
        }
        starts.push_back(start);
        self.open.store(starts.len(), Ordering::Release);
    }

    /// Notes a read that had to wait, with every container that may have asked for it.
    pub fn waited(&self, wait: &Wait) {
        if self.open.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut starts = self.starts.lock();
        let open = starts.iter_mut().filter(|start| start.began.elapsed() < WINDOW);
        let mut any = false;
        for start in open {
            any = true;
            if start.layers.contains(&wait.layer) {
                start.reads.note(wait);
            }
        }
        if !any {
            self.open.store(0, Ordering::Release);
        }
    }

    /// The starts that are remembered, the last first, each with the pull of its image.
    pub fn all(&self) -> Vec<(Start, Option<Pull>)> {
        let starts = self.starts.lock().clone();
        let images = self.images.lock();
        let with_pull = |start: Start| {
            let pull = images.iter().find(|pull| pull.manifest == start.manifest).cloned();
            (start, pull)
        };
        starts.into_iter().rev().map(with_pull).collect()
    }
}

impl Pull {
    /// Some is asked again for each layer: what the first one waited for is what was waited for.
    fn note(&mut self, step: Step) {
        let same =
            |known: &Step| known.layer == step.layer && discriminant(&known.what) == discriminant(&step.what);
        if !self.steps.iter().any(same) {
            self.steps.push(step);
        }
    }
}

impl Reads {
    fn note(&mut self, wait: &Wait) {
        self.missed += 1;
        self.failed += u64::from(wait.failed);
        self.waited += wait.took;
        self.first.get_or_insert(wait.began);
        self.last = Some(wait.began + wait.took);
        let at = self.by_source.iter().position(|by| by.source == wait.source).unwrap_or_else(|| {
            self.by_source.push(BySource { source: wait.source, reads: 0, bytes: 0, waited: Duration::ZERO });
            self.by_source.len() - 1
        });
        let by = &mut self.by_source[at];
        by.reads += 1;
        by.bytes += wait.range.length;
        by.waited += wait.took;
        let place = self.slowest.partition_point(|known| known.took >= wait.took);
        if place < MAX_WAITS {
            self.slowest.insert(place, wait.clone());
            self.slowest.truncate(MAX_WAITS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: Sha256Digest = Sha256Digest([1; 32]);

    fn start(began: Instant, layer: Sha256Digest) -> Start {
        Start {
            container: "default/1/c".into(),
            reference: "registry.example/app:1".into(),
            manifest: Sha256Digest([9; 32]),
            layers: HashSet::from([layer]),
            at: SystemTime::now(),
            began,
            steps: Vec::new(),
            reads: Reads::default(),
        }
    }

    fn wait(ms: u64) -> Wait {
        Wait {
            request: RequestId::from_raw(ms).unwrap(),
            layer: LAYER,
            range: ByteRange::new(ms * 4096, 4096),
            began: Instant::now(),
            took: Duration::from_millis(ms),
            source: Source::Seed,
            parent: "10.0.0.1:4000".into(),
            failed: false,
        }
    }

    #[test]
    fn the_slowest_reads_are_kept_and_all_are_counted() {
        let starts = Starts::default();
        starts.waited(&wait(1));
        starts.starting(start(Instant::now(), LAYER));
        starts.starting(start(Instant::now(), Sha256Digest([2; 32])));
        for ms in (1..=40).rev().chain(41..=60) {
            starts.waited(&wait(ms));
        }
        let all = starts.all();
        let (other, reads) = (&all[0].0.reads, &all[1].0.reads);
        assert_eq!((other.missed, reads.missed), (0, 60));
        let slowest: Vec<_> = reads.slowest.iter().map(|wait| wait.took.as_millis() as u64).collect();
        assert_eq!(slowest, (45..=60).rev().collect::<Vec<_>>());
        assert_eq!((reads.by_source.len(), reads.by_source[0].bytes), (1, 60 * 4096));
        assert_eq!(reads.waited, Duration::from_millis((1..=60).sum()));
    }

    #[test]
    fn reads_long_after_the_start_are_the_applications_own() {
        let Some(long_ago) = Instant::now().checked_sub(WINDOW) else { return };
        let starts = Starts::default();
        starts.starting(start(long_ago, LAYER));
        starts.waited(&wait(5));
        assert_eq!(starts.all()[0].0.reads.missed, 0);
    }

    #[test]
    fn memory_is_bounded_and_a_step_is_told_once() {
        let starts = Starts::default();
        let step =
            Step { what: What::Index, layer: Some(LAYER), began: Instant::now(), took: Duration::ZERO };
        for n in 0..=u8::MAX {
            starts.starting(start(Instant::now(), LAYER));
            starts.pulling(Sha256Digest([n; 32]), "app", step.clone());
            starts.pulling(Sha256Digest([n; 32]), "app", step.clone());
        }
        assert_eq!((starts.all().len(), starts.images.lock().len()), (MAX_STARTS, MAX_IMAGES));
        assert!(starts.images.lock().iter().all(|pull| pull.steps.len() == 1));
    }
}
