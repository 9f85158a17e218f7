//! Every way in which this peer comes to a layer, behind one `open`.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use d7y_chassis::DrainGuard;
use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_proto::scheduler::inventory::State;
use d7y_store::{Layer, Recovered, Store, StoreError};
use d7y_transfer::FailureCode;
use d7y_types::{ByteRange, Caller, LayerRef, Sha256Digest};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::confirm::Confirmer;
use crate::directory::{Changes, Directory, Plan};
use crate::failure::OpenFailure;
use crate::fetch::{Brought, FetchError, Fetcher, Giver};
use crate::ingest::Ingester;
use crate::metrics::{Metrics, opened};
use crate::news::News;
use crate::openings::{Join, Openings, Outcome, Progress, Reporter};
use crate::patience::Patience;
use crate::receive::Receiver;
use crate::rescue::{Cases, End};
use crate::reuse::Reuser;

/// Layers read from origins at once: each holds a connection, a thread and about 4 MiB.
const MAX_INGESTS: usize = 8;
/// How often layers of which readers wait for chunks are looked at.
pub const WATCH_EVERY: Duration = Duration::from_millis(250);
/// How often all layers are looked at: whether they are complete by now, and still here.
const INVENTORY_EVERY: Duration = Duration::from_secs(2);
/// So many times the patience of a node what the disk lost is waited for: it stays wanted afterwards, behind everything else.
const REFETCH: u32 = 12;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// Who asks decides whether this peer may go to the origin for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// This node's own snapshotter.
    Local,
    /// Another peer; only seeds read origins for others.
    Peer,
}

pub struct LayersConfig {
    pub seed: bool,
    pub background: bool,
    pub origin_fallback_after: Duration,
}

pub struct Layers {
    pub config: LayersConfig,
    pub store: Arc<Store>,
    pub openings: Openings,
    pub directory: Arc<Directory>,
    pub fetcher: Fetcher,
    pub ingester: Ingester,
    pub receiver: Receiver,
    pub confirmer: Confirmer,
    pub reuser: Reuser,
    news: Arc<News>,
    pub metrics: Arc<Metrics>,
    pub tasks: Tasks,
    pub ingests: Semaphore,
    /// Layers whose parents the fetch loop has been told of since this process started.
    engaged: Mutex<HashMap<Sha256Digest, Weak<Layer>>>,
    pub cases: Mutex<Cases>,
}

/// Chunks that are no longer here as they were.
#[derive(Debug, Default)]
pub struct Lost {
    pub data: Vec<u32>,
    pub frames: Vec<u32>,
}

/// What a caller of `open` follows.
pub enum Open {
    Ready(Arc<Layer>),
    Following(watch::Receiver<Progress>),
}

/// The parts that [`Layers::new`] puts together.
pub struct LayersParts {
    pub config: LayersConfig,
    pub directory: Arc<Directory>,
    pub fetcher: Fetcher,
    pub ingester: Ingester,
    pub receiver: Receiver,
    pub news: Arc<News>,
    pub tasks: Tasks,
}

impl Layers {
    pub fn new(parts: LayersParts) -> Arc<Self> {
        let LayersParts { config, directory, fetcher, ingester, receiver, news, tasks } = parts;
        let (store, metrics) = (ingester.store.clone(), ingester.metrics.clone());
        let confirmer = Confirmer {
            store: store.clone(),
            fetcher: fetcher.clone(),
            news: news.clone(),
            directory: directory.clone(),
            tasks: tasks.clone(),
            background: config.background,
            turn: Arc::new(Semaphore::new(1)),
        };
        let reuser = Reuser {
            store: store.clone(),
            fetcher: fetcher.clone(),
            news: news.clone(),
            tasks: tasks.clone(),
            background: config.background,
            looking: Arc::default(),
            turn: Arc::default(),
        };
        let ingests = Semaphore::new(MAX_INGESTS);
        let (openings, engaged) = (Openings::default(), Mutex::default());
        let cases = Mutex::new(Cases::new(config.origin_fallback_after));
        let this = Self {
            config,
            store,
            openings,
            directory,
            fetcher,
            ingester,
            receiver,
            confirmer,
            reuser,
            news,
            metrics,
            tasks,
            ingests,
            engaged,
            cases,
        };
        for layer in this.store.layers() {
            this.directory.announce(layer.digest(), inventory_state(&layer));
        }
        Arc::new(this)
    }

    /// Finds the layer here, joins the work on it, or starts that work.
    pub async fn open(self: &Arc<Self>, layer: &LayerRef, asker: Asker) -> Result<Open, OpenFailure> {
        let known = self.store.layer(layer.digest);
        if let Some(known) = known.filter(|known| !self.store.forget_if_deleted(known)) {
            if known.reference().diff_id != layer.diff_id {
                let problem = "the image's config gives this layer another diff id than its bytes have";
                return Err(OpenFailure::new(FailureCode::Corrupt, problem));
            }
            self.confirmer.start(&known);
            if asker == Asker::Local {
                self.engage(&known).await;
            }
            return Ok(Open::Ready(known));
        }
        if asker == Asker::Peer && !self.config.seed {
            let running = self.openings.running(layer.digest).map(Open::Following);
            let absent = || OpenFailure::new(FailureCode::Unavailable, "this node does not have the layer");
            return running.ok_or_else(absent);
        }
        if asker == Asker::Peer && self.tasks.shutdown().has_begun() {
            return Err(OpenFailure::new(FailureCode::Unavailable, "this peer is stopping"));
        }
        match self.openings.join(layer) {
            Join::Follow(progress) => Ok(Open::Following(progress)),
            Join::Lead(progress, reporter) => {
                let (this, layer) = (self.clone(), layer.clone());
                let stopping = self.tasks.shutdown().stopping();
                self.tasks.spawn("open layer", OnEnd::Expected, async move {
                    stopping.run_until_cancelled(this.lead(layer, reporter)).await;
                    Ok::<_, std::convert::Infallible>(())
                });
                Ok(Open::Following(progress))
            }
        }
    }

    async fn lead(self: Arc<Self>, layer: LayerRef, reporter: Reporter) {
        let began = Instant::now();
        // Evicted, perhaps, since the inventory was looked at last. Whoever else opens the layer now must not be sent here,
        // nor this peer by an answer from before: peers that wait for each other read nothing.
        self.directory.announce(layer.digest, State::None);
        self.directory.forget(layer.digest);
        let obtained = tokio::select! {
            obtained = self.obtain(&layer, &reporter) => obtained,
            () = reporter.given_up() => {
                Err(OpenFailure::new(FailureCode::Unavailable, "nobody gave it in time, and it is pulled in another way"))
            }
        };
        let outcome = match obtained {
            Ok(ready) => {
                tracing::info!(layer = %layer.digest, chunks = ready.chunks().len(), ms = began.elapsed().as_millis() as u64, "layer index is here");
                self.directory.announce(layer.digest, inventory_state(&ready));
                self.news.announce_all(&ready);
                self.engage(&ready).await;
                Outcome::Ready(ready)
            }
            Err(failure) => {
                tracing::warn!(layer = %layer.digest, code = ?failure.code, error = failure.message, "layer cannot be opened");
                self.directory.announce(layer.digest, State::Failed);
                self.directory.forget(layer.digest);
                self.metrics.opened(opened::FAILED);
                Outcome::Failed(failure)
            }
        };
        self.openings.end(layer.digest, &reporter, outcome);
    }

    /// Makes the fetch loop know the layer and its parents. Once per process: the scheduler pushes what changes.
    pub async fn engage(&self, layer: &Arc<Layer>) {
        self.confirmer.start(layer);
        if self.is_whole(layer) {
            return;
        }
        let before = self.engaged.lock().insert(layer.digest(), Arc::downgrade(layer));
        if before.is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(layer))) {
            return;
        }
        self.reuser.look(layer).await;
        self.fetcher.add_layer(layer.clone(), self.config.background).await;
        self.find_parents(layer).await;
    }

    /// Tells the fetch loop whom to ask for chunks; false when there is nobody.
    pub async fn find_parents(&self, layer: &Arc<Layer>) -> bool {
        let plan = self.directory.plan(layer.digest()).await;
        let mut parents = plan.ask;
        for seed in self.directory.static_seeds(layer.digest()).await {
            if !parents.contains(&seed) {
                parents.push(seed);
            }
        }
        let any = !parents.is_empty();
        self.fetcher.set_parents(layer.digest(), parents).await;
        any
    }

    async fn obtain(&self, layer: &LayerRef, reporter: &Reporter) -> Result<Arc<Layer>, OpenFailure> {
        let mut patience = Patience::new(self.config.origin_fallback_after, Instant::now());
        let mut delay = RETRY_FIRST;
        loop {
            let plan = self.directory.plan(layer.digest).await;
            let alone = plan.ingest || (plan.ask.is_empty() && self.config.seed);
            let next =
                self.config.seed && !plan.leased && patience.are_gone(plan.before_me(), Instant::now());
            if alone || next || patience.is_over(plan.leased, Instant::now()) {
                return self.ingest(layer, reporter).await;
            }
            match self.ask(&plan, layer, reporter, &mut patience).await {
                Ok(ready) => return Ok(ready),
                Err(failure) => match failure.code {
                    // What the other's credentials do not open, this node's own may.
                    FailureCode::Unauthorized => return self.ingest(layer, reporter).await,
                    // When those who have the index signed it with keys of their own, nobody else will ever be told to
                    // build one.
                    FailureCode::Untrusted => {
                        let error = &failure.message;
                        tracing::warn!(layer = %layer.digest, error, "reading a layer again that other peers have");
                        return self.ingest(layer, reporter).await;
                    }
                    FailureCode::Corrupt | FailureCode::NotFound => return Err(failure),
                    FailureCode::Internal | FailureCode::Unavailable => {
                        tracing::debug!(layer = %layer.digest, error = failure.message, "asking again");
                    }
                },
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_MOST);
        }
    }

    async fn ask(
        &self,
        plan: &Plan,
        layer: &LayerRef,
        reporter: &Reporter,
        patience: &mut Patience,
    ) -> Result<Arc<Layer>, OpenFailure> {
        let mut last = OpenFailure::new(FailureCode::Unavailable, "no peer has the layer");
        for parent in &plan.ask {
            let received = self.receiver.receive(*parent, layer, reporter, patience).await;
            reporter.follows([]);
            match received {
                Ok(ready) => {
                    self.metrics.opened(opened::RECEIVED);
                    return Ok(ready);
                }
                Err(failure) if last.code == FailureCode::Untrusted => {
                    tracing::debug!(parent = %parent.address, error = failure.message, "not there either");
                }
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn ingest(&self, layer: &LayerRef, reporter: &Reporter) -> Result<Arc<Layer>, OpenFailure> {
        // Before the slot: whoever waits for one has taken the lease all the same.
        self.directory.announce(layer.digest, State::Ingesting);
        let work = async {
            let _slot = self.ingests.acquire().await.expect("never closed");
            let _under_way = self.under_way();
            self.ingester.ingest(layer, reporter).await
        };
        let ready = reporter.while_working(work).await?;
        self.metrics.opened(opened::INGESTED);
        Ok(ready)
    }

    /// Holds the end of this peer up for a read of an origin that has begun before: a part of it is of no use to the next
    /// process.
    pub fn under_way(&self) -> Option<DrainGuard> {
        let shutdown = self.tasks.shutdown();
        (!shutdown.has_begun()).then(|| shutdown.drain_guard())
    }

    /// Makes a range of the device readable: from what this node has of it, else from the swarm.
    pub async fn make_readable(
        &self,
        layer: &Arc<Layer>,
        range: ByteRange,
        caller: Option<Caller>,
        deadline: Duration,
    ) -> Result<Brought, FetchError> {
        let missing: Vec<u32> =
            layer.chunks_in(range).filter(|number| !layer.readable().get(*number)).collect();
        if missing.is_empty() {
            return Ok(Brought::default());
        }
        self.reuser.look(layer).await;
        let (here, elsewhere): (Vec<u32>, Vec<u32>) =
            missing.into_iter().partition(|number| layer.may_be_here(*number));
        let mut wanted = elsewhere;
        let mut last_from = None;
        if !here.is_empty() {
            let (lost, reused) = self.recover(layer, here).await;
            wanted.extend(lost);
            last_from = reused.then_some(Giver::OtherLayer);
        }
        if wanted.is_empty() {
            return Ok(Brought { last_from, ..Brought::default() });
        }
        // After a restart of the peer, containers read from layers that nobody has opened since.
        self.engage(layer).await;
        self.fetcher.ensure(layer, wanted, caller, deadline).await
    }

    /// Fetches what the disk has lost. Data with the urgency of a read: the device may be mounted, and then nobody asks.
    pub async fn refetch(&self, layer: &Arc<Layer>, lost: Lost) -> Result<(), FetchError> {
        if !lost.frames.is_empty() {
            self.fetcher.refetch(layer.clone(), lost.frames).await;
            self.find_parents(layer).await;
        }
        if lost.data.is_empty() {
            return Ok(());
        }
        self.engage(layer).await;
        self.find_parents(layer).await;
        let deadline = self.config.origin_fallback_after * REFETCH;
        self.fetcher.ensure(layer, lost.data, None, deadline).await.map(drop)
    }

    /// Replaces a damaged index: from another peer that has the layer, else the layer goes and is opened anew when it is
    /// wanted. False when neither can be done, because it is mounted and nobody else has it.
    pub async fn replace_index(&self, layer: &Arc<Layer>) -> Result<bool, StoreError> {
        let mut parents = self.directory.plan(layer.digest()).await.ask;
        parents.extend(self.directory.static_seeds(layer.digest()).await);
        for parent in parents {
            match self.receiver.receive_index(parent.address, layer).await {
                Ok(()) => return Ok(true),
                Err(failure) => {
                    tracing::debug!(parent = %parent.address, error = failure.message, "it does not give the index");
                }
            }
        }
        self.store.drop_damaged(layer)
    }

    /// What of these chunks is not on this disk after all, and whether another layer had one of the others.
    async fn recover(&self, layer: &Arc<Layer>, numbers: Vec<u32>) -> (Vec<u32>, bool) {
        let (store, known, asked) = (self.store.clone(), layer.clone(), numbers.clone());
        let recover = move || asked.iter().map(|number| store.recover(&known, *number)).collect::<Vec<_>>();
        let Ok(outcomes) = tokio::task::spawn_blocking(recover).await else { return (numbers, false) };
        let (mut lost, mut reused) = (Vec::new(), false);
        for (number, outcome) in numbers.into_iter().zip(outcomes) {
            match outcome {
                Ok(Recovered::Here) => {}
                Ok(Recovered::OtherLayer) => {
                    reused = true;
                    if layer.shareable().get(number) {
                        self.news.announce(layer.pack(), number);
                    }
                }
                Ok(Recovered::No) | Err(_) => lost.push(number),
            }
        }
        (lost, reused)
    }

    /// Looks now and then at what nobody reports: layers of which readers want what no peer holds, and layers that have
    /// become complete or have gone.
    pub async fn watch(self: Arc<Self>) {
        let mut kept = Instant::now();
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            if kept.elapsed() >= INVENTORY_EVERY {
                self.keep_inventory();
                kept = Instant::now();
            }
            let orphans = self.fetcher.orphans().await;
            let now = Instant::now();
            for layer in orphans.into_iter().filter_map(|digest| self.store.layer(digest)) {
                self.wait_for(&layer);
            }
            let due = self.cases.lock().due(now);
            for (digest, reason) in due {
                let (this, stopping) = (self.clone(), self.tasks.shutdown().stopping());
                let rescue = async move {
                    let ended = match this.store.layer(digest) {
                        Some(layer) => this.rescue(&layer, reason).await,
                        None => Ok(End::Whole),
                    };
                    this.cases.lock().end(digest, ended, Instant::now());
                };
                self.tasks.spawn("rescue a layer", OnEnd::Expected, async move {
                    stopping.run_until_cancelled(rescue).await;
                    Ok::<_, std::convert::Infallible>(())
                });
            }
        }
    }

    /// Tells the scheduler what has changed, and lets go of what is of no more interest.
    fn keep_inventory(&self) {
        let held = self.store.layers();
        let held = held.iter().map(|layer| (layer.digest(), inventory_state(layer), self.is_whole(layer)));
        let Changes { whole, gone } = self.directory.keep_inventory(held);
        for digest in whole {
            // Should chunks be lost, parents are asked for anew.
            self.engaged.lock().remove(&digest);
        }
        // What is being opened is announced before the store has it.
        let is_here = |digest| self.openings.running(digest).is_some() || self.store.layer(digest).is_some();
        for digest in gone.into_iter().filter(|digest| !is_here(*digest)) {
            tracing::debug!(layer = %digest, "the layer has gone from the store");
            self.directory.announce(digest, State::None);
            self.directory.forget(digest);
            self.engaged.lock().remove(&digest);
            self.cases.lock().remove(digest);
        }
    }

    /// Whether all that this peer keeps of layers is here.
    pub fn is_whole(&self, layer: &Layer) -> bool {
        let bits = if self.config.seed { layer.shareable() } else { layer.readable() };
        bits.is_full()
    }
}

/// What the cluster is told about a layer here.
pub fn inventory_state(layer: &Layer) -> State {
    match layer.shareable().is_full() {
        true => State::Complete,
        false => State::Partial,
    }
}
