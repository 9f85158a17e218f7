use std::collections::HashMap;

use crate::{Bits, Lane, ParentId};

/// Read-ahead behind a sequential reader starts at this many chunks and doubles.
const READ_AHEAD_FIRST: u32 = 4;
/// About 4 MiB of ordinary chunks: at 100 Mbit/s a tenth of a second of link, which hides the round trips.
const READ_AHEAD_MOST: u32 = 64;
/// A demand this little ahead of the last one still counts as sequential: the kernel skips what it has cached.
const SEQUENTIAL_GAP: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkState {
    Absent,
    Wanted(Lane),
    InFlight,
    Present,
}

/// One layer as the planner sees it.
#[derive(Debug)]
pub(crate) struct LayerState {
    pub frame_bytes: Vec<u32>,
    pub chunks: Vec<ChunkState>,
    missing: u32,
    pub holders: HashMap<ParentId, Bits>,
    /// Wanted, but no parent holds them: they go back to their lanes when a holder appears.
    unheld: Vec<u32>,
    next_demand: u32,
    read_ahead: u32,
}

impl LayerState {
    pub fn new(frame_bytes: Vec<u32>, present: &Bits) -> Self {
        let state = |(n, bytes): (usize, &u32)| match *bytes == 0 || present.get(n as u32) {
            true => ChunkState::Present,
            false => ChunkState::Absent,
        };
        let chunks: Vec<_> = frame_bytes.iter().enumerate().map(state).collect();
        let missing = chunks.iter().filter(|state| **state != ChunkState::Present).count() as u32;
        Self {
            missing,
            frame_bytes,
            chunks,
            holders: HashMap::new(),
            unheld: Vec::new(),
            // The first read of a layer says nothing about the next.
            next_demand: u32::MAX,
            read_ahead: 0,
        }
    }

    pub fn len(&self) -> u32 {
        self.chunks.len() as u32
    }

    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Notes that a chunk came; false when there is no such chunk.
    pub fn arrived(&mut self, chunk: u32) -> bool {
        let Some(state) = self.chunks.get_mut(chunk as usize) else { return false };
        if std::mem::replace(state, ChunkState::Present) != ChunkState::Present {
            self.missing -= 1;
        }
        true
    }

    /// Notes that a chunk went; zeros stay.
    pub fn gone(&mut self, chunk: u32) {
        let Some(state) = self.chunks.get_mut(chunk as usize) else { return };
        if self.frame_bytes[chunk as usize] == 0 {
            return;
        }
        if std::mem::replace(state, ChunkState::Absent) == ChunkState::Present {
            self.missing += 1;
        }
    }

    /// Marks a chunk as wanted; false when it is there, under way, or waiting in this or a higher lane already.
    pub fn want(&mut self, chunk: u32, lane: Lane) -> bool {
        let Some(state) = self.chunks.get_mut(chunk as usize) else { return false };
        let fresh = match *state {
            ChunkState::Absent => true,
            ChunkState::Wanted(current) => lane < current,
            ChunkState::InFlight | ChunkState::Present => false,
        };
        if fresh {
            *state = ChunkState::Wanted(lane);
        }
        fresh
    }

    /// Notes a demand and returns the chunks that a sequential reader will want next.
    pub fn read_ahead(&mut self, chunk: u32) -> std::ops::Range<u32> {
        let sequential = (self.next_demand..self.next_demand.saturating_add(SEQUENTIAL_GAP)).contains(&chunk);
        self.next_demand = chunk.saturating_add(1);
        if !sequential {
            self.read_ahead = 0;
            return 0..0;
        }
        self.read_ahead = (self.read_ahead * 2).clamp(READ_AHEAD_FIRST, READ_AHEAD_MOST);
        chunk + 1..(chunk + 1 + self.read_ahead).min(self.len())
    }

    pub fn waits_in(&self, chunk: u32, lane: Lane) -> bool {
        self.chunks.get(chunk as usize) == Some(&ChunkState::Wanted(lane))
    }

    pub fn set_aside(&mut self, chunk: u32) {
        self.unheld.push(chunk);
    }

    /// Chunks that were set aside; to be queued again when somebody gained chunks of this layer.
    pub fn take_unheld(&mut self) -> Vec<(u32, Lane)> {
        let chunks = std::mem::take(&mut self.unheld).into_iter();
        let waiting = |n: u32| match self.chunks[n as usize] {
            ChunkState::Wanted(lane) => Some((n, lane)),
            _ => None,
        };
        chunks.filter_map(waiting).collect()
    }

    /// Whether a reader waits for a chunk that no parent holds.
    pub fn has_unheld_demand(&self) -> bool {
        self.unheld.iter().any(|n| self.chunks[*n as usize] == ChunkState::Wanted(Lane::Demand))
    }
}
