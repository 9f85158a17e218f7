//! What the snapshotter and tools of this node see of the peer.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use d7y_chassis::spans::{About, Spans};
use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_peer_client::{Answer, Handler, digest_from_wire, layer_from_wire};
use d7y_proto::local::{
    Done, EnsureRange, ImageOpened, LayerOpened, LayerStatus, OpenImage, OpenLayer, RangePresent, Reason,
    RecordTrace, Request, Source, Status, request, response,
};
use d7y_store::Layer;
use d7y_types::{ByteRange, Caller, LayerRef, Sha256Digest};

use crate::failure::{OpenFailure, chain};
use crate::fetch::{Brought, FetchError, Giver, Uncached};
use crate::layers::{Asker, Layers, Open};
use crate::openings::{self, Outcome, Supply};
use crate::parked::Parked;
use crate::trace::{Traces, chunks};

/// One read of the kernel is at most 1 MiB.
const MAX_RANGE_BYTES: u64 = 4 << 20;
/// Layers of one image; containerd itself stops earlier.
const MAX_IMAGE_LAYERS: usize = 1024;
/// How long a trace waits for the layers' indexes before it is of no use.
const TRACE_PATIENCE: Duration = Duration::from_secs(600);

/// A read that waited this long is in the log of an ordinary day.
const SLOW_READ: Duration = Duration::from_secs(1);

pub struct LocalService {
    pub peer_id: Arc<str>,
    pub layers: Arc<Layers>,
    pub traces: Arc<Traces>,
    pub tasks: Tasks,
    pub parked: Parked,
    pub spans: Spans,
}

impl Handler for LocalService {
    async fn handle(&self, request: Request, descriptor: Option<OwnedFd>) -> Answer {
        match request.kind {
            Some(request::Kind::OpenImage(image)) => self.open_image(image).await,
            Some(request::Kind::OpenLayer(open)) => self.open_layer(open).await,
            Some(request::Kind::EnsureRange(range)) => self.ensure_range(range).await,
            Some(request::Kind::PutDescriptor(put)) => self.park(put.name, descriptor),
            Some(request::Kind::TakeDescriptor(take)) => self.unpark(&take.name),
            Some(request::Kind::RecordTrace(trace)) => self.record(trace).await,
            Some(request::Kind::PinLayers(pin)) => self.pin(&pin.digests),
            Some(request::Kind::GetStatus(_)) => self.status(),
            None => Answer::failure(Reason::Invalid, "the request is of a kind that this peer does not know"),
        }
    }
}

impl LocalService {
    /// Starts on all layers at once, and on what the trace says as soon as their indexes are here.
    async fn open_image(&self, image: OpenImage) -> Answer {
        let parsed: Result<Vec<LayerRef>, _> =
            image.layers.into_iter().take(MAX_IMAGE_LAYERS).map(layer_from_wire).collect();
        let (Ok(layers), Ok(manifest)) = (parsed, digest_from_wire(&image.manifest_digest)) else {
            return Answer::failure(Reason::Invalid, "the image has a layer or digest that is malformed");
        };
        let mut opens = Vec::new();
        for layer in &layers {
            if let Ok(open) = self.layers.open(layer, Asker::Local).await {
                opens.push(open);
            }
        }
        let trace = self.traces.find(manifest).await;
        let has_trace = trace.is_some();
        if let Some(trace) = trace {
            self.tasks.spawn("replay a trace", OnEnd::Expected, replay(self.layers.clone(), opens, trace));
        }
        Answer::of(response::Kind::ImageOpened(ImageOpened { has_trace }))
    }

    async fn open_layer(&self, open: OpenLayer) -> Answer {
        let Some(Ok(layer)) = open.layer.map(layer_from_wire) else {
            return Answer::failure(Reason::Invalid, "the layer reference is malformed");
        };
        let deadline = Duration::from_millis(u64::from(open.deadline_ms));
        let supply = Duration::from_millis(u64::from(open.supply_deadline_ms)).checked_sub(deadline);
        let opened = async {
            match self.layers.open(&layer, Asker::Local).await? {
                Open::Ready(ready) => Ok(ready),
                Open::Following(progress) => match openings::outcome(progress).await {
                    Outcome::Ready(ready) => Ok(ready),
                    Outcome::Failed(failure) => Err(failure),
                },
            }
        };
        match tokio::time::timeout(deadline, opened).await {
            Err(_) => self.not_yet(&layer, supply).await,
            Ok(Err(failure)) => refuse(&failure),
            Ok(Ok(layer)) => {
                let paths = layer.paths();
                let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
                Answer::of(response::Kind::LayerOpened(LayerOpened {
                    index_path: text(paths.index),
                    device_path: text(paths.device),
                    bitmap_path: text(paths.device_bits),
                }))
            }
        }
    }

    /// The index is not here yet; `supply` is how long one waits who wants to know whether it ever will be.
    async fn not_yet(&self, layer: &LayerRef, supply: Option<Duration>) -> Answer {
        let supply = match supply {
            Some(within) => self.layers.openings.supply(layer, within).await,
            None => Supply::Shown,
        };
        match supply {
            Supply::Shown => Answer::failure(Reason::Deadline, "the layer is still being read; ask again"),
            Supply::Failed(failure) => refuse(&failure),
            Supply::NotShown(why) => Answer::failure(Reason::Unsupplied, why.to_string()),
        }
    }

    async fn ensure_range(&self, wanted: EnsureRange) -> Answer {
        let range = ByteRange::new(wanted.offset, wanted.length);
        let layer = digest_from_wire(&wanted.digest).ok().and_then(|digest| self.layers.store.layer(digest));
        let Some(layer) = layer else {
            return Answer::failure(Reason::NotFound, "the layer is not in the store; open it again");
        };
        if range.length > MAX_RANGE_BYTES || range.end() > layer.device_bytes() {
            return Answer::failure(
                Reason::Invalid,
                "the range lies outside the layer's device or is too long",
            );
        }
        let caller = Caller::from_raw(wanted.request_id, wanted.span_id);
        let (deadline, began) = (Duration::from_millis(u64::from(wanted.deadline_ms)), Instant::now());
        let span = self.spans.child(caller);
        let in_name_of = span.map(|span| span.caller()).or(caller);
        let brought = self.layers.make_readable(&layer, range, in_name_of, deadline).await;
        let read = Read { caller, layer: layer.digest(), range, took: began.elapsed() };
        let outcome = brought.as_ref().map(|brought| brought.last_from);
        read.log(outcome);
        self.spans.end(span, || read.about(outcome));
        match brought {
            Ok(Brought { uncached, last_from }) if uncached.is_empty() => present(Vec::new(), last_from),
            Ok(Brought { uncached, last_from }) => match assemble(layer, range, uncached).await {
                Ok(bytes) => present(bytes, last_from),
                Err(error) => Answer::failure(Reason::Internal, chain(&error)),
            },
            Err(FetchError::Deadline) => Answer::failure(
                Reason::Deadline,
                format!(
                    "no parent and no origin gave {} bytes of layer {} in time",
                    range.length,
                    layer.digest()
                ),
            ),
            Err(error) => Answer::failure(Reason::Unavailable, chain(&error)),
        }
    }

    /// Pinned layers are in use: what they still lack is fetched, also after a restart of the peer.
    fn pin(&self, digests: &[Vec<u8>]) -> Answer {
        let digests: Vec<_> = digests.iter().filter_map(|raw| digest_from_wire(raw).ok()).collect();
        self.layers.store.pin(digests.iter().copied());
        let layers = self.layers.clone();
        self.tasks.spawn("engage pinned layers", OnEnd::Expected, async move {
            for layer in digests.into_iter().filter_map(|digest| layers.store.layer(digest)) {
                layers.engage(&layer).await;
            }
            Ok::<_, std::convert::Infallible>(())
        });
        done()
    }

    fn park(&self, name: String, descriptor: Option<OwnedFd>) -> Answer {
        let Some(descriptor) = descriptor else {
            return Answer::failure(Reason::Invalid, "PutDescriptor came without a descriptor");
        };
        match self.parked.put(name, descriptor) {
            Ok(()) => done(),
            Err(error) => Answer::failure(Reason::Invalid, error.to_string()),
        }
    }

    fn unpark(&self, name: &str) -> Answer {
        match self.parked.get(name) {
            None => Answer::failure(Reason::NotFound, "no descriptor of this name is parked"),
            Some(Err(error)) => Answer::failure(Reason::Internal, chain(&error)),
            Some(Ok(descriptor)) => Answer { descriptor: Some(descriptor), ..done() },
        }
    }

    async fn record(&self, trace: RecordTrace) -> Answer {
        let Ok(image) = digest_from_wire(&trace.manifest_digest) else {
            return Answer::failure(Reason::Invalid, "the manifest digest is malformed");
        };
        match self.traces.record(image, &trace).await {
            Ok(()) => done(),
            Err(error) => Answer::failure(Reason::Internal, chain(&error)),
        }
    }

    fn status(&self) -> Answer {
        let usage = self.layers.store.usage();
        let layer_status = |layer: Arc<Layer>| LayerStatus {
            digest: layer.digest().0.to_vec(),
            chunks: layer.chunks().len() as u32,
            chunks_present: layer.readable().count(),
            device_bytes: layer.device_bytes(),
            ..LayerStatus::default()
        };
        Answer::of(response::Kind::Status(Status {
            peer_id: self.peer_id.to_string(),
            scheduler_connected: self.layers.directory.is_connected(),
            layers: self.layers.store.layers().into_iter().map(layer_status).collect(),
            store_bytes: usage.kept_bytes,
            store_limit_bytes: usage.limit_bytes,
            lacked_room: usage.lacked_room,
        }))
    }
}

/// A read that this peer was asked to make possible.
struct Read {
    caller: Option<Caller>,
    layer: Sha256Digest,
    range: ByteRange,
    took: Duration,
}

impl Read {
    fn about(&self, outcome: Result<Option<Giver>, &FetchError>) -> About {
        let (source, parent) = given_by(outcome.unwrap_or_default());
        About::new("fetch a range")
            .text("d7y.layer", self.layer)
            .number("d7y.offset", self.range.offset)
            .number("d7y.bytes", self.range.length)
            .text("d7y.source", source.as_str_name())
            .text("d7y.parent", parent)
            .error(outcome.err())
    }

    fn log(&self, outcome: Result<Option<Giver>, &FetchError>) {
        let request_id = self.caller.map(|caller| tracing::field::display(caller.request));
        let (layer, offset, bytes, ms) =
            (self.layer, self.range.offset, self.range.length, self.took.as_millis() as u64);
        let (source, parent) = given_by(outcome.unwrap_or_default());
        let (source, parent) = (source.as_str_name(), parent.as_str());
        match outcome {
            Err(error) => {
                tracing::warn!(request_id, %layer, offset, bytes, ms, %error, "a read could not be made possible");
            }
            Ok(_) if self.took >= SLOW_READ => {
                tracing::info!(request_id, %layer, offset, bytes, ms, source, parent, "a read waited long");
            }
            Ok(_) => tracing::debug!(request_id, %layer, offset, bytes, ms, source, parent, "a read waited"),
        }
    }
}

async fn replay(layers: Arc<Layers>, opens: Vec<Open>, trace: RecordTrace) -> anyhow::Result<()> {
    let mut lengths: HashMap<Sha256Digest, u32> = HashMap::new();
    let indexes = async {
        for open in opens {
            let layer = match open {
                Open::Ready(layer) => layer,
                Open::Following(progress) => match openings::outcome(progress).await {
                    Outcome::Ready(layer) => layer,
                    Outcome::Failed(_) => continue,
                },
            };
            lengths.insert(layer.digest(), layer.chunks().len() as u32);
        }
    };
    tokio::time::timeout(TRACE_PATIENCE, indexes).await?;
    layers.fetcher.prefetch(chunks(&trace, &lengths)).await;
    Ok(())
}

/// The bytes of a range of which some chunks are only in memory.
async fn assemble(layer: Arc<Layer>, range: ByteRange, uncached: Uncached) -> std::io::Result<Vec<u8>> {
    let read = move || {
        let mut out = vec![0; range.length as usize];
        for number in layer.chunks_in(range) {
            let chunk = layer.chunks()[number as usize].device_range();
            let start = chunk.offset.max(range.offset);
            let end = chunk.end().min(range.end());
            let into = &mut out[(start - range.offset) as usize..(end - range.offset) as usize];
            let held: Option<&Bytes> = uncached.iter().find(|(n, _)| *n == number).map(|(_, data)| data);
            match held {
                Some(data) => {
                    into.copy_from_slice(
                        &data[(start - chunk.offset) as usize..(end - chunk.offset) as usize],
                    );
                }
                None if layer.readable().get(number) => layer.read_device(into, start)?,
                // Evicted and opened again while this read waited: a hole, not data.
                None => return Err(std::io::Error::other("a chunk went while the read waited; read again")),
            }
        }
        Ok(out)
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
}

fn given_by(last_from: Option<Giver>) -> (Source, String) {
    match last_from {
        None => (Source::Unspecified, String::new()),
        Some(Giver::OtherLayer) => (Source::Layer, String::new()),
        Some(Giver::Origin) => (Source::Origin, String::new()),
        Some(Giver::Peer(parent)) if parent.seed => (Source::Seed, parent.address.to_string()),
        Some(Giver::Peer(parent)) => (Source::Node, parent.address.to_string()),
    }
}

fn present(uncached: Vec<u8>, last_from: Option<Giver>) -> Answer {
    let (source, parent) = given_by(last_from);
    Answer::of(response::Kind::RangePresent(RangePresent { uncached, source: source.into(), parent }))
}

fn done() -> Answer {
    Answer::of(response::Kind::Done(Done {}))
}

fn refuse(failure: &OpenFailure) -> Answer {
    Answer::failure(failure.reason(), failure.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CHUNK_BYTES, TestStore};

    #[tokio::test]
    async fn a_chunk_that_is_neither_on_disk_nor_at_hand_is_no_zeros() {
        let store = TestStore::new();
        let layer = store.commit(1);
        let range = ByteRange::new(0, 2 * CHUNK_BYTES as u64);
        let uncached = vec![(1, Bytes::from(store.data(1)))];
        assert!(assemble(layer.clone(), range, uncached.clone()).await.is_err(), "chunk 0 is a hole");
        store.keep(&layer, 0);
        let read = assemble(layer, range, uncached).await.unwrap();
        assert!(read == [store.data(0), store.data(1)].concat());
    }
}
