use std::time::{Duration, Instant};

use crate::Lane;

/// Why the share differs: seeds carry the cluster's first copies, so nodes are asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentRole {
    Node,
    Seed,
}

/// Assumed until a parent has shown better: 100 Mbit/s.
const FIRST_GUESS_BYTES_PER_SECOND: f64 = 12_500_000.0;
/// A seed is asked only when the nodes that hold a chunk would take this many times as long, by lane: a blocked
/// process is not kept waiting for the sake of the seed's link, bulk is.
const SEED_COST: [f64; 3] = [4.0, 16.0, 32.0];
/// Weight of the newest sample in the moving average of a parent's rate.
const RATE_GAIN: f64 = 0.2;

#[derive(Debug)]
pub(crate) struct Parent {
    pub role: ParentRole,
    /// Bytes asked for and not yet received, by lane.
    outstanding_bytes: [u64; 3],
    bytes_per_second: f64,
    /// When the parent last delivered, or was first asked after being idle.
    busy_since: Option<Instant>,
}

impl Parent {
    pub fn new(role: ParentRole) -> Self {
        Self {
            role,
            outstanding_bytes: [0; 3],
            bytes_per_second: FIRST_GUESS_BYTES_PER_SECOND,
            busy_since: None,
        }
    }

    /// One request is always allowed, however small the window.
    pub fn has_room(&self, lane: Lane, bytes: u64, window_bytes: u64) -> bool {
        let outstanding = self.outstanding_bytes[lane as usize];
        outstanding == 0 || outstanding + bytes <= window_bytes
    }

    /// Estimated seconds until `bytes` more would have arrived, made dearer for seeds.
    pub fn cost(&self, lane: Lane, bytes: u64) -> f64 {
        let queued: u64 = self.outstanding_bytes.iter().sum();
        let seconds = (queued + bytes) as f64 / self.bytes_per_second;
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

    pub fn delivered(&mut self, lane: Lane, bytes: u64, now: Instant) {
        self.forget(lane, bytes);
        if let Some(since) = self.busy_since.replace(now) {
            let elapsed = now.saturating_duration_since(since).max(Duration::from_micros(50));
            let sample = bytes as f64 / elapsed.as_secs_f64();
            self.bytes_per_second += RATE_GAIN * (sample - self.bytes_per_second);
        }
    }
}
