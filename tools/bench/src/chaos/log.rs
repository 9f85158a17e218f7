//! What readers and jobs saw, from all threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Reads that are shorter are no pause.
const NOTED: Duration = Duration::from_millis(1);

/// More are counted, not kept.
const KEPT_FAULTS: usize = 50;

/// Shared by everything that runs while something is killed.
#[derive(Debug, Default)]
pub struct Log {
    kept: Mutex<Kept>,
    stopping: AtomicBool,
    reads: AtomicU64,
    walks: AtomicU64,
    retries: AtomicU64,
    preheats: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    slow: Vec<Span>,
    faults: Vec<Fault>,
    more_faults: usize,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    began: Instant,
    ended: Instant,
}

/// Something that must not happen.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: FaultKind,
    pub at: Instant,
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    FailedRead,
    WrongByte,
    /// A preheat that ended otherwise than well.
    Preheat,
    /// Something did not end in time.
    Late,
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub reads: u64,
    /// Containers whose files were all read.
    pub walks: u64,
    /// Starts of containers that had to be tried again.
    pub retries: u64,
    pub preheats: u64,
}

impl Log {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read by ourselves that ended now.
    pub fn read(&self, began: Instant) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let ended = Instant::now();
        if ended - began >= NOTED {
            self.kept().slow.push(Span { began, ended });
        }
    }

    pub fn fault(&self, kind: FaultKind, what: String) {
        let mut kept = self.kept();
        match kept.faults.len() < KEPT_FAULTS {
            true => kept.faults.push(Fault { kind, at: Instant::now(), what }),
            false => kept.more_faults += 1,
        }
    }

    pub fn walked(&self) {
        self.walks.fetch_add(1, Ordering::Relaxed);
    }

    /// A start that failed, because something that it needs was dead; said at once, between the kills.
    pub fn tried_again(&self, container: &str, why: &anyhow::Error) {
        eprintln!("  tried again: {container}: {why:#}");
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub fn preheated(&self) {
        self.preheats.fetch_add(1, Ordering::Relaxed);
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    pub fn counts(&self) -> Counts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            reads: of(&self.reads),
            walks: of(&self.walks),
            retries: of(&self.retries),
            preheats: of(&self.preheats),
        }
    }

    /// The longest of the reads that were under way at any time between the two.
    pub fn longest_read(&self, from: Instant, to: Instant) -> Duration {
        let kept = self.kept();
        let meets = kept.slow.iter().filter(|span| span.began <= to && span.ended >= from);
        meets.map(|span| span.ended - span.began).max().unwrap_or_default()
    }

    /// Those that are kept, and how many more there were.
    pub fn faults(&self) -> (Vec<Fault>, usize) {
        let kept = self.kept();
        (kept.faults.clone(), kept.more_faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_read_is_that_of_the_time_asked_for() {
        let log = Log::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for (began, ended) in [(0, 50), (40, 140), (200, 210)] {
            log.kept().slow.push(Span { began: at(began), ended: at(ended) });
        }
        for (from, to, longest) in [(0, 30, 50), (30, 60, 100), (150, 190, 0), (150, 300, 10), (0, 300, 100)]
        {
            assert_eq!(log.longest_read(at(from), at(to)), Duration::from_millis(longest), "{from} to {to}");
        }
    }

    #[test]
    fn faults_are_kept_up_to_a_limit_and_counted_beyond() {
        let log = Log::default();
        (0..KEPT_FAULTS + 3).for_each(|number| log.fault(FaultKind::Late, number.to_string()));
        let (kept, more) = log.faults();
        assert_eq!((kept.len(), more), (KEPT_FAULTS, 3));
    }
}
