use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use d7y_peer_client::{Answer, Handler, Stop, digest_from_wire, layer_from_wire, serve};
use d7y_proto::local::{
    Done, EnsureRange, ImageOpened, LayerOpened, RangePresent, Reason, RecordTrace, Request, Response,
    Status, request, response,
};
use d7y_types::{ByteRange, Sha256Digest};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::image::BuiltLayer;

/// A peer that has every chunk at hand and gives each only when it is asked for.
pub struct FakePeer {
    layers: Mutex<HashMap<Sha256Digest, Arc<Kept>>>,
    directory: PathBuf,
    pub mood: Mutex<Mood>,
    /// While true, reads of missing data wait.
    pub hold: watch::Sender<bool>,
    /// While true, no layer's index is there yet.
    pub building: watch::Sender<bool>,
    /// How many ranges were asked for.
    pub ranges: watch::Sender<u64>,
    pub pinned: watch::Sender<BTreeSet<Sha256Digest>>,
    pub parked: watch::Sender<u64>,
    /// Request id and span of every range asked for.
    pub callers: Mutex<Vec<(u64, u64)>>,
    pub traces: Mutex<Vec<RecordTrace>>,
    /// How often there was no room for something.
    pub lacked_room: AtomicU64,
    /// Whether the cluster knows how each image is used.
    pub has_trace: AtomicBool,
    descriptors: Mutex<HashMap<String, OwnedFd>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Willing,
    /// Gives bytes in its answers and writes nothing, as with a full disk.
    DiskFull,
    /// Refuses to open layers.
    Refuses(Reason),
}

struct Kept {
    built: BuiltLayer,
    index: PathBuf,
    device: PathBuf,
    bitmap: PathBuf,
}

impl FakePeer {
    pub fn new(directory: &Path, layers: Vec<BuiltLayer>) -> Arc<Self> {
        let peer = Arc::new(Self {
            layers: Mutex::default(),
            directory: directory.to_owned(),
            mood: Mutex::new(Mood::Willing),
            hold: watch::Sender::new(false),
            building: watch::Sender::new(false),
            ranges: watch::Sender::new(0),
            pinned: watch::Sender::default(),
            parked: watch::Sender::new(0),
            callers: Mutex::default(),
            traces: Mutex::default(),
            lacked_room: AtomicU64::default(),
            has_trace: AtomicBool::default(),
            descriptors: Mutex::default(),
        });
        layers.into_iter().for_each(|built| peer.keep(built));
        peer
    }

    /// Takes a layer into the store, instead of one that is there; nothing of it is present.
    pub fn keep(&self, built: BuiltLayer) {
        let mut layers = self.layers.lock();
        let own = self.directory.join(format!("{}-{}", layers.len(), built.layer.digest.to_hex()));
        std::fs::create_dir_all(&own).unwrap();
        let [index, device, bitmap] = ["index", "device", "bitmap"].map(|name| own.join(name));
        std::fs::write(&index, &built.sealed).unwrap();
        File::create(&device).unwrap().set_len(built.index.device_bytes()).unwrap();
        std::fs::write(&bitmap, vec![0; built.index.chunks.len().div_ceil(8)]).unwrap();
        layers.insert(built.layer.digest, Arc::new(Kept { built, index, device, bitmap }));
    }

    /// Fetches all that is missing of all layers.
    pub fn fill(&self) {
        for kept in self.layers.lock().values() {
            kept.write(ByteRange::new(0, kept.built.index.device_bytes()));
        }
    }

    /// Where the files of a layer are.
    pub fn directory(&self, layer: Sha256Digest) -> PathBuf {
        self.layers.lock()[&layer].device.parent().unwrap().to_owned()
    }

    /// Starts to answer; a stop and a start are a restart that forgets what lived in memory.
    pub fn start(self: &Arc<Self>, socket: &Path) -> PeerProcess {
        self.descriptors.lock().clear();
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let stop = CancellationToken::new();
        let at_once = Stop { closing: stop.clone(), stopping: stop.clone(), under_way: Arc::new(()) };
        PeerProcess { task: tokio::spawn(serve(listener, Arc::clone(self), at_once)), stop }
    }

    fn open(&self, digest: Sha256Digest) -> Answer {
        if let Mood::Refuses(reason) = *self.mood.lock() {
            return Answer::failure(reason, "the peer of this test refuses");
        }
        let Some(kept) = self.layers.lock().get(&digest).cloned() else {
            return Answer::failure(Reason::NotFound, "no such layer");
        };
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Answer::of(response::Kind::LayerOpened(LayerOpened {
            index_path: text(&kept.index),
            device_path: text(&kept.device),
            bitmap_path: text(&kept.bitmap),
        }))
    }

    async fn ensure(&self, wanted: EnsureRange) -> Answer {
        self.callers.lock().push((wanted.request_id, wanted.span_id));
        self.ranges.send_modify(|ranges| *ranges += 1);
        let mut hold = self.hold.subscribe();
        hold.wait_for(|hold| !hold).await.unwrap();
        let kept = Arc::clone(&self.layers.lock()[&digest_from_wire(&wanted.digest).unwrap()]);
        let range = ByteRange::new(wanted.offset, wanted.length);
        let uncached = match *self.mood.lock() {
            Mood::DiskFull => kept.bytes(range),
            _ => {
                kept.write(range);
                Vec::new()
            }
        };
        Answer::of(response::Kind::RangePresent(RangePresent { uncached, ..Default::default() }))
    }
}

impl Kept {
    fn write(&self, range: ByteRange) {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (device, bitmap) = (open(&self.device), open(&self.bitmap));
        for number in self.built.index.chunks_in(range) {
            let chunk = self.built.index.chunks[number].device_range();
            device.write_all_at(&self.built.chunks[number], chunk.offset).unwrap();
            let mut byte = [0];
            bitmap.read_exact_at(&mut byte, number as u64 / 8).unwrap();
            bitmap.write_all_at(&[byte[0] | 1 << (number % 8)], number as u64 / 8).unwrap();
        }
    }

    fn bytes(&self, range: ByteRange) -> Vec<u8> {
        let mut device = vec![0; self.built.index.device_bytes() as usize];
        for (chunk, data) in self.built.index.chunks.iter().zip(&self.built.chunks) {
            device[chunk.device_range().offset as usize..][..data.len()].copy_from_slice(data);
        }
        device[range.offset as usize..range.end() as usize].to_vec()
    }
}

impl Handler for FakePeer {
    async fn handle(&self, request: Request, descriptor: Option<OwnedFd>) -> Answer {
        let done = || Answer::of(response::Kind::Done(Done {}));
        match request.kind.unwrap() {
            request::Kind::OpenImage(_) => {
                let has_trace = self.has_trace.load(Ordering::Relaxed);
                Answer::of(response::Kind::ImageOpened(ImageOpened { has_trace }))
            }
            request::Kind::OpenLayer(open) => {
                let mut building = self.building.subscribe();
                let built = building.wait_for(|building| !building);
                match tokio::time::timeout(Duration::from_millis(open.deadline_ms.into()), built).await {
                    Ok(_) => self.open(layer_from_wire(open.layer.unwrap()).unwrap().digest),
                    Err(_) => Answer::failure(Reason::Deadline, "the layer is still being read"),
                }
            }
            request::Kind::EnsureRange(wanted) => self.ensure(wanted).await,
            request::Kind::PutDescriptor(put) => {
                self.descriptors.lock().insert(put.name, descriptor.unwrap());
                self.parked.send_modify(|parked| *parked += 1);
                done()
            }
            request::Kind::TakeDescriptor(take) => match self.descriptors.lock().get(&take.name) {
                Some(parked) => Answer {
                    response: Response { kind: Some(response::Kind::Done(Done {})) },
                    descriptor: Some(parked.try_clone().unwrap()),
                },
                None => Answer::failure(Reason::NotFound, "nothing is parked"),
            },
            request::Kind::RecordTrace(trace) => {
                self.traces.lock().push(trace);
                done()
            }
            request::Kind::PinLayers(pins) => {
                let layers = pins.digests.iter().map(|raw| digest_from_wire(raw).unwrap());
                self.pinned.send_replace(layers.collect());
                done()
            }
            request::Kind::GetStatus(_) => Answer::of(response::Kind::Status(Status {
                lacked_room: self.lacked_room.load(Ordering::Relaxed),
                ..Status::default()
            })),
        }
    }
}

pub struct PeerProcess {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl PeerProcess {
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}
