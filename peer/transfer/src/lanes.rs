//! The sending half of a server connection: three queues, one socket.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::codec::{HEADER_BYTES, Header, Kind, Lane, MAX_PAYLOAD_BYTES, WireError, frame};
use crate::server::{Provider, Region, UnderWay};
use crate::serving::Serving;

/// Frames queued per lane before the connection stops reading requests; most hold no data yet.
const QUEUE_FRAMES: usize = 4096;
/// Bytes in memory that a connection may have queued: news, bits, parts of an index. A client that reads nothing
/// costs this much and one batch.
const QUEUE_BYTES: usize = 1 << 20;
/// Frames are read from disk in batches of about this size, between which a higher lane may overtake.
const BATCH_BYTES: usize = 256 << 10;

enum Outgoing {
    /// In memory, with its share of [`QUEUE_BYTES`].
    Ready {
        bytes: Bytes,
        _share: OwnedSemaphorePermit,
    },
    Stored(Stored),
    /// Dropped when what was queued before it has been handed to the socket.
    Mark(UnderWay),
}

/// A frame that lies in a pack; `prefix` goes between header and frame.
pub(crate) struct Stored {
    pub header: Header,
    pub prefix: Bytes,
    pub region: Region,
    /// The question that it belongs to, if somebody wants to know how that was answered.
    pub serving: Option<Arc<Serving>>,
}

#[derive(Clone)]
pub(crate) struct Lanes {
    queues: [mpsc::Sender<Outgoing>; 3],
    memory: Arc<Semaphore>,
}

pub(crate) struct LaneReceivers([mpsc::Receiver<Outgoing>; 3]);

pub(crate) fn lanes() -> (Lanes, LaneReceivers) {
    let (demand, demand_rx) = mpsc::channel(QUEUE_FRAMES);
    let (prefetch, prefetch_rx) = mpsc::channel(QUEUE_FRAMES);
    let (background, background_rx) = mpsc::channel(QUEUE_FRAMES);
    let queues = [demand, prefetch, background];
    let memory = Arc::new(Semaphore::new(QUEUE_BYTES));
    (Lanes { queues, memory }, LaneReceivers([demand_rx, prefetch_rx, background_rx]))
}

impl Lanes {
    /// Waits for room. False when the connection is gone.
    pub async fn send(&self, lane: Lane, header: Header, payload: &[u8]) -> bool {
        let share = (HEADER_BYTES + payload.len()).min(QUEUE_BYTES) as u32;
        let share = self.memory.clone().acquire_many_owned(share).await.expect("never closed");
        self.queue(lane, Outgoing::Ready { bytes: frame(header, payload), _share: share }).await
    }

    /// Queues what lies in a file; it is read when its turn comes. Waits and returns as [`Self::send`].
    pub async fn send_stored(&self, lane: Lane, stored: Stored) -> bool {
        self.queue(lane, Outgoing::Stored(stored)).await
    }

    /// Lets go of `under_way` when all that is queued by now has been handed to the socket.
    pub async fn mark(&self, under_way: &UnderWay) {
        for lane in [Lane::Demand, Lane::Prefetch, Lane::Background] {
            // A connection that is gone holds nothing up.
            self.queue(lane, Outgoing::Mark(under_way.clone())).await;
        }
    }

    async fn queue(&self, lane: Lane, outgoing: Outgoing) -> bool {
        self.queues[lane as usize].send(outgoing).await.is_ok()
    }
}

impl LaneReceivers {
    /// The first frame of the highest lane that has one, and that lane.
    async fn next(&mut self) -> Option<(usize, Outgoing)> {
        let [demand, prefetch, background] = &mut self.0;
        tokio::select! {
            biased;
            Some(out) = demand.recv() => Some((0, out)),
            Some(out) = prefetch.recv() => Some((1, out)),
            Some(out) = background.recv() => Some((2, out)),
            else => None,
        }
    }

    /// What there is in this lane or a higher one.
    fn try_next(&mut self, lowest: usize) -> Option<Outgoing> {
        self.0[..=lowest].iter_mut().find_map(|lane| lane.try_recv().ok())
    }
}

/// Sends until all senders are gone, the socket fails, or it takes no byte for as long as `stall`.
pub(crate) async fn write_lanes(
    mut lanes: LaneReceivers,
    mut socket: impl AsyncWrite + Unpin,
    provider: Arc<impl Provider>,
    stall: Duration,
) -> Result<(), WireError> {
    while let Some((lane, first)) = lanes.next().await {
        let mut bytes = first.size();
        let mut batch = vec![first];
        // A demand does not wait for the disk to give what others asked for.
        while bytes < BATCH_BYTES {
            let Some(more) = lanes.try_next(lane) else { break };
            bytes += more.size();
            batch.push(more);
        }
        let stored = batch.iter().any(|outgoing| matches!(outgoing, Outgoing::Stored(_)));
        let filled = match stored {
            false => fill(batch, bytes),
            true => {
                let filling = tokio::task::spawn_blocking(move || fill(batch, bytes));
                filling.await.map_err(std::io::Error::from)?
            }
        };
        write_all(&mut socket, &filled.buffer, stall).await?;
        drop(filled.marks);
        provider.uploaded(filled.stored_bytes);
        for (serving, frame_bytes) in filled.servings {
            serving.answered(frame_bytes).iter().for_each(|served| provider.served(served));
        }
    }
    Ok(socket.shutdown().await?)
}

async fn write_all(
    socket: &mut (impl AsyncWrite + Unpin),
    mut buffer: &[u8],
    stall: Duration,
) -> Result<(), WireError> {
    while !buffer.is_empty() {
        let written = tokio::time::timeout(stall, socket.write(buffer)).await;
        match written.map_err(|_| WireError::Stalled)?? {
            0 => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
            n => buffer = &buffer[n..],
        }
    }
    Ok(())
}

impl Outgoing {
    fn size(&self) -> usize {
        match self {
            Self::Ready { bytes, .. } => bytes.len(),
            Self::Stored(stored) => HEADER_BYTES + stored.header.length as usize,
            Self::Mark(_) => 0,
        }
    }
}

struct Filled {
    buffer: Vec<u8>,
    stored_bytes: u64,
    /// What belongs to questions, with the bytes of its frame, or nothing where it is not here after all.
    servings: Vec<(Arc<Serving>, Option<u32>)>,
    marks: Vec<UnderWay>,
}

/// A frame that the disk no longer gives is answered as missing: the receiver asks another peer.
fn fill(batch: Vec<Outgoing>, bytes: usize) -> Filled {
    let (servings, marks) = (Vec::new(), Vec::new());
    let mut filled = Filled { buffer: Vec::with_capacity(bytes), stored_bytes: 0, servings, marks };
    for outgoing in batch {
        match outgoing {
            Outgoing::Mark(mark) => filled.marks.push(mark),
            Outgoing::Ready { bytes, .. } => filled.buffer.extend_from_slice(&bytes),
            Outgoing::Stored(Stored { header, prefix, region, serving }) => {
                let appended = filled.append(header, &prefix, &region).is_ok();
                if !appended {
                    let missing = Header::new(Kind::Missing, header.stream, header.number, 0);
                    filled.buffer.extend_from_slice(&missing.encode());
                }
                let frame_bytes = appended.then_some(region.length);
                filled.servings.extend(serving.map(|serving| (serving, frame_bytes)));
            }
        }
    }
    filled
}

impl Filled {
    fn append(&mut self, header: Header, prefix: &[u8], region: &Region) -> std::io::Result<()> {
        if header.length > MAX_PAYLOAD_BYTES {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&header.encode());
        self.buffer.extend_from_slice(prefix);
        let data = self.buffer.len();
        self.buffer.resize(data + region.length as usize, 0);
        match region.file.read_exact_at(&mut self.buffer[data..], region.offset) {
            Ok(()) => self.stored_bytes += u64::from(region.length),
            Err(error) => {
                self.buffer.truncate(start);
                return Err(error);
            }
        }
        Ok(())
    }
}
