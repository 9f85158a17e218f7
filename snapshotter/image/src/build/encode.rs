//! Hashes and compresses chunks on threads of their own, and keeps their order.
//!
//! Job n goes to worker n mod [`WORKERS`] and its result is awaited from there, so order needs no sorting. Every
//! channel is bounded: a slow sink stops the reader. Buffers travel in a circle.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use d7y_types::ChunkHash;

use super::{BuildError, BuildOptions, ChunkSink};
use crate::index::{Chunk, Codec};

/// Two, beside the thread that decompresses: a gzip layer keeps them about half busy.
pub(super) const WORKERS: usize = 2;
/// Jobs and results waiting at each worker.
const QUEUE: usize = 4;
/// Buffers kept for reuse: as many as can be under way.
const SPARES: usize = 2 * WORKERS * (QUEUE + 1);

/// A chunk to encode; without data a run of zeros.
pub(super) struct Job {
    pub(super) device_block: u32,
    pub(super) blocks: u32,
    pub(super) data: Vec<u8>,
}

struct Encoded {
    job: Job,
    codec: Codec,
    hash: ChunkHash,
    /// Empty unless the codec is zstd.
    frame: Vec<u8>,
}

/// Where chunks go in.
pub(super) struct Encoder {
    jobs: Vec<SyncSender<Job>>,
    spares: Receiver<Vec<u8>>,
    submitted: u32,
    limit: u32,
}

impl Encoder {
    /// An empty buffer, used before if there is one.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.spares.try_recv().unwrap_or_default()
    }

    /// Hands a chunk on, and waits while the workers have enough to do.
    pub(super) fn submit(&mut self, job: Job) -> Result<(), BuildError> {
        if self.submitted == self.limit {
            return Err(BuildError::Limit("it needs more than limits.chunks"));
        }
        let worker = self.submitted as usize % WORKERS;
        self.submitted += 1;
        self.jobs[worker].send(job).map_err(|_| stopped())
    }
}

/// Runs `fill` with an encoder; gives its result, and all chunks as the sink has taken them.
pub(super) fn run<T>(
    sink: &mut impl ChunkSink,
    options: &BuildOptions,
    fill: impl FnOnce(&mut Encoder) -> Result<T, BuildError>,
) -> Result<(T, Vec<Chunk>), BuildError> {
    thread::scope(|scope| {
        let (spare_sender, spares) = sync_channel(SPARES);
        let (mut jobs, mut results) = (Vec::new(), Vec::new());
        for _ in 0..WORKERS {
            let (job_sender, job_receiver) = sync_channel(QUEUE);
            let (result_sender, result_receiver) = sync_channel(QUEUE);
            jobs.push(job_sender);
            results.push(result_receiver);
            scope.spawn(move || work(options.zstd_level, &job_receiver, &result_sender));
        }
        let collector = scope.spawn(move || collect(&results, &spare_sender, sink));
        let mut encoder = Encoder { jobs, spares, submitted: 0, limit: options.limits.chunks };
        let filled = fill(&mut encoder);
        drop(encoder);
        let collected = collector.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A sink that fails makes `fill` fail too; its error is the one to tell.
        let chunks = collected?;
        Ok((filled?, chunks))
    })
}

/// What `submit` says when the collector is gone; `run` replaces it by the collector's own error.
fn stopped() -> BuildError {
    BuildError::Sink(std::io::Error::other("the sink takes no more chunks"))
}

type Outcome = std::io::Result<Encoded>;

fn work(zstd_level: i32, jobs: &Receiver<Job>, results: &SyncSender<Outcome>) {
    let mut compressor = zstd::bulk::Compressor::new(zstd_level);
    for job in jobs {
        let outcome = match &mut compressor {
            Ok(compressor) => encode(job, compressor),
            Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
        };
        if results.send(outcome).is_err() {
            return;
        }
    }
}

fn encode(job: Job, compressor: &mut zstd::bulk::Compressor<'_>) -> Outcome {
    if job.data.is_empty() {
        return Ok(Encoded { job, codec: Codec::Zero, hash: ChunkHash([0; 32]), frame: Vec::new() });
    }
    let hash = ChunkHash(*blake3::hash(&job.data).as_bytes());
    let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(job.data.len()));
    compressor.compress_to_buffer(&job.data, &mut frame)?;
    let codec = if frame.len() < job.data.len() { Codec::Zstd } else { Codec::Raw };
    Ok(Encoded { job, codec, hash, frame })
}

fn collect(
    results: &[Receiver<Outcome>],
    spares: &SyncSender<Vec<u8>>,
    sink: &mut impl ChunkSink,
) -> Result<Vec<Chunk>, BuildError> {
    let (mut chunks, mut pack_offset) = (Vec::new(), 0u64);
    while let Ok(outcome) = results[chunks.len() % WORKERS].recv() {
        let Encoded { job: Job { device_block, blocks, mut data }, codec, hash, frame } =
            outcome.map_err(BuildError::Compress)?;
        let frame = if codec == Codec::Raw { &data } else { &frame };
        let frame_bytes = u32::try_from(frame.len()).expect("a frame is shorter than its chunk");
        let chunk = Chunk { device_block, blocks, pack_offset, frame_bytes, codec, hash };
        sink.chunk(chunks.len() as u32, &chunk, frame, &data).map_err(BuildError::Sink)?;
        pack_offset += u64::from(frame_bytes);
        chunks.push(chunk);
        data.clear();
        // Without a taker, or with enough spares, the buffer is simply freed.
        let _ = spares.try_send(data);
    }
    Ok(chunks)
}
