//! A provider that answers from a table, and a server around it.

use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use d7y_transfer::{
    Asker, Client, Event, Holding, Opening, Provider, Region, Served, ServerLimits, Stop, UnderWay,
    WireError, serve,
};
use d7y_types::{Compression, LayerRef, PackId, Sha256Digest, TableHash};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; a wait that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const LAYER: Sha256Digest = Sha256Digest([7; 32]);
pub const PACK: PackId = PackId { layer: LAYER, table: TableHash([5; 32]) };
/// The same layer as another builder cut it up.
pub const UNKNOWN: PackId = PackId { layer: LAYER, table: TableHash([6; 32]) };
pub const FRAME_BYTES: u32 = 64 << 10;

/// Every chunk of [`PACK`] has a frame of [`FRAME_BYTES`] that begins with its number.
pub struct Fake {
    pub chunks: u32,
    pub openings: Mutex<Option<mpsc::Receiver<Opening>>>,
    /// What was opened, and by whom.
    pub opened: watch::Sender<Option<(LayerRef, Asker)>>,
    /// Bits of packs that are known.
    pub held: Mutex<HashMap<PackId, Vec<u8>>>,
    pub news: broadcast::Sender<u32>,
    /// Comes, and is in the news, right after it was asked for.
    pub arrives: Mutex<Option<u32>>,
    pub asked_frames: watch::Sender<usize>,
    pub asked_holdings: watch::Sender<usize>,
    pub uploaded: AtomicU64,
    pub served: Mutex<Vec<Served>>,
    file: Arc<File>,
}

impl Fake {
    pub fn new(chunks: u32) -> Arc<Self> {
        let file = tempfile::tempfile().unwrap();
        for number in 0..chunks {
            let at = u64::from(number) * u64::from(FRAME_BYTES);
            file.write_all_at(&number.to_le_bytes(), at).unwrap();
        }
        file.set_len(u64::from(chunks) * u64::from(FRAME_BYTES)).unwrap();
        let bits = vec![0xff; chunks.div_ceil(8) as usize];
        Arc::new(Self {
            chunks,
            openings: Mutex::default(),
            opened: watch::Sender::new(None),
            held: Mutex::new([(PACK, bits)].into()),
            news: broadcast::Sender::new(16),
            arrives: Mutex::default(),
            asked_frames: watch::Sender::new(0),
            asked_holdings: watch::Sender::new(0),
            uploaded: AtomicU64::new(0),
            served: Mutex::default(),
            file: Arc::new(file),
        })
    }

    pub fn region(&self, number: u32) -> Region {
        let offset = u64::from(number) * u64::from(FRAME_BYTES);
        Region { file: self.file.clone(), offset, length: FRAME_BYTES }
    }

    /// What the next opening is given.
    pub fn will_open(&self) -> mpsc::Sender<Opening> {
        let (send, receive) = mpsc::channel(32);
        *self.openings.lock().unwrap() = Some(receive);
        send
    }
}

impl Provider for Fake {
    fn open(&self, layer: LayerRef, asker: Asker) -> mpsc::Receiver<Opening> {
        self.opened.send_replace(Some((layer, asker)));
        self.openings.lock().unwrap().take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn frame(&self, pack: PackId, number: u32) -> Option<Region> {
        self.asked_frames.send_modify(|n| *n += 1);
        if self.arrives.lock().unwrap().take_if(|arrives| *arrives == number).is_some() {
            self.news.send(number).unwrap();
            return None;
        }
        // The last one is claimed to be here, past the end of the file.
        (pack == PACK && number <= self.chunks).then(|| self.region(number))
    }

    fn holding(&self, pack: PackId) -> Option<Holding> {
        self.asked_holdings.send_modify(|n| *n += 1);
        let bits = self.held.lock().unwrap().get(&pack).cloned()?;
        Some(Holding { bits, news: self.news.subscribe() })
    }

    fn uploaded(&self, bytes: u64) {
        self.uploaded.fetch_add(bytes, Ordering::Relaxed);
    }

    fn served(&self, served: &Served) {
        self.served.lock().unwrap().push(served.clone());
    }

    fn peer_id(&self) -> String {
        "seed-1".to_owned()
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub closing: CancellationToken,
    pub stop: CancellationToken,
    /// Gone when all that was asked for before the close is on its way.
    pub under_way: Weak<dyn Send + Sync>,
    pub ended: JoinHandle<()>,
}

pub async fn start(fake: &Arc<Fake>, limits: ServerLimits) -> Server {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (closing, stop) = (CancellationToken::new(), CancellationToken::new());
    let held: UnderWay = Arc::new(());
    let under_way = Arc::downgrade(&held);
    let steps = Stop { closing: closing.clone(), stopping: stop.clone(), under_way: held };
    let ended = tokio::spawn(serve(listener, fake.clone(), limits, steps));
    Server { address, closing, stop, under_way, ended }
}

impl Server {
    /// As a daemon stops: first it closes, and when nothing is under way any more it ends.
    pub async fn drain(&self) {
        self.closing.cancel();
        within(async {
            while self.under_way.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        self.stop.cancel();
    }
}

/// A fetching client whose connection runs.
pub struct Fetching {
    pub client: Client,
    pub events: mpsc::Receiver<Event>,
    pub ended: JoinHandle<Result<(), WireError>>,
}

impl Fetching {
    pub async fn connect(address: SocketAddr) -> Self {
        let (client, connection) = Client::connect(address, "node-1", PATIENCE).await.unwrap();
        let (send, events) = mpsc::channel(16);
        let ended = tokio::spawn(async move { connection.run(&send, |event| event).await });
        Self { client, events, ended }
    }

    pub async fn event(&mut self) -> Event {
        within(self.events.recv()).await.expect("the connection is up")
    }

    pub async fn end(self) -> WireError {
        within(self.ended).await.unwrap().expect_err("the connection broke")
    }
}

pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it happens in time")
}

pub fn reference() -> LayerRef {
    LayerRef {
        registry: "registry.example:5000".to_owned(),
        repository: "library/python".to_owned(),
        digest: LAYER,
        diff_id: Sha256Digest([9; 32]),
        size: 1 << 20,
        compression: Compression::Gzip,
    }
}
