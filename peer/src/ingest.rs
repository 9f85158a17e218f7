//! Reading a layer from its origin: once, front to back, while chunks flow on.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use d7y_image::{BuildOptions, Chunk, ChunkSink, build_layer};
use d7y_origin::{BlobStream, Origin, OriginError};
use d7y_store::{Layer, Staging, Store, StoreError};
use d7y_types::LayerRef;
use tokio::sync::mpsc;

use crate::failure::OpenFailure;
use crate::fetch::Fetcher;
use crate::metrics::{Metrics, Source};
use crate::openings::Reporter;
use crate::trust::Trust;

/// Body parts between the network and the builder: about 16 x 16 KiB.
const READ_AHEAD: usize = 16;

/// What reading from origins needs.
#[derive(Clone)]
pub struct Ingester {
    pub origin: Arc<Origin>,
    pub store: Arc<Store>,
    pub trust: Arc<Trust>,
    pub metrics: Arc<Metrics>,
    pub zstd_level: i32,
    /// Whether this peer's layers are mounted, rather than only passed on.
    pub devices: bool,
}

impl Ingester {
    /// Builds index and pack of a layer that nobody in reach has.
    pub async fn ingest(&self, layer: &LayerRef, reporter: &Reporter) -> Result<Arc<Layer>, OpenFailure> {
        let staging = self.store.stage(layer).map_err(|error| OpenFailure::internal(&error))?;
        let staging = Arc::new(staging);
        reporter.staging(&staging);
        let sink =
            StagingSink { store: self.store.clone(), staging: staging.clone(), reporter: reporter.clone() };
        let (this, reference) = (self.clone(), layer.clone());
        let blob = self.origin.open_blob(layer, 0).await.map_err(|error| OpenFailure::from_origin(&error))?;
        reporter.supplied();
        self.read(layer, blob, move |body| {
            let index = this.build(&reference, body, sink)?;
            let sealed = this.trust.seal(&index).map_err(|error| OpenFailure::internal(&error))?;
            this.store.commit(&staging, &index, &sealed).map_err(|error| OpenFailure::internal(&error))
        })
        .await
    }

    /// Reads a layer again whose index is known, because no parent holds what is missing here.
    pub async fn refill(&self, layer: &Arc<Layer>, fetcher: &Fetcher) -> Result<(), OpenFailure> {
        self.metrics.origin_refills.inc();
        let (layer, store, fetcher) = (layer.clone(), self.store.clone(), fetcher.clone());
        let (this, reference) = (self.clone(), layer.reference().clone());
        let sink = RefillSink { layer, store, fetcher, devices: self.devices };
        let blob =
            self.origin.open_blob(&reference, 0).await.map_err(|error| OpenFailure::from_origin(&error))?;
        self.read(&reference.clone(), blob, move |body| this.build(&reference, body, sink).map(drop)).await
    }

    fn build(
        &self,
        layer: &LayerRef,
        mut body: Body,
        mut sink: impl ChunkSink,
    ) -> Result<d7y_image::LayerIndex, OpenFailure> {
        let options = BuildOptions { zstd_level: self.zstd_level, ..BuildOptions::default() };
        build_layer(layer, &mut body, &mut sink, &options).map_err(|error| match body.failure.take() {
            Some(origin) => OpenFailure::from_origin(&origin),
            None => OpenFailure::from_build(&error),
        })
    }

    /// Pumps the blob into `work` on the blocking pool.
    async fn read<T: Send + 'static>(
        &self,
        layer: &LayerRef,
        mut blob: BlobStream,
        work: impl FnOnce(Body) -> Result<T, OpenFailure> + Send + 'static,
    ) -> Result<T, OpenFailure> {
        let (parts, received) = mpsc::channel(READ_AHEAD);
        let body = Body { parts: received, rest: Bytes::new(), failure: None };
        let work = tokio::task::spawn_blocking(move || work(body));
        while let Some(part) = blob.next().await {
            if let Ok(bytes) = &part {
                self.metrics.received(Source::origin, bytes.len() as u64);
                self.metrics.ledger.received(layer.digest, Source::origin, bytes.len() as u64);
            }
            // The builder gave up: its error says why.
            if parts.send(part).await.is_err() {
                break;
            }
        }
        drop(parts);
        work.await.unwrap_or_else(|panic| Err(OpenFailure::internal(&panic)))
    }
}

/// The blob as a blocking reader.
struct Body {
    parts: mpsc::Receiver<Result<Bytes, OriginError>>,
    rest: Bytes,
    /// Why the blob ended early, when it was the origin's fault.
    failure: Option<OriginError>,
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.parts.blocking_recv() {
                None => return Ok(0),
                Some(Ok(part)) => self.rest = part,
                Some(Err(error)) => {
                    self.failure = Some(error.clone());
                    return Err(io::Error::other(error));
                }
            }
        }
        let count = self.rest.len().min(out.len());
        out[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

struct StagingSink {
    store: Arc<Store>,
    staging: Arc<Staging>,
    reporter: Reporter,
}

impl ChunkSink for StagingSink {
    fn chunk(&mut self, number: u32, chunk: &Chunk, frame: &[u8], data: &[u8]) -> io::Result<()> {
        self.store.push(&self.staging, *chunk, frame, data).map_err(io::Error::other)?;
        self.reporter.staged(number + 1);
        Ok(())
    }
}

struct RefillSink {
    layer: Arc<Layer>,
    store: Arc<Store>,
    fetcher: Fetcher,
    devices: bool,
}

impl ChunkSink for RefillSink {
    fn chunk(&mut self, number: u32, chunk: &Chunk, frame: &[u8], data: &[u8]) -> io::Result<()> {
        let known = self.layer.chunks().get(number as usize);
        if !known.is_some_and(|known| known.hash == chunk.hash && known.blocks == chunk.blocks) {
            let problem = "the layer no longer yields the chunks in its index: the registry has changed it, or the index was \
                           built by another version; push the image anew, or, once the registry has the right one, restart \
                           this peer";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let here = if self.devices { self.layer.readable() } else { self.layer.shareable() };
        if here.get(number) {
            return Ok(());
        }
        // The frame may differ in its compression; then only the uncompressed form is of use.
        let kept = match known.is_some_and(|known| known == chunk) {
            true => self.store.keep(&self.layer, number, frame, data),
            false => self.store.keep_data(&self.layer, number, data),
        };
        let uncached = match kept {
            Ok(()) => None,
            Err(StoreError::Full) => Some(Bytes::copy_from_slice(data)),
            Err(error) => return Err(io::Error::other(error)),
        };
        self.fetcher.settled_from_origin(&self.layer, number, uncached);
        Ok(())
    }
}
