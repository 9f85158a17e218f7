//! The fetch loop: one task owns the planner, the connections to parents and everybody who waits for a chunk.
//!
//! Commands come in over a bounded queue and are applied one after the other; what the planner asks for goes out
//! over the connections; decoding, hashing and writing happen on the blocking pool and come back as commands. The
//! loop ends with the daemon; waiters then see their channel close.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use d7y_peer_core::{Bits, Lane, Limits, ParentId, ParentRole, Planner, Request};
use d7y_store::{Layer, Store, StoreError};
use d7y_transfer::{Client, Connection, Event};
use d7y_types::{Caller, PackId, Sha256Digest};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::metrics::{Metrics, Source};
use crate::news::News;

/// Commands that may wait for the loop; a full queue slows whoever sends.
const COMMAND_QUEUE: usize = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A parent that could not be reached however often is tried again after this long.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// Before that, between one try and the next: who was killed is mostly back within half a second, and readers wait.
const REDIAL_AFTER: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];
/// A parent that hangs may be a machine that swaps: it is tried again after this long.
const HANGING_SHUNNED: Duration = Duration::from_secs(10);
/// Also how often a parent is asked again about a layer that it did not know.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// A parent that sent a chunk with a wrong digest is not asked again for this long.
const QUARANTINE: Duration = Duration::from_secs(600);

/// A peer to fetch from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Parent {
    pub address: SocketAddr,
    pub seed: bool,
}

/// Chunks that could not be kept, for the one who asked.
pub type Uncached = Vec<(u32, Bytes)>;

/// What waiting for chunks brought.
#[derive(Debug, Default)]
pub struct Brought {
    pub uncached: Uncached,
    /// Where the chunk that was waited for longest came from; nothing when none was waited for.
    pub last_from: Option<Giver>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Giver {
    /// Another layer on this node holds the same chunk.
    OtherLayer,
    Origin,
    Peer(Parent),
}

#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum FetchError {
    #[error("the peer is stopping")]
    Stopping,
    #[error("the data did not arrive within its deadline")]
    Deadline,
}

enum Command {
    AddLayer { layer: Arc<Layer>, background: bool },
    SetParents { layer: Sha256Digest, parents: Vec<Parent> },
    Ensure { layer: Arc<Layer>, wanted: Wanted, reply: oneshot::Sender<Brought> },
    Prefetch(Vec<(Sha256Digest, u32)>),
    Complete { layer: Arc<Layer>, missing: Vec<u32> },
    Refetch { layer: Arc<Layer>, lost: Vec<u32> },
    Connected { id: ParentId, parent: Parent, client: Option<Client> },
    Event { parent: ParentId, event: Event },
    Lost(ParentId),
    Settled { from: Option<ParentId>, layer: Arc<Layer>, number: u32, outcome: Outcome },
    Orphans { lane: Lane, reply: oneshot::Sender<Vec<Sha256Digest>> },
}

/// Chunks that a read needs, and which read that is.
struct Wanted {
    chunks: Vec<u32>,
    caller: Option<Caller>,
}

/// What became of a chunk that arrived.
enum Outcome {
    Kept,
    Uncached(Bytes),
    Rejected,
}

/// The way to the fetch loop.
#[derive(Clone)]
pub struct Fetcher(mpsc::Sender<Command>);

/// What the loop works with.
pub struct FetchContext {
    pub peer_id: Arc<str>,
    pub store: Arc<Store>,
    pub metrics: Arc<Metrics>,
    pub news: Arc<News>,
    /// Whether what counts as here is what can be mounted, rather than what can be passed on.
    pub devices: bool,
}

impl FetchContext {
    /// Whether a chunk need not be fetched, as far as is known.
    fn counts_on(&self, layer: &Layer, number: u32) -> bool {
        if self.devices { layer.counts_on(number) } else { layer.may_be_here(number) }
    }
}

impl Fetcher {
    pub fn new(context: FetchContext) -> (Self, impl Future<Output = ()> + Send) {
        let (send, commands) = mpsc::channel(COMMAND_QUEUE);
        let fetch_loop = FetchLoop::new(context, send.clone());
        (Self(send), fetch_loop.run(commands))
    }

    pub async fn add_layer(&self, layer: Arc<Layer>, background: bool) {
        let _ = self.0.send(Command::AddLayer { layer, background }).await;
    }

    pub async fn set_parents(&self, layer: Sha256Digest, parents: Vec<Parent>) {
        let _ = self.0.send(Command::SetParents { layer, parents }).await;
    }

    /// All that is missing of a layer, behind everything that somebody waits for.
    pub async fn complete(&self, layer: Arc<Layer>, missing: Vec<u32>) {
        let _ = self.0.send(Command::Complete { layer, missing }).await;
    }

    /// Frames that were here: fetched behind everything else, also where only what can be mounted counts.
    pub async fn refetch(&self, layer: Arc<Layer>, lost: Vec<u32>) {
        let _ = self.0.send(Command::Refetch { layer, lost }).await;
    }

    /// Chunks in the order in which a container will touch them.
    pub async fn prefetch(&self, chunks: Vec<(Sha256Digest, u32)>) {
        let _ = self.0.send(Command::Prefetch(chunks)).await;
    }

    /// Waits until chunks are on this node.
    pub async fn ensure(
        &self,
        layer: &Arc<Layer>,
        chunks: Vec<u32>,
        caller: Option<Caller>,
        deadline: Duration,
    ) -> Result<Brought, FetchError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Ensure { layer: layer.clone(), wanted: Wanted { chunks, caller }, reply };
        self.0.send(command).await.map_err(|_| FetchError::Stopping)?;
        let answer = tokio::time::timeout(deadline, answer).await.map_err(|_| FetchError::Deadline)?;
        answer.map_err(|_| FetchError::Stopping)
    }

    /// A chunk that came from the origin was kept, or could not be.
    pub fn settled_from_origin(&self, layer: &Arc<Layer>, number: u32, uncached: Option<Bytes>) {
        let (layer, outcome) = (layer.clone(), uncached.map_or(Outcome::Kept, Outcome::Uncached));
        let _ = self.0.blocking_send(Command::Settled { from: None, layer, number, outcome });
    }

    /// Layers of which readers wait for chunks that no parent holds.
    pub async fn orphans(&self) -> Vec<Sha256Digest> {
        self.orphans_in(Lane::Demand).await
    }

    /// Whether no parent holds some of what is to be complete of a layer.
    pub async fn is_orphan(&self, layer: Sha256Digest) -> bool {
        self.orphans_in(Lane::Preheat).await.contains(&layer)
    }

    async fn orphans_in(&self, lane: Lane) -> Vec<Sha256Digest> {
        let (reply, answer) = oneshot::channel();
        let _ = self.0.send(Command::Orphans { lane, reply }).await;
        answer.await.unwrap_or_default()
    }
}

/// Spreads background order over peers: any number that differs between them.
fn rotation_of(peer_id: &str) -> u64 {
    peer_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

struct FetchLoop {
    context: FetchContext,
    planner: Planner,
    layers: HashMap<Sha256Digest, LayerEntry>,
    parents: HashMap<ParentId, Connected>,
    connecting: HashSet<Parent>,
    /// One task per parent; they end with the loop.
    connections: JoinSet<()>,
    /// Addresses not to connect to before a time: unreachable or caught lying.
    shunned: HashMap<SocketAddr, Instant>,
    waiters: HashMap<u64, Waiter>,
    next_id: u64,
    tended: Instant,
    commands: mpsc::Sender<Command>,
}

struct LayerEntry {
    layer: Arc<Layer>,
    parents: Vec<Parent>,
    waiting: HashMap<u32, Vec<u64>>,
}

struct Connected {
    parent: Parent,
    client: Client,
    since: Instant,
}

impl Connected {
    /// Long enough to be dialled again as soon as it ends.
    fn has_stood(&self) -> bool {
        self.since.elapsed() >= RECONNECT_AFTER
    }
}

struct Waiter {
    missing: usize,
    brought: Brought,
    reply: oneshot::Sender<Brought>,
    since: Instant,
    caller: Option<Caller>,
}

impl FetchLoop {
    fn new(context: FetchContext, commands: mpsc::Sender<Command>) -> Self {
        let rotation = rotation_of(&context.peer_id);
        Self {
            context,
            planner: Planner::new(Limits::default(), rotation),
            layers: HashMap::new(),
            parents: HashMap::new(),
            connecting: HashSet::new(),
            connections: JoinSet::new(),
            shunned: HashMap::new(),
            waiters: HashMap::new(),
            next_id: 0,
            tended: Instant::now(),
            commands,
        }
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let wake = self.planner.next_wake(Instant::now());
            match tokio::time::timeout(wake, commands.recv()).await {
                Ok(Some(command)) => self.apply(command),
                Ok(None) => return,
                Err(_) => {}
            }
            while let Ok(command) = commands.try_recv() {
                self.apply(command);
            }
            self.tend();
            let requests = self.planner.next_requests(Instant::now());
            requests.into_iter().for_each(|request| self.send(request));
            self.drop_hanging();
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::AddLayer { layer, background } => self.add_layer(layer, background),
            Command::SetParents { layer, parents } => self.set_parents(layer, parents),
            Command::Ensure { layer, wanted, reply } => self.ensure(layer, wanted, reply),
            Command::Prefetch(chunks) => {
                let now = Instant::now();
                for (layer, number) in chunks {
                    self.planner.want(layer, [number], Lane::Prefetch, now);
                }
            }
            Command::Complete { layer, missing } => {
                let digest = layer.digest();
                self.add_layer(layer, false);
                self.planner.want(digest, missing, Lane::Preheat, Instant::now());
            }
            Command::Refetch { layer, lost } => self.refetch(&layer, lost),
            Command::Connected { id, parent, client } => self.connected(id, parent, client),
            Command::Event { parent, event } => self.event(parent, event),
            Command::Lost(parent) => self.hung_up(parent),
            Command::Settled { from, layer, number, outcome } => self.settled(from, &layer, number, outcome),
            Command::Orphans { lane, reply } => {
                let orphans =
                    self.layers.keys().filter(|layer| self.planner.has_orphans(**layer, lane)).copied();
                let _ = reply.send(orphans.collect());
            }
        }
    }

    /// Now and then, however busy the loop is: what nobody tells it about.
    fn tend(&mut self) {
        if self.tended.elapsed() < TEND_EVERY {
            return;
        }
        self.tended = Instant::now();
        while let Some(ended) = self.connections.try_join_next() {
            if let Err(panic) = ended {
                tracing::error!(error = crate::failure::chain(&panic), "a parent's connection was lost");
            }
        }
        self.forget_gone_waiters();
        self.context.metrics.waiting_reads.set(self.waiters.len() as i64);
        self.drop_evicted();
        self.reconnect();
    }

    fn add_layer(&mut self, layer: Arc<Layer>, background: bool) {
        let now = Instant::now();
        let digest = layer.digest();
        self.know(&layer);
        // An earlier boot may have promised more than the disk holds.
        let numbers = 0..layer.chunks().len() as u32;
        for number in numbers.filter(|number| !self.context.counts_on(&layer, *number)) {
            if self.planner.is_present(digest, number) {
                self.planner.dropped(digest, number, now);
            }
        }
        if background {
            self.planner.want_rest(digest, now);
        }
    }

    fn refetch(&mut self, layer: &Arc<Layer>, lost: Vec<u32>) {
        let (digest, now) = (layer.digest(), Instant::now());
        self.know(layer);
        for number in &lost {
            if self.planner.is_present(digest, *number) {
                self.planner.dropped(digest, *number, now);
            }
        }
        self.planner.want(digest, lost, Lane::Background, now);
    }

    fn know(&mut self, layer: &Arc<Layer>) {
        let digest = layer.digest();
        if self.layers.get(&digest).is_some_and(|known| !Arc::ptr_eq(&known.layer, layer)) {
            self.drop_layer(digest);
        }
        if !self.layers.contains_key(&digest) {
            let sizes = layer.chunks().iter().map(|chunk| chunk.frame_bytes).collect();
            let mut present = Bits::new(layer.chunks().len() as u32);
            (0..present.len())
                .filter(|number| self.context.counts_on(layer, *number))
                .for_each(|number| present.set(number));
            self.planner.add_layer(digest, sizes, &present);
            let (parents, waiting) = (Vec::new(), HashMap::new());
            self.layers.insert(digest, LayerEntry { layer: layer.clone(), parents, waiting });
        }
    }

    /// Lets go of layers that the store has evicted: open files would keep their space.
    fn drop_evicted(&mut self) {
        let gone = self.layers.iter().filter(|(_, entry)| !self.context.store.holds(&entry.layer));
        let gone: Vec<_> = gone.map(|(digest, _)| *digest).collect();
        gone.into_iter().for_each(|digest| self.drop_layer(digest));
    }

    /// Who waits asks again: for the layer that is here then. So do we, for what parents hold of it.
    fn drop_layer(&mut self, digest: Sha256Digest) {
        self.planner.remove_layer(digest);
        let Some(entry) = self.layers.remove(&digest) else { return };
        self.parents.values().for_each(|parent| parent.client.unbind(entry.layer.pack()));
        for id in entry.waiting.into_values().flatten() {
            self.waiters.remove(&id);
        }
    }

    fn set_parents(&mut self, layer: Sha256Digest, parents: Vec<Parent>) {
        let Some(entry) = self.layers.get_mut(&layer) else { return };
        entry.parents = parents;
        self.reconnect();
    }

    /// Connects to parents that are wanted and not there; binds those that are.
    fn reconnect(&mut self) {
        let now = Instant::now();
        self.shunned.retain(|_, until| *until > now);
        let by_address: HashMap<SocketAddr, ParentId> =
            self.parents.iter().map(|(id, connected)| (connected.parent.address, *id)).collect();
        let mut wanted = HashSet::new();
        let mut useless = HashSet::new();
        for (digest, entry) in &self.layers {
            if self.planner.is_complete(*digest) {
                continue;
            }
            for parent in &entry.parents {
                match by_address.get(&parent.address) {
                    Some(id) if self.parents[id].client.bind(entry.layer.pack()) => {}
                    Some(id) => {
                        useless.insert(*id);
                        if self.parents[id].has_stood() {
                            wanted.insert(*parent);
                        }
                    }
                    None => drop(wanted.insert(*parent)),
                }
            }
        }
        useless.into_iter().for_each(|id| self.lost(id));
        for parent in wanted {
            if !self.shunned.contains_key(&parent.address) && self.connecting.insert(parent) {
                let id = ParentId(self.next_id as u32);
                self.next_id += 1;
                let (me, commands) = (self.context.peer_id.clone(), self.commands.clone());
                self.connections.spawn(attend(id, parent, me, commands));
            }
        }
    }

    fn connected(&mut self, id: ParentId, parent: Parent, client: Option<Client>) {
        self.connecting.remove(&parent);
        let Some(client) = client else {
            self.shunned.insert(parent.address, Instant::now() + RECONNECT_AFTER);
            return;
        };
        let role = if parent.seed { ParentRole::Seed } else { ParentRole::Node };
        self.planner.add_parent(id, role);
        self.parents.insert(id, Connected { parent, client, since: Instant::now() });
        self.parents_changed();
        self.reconnect();
    }

    fn parents_changed(&self) {
        let metrics = &self.context.metrics;
        metrics.connected_parents.set(self.parents.len() as i64);
        metrics.ledger.set_parents(self.parents.values().map(|connected| connected.parent));
    }

    /// A parent's connection has ended. It is dialled again at once, unless it always ends at once.
    fn hung_up(&mut self, parent: ParentId) {
        let stood = self.parents.get(&parent).is_some_and(Connected::has_stood);
        self.lost(parent);
        if stood {
            self.reconnect();
        }
    }

    fn lost(&mut self, parent: ParentId) {
        self.planner.remove_parent(parent);
        if let Some(gone) = self.parents.remove(&parent) {
            tracing::debug!(address = %gone.parent.address, "lost the connection to a parent");
            self.parents_changed();
        }
    }

    fn send(&mut self, request: Request) {
        let lane = match request.lane {
            Lane::Demand => d7y_transfer::Lane::Demand,
            Lane::Prefetch => d7y_transfer::Lane::Prefetch,
            Lane::Preheat | Lane::Background => d7y_transfer::Lane::Background,
        };
        let Some(entry) = self.layers.get(&request.layer) else { return };
        let (parent, pack) = (self.parents.get(&request.parent), entry.layer.pack());
        let asked = parent.is_some_and(|to| match request.lane {
            Lane::Demand => self.ask_for_readers(to, entry, &request.chunks),
            Lane::Prefetch | Lane::Preheat | Lane::Background => to.client.get(pack, lane, &request.chunks),
        });
        if !asked {
            self.hung_up(request.parent);
        }
    }

    /// Asks for chunks and tells the parent which read waits for them; of several reads the first.
    fn ask_for_readers(&self, to: &Connected, entry: &LayerEntry, chunks: &[u32]) -> bool {
        let caller_of = |chunk: &u32| {
            let waiting = entry.waiting.get(chunk)?;
            waiting.iter().find_map(|id| self.waiters.get(id)?.caller)
        };
        let mut reads = chunks.chunk_by(|one, next| caller_of(one) == caller_of(next));
        reads.all(|chunks| {
            let caller = caller_of(&chunks[0]);
            if let Some(caller) = caller {
                let (request_id, parent) = (caller.request, to.parent.address);
                tracing::debug!(%request_id, layer = %entry.layer.digest(), chunks = chunks.len(), first = chunks[0], %parent, "asks a parent for a read");
            }
            to.client.get_for(caller, entry.layer.pack(), d7y_transfer::Lane::Demand, chunks)
        })
    }

    fn ensure(&mut self, layer: Arc<Layer>, wanted: Wanted, reply: oneshot::Sender<Brought>) {
        let (digest, now) = (layer.digest(), Instant::now());
        self.know(&layer);
        let Wanted { chunks, caller } = wanted;
        let missing: Vec<u32> = chunks.into_iter().filter(|n| !layer.readable().get(*n)).collect();
        for number in &missing {
            if self.planner.is_present(digest, *number) {
                self.planner.dropped(digest, *number, now);
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        if missing.is_empty() {
            let _ = reply.send(Brought::default());
            return;
        }
        let brought = Brought::default();
        let waiter = Waiter { missing: missing.len(), brought, reply, since: now, caller };
        self.waiters.insert(id, waiter);
        let entry = self.layers.get_mut(&digest).expect("added above");
        for number in &missing {
            entry.waiting.entry(*number).or_default().push(id);
        }
        self.planner.want(digest, missing, Lane::Demand, now);
    }

    fn event(&mut self, parent: ParentId, event: Event) {
        match event {
            Event::Frame { pack, number, frame } => self.frame(parent, pack, number, frame),
            Event::Missing { pack, number } if self.is_current(pack) => {
                self.planner.refused(pack.layer, number, parent);
            }
            Event::Have { pack, numbers } if self.is_current(pack) => {
                self.planner.add_holding(pack.layer, parent, numbers);
            }
            Event::Holding { pack, bits } if self.is_current(pack) => {
                let len = self.layers[&pack.layer].layer.chunks().len() as u32;
                let bits = Bits::from_bytes(bits, len).unwrap_or_else(|| Bits::new(len));
                self.planner.set_holding(pack.layer, parent, bits);
            }
            // Asked before the layer went or came with another chunk table.
            _ => {}
        }
    }

    fn is_current(&self, pack: PackId) -> bool {
        self.layers.get(&pack.layer).is_some_and(|entry| entry.layer.pack() == pack)
    }

    /// Verifies and keeps a frame on the blocking pool; nobody sees it before.
    fn frame(&mut self, parent: ParentId, pack: PackId, number: u32, frame: Bytes) {
        let (Some(entry), Some(from)) = (self.layers.get(&pack.layer), self.parents.get(&parent)) else {
            return;
        };
        if entry.layer.pack() != pack {
            return;
        }
        if self.planner.is_present(pack.layer, number) || number as usize >= entry.layer.chunks().len() {
            return;
        }
        let source = if from.parent.seed { Source::seed } else { Source::node };
        let (layer, store, metrics) =
            (entry.layer.clone(), self.context.store.clone(), self.context.metrics.clone());
        let commands = self.commands.clone();
        tokio::task::spawn_blocking(move || {
            let outcome = settle(&store, &layer, number, &frame);
            match outcome {
                Outcome::Rejected => metrics.rejected(source),
                _ => {
                    metrics.received_chunk(source, frame.len() as u64);
                    metrics.ledger.received(layer.digest(), source, frame.len() as u64);
                }
            }
            let _ = commands.blocking_send(Command::Settled { from: Some(parent), layer, number, outcome });
        });
    }

    fn settled(&mut self, from: Option<ParentId>, layer: &Arc<Layer>, number: u32, outcome: Outcome) {
        let now = Instant::now();
        let current = self.layers.get(&layer.digest());
        if !current.is_some_and(|entry| Arc::ptr_eq(&entry.layer, layer)) {
            // Evicted meanwhile, perhaps opened again: the one that is here now does not have the chunk.
            return;
        }
        let pack = layer.pack();
        let layer = pack.layer;
        let giver = match from {
            None => Some(Giver::Origin),
            Some(id) => self.parents.get(&id).map(|connected| Giver::Peer(connected.parent)),
        };
        match outcome {
            Outcome::Kept => {
                self.planner.arrived(layer, number, now);
                self.context.news.announce(pack, number);
                self.release(layer, number, giver, None);
            }
            Outcome::Uncached(data) => {
                self.context.metrics.store_full.inc();
                self.planner.dropped(layer, number, now);
                self.release(layer, number, giver, Some(data));
            }
            Outcome::Rejected => {
                let Some(parent) = from else { return };
                self.planner.refused(layer, number, parent);
                if let Some(liar) = self.parents.get(&parent) {
                    let address = liar.parent.address;
                    tracing::warn!(%address, %layer, number, "a parent sent a chunk that fails its digest and is shunned");
                    self.shunned.insert(address, now + QUARANTINE);
                }
                self.lost(parent);
            }
        }
    }

    /// Lets go of parents whose connection stands but who do not answer: what only they hold must come from elsewhere.
    fn drop_hanging(&mut self) {
        for id in self.planner.take_hanging() {
            if let Some(parent) = self.parents.get(&id) {
                let address = parent.parent.address;
                tracing::warn!(%address, "a parent does not answer and is left alone for a while");
                self.shunned.insert(address, Instant::now() + HANGING_SHUNNED);
            }
            self.lost(id);
        }
    }

    /// Whoever asked has given up: nothing is owed any more. What is under way still arrives.
    fn forget_gone_waiters(&mut self) {
        let before = self.waiters.len();
        self.waiters.retain(|_, waiter| !waiter.reply.is_closed());
        if self.waiters.len() == before {
            return;
        }
        for (digest, entry) in &mut self.layers {
            entry.waiting.values_mut().for_each(|ids| ids.retain(|id| self.waiters.contains_key(id)));
            let given_up = entry.waiting.extract_if(|_, ids| ids.is_empty());
            given_up.for_each(|(number, _)| self.planner.demote(*digest, number));
        }
    }

    fn release(&mut self, layer: Sha256Digest, number: u32, giver: Option<Giver>, uncached: Option<Bytes>) {
        let Some(waiting) = self.layers.get_mut(&layer).and_then(|entry| entry.waiting.remove(&number))
        else {
            return;
        };
        for id in waiting {
            let Some(waiter) = self.waiters.get_mut(&id) else { continue };
            waiter.missing -= 1;
            waiter.brought.uncached.extend(uncached.clone().map(|data| (number, data)));
            if waiter.missing == 0 {
                let mut waiter = self.waiters.remove(&id).expect("found above");
                waiter.brought.last_from = giver;
                self.context.metrics.waited(waiter.since.elapsed().as_secs_f64());
                let _ = waiter.reply.send(waiter.brought);
            }
        }
    }
}

/// Several times, if need be.
async fn dial(address: SocketAddr, me: &str) -> Option<(Client, Connection)> {
    let mut pauses = REDIAL_AFTER.iter();
    loop {
        match Client::connect(address, me, CONNECT_TIMEOUT).await {
            Ok(connected) => return Some(connected),
            Err(error) => {
                tracing::debug!(%address, error = crate::failure::chain(&error), "cannot connect to a parent");
            }
        }
        tokio::time::sleep(*pauses.next()?).await;
    }
}

/// Connects to a parent and passes on what it says until the connection ends, or the loop drops the client.
async fn attend(id: ParentId, parent: Parent, me: Arc<str>, commands: mpsc::Sender<Command>) {
    let address = parent.address;
    let Some((client, connection)) = dial(address, &me).await else {
        let _ = commands.send(Command::Connected { id, parent, client: None }).await;
        return;
    };
    let _ = commands.send(Command::Connected { id, parent, client: Some(client) }).await;
    if let Err(error) = connection.run(&commands, |event| Command::Event { parent: id, event }).await {
        tracing::debug!(%address, error = crate::failure::chain(&error), "the connection to a parent ended");
    }
    let _ = commands.send(Command::Lost(id)).await;
}

fn settle(store: &Store, layer: &Layer, number: u32, frame: &[u8]) -> Outcome {
    let chunk = &layer.chunks()[number as usize];
    let Ok(data) = d7y_store::decode_chunk(chunk, frame) else { return Outcome::Rejected };
    match store.keep(layer, number, frame, &data) {
        Ok(()) => Outcome::Kept,
        Err(StoreError::Full) => Outcome::Uncached(data.into()),
        Err(error) => {
            tracing::error!(
                error = crate::failure::chain(&error),
                "a chunk could not be written and is served uncached"
            );
            Outcome::Uncached(data.into())
        }
    }
}

#[cfg(test)]
mod tests;
