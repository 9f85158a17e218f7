use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use crate::{Bits, Lane, ParentId};

/// Read-ahead behind a sequential reader starts at this many chunks and doubles.
const READ_AHEAD_FIRST: u32 = 4;
/// About 4 MiB of ordinary chunks: at 100 Mbit/s a tenth of a second of link, which hides the round trips.
const READ_AHEAD_MOST: u32 = 64;
/// A demand this little ahead of the last one still counts as sequential: the kernel skips what it has cached.
const SEQUENTIAL_GAP: u32 = 8;

/// However small its frame, a chunk counts for this much: a background window is then at most the 4096 frames that a
/// server queues per lane before it stops reading requests, demands among them.
const MIN_WEIGHT_BYTES: u64 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkState {
    Absent,
    /// Waits in the queue of this lane.
    Wanted(Lane),
    /// Wanted, but no parent holds it: goes back to its lane when a holder appears.
    Unheld(Lane),
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
    /// The chunks in state `Unheld`.
    unheld: BTreeSet<u32>,
    /// Where background order begins.
    first: u32,
    reader: Reader,
}

/// The last reader of a layer.
#[derive(Debug, Default)]
struct Reader {
    /// Where the next read counts as sequential: from behind the last one to a little behind what was read ahead.
    expected: Range<u32>,
    ahead: u32,
}

impl LayerState {
    /// `rotation` says where background order begins.
    pub fn new(frame_bytes: Vec<u32>, present: &Bits, rotation: u64) -> Self {
        let state = |(n, bytes): (usize, &u32)| match *bytes == 0 || present.get(n as u32) {
            true => ChunkState::Present,
            false => ChunkState::Absent,
        };
        let chunks: Vec<_> = frame_bytes.iter().enumerate().map(state).collect();
        let missing = chunks.iter().filter(|state| **state != ChunkState::Present).count() as u32;
        let first = rotation.checked_rem(chunks.len() as u64).unwrap_or(0) as u32;
        Self {
            missing,
            frame_bytes,
            chunks,
            holders: HashMap::new(),
            unheld: BTreeSet::new(),
            first,
            // The first read of a layer says nothing about the next.
            reader: Reader::default(),
        }
    }

    pub fn len(&self) -> u32 {
        self.chunks.len() as u32
    }

    /// What a chunk takes of a parent's window.
    pub fn weight(&self, chunk: u32) -> u64 {
        u64::from(self.frame_bytes[chunk as usize]).max(MIN_WEIGHT_BYTES)
    }

    /// All chunks, in background order.
    pub fn all(&self) -> impl Iterator<Item = u32> + use<> {
        (self.first..self.len()).chain(0..self.first)
    }

    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Notes that a chunk came; false when there is no such chunk.
    pub fn arrived(&mut self, chunk: u32) -> bool {
        if chunk >= self.len() {
            return false;
        }
        if self.replace(chunk, ChunkState::Present) != ChunkState::Present {
            self.missing -= 1;
        }
        true
    }

    /// Notes that a chunk went; zeros stay.
    pub fn gone(&mut self, chunk: u32) {
        let fetched = self.frame_bytes.get(chunk as usize).is_some_and(|bytes| *bytes > 0);
        if fetched && self.replace(chunk, ChunkState::Absent) == ChunkState::Present {
            self.missing += 1;
        }
    }

    /// Marks a chunk as wanted; true when it is to be queued in that lane.
    pub fn want(&mut self, chunk: u32, lane: Lane) -> bool {
        match self.chunks.get(chunk as usize) {
            Some(ChunkState::Absent) => {}
            Some(ChunkState::Wanted(current) | ChunkState::Unheld(current)) if lane < *current => {}
            _ => return false,
        }
        self.replace(chunk, ChunkState::Wanted(lane));
        true
    }

    /// Notes a read and returns the chunks that a sequential reader will want next.
    pub fn read_ahead(&mut self, read: Range<u32>) -> Range<u32> {
        let sequential = self.reader.expected.contains(&read.start);
        self.reader.ahead = match sequential {
            true => (self.reader.ahead * 2).clamp(READ_AHEAD_FIRST, READ_AHEAD_MOST),
            false => 0,
        };
        let ahead = read.end..read.end.saturating_add(self.reader.ahead).min(self.len());
        self.reader.expected = read.end..ahead.end.saturating_add(SEQUENTIAL_GAP);
        ahead
    }

    pub fn waits_in(&self, chunk: u32, lane: Lane) -> bool {
        self.chunks.get(chunk as usize) == Some(&ChunkState::Wanted(lane))
    }

    /// Nobody waits for a chunk any more; true when it is to be queued in the background instead.
    pub fn demote(&mut self, chunk: u32) -> bool {
        match self.chunks.get(chunk as usize) {
            Some(ChunkState::Wanted(lane)) if *lane < Lane::Background => {
                self.replace(chunk, ChunkState::Wanted(Lane::Background));
                true
            }
            Some(ChunkState::Unheld(_)) => {
                self.set_aside(chunk, Lane::Background);
                false
            }
            _ => false,
        }
    }

    /// Takes a chunk out of the queues until a holder appears.
    pub fn set_aside(&mut self, chunk: u32, lane: Lane) {
        self.replace(chunk, ChunkState::Unheld(lane));
        self.unheld.insert(chunk);
    }

    /// Puts a chunk back when it was set aside; returns the lane to queue it in.
    pub fn take_back(&mut self, chunk: u32) -> Option<Lane> {
        let ChunkState::Unheld(lane) = *self.chunks.get(chunk as usize)? else { return None };
        self.replace(chunk, ChunkState::Wanted(lane));
        Some(lane)
    }

    /// Chunks that were set aside and that `holder` has, in background order.
    pub fn unheld_of(&self, holder: ParentId) -> Vec<u32> {
        let Some(bits) = self.holders.get(&holder) else { return Vec::new() };
        let rotated = self.unheld.range(self.first..).chain(self.unheld.range(..self.first));
        rotated.copied().filter(|chunk| bits.get(*chunk)).collect()
    }

    /// Whether a chunk that no parent holds is wanted in this lane or a more urgent one.
    pub fn has_unheld(&self, least: Lane) -> bool {
        let wanted = |n: &u32| matches!(self.chunks[*n as usize], ChunkState::Unheld(lane) if lane <= least);
        self.unheld.iter().any(wanted)
    }

    /// The only way in which a chunk changes its state.
    pub fn replace(&mut self, chunk: u32, state: ChunkState) -> ChunkState {
        let before = std::mem::replace(&mut self.chunks[chunk as usize], state);
        if matches!(before, ChunkState::Unheld(_)) {
            self.unheld.remove(&chunk);
        }
        before
    }
}
