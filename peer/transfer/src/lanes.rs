//! The sending half of a server connection: three queues, one socket.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::codec::{HEADER_BYTES, Header, Kind, Lane};
use crate::server::{Provider, Region};

/// Frames queued per lane before the connection stops reading requests; they hold no data yet.
const QUEUE_FRAMES: usize = 4096;
/// Frames are read from disk in batches of about this size, between which a higher lane may overtake.
const BATCH_BYTES: usize = 256 << 10;

pub(crate) enum Outgoing {
    Ready(Bytes),
    /// A frame that lies in a pack; `prefix` goes between header and frame.
    Stored {
        header: Header,
        prefix: Bytes,
        region: Region,
    },
}

#[derive(Clone)]
pub(crate) struct Lanes([mpsc::Sender<Outgoing>; 3]);

pub(crate) struct LaneReceivers([mpsc::Receiver<Outgoing>; 3]);

pub(crate) fn lanes() -> (Lanes, LaneReceivers) {
    let (demand, demand_rx) = mpsc::channel(QUEUE_FRAMES);
    let (prefetch, prefetch_rx) = mpsc::channel(QUEUE_FRAMES);
    let (background, background_rx) = mpsc::channel(QUEUE_FRAMES);
    (Lanes([demand, prefetch, background]), LaneReceivers([demand_rx, prefetch_rx, background_rx]))
}

impl Lanes {
    /// Waits for room. False when the connection is gone.
    pub async fn send(&self, lane: Lane, outgoing: Outgoing) -> bool {
        self.0[lane as usize].send(outgoing).await.is_ok()
    }
}

impl LaneReceivers {
    async fn next(&mut self) -> Option<Outgoing> {
        let [demand, prefetch, background] = &mut self.0;
        tokio::select! {
            biased;
            Some(out) = demand.recv() => Some(out),
            Some(out) = prefetch.recv() => Some(out),
            Some(out) = background.recv() => Some(out),
            else => None,
        }
    }

    fn try_next(&mut self) -> Option<Outgoing> {
        self.0.iter_mut().find_map(|lane| lane.try_recv().ok())
    }
}

/// Sends until all senders are gone or the socket fails.
pub(crate) async fn write_lanes(
    mut lanes: LaneReceivers,
    mut socket: impl AsyncWrite + Unpin,
    provider: Arc<impl Provider>,
) -> std::io::Result<()> {
    while let Some(first) = lanes.next().await {
        let mut batch = vec![first];
        let mut bytes = size(&batch[0]);
        while bytes < BATCH_BYTES {
            let Some(more) = lanes.try_next() else { break };
            bytes += size(&more);
            batch.push(more);
        }
        let uploaded: u64 = batch.iter().map(stored_bytes).sum();
        let buffer = match uploaded {
            0 => fill(batch, bytes),
            _ => tokio::task::spawn_blocking(move || fill(batch, bytes)).await.expect("fill does not panic"),
        };
        socket.write_all(&buffer).await?;
        provider.uploaded(uploaded);
    }
    socket.shutdown().await
}

fn size(outgoing: &Outgoing) -> usize {
    match outgoing {
        Outgoing::Ready(bytes) => bytes.len(),
        Outgoing::Stored { prefix, region, .. } => HEADER_BYTES + prefix.len() + region.length as usize,
    }
}

fn stored_bytes(outgoing: &Outgoing) -> u64 {
    match outgoing {
        Outgoing::Ready(_) => 0,
        Outgoing::Stored { region, .. } => u64::from(region.length),
    }
}

/// A frame that the disk no longer gives is answered as missing: the receiver asks another peer.
fn fill(batch: Vec<Outgoing>, bytes: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(bytes);
    for outgoing in batch {
        match outgoing {
            Outgoing::Ready(bytes) => buffer.extend_from_slice(&bytes),
            Outgoing::Stored { header, prefix, region } => {
                let start = buffer.len();
                buffer.extend_from_slice(&header.encode());
                buffer.extend_from_slice(&prefix);
                let data = buffer.len();
                buffer.resize(data + region.length as usize, 0);
                if region.file.read_exact_at(&mut buffer[data..], region.offset).is_err() {
                    buffer.truncate(start);
                    let missing = Header::new(Kind::Missing, header.stream, header.number, 0);
                    buffer.extend_from_slice(&missing.encode());
                }
            }
        }
    }
    buffer
}
