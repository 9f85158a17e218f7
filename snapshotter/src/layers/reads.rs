use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_chassis::spans::{About, Spans};
use d7y_fuse::{Errno, ReadReply};
use d7y_peer_client::{ClientError, LocalClient};
use d7y_proto::local::{RangePresent, Reason, Source as Giver};
use d7y_types::{ByteRange, Caller, Ids, Sha256Digest};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::layers::device::{Device, DeviceError, DeviceSlot, remaining};
use crate::metrics::{Metrics, ReadResult};
use crate::starts::{Starts, Wait, source_name};
use crate::trace::Recorder;

/// Before a refused range is asked for again, within the read's deadline.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A read this soon after another has failed, of the same bytes or those that follow, is part of the same access: the
/// kernel goes on with the rest of a failed readahead, then tries again page by page, above EROFS and below it. Each of
/// these would wait for the deadline anew.
const SAME_ACCESS: Duration = Duration::from_millis(500);
/// A read that waited this long is in the log of an ordinary day.
const SLOW_READ: Duration = Duration::from_secs(1);
/// Failures remembered: the accesses that the kernel tries again at a time.
const MAX_FAILURES: usize = 64;

/// Reads that have failed just now.
#[derive(Debug, Default)]
pub struct Failures(Mutex<VecDeque<Failure>>);

#[derive(Debug)]
struct Failure {
    layer: Sha256Digest,
    range: ByteRange,
    at: Instant,
}

impl Failures {
    fn note(&self, layer: Sha256Digest, range: ByteRange) {
        let mut failures = self.0.lock();
        if failures.len() == MAX_FAILURES {
            failures.pop_front();
        }
        failures.push_back(Failure { layer, range, at: Instant::now() });
    }

    /// Whether a read belongs to an access that has failed; its bytes belong to it from then on.
    fn repeats(&self, layer: Sha256Digest, range: ByteRange) -> bool {
        let mut failures = self.0.lock();
        let same = failures.iter_mut().find(|failed| {
            failed.layer == layer
                && failed.at.elapsed() < SAME_ACCESS
                && failed.range.offset < range.end()
                && range.offset <= failed.range.end()
        });
        let Some(failed) = same else { return false };
        let (offset, end) = (failed.range.offset.min(range.offset), failed.range.end().max(range.end()));
        failed.range = ByteRange::new(offset, end - offset);
        true
    }
}

/// What a read needs to know about its layer.
#[derive(Debug)]
pub struct Source {
    pub slot: Arc<DeviceSlot>,
    /// The layout that the bootstrap in use was made for: a device of another one must not be read through it.
    pub layout: Sha256Digest,
}

/// Answers reads of layer devices: at once what is there, later what the peer must fetch first.
pub struct Reader {
    pub peer: LocalClient,
    pub runtime: Handle,
    /// Reads that wait for the peer; the kernel bounds them (FUSE `max_background`).
    pub waiting: TaskTracker,
    pub deadline: Duration,
    pub metrics: Metrics,
    pub recorder: Arc<Recorder>,
    pub starts: Arc<Starts>,
    pub failures: Failures,
    pub ids: Ids,
    pub spans: Spans,
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Open(#[from] DeviceError),
    #[error("the peer's index of the layer is no longer the one that is mounted")]
    Layout,
    #[error("the device or its bitmap cannot be read")]
    Device(#[from] io::Error),
    #[error("the peer cannot make the range readable")]
    Peer(#[source] ClientError),
    #[error("the peer gave {0} bytes instead of the {1} asked for")]
    Length(usize, u64),
    #[error("the read's deadline has passed")]
    Deadline,
}

impl ReadError {
    /// Whether another try may help.
    fn is_transient(&self) -> bool {
        let client = match self {
            Self::Open(DeviceError::Peer { source, .. }) | Self::Peer(source) => source,
            _ => return false,
        };
        matches!(
            client.reason(),
            Reason::Unavailable | Reason::Deadline | Reason::NotFound | Reason::Internal
        )
    }
}

/// What can be answered now.
enum Readable {
    FromDevice(Arc<Device>),
    Bytes(Vec<u8>),
}

/// Who ended the wait of a read: the last peer that gave something.
#[derive(Default)]
struct GivenBy {
    source: Giver,
    parent: String,
}

/// A read of data that is not here.
struct Miss<'s> {
    source: &'s Source,
    range: ByteRange,
    caller: Caller,
    deadline: Instant,
    given_by: GivenBy,
}

impl Reader {
    /// Answers a read of a range inside the device. Hits are answered on the caller's thread, without allocation.
    pub fn read(self: &Arc<Self>, source: &Arc<Source>, range: ByteRange, reply: ReadReply) {
        match source.slot.ready().filter(|device| device.layout == source.layout) {
            Some(device) if matches!(device.missing(range), Ok(None)) => {
                self.touch(source, &device, range);
                self.metrics.read(ReadResult::Hit);
                source.slot.touched.note(range);
                reply.file(device.file(), range);
            }
            _ => {
                let (reader, source) = (Arc::clone(self), Arc::clone(source));
                self.waiting.spawn_on(async move { reader.miss(&source, range, reply).await }, &self.runtime);
            }
        }
    }

    async fn miss(&self, source: &Source, range: ByteRange, reply: ReadReply) {
        let layer = source.slot.layer.digest;
        if self.failures.repeats(layer, range) {
            self.metrics.read(ReadResult::Failed);
            return reply.error(Errno::IO);
        }
        let (began, request) = (Instant::now(), self.ids.request());
        let span = self.spans.root(|| request);
        let caller = span.map_or_else(|| Caller::new(request), |span| span.caller());
        let mut miss =
            Miss { source, range, caller, deadline: began + self.deadline, given_by: GivenBy::default() };
        let result = self.fetch(&mut miss).await;
        let (took, failed) = (began.elapsed(), result.is_err());
        let GivenBy { source: giver, parent } = miss.given_by;
        let wait = Wait { request, layer, range, began, took, source: giver, parent, failed };
        self.metrics.missed(source_name(giver), took);
        self.starts.waited(&wait);
        log(&wait, result.as_ref().err());
        self.spans.end(span, || about(&wait, result.as_ref().err()));
        match result {
            Ok(readable) => {
                self.metrics.read(ReadResult::Miss);
                source.slot.touched.note(range);
                match readable {
                    Readable::FromDevice(device) => reply.file(device.file(), range),
                    Readable::Bytes(bytes) => reply.data(&bytes),
                }
            }
            Err(_) => {
                self.metrics.read(ReadResult::Failed);
                self.failures.note(layer, range);
                reply.error(Errno::IO);
            }
        }
    }

    async fn fetch(&self, miss: &mut Miss<'_>) -> Result<Readable, ReadError> {
        loop {
            let error = match self.try_fetch(miss).await {
                Ok(Some(readable)) => return Ok(readable),
                // The peer has restarted meanwhile, or says that the range is there and its bitmap does not.
                Ok(None) => ReadError::Deadline,
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            if let ReadError::Peer(client) = &error
                && client.reason() == Reason::NotFound
            {
                miss.source.slot.close();
            }
            if remaining(miss.deadline) <= RETRY_PAUSE {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn try_fetch(&self, miss: &mut Miss<'_>) -> Result<Option<Readable>, ReadError> {
        let &mut Miss { source, range, caller, deadline, .. } = miss;
        let device = source.slot.device(&self.peer, deadline).await?;
        if device.layout != source.layout {
            return Err(ReadError::Layout);
        }
        self.touch(source, &device, range);
        let Some(missing) = device.missing(range)? else { return Ok(Some(Readable::FromDevice(device))) };
        let layer = source.slot.layer.digest;
        let brought = self.peer.bring(layer, missing, Some(caller), remaining(deadline)).await;
        let RangePresent { uncached: fetched, source: giver, parent } = brought.map_err(ReadError::Peer)?;
        miss.given_by = GivenBy { source: Giver::try_from(giver).unwrap_or_default(), parent };
        if !device.is_current(&self.peer) {
            return Ok(None);
        }
        if fetched.is_empty() {
            return Ok(device.missing(range)?.is_none().then_some(Readable::FromDevice(device)));
        }
        if fetched.len() as u64 != missing.length {
            return Err(ReadError::Length(fetched.len(), missing.length));
        }
        Ok(Some(Readable::Bytes(device.assemble(range, missing, &fetched)?)))
    }

    fn touch(&self, source: &Source, device: &Device, range: ByteRange) {
        self.recorder.touch(source.slot.layer.digest, device.chunks_in(range));
    }
}

fn about(wait: &Wait, error: Option<&ReadError>) -> About {
    About::new("read")
        .text("d7y.layer", wait.layer)
        .number("d7y.offset", wait.range.offset)
        .number("d7y.bytes", wait.range.length)
        .text("d7y.source", source_name(wait.source))
        .text("d7y.parent", &wait.parent)
        .error(error)
}

fn log(wait: &Wait, error: Option<&ReadError>) {
    let Wait { request: request_id, layer, range, took, parent, .. } = wait;
    let (offset, bytes, ms) = (range.offset, range.length, took.as_millis() as u64);
    let source = source_name(wait.source);
    match error {
        Some(error) => {
            let error = error as &dyn std::error::Error;
            tracing::error!(%request_id, %layer, offset, bytes, ms, error, "a read fails");
        }
        None if *took >= SLOW_READ => {
            tracing::info!(%request_id, %layer, offset, bytes, ms, source, parent, "a read waited long");
        }
        None => tracing::debug!(%request_id, %layer, offset, bytes, ms, source, parent, "a read waited"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_try_of_what_has_failed_is_known_by_its_bytes() {
        let (failures, layer, other) = (Failures::default(), Sha256Digest([1; 32]), Sha256Digest([2; 32]));
        failures.note(layer, ByteRange::new(65_536, 65_536));
        for (layer, offset, length, repeats) in [
            (layer, 65_536, 4096, true),
            (layer, 126_976, 4096, true),
            (layer, 0, 65_536, false),
            (layer, 135_168, 4096, false),
            (layer, 131_072, 4096, true),
            (layer, 135_168, 4096, true),
            (other, 65_536, 4096, false),
        ] {
            assert_eq!(failures.repeats(layer, ByteRange::new(offset, length)), repeats, "{offset}");
        }
        (0..MAX_FAILURES).for_each(|_| failures.note(other, ByteRange::new(0, 1)));
        assert!(!failures.repeats(layer, ByteRange::new(65_536, 4096)), "the oldest goes");
    }
}
