use std::time::{Duration, Instant};

use crate::Lane;

/// Why the share differs: seeds carry the cluster's first copies, so nodes are asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentRole {
    Node,
    Seed,
}

/// Assumed while no parent has shown more: 100 Mbit/s. One that has shown nothing is thought as fast as the fastest, or a
/// seed that happened to be there first would keep the nodes from ever being tried.
const FIRST_GUESS_BYTES_PER_SECOND: f64 = 12_500_000.0;
/// A seed is asked only when the nodes that hold a chunk would take this many times as long, by lane: a blocked
/// process is not kept waiting for the sake of the seed's link, bulk is.
const SEED_COST: [f64; Lane::COUNT] = [4.0, 16.0, 32.0, 32.0];
/// A parent that delivered nothing for long is thought no slower than this, or it could never prove itself again.
const LEAST_BYTES_PER_SECOND: f64 = 10_000.0;
/// Weight of the newest sample in the moving average of a parent's rate.
const RATE_GAIN: f64 = 0.2;

#[derive(Debug)]
pub(crate) struct Parent {
    pub role: ParentRole,
    /// Bytes asked for and not yet received, by lane.
    outstanding_bytes: [u64; Lane::COUNT],
    /// Nothing until the first delivery or delay.
    bytes_per_second: Option<f64>,
    /// When the parent last delivered, or was first asked after being idle.
    busy_since: Option<Instant>,
    /// Since when chunks have come late and nothing has come.
    late_since: Option<Instant>,
}

impl Parent {
    pub fn new(role: ParentRole) -> Self {
        Self {
            role,
            outstanding_bytes: [0; Lane::COUNT],
            bytes_per_second: None,
            busy_since: None,
            late_since: None,
        }
    }

    /// One request is always allowed, however small the window.
    pub fn has_room(&self, lane: Lane, bytes: u64, window_bytes: u64) -> bool {
        let outstanding = self.outstanding_bytes[lane as usize];
        outstanding == 0 || outstanding + bytes <= window_bytes
    }

    /// Whether something is under way that a reader waits for, or soon will.
    pub fn is_urgent(&self) -> bool {
        self.outstanding_bytes[..Lane::Preheat as usize].iter().any(|bytes| *bytes > 0)
    }

    /// Estimated seconds until `bytes` more would have arrived, made dearer for seeds; `guess` is the rate of a parent
    /// that has shown none.
    pub fn cost(&self, lane: Lane, bytes: u64, guess: f64) -> f64 {
        let queued: u64 = self.outstanding_bytes.iter().sum();
        let seconds = (queued + bytes) as f64 / self.bytes_per_second.unwrap_or(guess);
        match self.role {
            ParentRole::Node => seconds,
            ParentRole::Seed => seconds * SEED_COST[lane as usize],
        }
    }

    pub fn asked(&mut self, lane: Lane, bytes: u64, now: Instant) {
        if self.outstanding_bytes.iter().all(|n| *n == 0) {
            self.busy_since = Some(now);
        }
        self.outstanding_bytes[lane as usize] += bytes;
    }

    pub fn forget(&mut self, lane: Lane, bytes: u64) {
        let outstanding = &mut self.outstanding_bytes[lane as usize];
        *outstanding = outstanding.saturating_sub(bytes);
    }

    /// What was asked did not come in time.
    pub fn is_late(&mut self, now: Instant) {
        self.late_since.get_or_insert(now);
        let shown = self.bytes_per_second.unwrap_or(FIRST_GUESS_BYTES_PER_SECOND);
        self.bytes_per_second = Some((shown / 2.0).max(LEAST_BYTES_PER_SECOND));
    }

    /// Whether the parent has been late for this long, is late again, and has not said a word in between.
    pub fn hangs(&self, now: Instant, limit: Duration) -> bool {
        self.late_since.is_some_and(|since| now.saturating_duration_since(since) >= limit)
    }

    /// The parent answered something, if only that it has nothing.
    pub fn answered(&mut self) {
        self.late_since = None;
    }

    pub fn delivered(&mut self, lane: Lane, bytes: u64, now: Instant) {
        self.answered();
        self.forget(lane, bytes);
        if let Some(since) = self.busy_since.replace(now) {
            let elapsed = now.saturating_duration_since(since).max(Duration::from_micros(50));
            let sample = bytes as f64 / elapsed.as_secs_f64();
            let shown = self.bytes_per_second.unwrap_or(FIRST_GUESS_BYTES_PER_SECOND);
            self.bytes_per_second = Some(shown + RATE_GAIN * (sample - shown));
        }
    }
}

/// The rate of a parent that has shown none yet, among these.
pub(crate) fn guess<'a>(parents: impl Iterator<Item = &'a Parent>) -> f64 {
    let shown = parents.filter_map(|parent| parent.bytes_per_second);
    shown.fold(FIRST_GUESS_BYTES_PER_SECOND, f64::max)
}
