use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_fuse::{Errno, ReadReply};
use d7y_peer_client::{ClientError, LocalClient};
use d7y_proto::local::Reason;
use d7y_types::{ByteRange, Sha256Digest};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::layers::device::{Device, DeviceError, DeviceSlot, remaining};
use crate::metrics::{Metrics, ReadResult};
use crate::trace::Recorder;

/// Before a refused range is asked for again, within the read's deadline.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

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

impl Reader {
    /// Answers a read of a range inside the device. Hits are answered on the caller's thread, without allocation.
    pub fn read(self: &Arc<Self>, source: &Arc<Source>, range: ByteRange, reply: ReadReply) {
        match source.slot.ready().filter(|device| device.layout == source.layout) {
            Some(device) if matches!(device.missing(range), Ok(None)) => {
                self.touch(source, &device, range);
                self.metrics.read(ReadResult::Hit);
                reply.file(device.file(), range);
            }
            _ => {
                let (reader, source) = (Arc::clone(self), Arc::clone(source));
                self.waiting.spawn_on(async move { reader.miss(&source, range, reply).await }, &self.runtime);
            }
        }
    }

    async fn miss(&self, source: &Source, range: ByteRange, reply: ReadReply) {
        let started = Instant::now();
        let result = self.fetch(source, range, started + self.deadline).await;
        self.metrics.missed(started.elapsed());
        match result {
            Ok(readable) => {
                self.metrics.read(ReadResult::Miss);
                match readable {
                    Readable::FromDevice(device) => reply.file(device.file(), range),
                    Readable::Bytes(bytes) => reply.data(&bytes),
                }
            }
            Err(error) => {
                self.metrics.read(ReadResult::Failed);
                let layer = source.slot.layer.digest;
                let cause = &error as &dyn std::error::Error;
                tracing::error!(%layer, offset = range.offset, bytes = range.length, error = cause, "a read fails");
                reply.error(Errno::IO);
            }
        }
    }

    async fn fetch(
        &self,
        source: &Source,
        range: ByteRange,
        deadline: Instant,
    ) -> Result<Readable, ReadError> {
        loop {
            let error = match self.try_fetch(source, range, deadline).await {
                Ok(Some(readable)) => return Ok(readable),
                // The peer has restarted meanwhile, or says that the range is there and its bitmap does not.
                Ok(None) => ReadError::Deadline,
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            if let ReadError::Peer(client) = &error
                && client.reason() == Reason::NotFound
            {
                source.slot.close();
            }
            if remaining(deadline) <= RETRY_PAUSE {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn try_fetch(
        &self,
        source: &Source,
        range: ByteRange,
        deadline: Instant,
    ) -> Result<Option<Readable>, ReadError> {
        let device = source.slot.device(&self.peer, deadline).await?;
        if device.layout != source.layout {
            return Err(ReadError::Layout);
        }
        self.touch(source, &device, range);
        let Some(missing) = device.missing(range)? else { return Ok(Some(Readable::FromDevice(device))) };
        let layer = source.slot.layer.digest;
        let fetched = self.peer.ensure_range(layer, missing, remaining(deadline)).await;
        let fetched = fetched.map_err(ReadError::Peer)?;
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
