//! Who has a layer, and who may read it from its origin: the scheduler's word, or the configured seeds without it.
//!
//! The session with the scheduler is kept up by one task. After every reconnect the peer says all that it has and
//! wants again, because the scheduler remembers nothing over a restart. Nothing on the read path waits for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use d7y_proto::scheduler::inventory::State;
use d7y_proto::scheduler::scheduler_client::SchedulerClient;
use d7y_proto::scheduler::{
    Announce, Assignment, CloseTask, GetTrace, Heartbeat, Inventory, OpenTask, PeerMessage, PublishTrace,
    SchedulerMessage, peer_message, scheduler_message,
};
use d7y_types::Sha256Digest;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::chain;
use crate::fetch::{Fetcher, Parent};
use crate::metrics::Metrics;

/// Messages to the scheduler that may wait for the session; more are dropped and said again after a reconnect.
const OUTBOUND_QUEUE: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
const RECONNECT_MOST: Duration = Duration::from_secs(5);
/// How long opening a layer waits for the scheduler's word before it goes by the configured seeds.
const ASSIGNMENT_WAIT: Duration = Duration::from_secs(1);
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);
/// Traces kept from the scheduler's answers; the newest asked for are what counts.
const MAX_TRACES: usize = 64;

/// How to obtain a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// This peer is to read the origin.
    pub ingest: bool,
    /// A scheduler decides who is.
    pub leased: bool,
    /// Whom to ask, best first.
    pub ask: Vec<Parent>,
}

pub struct DirectoryConfig {
    pub announce: Announce,
    /// host:port of the scheduler; empty for none.
    pub scheduler: String,
    pub seeds: Vec<String>,
}

#[derive(Default)]
struct Known {
    plans: HashMap<Sha256Digest, Plan>,
    traces: BTreeMap<Sha256Digest, Vec<u8>>,
}

pub struct Directory {
    config: DirectoryConfig,
    known: watch::Sender<Known>,
    outbound: Mutex<Option<mpsc::Sender<PeerMessage>>>,
    inventory: Mutex<HashMap<Sha256Digest, State>>,
    wanted: Mutex<HashSet<Sha256Digest>>,
    metrics: Arc<Metrics>,
}

impl Directory {
    pub fn new(config: DirectoryConfig, metrics: Arc<Metrics>) -> Self {
        let known = watch::Sender::new(Known::default());
        let (inventory, wanted) = (Mutex::default(), Mutex::default());
        Self { config, known, outbound: Mutex::default(), inventory, wanted, metrics }
    }

    pub fn is_connected(&self) -> bool {
        self.outbound.lock().is_some()
    }

    /// Whom to ask for a layer now. Waits a moment for the scheduler, never longer.
    pub async fn plan(&self, layer: Sha256Digest) -> Plan {
        self.wanted.lock().insert(layer);
        let asked = self.say(peer_message::Message::Open(OpenTask { task: layer.0.to_vec() }));
        let mut known = self.known.subscribe();
        if asked {
            let word = known.wait_for(|known| known.plans.contains_key(&layer));
            if let Ok(Ok(known)) = tokio::time::timeout(ASSIGNMENT_WAIT, word).await
                && let Some(plan) = known.plans.get(&layer)
            {
                return plan.clone();
            }
        }
        let seeds = self.static_seeds(layer).await;
        Plan { ingest: seeds.is_empty(), leased: false, ask: seeds }
    }

    /// The configured seeds other than this peer, in an order that spreads layers over them.
    pub async fn static_seeds(&self, layer: Sha256Digest) -> Vec<Parent> {
        let mut seeds = Vec::new();
        for seed in self.config.seeds.iter().filter(|seed| **seed != self.config.announce.address) {
            seeds.extend(resolve(seed).await.map(|address| Parent { address, seed: true }));
        }
        seeds.sort_by_key(|seed| std::cmp::Reverse(weight(layer, seed.address)));
        seeds
    }

    pub fn forget(&self, layer: Sha256Digest) {
        self.wanted.lock().remove(&layer);
        self.known.send_modify(|known| drop(known.plans.remove(&layer)));
        self.say(peer_message::Message::Close(CloseTask { task: layer.0.to_vec() }));
    }

    pub fn announce(&self, layer: Sha256Digest, state: State) {
        let before = self.inventory.lock().insert(layer, state);
        if before != Some(state) {
            self.say(inventory_message(layer, state));
        }
    }

    pub fn publish_trace(&self, image: Sha256Digest, body: Vec<u8>) {
        self.say(peer_message::Message::PublishTrace(PublishTrace { image: image.0.to_vec(), body }));
    }

    /// The image's access trace, if the scheduler knows one and says so in time.
    pub async fn trace(&self, image: Sha256Digest, wait: Duration) -> Option<Vec<u8>> {
        if !self.say(peer_message::Message::GetTrace(GetTrace { image: image.0.to_vec() })) {
            return None;
        }
        let mut known = self.known.subscribe();
        let word = known.wait_for(|known| known.traces.contains_key(&image));
        let known = tokio::time::timeout(wait, word).await.ok()?.ok()?;
        known.traces.get(&image).filter(|body| !body.is_empty()).cloned()
    }

    /// False when there is no session, or it is clogged.
    fn say(&self, message: peer_message::Message) -> bool {
        let outbound = self.outbound.lock();
        let message = PeerMessage { message: Some(message) };
        outbound.as_ref().is_some_and(|session| session.try_send(message).is_ok())
    }

    /// Keeps the session up for as long as the peer runs.
    pub async fn run(self: Arc<Self>, fetcher: Fetcher) {
        let mut delay = RECONNECT_FIRST;
        loop {
            let began = tokio::time::Instant::now();
            if let Err(error) = self.session(&fetcher).await {
                tracing::debug!(scheduler = self.config.scheduler, error, "no scheduler session");
            }
            if self.outbound.lock().take().is_some() {
                tracing::warn!(
                    scheduler = self.config.scheduler,
                    "lost the scheduler; going on with what is known"
                );
            }
            self.metrics.scheduler_connected.set(0);
            if began.elapsed() > RECONNECT_MOST {
                delay = RECONNECT_FIRST;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RECONNECT_MOST);
        }
    }

    async fn session(&self, fetcher: &Fetcher) -> Result<(), String> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.config.scheduler))
            .map_err(|error| chain(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
        let (send, outbound) = mpsc::channel(OUTBOUND_QUEUE);
        self.introduce(&send).await;
        let mut client = SchedulerClient::new(channel);
        let answer = client.session(ReceiverStream::new(outbound)).await.map_err(|status| chain(&status))?;
        let mut inbound = answer.into_inner();
        *self.outbound.lock() = Some(send.clone());
        self.metrics.scheduler_connected.set(1);
        tracing::info!(scheduler = self.config.scheduler, "scheduler session is up");
        let mut heartbeat = tokio::time::interval(DEFAULT_HEARTBEAT);
        loop {
            tokio::select! {
                message = inbound.message() => match message.map_err(|status| chain(&status))? {
                    Some(message) => self.hear(message, &mut heartbeat, fetcher).await,
                    None => return Ok(()),
                },
                _ = heartbeat.tick() => {
                    let beat = Heartbeat { upload_bytes_total: self.metrics.uploaded_bytes.get(), ..Heartbeat::default() };
                    self.say(peer_message::Message::Heartbeat(beat));
                }
            }
        }
    }

    async fn introduce(&self, session: &mpsc::Sender<PeerMessage>) {
        let inventory: Vec<_> = self.inventory.lock().iter().map(|(layer, state)| (*layer, *state)).collect();
        let wanted: Vec<_> = self.wanted.lock().iter().copied().collect();
        let announce = peer_message::Message::Announce(self.config.announce.clone());
        let have = inventory.into_iter().map(|(layer, state)| inventory_message(layer, state));
        let want =
            wanted.into_iter().map(|layer| peer_message::Message::Open(OpenTask { task: layer.0.to_vec() }));
        let session = session.clone();
        let all: Vec<_> = std::iter::once(announce).chain(have).chain(want).collect();
        // A task of its own: the queue may be shorter than the inventory, and the stream is not read yet.
        tokio::spawn(async move {
            for message in all {
                if session.send(PeerMessage { message: Some(message) }).await.is_err() {
                    return;
                }
            }
        });
    }

    async fn hear(
        &self,
        message: SchedulerMessage,
        heartbeat: &mut tokio::time::Interval,
        fetcher: &Fetcher,
    ) {
        match message.message {
            Some(scheduler_message::Message::Welcome(welcome)) if welcome.heartbeat_interval_ms > 0 => {
                let every = Duration::from_millis(u64::from(welcome.heartbeat_interval_ms));
                *heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
            }
            Some(scheduler_message::Message::Assignment(assignment)) => {
                let Some(layer) = digest(&assignment.task) else { return };
                let plan = plan_of(assignment, &self.config.announce.peer_id).await;
                fetcher.set_parents(layer, plan.ask.clone()).await;
                self.known.send_modify(|known| drop(known.plans.insert(layer, plan)));
            }
            Some(scheduler_message::Message::Trace(trace)) => {
                let Some(image) = digest(&trace.image) else { return };
                self.known.send_modify(|known| {
                    if known.traces.len() >= MAX_TRACES {
                        known.traces.clear();
                    }
                    known.traces.insert(image, trace.body);
                });
            }
            _ => {}
        }
    }
}

fn inventory_message(layer: Sha256Digest, state: State) -> peer_message::Message {
    peer_message::Message::Inventory(Inventory { task: layer.0.to_vec(), state: state.into() })
}

fn digest(raw: &[u8]) -> Option<Sha256Digest> {
    raw.try_into().ok().map(Sha256Digest)
}

/// The ingester first: while it reads the layer it is the only one that has anything.
async fn plan_of(assignment: Assignment, me: &str) -> Plan {
    let mut ask = Vec::new();
    let named = assignment.ingester.iter().chain(&assignment.parents).chain(&assignment.fallback);
    for parent in named.filter(|parent| parent.peer_id != me) {
        let seed = parent.role() == d7y_proto::scheduler::Role::Seed;
        let Some(address) = resolve(&parent.address).await else { continue };
        if !ask.iter().any(|known: &Parent| known.address == address) {
            ask.push(Parent { address, seed });
        }
    }
    Plan { ingest: assignment.ingest_yourself, leased: true, ask }
}

async fn resolve(address: &str) -> Option<SocketAddr> {
    match tokio::net::lookup_host(address).await {
        Ok(mut found) => found.next(),
        Err(error) => {
            tracing::warn!(address, %error, "cannot resolve a peer's address");
            None
        }
    }
}

/// Rendezvous hashing: the same layer goes to the same seed from every node.
fn weight(layer: Sha256Digest, seed: SocketAddr) -> u64 {
    let bytes = layer.0.into_iter().chain(seed.to_string().into_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
