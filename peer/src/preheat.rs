//! Whole layers on this peer's disk because the scheduler says so, before anybody reads them.
//!
//! One task takes the scheduler's orders; each job has a task of its own, which opens every layer as a reader would and
//! wants what is missing in the preheat lane. How far it is goes to the scheduler, now and then and at the end. An
//! order for a job that is under way is a question how far it is. Nothing is remembered over a restart: the scheduler
//! gives its orders again, and what is on disk by then is done.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_origin::PullToken;
use d7y_proto::scheduler::{LayerProgress, Preheat, PreheatState, PullGrant};
use d7y_store::{Layer, Staging};
use d7y_transfer::FailureCode;
use d7y_types::LayerRef;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Role;
use crate::directory::Order;
use crate::failure::OpenFailure;
use crate::layers::{Asker, Layers, Open};
use crate::news::News;
use crate::openings::{Outcome, Progress};

/// Orders that wait.
pub const ORDER_QUEUE: usize = 64;
/// Jobs at once; the scheduler has as many for the whole cluster.
const MAX_JOBS: usize = 1024;
/// Layers of one job under way at once; the origin has a limit of its own.
const LAYERS_AT_ONCE: usize = 4;
/// How often progress is told at most.
const TELL_EVERY: Duration = Duration::from_millis(300);
/// How long a layer that the registry refuses is tried again where a newer token may be on its way.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(20);
/// How often what was evicted meanwhile is fetched again before the store is said to be too small.
const ROUNDS: usize = 3;
/// How long a snapshotter may take to hear that room is wanted, and to unmount what no container uses.
const ROOM_COMES: Duration = Duration::from_secs(3);
const NO_ROOM: &str =
    "this peer's store has no room for all layers at once; raise store.limit, or preheat fewer images";
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// What preheating works with.
pub struct Preheater {
    role: Role,
    layers: Arc<Layers>,
    news: Arc<News>,
    tasks: Tasks,
    jobs: Mutex<HashMap<String, Arc<Job>>>,
}

/// A job under way.
struct Job {
    name: Arc<str>,
    /// Tokens come with it, and newer ones before they end.
    granted: bool,
    cancelled: CancellationToken,
    /// What was told last of each layer.
    told: Mutex<Vec<LayerProgress>>,
}

/// Why a layer is not here yet.
enum Missing {
    /// Nobody has to give up: it may be here after a while.
    For(String),
    /// The registry refused.
    Refused(String),
    /// Asking again will not help.
    Ever(String),
}

impl Preheater {
    pub fn new(role: Role, layers: &Arc<Layers>, news: &Arc<News>) -> Self {
        let (layers, news) = (layers.clone(), news.clone());
        Self { role, tasks: layers.tasks.clone(), layers, news, jobs: Mutex::default() }
    }

    /// Takes orders for as long as the peer runs.
    pub async fn run(self: Arc<Self>, mut orders: mpsc::Receiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Grant(grant) => self.take(grant),
                Order::Preheat(order) => self.begin(order),
                Order::End(end) => {
                    if let Some(job) = self.jobs.lock().remove(&end.job) {
                        job.cancelled.cancel();
                    }
                }
            }
        }
    }

    fn take(&self, grant: PullGrant) {
        let life = Duration::from_millis(u64::from(grant.lives_ms));
        let Some(token) = PullToken::new(&grant.authorization, life) else {
            tracing::warn!(registry = grant.registry, "a malformed token for preheating is dropped");
            return;
        };
        self.layers.ingester.origin.grant(&grant.registry, &grant.repository, token);
    }

    fn begin(self: &Arc<Self>, order: Preheat) {
        let parsed = order.layers.into_iter().map(d7y_proto::layer_from_wire).collect();
        let Ok(layers): Result<Vec<LayerRef>, _> = parsed else {
            tracing::warn!(job = order.job, "an order to preheat names a malformed layer and is dropped");
            return;
        };
        let mut jobs = self.jobs.lock();
        if let Some(job) = jobs.get(&order.job) {
            return job.tell_again(&self.layers);
        }
        if jobs.len() >= MAX_JOBS {
            tracing::warn!(job = order.job, "too many preheats are under way; the scheduler asks again");
            return;
        }
        let told = (0..).zip(&layers).map(|(layer, _)| progress(layer, PreheatState::Fetching)).collect();
        let (name, cancelled) = (Arc::from(order.job.as_str()), CancellationToken::new());
        let (granted, told) = (order.granted, Mutex::new(told));
        let job = Arc::new(Job { name, granted, cancelled: cancelled.clone(), told });
        jobs.insert(order.job, job.clone());
        drop(jobs);
        tracing::info!(job = &*job.name, layers = layers.len(), "preheating");
        let (this, stopping) = (self.clone(), self.tasks.shutdown().stopping());
        self.tasks.spawn("preheat", OnEnd::Expected, async move {
            let all = this.fetch_all(&job, layers);
            tokio::select! {
                () = all => {}
                () = cancelled.cancelled() => {}
                () = stopping.cancelled() => {}
            }
            this.jobs.lock().remove(&*job.name);
            Ok::<_, Infallible>(())
        });
    }

    /// A layer is done when all are: one that is fetched may evict one that was.
    async fn fetch_all(&self, job: &Job, layers: Vec<LayerRef>) {
        let teller = |number| Teller { job, number, layers: &self.layers };
        let mut wanted: Vec<(u32, LayerRef)> = (0..).zip(layers).collect();
        let mut fetched: HashMap<u32, (LayerRef, u64)> = HashMap::new();
        for _ in 0..ROUNDS {
            let fetches = stream::iter(wanted).map(|(number, layer)| async move {
                let total = self.fetch(&layer, &teller(number)).await;
                (number, layer, total)
            });
            let mut fetches = fetches.buffer_unordered(LAYERS_AT_ONCE);
            while let Some((number, layer, total)) = fetches.next().await {
                match total {
                    Some(total) => drop(fetched.insert(number, (layer, total))),
                    None => drop(fetched.remove(&number)),
                }
            }
            let evicted = fetched.iter().filter(|(_, (layer, _))| !self.is_here(layer));
            wanted = evicted.map(|(number, (layer, _))| (*number, layer.clone())).collect();
            if wanted.is_empty() {
                break;
            }
            // Perhaps what no container uses can go: who keeps it mounted hears of it, and has a moment.
            self.layers.store.lacks_room();
            tokio::time::sleep(ROOM_COMES).await;
        }
        for (number, (layer, total)) in fetched {
            match self.is_here(&layer) {
                true => teller(number).tell(PreheatState::Done, (total, total), ""),
                false => teller(number).tell(PreheatState::Failed, (0, total), NO_ROOM),
            }
        }
    }

    fn is_here(&self, layer: &LayerRef) -> bool {
        let layer = self.layers.store.layer(layer.digest);
        layer.is_some_and(|layer| (0..layer.chunks().len() as u32).all(|number| self.has(&layer, number)))
    }

    /// Until the layer is here: how many bytes that are; nothing when it never will be.
    async fn fetch(&self, layer: &LayerRef, teller: &Teller<'_>) -> Option<u64> {
        let failed = |why: &str| {
            teller.tell(PreheatState::Failed, (0, 0), why);
            None
        };
        let mut delay = RETRY_FIRST;
        let mut refused_since = None;
        self.layers.begin_anew(layer.digest);
        loop {
            let why = match self.attempt(layer, teller).await {
                Ok(total) => return Some(total),
                Err(Missing::Ever(why)) => return failed(&why),
                Err(Missing::Refused(why)) => {
                    let since: &mut Instant = refused_since.get_or_insert_with(Instant::now);
                    if !teller.job.granted || since.elapsed() > REFUSAL_PATIENCE {
                        return failed(&why);
                    }
                    why
                }
                Err(Missing::For(why)) => {
                    refused_since = None;
                    why
                }
            };
            tracing::debug!(layer = %layer.digest, why, "a layer to preheat is not here yet");
            teller.tell(PreheatState::Fetching, teller.bytes(), &why);
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_MOST);
        }
    }

    /// Opens the layer and waits for all of it; returns how many bytes that are.
    async fn attempt(&self, layer: &LayerRef, teller: &Teller<'_>) -> Result<u64, Missing> {
        let ready = match self.layers.open(layer, Asker::Local).await.map_err(Missing::from)? {
            Open::Ready(ready) => ready,
            Open::Following(progress) => follow(progress, teller).await?,
        };
        self.complete(&ready, teller).await
    }

    /// Wants what is missing, and waits for it.
    async fn complete(&self, layer: &Arc<Layer>, teller: &Teller<'_>) -> Result<u64, Missing> {
        let mut arrivals = self.news.follow(layer.pack());
        self.recover(layer).await;
        self.layers.reuser.look_and_take(layer).await;
        self.layers.fetcher.complete(layer.clone(), self.missing(layer)).await;
        let patience = self.layers.config.origin_fallback_after;
        let full_before = self.layers.metrics.store_full.get();
        let began = Instant::now();
        let (mut advanced, mut before) = (began, 0);
        loop {
            let (done, total) = self.bytes(layer);
            teller.tell(PreheatState::Fetching, (done, total), "");
            // What is being fetched is in use: others are evicted first.
            let held = self.layers.store.layer(layer.digest());
            if !held.is_some_and(|held| Arc::ptr_eq(&held, layer)) {
                return Err(Missing::For("the layer was evicted from this peer's store".to_owned()));
            }
            if done == total {
                return Ok(total);
            }
            let failure = self.layers.rescue_failure(layer, began);
            if let Some(failure) = failure.clone().filter(|failure| failure.code != FailureCode::Internal) {
                return Err(failure.into());
            }
            if done > before {
                (before, advanced) = (done, Instant::now());
            } else if advanced.elapsed() >= patience {
                return Err(self.stalled(full_before, failure));
            } else {
                // What a reader wanted besides and gave up waiting for stands behind all else by now.
                self.layers.fetcher.complete(layer.clone(), self.missing(layer)).await;
            }
            if self.layers.fetcher.is_orphan(layer.digest()).await {
                self.layers.wait_for(layer);
            }
            // Whatever arrives, a look now and then is enough.
            let _ = tokio::time::timeout(patience.min(Duration::from_secs(1)), arrivals.recv()).await;
            tokio::time::sleep(TELL_EVERY).await;
            arrivals = arrivals.resubscribe();
        }
    }

    /// Nothing has come for long: the disk does not take it, or nobody has it any more. Whoever reads the origin again has
    /// not come to it yet, or has found other chunks there: then only who held the layer could help, and nobody has come back.
    fn stalled(&self, full_before: u64, failure: Option<OpenFailure>) -> Missing {
        match failure {
            _ if self.layers.metrics.store_full.get() > full_before => Missing::Ever(NO_ROOM.to_owned()),
            Some(failure) => Missing::Ever(failure.message),
            None => Missing::For("no peer gives what is missing".to_owned()),
        }
    }

    /// What lies here as a frame, or from an earlier boot, needs no network.
    async fn recover(&self, layer: &Arc<Layer>) {
        let (role, layer, store) = (self.role, layer.clone(), self.layers.store.clone());
        let recover = move || {
            let here = (0..layer.chunks().len() as u32).filter(|number| layer.may_be_here(*number));
            for number in here {
                // What cannot be recovered is fetched like all else.
                match role {
                    Role::Seed => drop(layer.confirm(number).and_then(|()| store.take_twin(&layer, number))),
                    Role::Node if layer.readable().get(number) => {}
                    Role::Node => drop(store.recover(&layer, number)),
                }
            }
        };
        let _ = tokio::task::spawn_blocking(recover).await;
    }

    fn missing(&self, layer: &Layer) -> Vec<u32> {
        (0..layer.chunks().len() as u32).filter(|number| !self.has(layer, *number)).collect()
    }

    /// Seeds pass frames on; nodes mount what is unpacked.
    fn has(&self, layer: &Layer, number: u32) -> bool {
        match self.role {
            Role::Seed => layer.shareable().get(number),
            Role::Node => layer.readable().get(number),
        }
    }

    /// Of the layer as it is transferred: what is here, and all.
    fn bytes(&self, layer: &Layer) -> (u64, u64) {
        let sizes = (0u32..).zip(layer.chunks()).map(|(number, chunk)| {
            let bytes = u64::from(chunk.frame_bytes);
            (if self.has(layer, number) { bytes } else { 0 }, bytes)
        });
        sizes.fold((0, 0), |(done, total), (here, bytes)| (done + here, total + bytes))
    }
}

/// Tells how far an opening is until its layer is here.
async fn follow(mut progress: watch::Receiver<Progress>, teller: &Teller<'_>) -> Result<Arc<Layer>, Missing> {
    loop {
        let now = progress.borrow_and_update().clone();
        match now.outcome {
            Some(Outcome::Ready(ready)) => return Ok(ready),
            Some(Outcome::Failed(failure)) => return Err(failure.into()),
            None => {}
        }
        let staged = now.staging.as_deref().map_or(0, staged_bytes);
        teller.tell(PreheatState::Fetching, (staged, 0), "");
        if progress.changed().await.is_err() {
            return Err(Missing::For("the peer is stopping".to_owned()));
        }
        // An ending is never waited out: it is looked at first.
        if progress.borrow().outcome.is_none() {
            let ended = progress.wait_for(|progress| progress.outcome.is_some());
            let _ = tokio::time::timeout(TELL_EVERY, ended).await;
        }
    }
}

/// Chunks are staged in the order of the pack.
fn staged_bytes(staging: &Staging) -> u64 {
    let last = staging.len().checked_sub(1).and_then(|number| staging.chunk(number));
    last.map_or(0, |(_, frame)| frame.offset + u64::from(frame.length))
}

/// Says how far one layer of a job is.
struct Teller<'a> {
    job: &'a Job,
    number: u32,
    layers: &'a Layers,
}

impl Teller<'_> {
    fn tell(&self, state: PreheatState, (bytes_done, bytes_total): (u64, u64), error: &str) {
        let now = LayerProgress {
            bytes_done,
            bytes_total,
            error: error.to_owned(),
            ..progress(self.number, state)
        };
        let mut told = self.job.told.lock();
        let Some(before) = told.get_mut(self.number as usize).filter(|before| **before != now) else {
            return;
        };
        *before = now.clone();
        drop(told);
        self.job.say(self.layers, now);
    }

    fn bytes(&self) -> (u64, u64) {
        let told = self.job.told.lock();
        told.get(self.number as usize).map_or((0, 0), |told| (told.bytes_done, told.bytes_total))
    }
}

impl Job {
    fn tell_again(&self, layers: &Layers) {
        let told = self.told.lock().clone();
        told.into_iter().for_each(|progress| self.say(layers, progress));
    }

    fn say(&self, layers: &Layers, progress: LayerProgress) {
        layers.directory.preheat_progress(&self.name, progress);
    }
}

fn progress(layer: u32, state: PreheatState) -> LayerProgress {
    LayerProgress { layer, state: state.into(), ..LayerProgress::default() }
}

impl From<OpenFailure> for Missing {
    fn from(failure: OpenFailure) -> Self {
        match failure.code {
            FailureCode::Unauthorized => Self::Refused(failure.message),
            FailureCode::NotFound | FailureCode::Corrupt => Self::Ever(failure.message),
            FailureCode::Internal | FailureCode::Unavailable | FailureCode::Untrusted => {
                Self::For(failure.message)
            }
        }
    }
}
