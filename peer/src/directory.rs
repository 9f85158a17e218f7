//! Who has a layer, and who may read it from its origin: the scheduler's word, or the configured seeds without it.
//!
//! The session with the scheduler is kept up by one task. After every reconnect the peer says all that it has and
//! wants again, because the scheduler remembers nothing over a restart. Nothing on the read path waits for it.
//!
//! What waits to be said are topics, not messages: each stands once in the queue, and what is said of it is what holds
//! when its turn comes. So nothing is dropped, nothing stale overtakes, and the queue is no longer than the inventory.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use d7y_manager_client::Discovered;
use d7y_proto::scheduler::inventory::State;
use d7y_proto::scheduler::scheduler_client::SchedulerClient;
use d7y_proto::scheduler::{
    Announce, Assignment, CloseTask, EndPreheat, GetTrace, Heartbeat, Inventory, LayerProgress, OpenTask,
    PeerMessage, Preheat, PreheatProgress, PublishTrace, PullGrant, Role, SchedulerMessage, peer_message,
    scheduler_message,
};
use d7y_types::Sha256Digest;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::chain;
use crate::fetch::{Fetcher, Parent};
use crate::metrics::Metrics;

/// Messages to the scheduler between the topics and the socket.
const OUTBOUND_QUEUE: usize = 16;
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
    /// Who is to read the origin again for chunks that no peer holds.
    pub refill: Refill,
    /// Whom to ask, best first.
    pub ask: Vec<Parent>,
    /// How many of those come before this seed when it is to be read from its origin, and nobody else says who reads.
    outranked_by: usize,
}

impl Plan {
    pub fn before_me(&self) -> &[Parent] {
        &self.ask[..self.outranked_by]
    }
}

/// Who holds the origin lease of a layer whose index is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Refill {
    /// Nobody: some peer holds the layer whole, or there is no scheduler to say so.
    #[default]
    Nobody,
    Myself,
    Other(Parent),
}

pub struct DirectoryConfig {
    pub announce: Announce,
    /// host:port of the scheduler; empty to take the manager's word.
    pub scheduler: String,
    pub seeds: Vec<String>,
    /// What the manager says, if there is one.
    pub discovered: watch::Receiver<Discovered>,
    /// Has the manager asked again.
    pub ask_manager: Arc<Notify>,
    /// Where the scheduler's orders to preheat go.
    pub orders: mpsc::Sender<Order>,
}

/// What the scheduler wants on this peer's disk.
#[derive(Debug)]
pub enum Order {
    /// What opens layers for a while.
    Grant(PullGrant),
    Preheat(Preheat),
    End(EndPreheat),
}

#[derive(Default)]
struct Known {
    plans: HashMap<Sha256Digest, Plan>,
    traces: BTreeMap<Sha256Digest, Vec<u8>>,
}

/// Why there is no session.
enum SessionError {
    /// Another peer has this one's id.
    Taken(String),
    Lost(String),
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::AlreadyExists => Self::Taken(status.message().to_owned()),
            _ => Self::Lost(chain(&status)),
        }
    }
}

/// What has become of layers since the inventory was last looked at.
#[derive(Debug, Default)]
pub struct Changes {
    /// Wanted so far, and complete now.
    pub whole: Vec<Sha256Digest>,
    /// Announced, and not in the store.
    pub gone: Vec<Sha256Digest>,
}

/// What the scheduler is told.
#[derive(Default)]
struct Said {
    inventory: HashMap<Sha256Digest, State>,
    wanted: HashSet<Sha256Digest>,
    /// Traces to publish.
    traces: HashMap<Sha256Digest, Vec<u8>>,
    /// How far preheats are, by job and layer, as far as it has not been said.
    preheats: BTreeMap<(Arc<str>, u32), LayerProgress>,
    /// What is still to be said in this session.
    session: Option<Topics>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Topic {
    Heartbeat,
    Inventory(Sha256Digest),
    /// That this peer gave up reading the layer: an event, unlike what it holds.
    Failure(Sha256Digest),
    Task(Sha256Digest),
    PublishTrace(Sha256Digest),
    GetTrace(Sha256Digest),
    Preheats,
}

#[derive(Default)]
struct Topics {
    order: VecDeque<Topic>,
    waiting: HashSet<Topic>,
}

impl Topics {
    fn push(&mut self, topic: Topic) {
        if self.waiting.insert(topic) {
            self.order.push_back(topic);
        }
    }

    fn pop(&mut self) -> Option<Topic> {
        let topic = self.order.pop_front()?;
        self.waiting.remove(&topic);
        Some(topic)
    }
}

pub struct Directory {
    config: DirectoryConfig,
    known: watch::Sender<Known>,
    said: Mutex<Said>,
    more_to_say: Notify,
    connected: AtomicBool,
    /// This peer is stopping.
    left: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Directory {
    pub fn new(config: DirectoryConfig, metrics: Arc<Metrics>) -> Self {
        let (known, said) = (watch::Sender::new(Known::default()), Mutex::default());
        let [connected, left] = [false; 2].map(AtomicBool::new);
        Self { config, known, said, more_to_say: Notify::new(), connected, left, metrics }
    }

    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whom to ask for a layer now. Waits a moment for the scheduler, never longer.
    pub async fn plan(&self, layer: Sha256Digest) -> Plan {
        self.said.lock().wanted.insert(layer);
        let asked = self.say(Topic::Task(layer));
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
        // Seeds that name each other agree on who reads.
        let rank = |seed: SocketAddr| weight(layer, &seed.to_string());
        let me = match self.config.announce.role() {
            Role::Seed => resolve(&self.config.announce.address).await,
            _ => None,
        };
        let outranked_by =
            seeds.iter().filter(|seed| me.is_none_or(|me| rank(seed.address) >= rank(me))).count();
        let mine = me.is_some() && outranked_by == 0;
        // A scheduler that is slow is asked again until the opener's patience is over: what it says spares the registry.
        let alone = seeds.is_empty() && !asked && !self.left.load(Ordering::Relaxed);
        Plan { ingest: alone || mine, ask: seeds, outranked_by, ..Plan::default() }
    }

    /// The seeds, configured or discovered, other than this peer, in an order that spreads layers over them.
    pub async fn static_seeds(&self, layer: Sha256Digest) -> Vec<Parent> {
        let mut known = self.config.seeds.clone();
        known.extend(self.config.discovered.borrow().seeds.iter().cloned());
        if known.is_empty() {
            return Vec::new();
        }
        known.sort();
        known.dedup();
        let me = resolve(&self.config.announce.address).await;
        let mut seeds = Vec::new();
        for seed in &known {
            let address = resolve(seed).await.filter(|address| Some(*address) != me);
            seeds.extend(address.map(|address| Parent { address, seed: true }));
        }
        seeds.sort_by_key(|seed| std::cmp::Reverse(weight(layer, &seed.address.to_string())));
        seeds
    }

    /// Whether another peer rather than this one is to read a layer, when nobody else says.
    pub fn outranks(&self, other: &str, layer: Sha256Digest) -> bool {
        weight(layer, other) > weight(layer, &self.config.announce.peer_id)
    }

    /// Parents of the layer are of no more interest.
    pub fn forget(&self, layer: Sha256Digest) {
        if self.said.lock().wanted.remove(&layer) {
            self.known.send_modify(|known| drop(known.plans.remove(&layer)));
            self.say(Topic::Task(layer));
        }
    }

    pub fn announce(&self, layer: Sha256Digest, state: State) {
        let mut said = self.said.lock();
        let before = match state {
            State::None | State::Failed => said.inventory.remove(&layer),
            _ => said.inventory.insert(layer, state),
        };
        drop(said);
        if state == State::Failed {
            self.say(Topic::Failure(layer));
        } else if before.unwrap_or(State::None) != state {
            self.say(Topic::Inventory(layer));
        }
    }

    /// Says what has changed of all layers here, each with whether it is whole: of those, parents are of no more interest.
    pub fn keep_inventory(&self, held: impl Iterator<Item = (Sha256Digest, State, bool)>) -> Changes {
        let mut said = self.said.lock();
        let (mut changes, mut here, mut topics) = (Changes::default(), HashSet::new(), Vec::new());
        for (layer, state, whole) in held {
            here.insert(layer);
            if said.inventory.insert(layer, state) != Some(state) {
                topics.push(Topic::Inventory(layer));
            }
            if whole && said.wanted.remove(&layer) {
                topics.push(Topic::Task(layer));
                changes.whole.push(layer);
            }
        }
        changes.gone.extend(said.inventory.keys().filter(|layer| !here.contains(*layer)));
        drop(said);
        if !changes.whole.is_empty() {
            self.known.send_modify(|known| known.plans.retain(|layer, _| !changes.whole.contains(layer)));
        }
        for topic in topics {
            self.say(topic);
        }
        changes
    }

    pub fn publish_trace(&self, image: Sha256Digest, body: Vec<u8>) {
        let mut said = self.said.lock();
        if said.session.is_some() && said.traces.len() < MAX_TRACES {
            said.traces.insert(image, body);
        }
        drop(said);
        self.say(Topic::PublishTrace(image));
    }

    /// The image's access trace, if the scheduler knows one and says so in time.
    pub async fn trace(&self, image: Sha256Digest, wait: Duration) -> Option<Vec<u8>> {
        if !self.say(Topic::GetTrace(image)) {
            return None;
        }
        let mut known = self.known.subscribe();
        let word = known.wait_for(|known| known.traces.contains_key(&image));
        let known = tokio::time::timeout(wait, word).await.ok()?.ok()?;
        known.traces.get(&image).filter(|body| !body.is_empty()).cloned()
    }

    /// Says how far a preheat is: in the next session, when there is none.
    pub fn preheat_progress(&self, job: &Arc<str>, progress: LayerProgress) {
        self.said.lock().preheats.insert((job.clone(), progress.layer), progress);
        self.say(Topic::Preheats);
    }

    /// False when there is no session to say it in.
    fn say(&self, topic: Topic) -> bool {
        let mut said = self.said.lock();
        let Some(session) = &mut said.session else { return false };
        session.push(topic);
        drop(said);
        self.more_to_say.notify_one();
        true
    }

    async fn next_to_say(&self) -> PeerMessage {
        loop {
            let message = self.said.lock().next(&self.metrics);
            match message {
                Some(message) => return PeerMessage { message: Some(message) },
                None => self.more_to_say.notified().await,
            }
        }
    }

    /// Keeps the session up for as long as the peer runs.
    pub async fn run(self: Arc<Self>, fetcher: Fetcher) {
        let (mut delay, mut taken, mut told) = (RECONNECT_FIRST, false, false);
        for attempt in 0.. {
            let scheduler = self.scheduler(attempt).await;
            let began = tokio::time::Instant::now();
            match self.session(&scheduler, &fetcher).await {
                Ok(()) => {}
                Err(SessionError::Taken(error)) if !taken => {
                    taken = true;
                    tracing::error!(scheduler, error, "the scheduler refuses this peer");
                }
                // The loss of a session is told below.
                Err(SessionError::Lost(error)) if !told && !self.connected.load(Ordering::Relaxed) => {
                    told = true;
                    tracing::warn!(scheduler, error, "the scheduler cannot be reached; going on without it");
                }
                Err(SessionError::Taken(error) | SessionError::Lost(error)) => {
                    tracing::debug!(scheduler, error, "no scheduler session");
                }
            }
            self.said.lock().session = None;
            if self.connected.swap(false, Ordering::Relaxed) {
                told = true;
                tracing::warn!(scheduler, "lost the scheduler; going on with what is known");
            }
            self.metrics.scheduler_connected.set(0);
            self.config.ask_manager.notify_one();
            if began.elapsed() > RECONNECT_MOST {
                taken = false;
                delay = RECONNECT_FIRST;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RECONNECT_MOST);
        }
    }

    /// The session has ended because this peer stops: the scheduler sends nobody here any more. What is under way goes on
    /// with whom it knows, and reads no origin for want of a scheduler.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.said.lock().session = None;
        self.connected.store(false, Ordering::Relaxed);
        self.metrics.scheduler_connected.set(0);
    }

    /// The configured scheduler, else the discovered ones in turn, as soon as there are any.
    async fn scheduler(&self, attempt: usize) -> String {
        if !self.config.scheduler.is_empty() {
            return self.config.scheduler.clone();
        }
        let mut discovered = self.config.discovered.clone();
        let found = match discovered.wait_for(|known| !known.schedulers.is_empty()).await {
            Ok(known) => Some(known.schedulers[attempt % known.schedulers.len()].clone()),
            Err(_) => None,
        };
        match found {
            Some(scheduler) => scheduler,
            // The manager's task is gone: the peer is stopping.
            None => std::future::pending().await,
        }
    }

    async fn session(&self, scheduler: &str, fetcher: &Fetcher) -> Result<(), SessionError> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{scheduler}"))
            .map_err(|error| SessionError::Lost(chain(&error)))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        let channel = endpoint.connect().await.map_err(|error| SessionError::Lost(chain(&error)))?;
        let (send, outbound) = mpsc::channel(OUTBOUND_QUEUE);
        let announce = peer_message::Message::Announce(self.config.announce.clone());
        let _ = send.try_send(PeerMessage { message: Some(announce) });
        self.said.lock().begin();
        self.known.send_modify(|known| known.plans.clear());
        let mut client = SchedulerClient::new(channel);
        let answer = client.session(ReceiverStream::new(outbound)).await?;
        let mut inbound = answer.into_inner();
        let saying = async { while send.send(self.next_to_say().await).await.is_ok() {} };
        tokio::select! {
            () = saying => Ok(()),
            ended = self.listen(&mut inbound, fetcher) => ended,
        }
    }

    async fn listen(
        &self,
        inbound: &mut tonic::Streaming<SchedulerMessage>,
        fetcher: &Fetcher,
    ) -> Result<(), SessionError> {
        let mut heartbeat = tokio::time::interval(DEFAULT_HEARTBEAT);
        loop {
            tokio::select! {
                message = inbound.message() => match message? {
                    Some(message) => self.hear(message, &mut heartbeat, fetcher).await,
                    None => return Ok(()),
                },
                _ = heartbeat.tick() => {
                    self.say(Topic::Heartbeat);
                }
            }
        }
    }

    async fn hear(
        &self,
        message: SchedulerMessage,
        heartbeat: &mut tokio::time::Interval,
        fetcher: &Fetcher,
    ) {
        match message.message {
            Some(scheduler_message::Message::Welcome(welcome)) => {
                self.connected.store(true, Ordering::Relaxed);
                self.metrics.scheduler_connected.set(1);
                tracing::info!("scheduler session is up");
                if welcome.heartbeat_interval_ms == 0 {
                    return;
                }
                let every = Duration::from_millis(u64::from(welcome.heartbeat_interval_ms));
                *heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
            }
            Some(scheduler_message::Message::Assignment(assignment)) => {
                let Some(layer) = digest(&assignment.task) else { return };
                let plan = plan_of(assignment, &self.config.announce.peer_id).await;
                fetcher.set_parents(layer, plan.ask.clone()).await;
                let said = self.said.lock();
                if said.wanted.contains(&layer) {
                    self.known.send_modify(|known| drop(known.plans.insert(layer, plan)));
                }
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
            Some(scheduler_message::Message::Grant(grant)) => self.order(Order::Grant(grant)).await,
            Some(scheduler_message::Message::Preheat(order)) => self.order(Order::Preheat(order)).await,
            Some(scheduler_message::Message::EndPreheat(end)) => self.order(Order::End(end)).await,
            _ => {}
        }
    }

    async fn order(&self, order: Order) {
        // The preheater ends with the peer.
        let _ = self.config.orders.send(order).await;
    }
}

impl Said {
    /// A new session: everything is to be said, first what is here and then what is wanted.
    fn begin(&mut self) {
        let mut topics = Topics::default();
        self.inventory.keys().for_each(|layer| topics.push(Topic::Inventory(*layer)));
        self.wanted.iter().for_each(|layer| topics.push(Topic::Task(*layer)));
        self.traces.keys().for_each(|image| topics.push(Topic::PublishTrace(*image)));
        topics.push(Topic::Preheats);
        self.session = Some(topics);
    }

    fn next(&mut self, metrics: &Metrics) -> Option<peer_message::Message> {
        use peer_message::Message;
        loop {
            let topic = self.session.as_mut()?.pop()?;
            return Some(match topic {
                Topic::Heartbeat => {
                    let upload_bytes_total = metrics.uploaded_bytes.get();
                    Message::Heartbeat(Heartbeat { upload_bytes_total, ..Heartbeat::default() })
                }
                Topic::Inventory(layer) => {
                    let state = self.inventory.get(&layer).copied().unwrap_or(State::None);
                    inventory_message(layer, state)
                }
                Topic::Failure(layer) => {
                    // What is here all the same is to be known after it.
                    if let Some(session) =
                        self.session.as_mut().filter(|_| self.inventory.contains_key(&layer))
                    {
                        session.push(Topic::Inventory(layer));
                    }
                    inventory_message(layer, State::Failed)
                }
                Topic::Task(layer) if self.wanted.contains(&layer) => {
                    Message::Open(OpenTask { task: layer.0.to_vec() })
                }
                Topic::Task(layer) => Message::Close(CloseTask { task: layer.0.to_vec() }),
                Topic::PublishTrace(image) => match self.traces.remove(&image) {
                    Some(body) => Message::PublishTrace(PublishTrace { image: image.0.to_vec(), body }),
                    None => continue,
                },
                Topic::Preheats => {
                    let Some(((job, _), progress)) = self.preheats.pop_first() else { continue };
                    if let Some(session) = self.session.as_mut().filter(|_| !self.preheats.is_empty()) {
                        session.push(Topic::Preheats);
                    }
                    Message::PreheatProgress(PreheatProgress {
                        job: job.to_string(),
                        progress: Some(progress),
                    })
                }
                Topic::GetTrace(image) => Message::GetTrace(GetTrace { image: image.0.to_vec() }),
            });
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
    let mut plan = Plan { ingest: assignment.ingest_yourself, leased: true, ..Plan::default() };
    let fallback = assignment.fallback.as_ref().map(|parent| parent.peer_id.as_str());
    if fallback == Some(me) {
        plan.refill = Refill::Myself;
    }
    let named = assignment.ingester.iter().chain(&assignment.parents).chain(&assignment.fallback);
    for named in named.filter(|parent| parent.peer_id != me) {
        let seed = named.role() == Role::Seed;
        let Some(address) = resolve(&named.address).await else { continue };
        let parent = Parent { address, seed };
        if fallback == Some(named.peer_id.as_str()) {
            plan.refill = Refill::Other(parent);
        }
        if !plan.ask.iter().any(|known| known.address == address) {
            plan.ask.push(parent);
        }
    }
    plan
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

/// Rendezvous hashing: the same layer goes to the same peer from every node.
fn weight(layer: Sha256Digest, name: &str) -> u64 {
    let bytes = layer.0.into_iter().chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
