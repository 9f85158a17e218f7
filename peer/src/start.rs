use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use d7y_chassis::Reloads;
use d7y_chassis::config::ConfigError;
use d7y_chassis::daemon::{Daemon, DaemonName, Shorthand};
use d7y_chassis::listen;
use d7y_chassis::metrics::{self, Health};
use d7y_chassis::obstacle::{self, Obstacle};
use d7y_chassis::spans::{SpanCounts, Spans};
use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_fuse::inherited;
use d7y_manager_client::Discovered;
use d7y_origin::Origin;
use d7y_store::{Store, StoreError, StoreOptions};
use d7y_transfer::ServerLimits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::config::{Config, Role, ScrubConfig, origin_faults};
use crate::control::Control;
use crate::failure::chain;
use crate::fetch::{FetchContext, Fetcher};
use crate::ingest::Ingester;
use crate::layers::{Layers, LayersConfig, LayersParts};
use crate::local::LocalService;
use crate::metrics::Metrics;
use crate::news::News;
use crate::parked::Parked;
use crate::preheat::Preheater;
use crate::receive::Receiver;
use crate::scrub::Scrubber;
use crate::serve::{Promised, Uploads};
use crate::trace::Traces;
use crate::trust::Trust;
use crate::view;

pub const DAEMON: Daemon = Daemon {
    name: DaemonName::new("d7y-peer"),
    about: "Fetches, verifies, caches and shares image layers for one node",
    version: env!("CARGO_PKG_VERSION"),
    shorthands: &[Shorthand {
        flag: "standalone",
        key: "standalone",
        value: "true",
        help: "Work without a scheduler, with the seed peers in the configuration",
    }],
    actions: &[],
};

/// The configuration key of the store's place.
const STORE: &str = "store.directory";
/// How often store and origins are looked at for metrics and the alarm.
const STORE_WATCH: Duration = Duration::from_secs(2);
/// How long the disk has to take every chunk before the alarm is over: reads come in bursts, and each is not an alarm
/// of its own.
const STORE_CALM: Duration = Duration::from_secs(10);

/// Where a started peer can be reached.
#[derive(Debug, Clone)]
pub struct Running {
    pub transfer: SocketAddr,
    pub observability: Vec<SocketAddr>,
    /// The key that this peer signs its indexes with, in hex: what others put under indexTrust.publicKeys.
    pub public_key: String,
    store: Arc<Store>,
    scrub: watch::Sender<ScrubConfig>,
    discovered: Option<watch::Receiver<Discovered>>,
}

impl Running {
    /// Takes over the reloadable keys whenever the configuration is read again.
    pub fn follow(&self, tasks: &Tasks, mut reloads: Reloads<Config>) {
        if let Some(discovered) = self.discovered.clone() {
            let settings = d7y_manager_client::settings(discovered, reloads.manager());
            supervise(tasks, "managed settings", settings);
        }
        let (store, scrub) = (self.store.clone(), self.scrub.clone());
        supervise(tasks, "reloads", async move {
            while reloads.changed().await.is_ok() {
                let read = reloads.borrow_and_update().store.clone();
                store.set_limit(read.limit.as_u64());
                scrub.send_if_modified(|now| std::mem::replace(now, read.scrub.clone()) != read.scrub);
            }
            // The sender lives as long as the process.
            std::future::pending().await
        });
    }
}

/// Binds every socket, then spawns the peer's tasks.
pub async fn start(config: Config, tasks: Tasks) -> anyhow::Result<Running> {
    raise_descriptor_limit();
    let Sockets { transfer, local, observability } = bind(&config).await?;
    let addresses = observability.iter().map(|listener| listener.local_addr()).collect::<Result<_, _>>()?;
    let peer_id: Arc<str> = peer_id(&config)?.into();
    let (registry, peer_metrics, spans) = observed(&config, &peer_id, &tasks)?;
    let (health, store) = (Health::new(), open_store(&config).await?);
    let trust = Arc::new(Trust::set_up(&config.index_trust, &config.store.directory)?);
    let address = transfer.local_addr()?;
    let (directory, control) = Control::set_up(&config, &peer_id, address, &peer_metrics);
    let running = Running {
        transfer: address,
        observability: addresses,
        public_key: trust.public_key_hex(),
        store: store.clone(),
        scrub: watch::Sender::new(config.store.scrub.clone()),
        discovered: control.discovered(),
    };
    tracing::info!(peer = %peer_id, transfer = %running.transfer, public_key = running.public_key, "peer starts");
    let news = Arc::new(News::default());
    let context = FetchContext {
        peer_id: peer_id.clone(),
        store: store.clone(),
        metrics: peer_metrics.clone(),
        news: news.clone(),
        devices: config.role == Role::Node,
    };
    let views = view::views(&config, &context, &directory);
    let (fetcher, fetch_loop) = Fetcher::new(context);
    let origin = Arc::new(open_origin(&config)?);
    let ingester = Ingester {
        origin: origin.clone(),
        store: store.clone(),
        trust: trust.clone(),
        metrics: peer_metrics.clone(),
        zstd_level: config.fetch.zstd_level,
        devices: config.role == Role::Node,
    };
    let receiver =
        Receiver { peer_id: peer_id.clone(), store: store.clone(), trust, metrics: peer_metrics.clone() };
    let layers = Layers::new(LayersParts {
        config: layers_config(&config),
        directory: directory.clone(),
        fetcher: fetcher.clone(),
        ingester,
        receiver,
        news: news.clone(),
        tasks: tasks.clone(),
    });
    let traces = Arc::new(Traces::new(store.clone(), directory.clone())?);

    supervise(&tasks, "fetch loop", fetch_loop);
    control.begin(&tasks, Preheater::new(config.role, &layers, &news), fetcher);
    supervise(&tasks, "layer watch", layers.clone().watch());
    supervise(&tasks, "scrub", Scrubber::new(layers.clone(), running.scrub.subscribe()).run());
    supervise(&tasks, "store watch", watch(store, origin, peer_metrics.clone(), health.clone()));
    serve_peers(&tasks, transfer, uploads(&peer_id, &layers, news, &spans));
    let parked = Parked::new(inherited::take(), peer_metrics);
    serve_node(&tasks, local, LocalService { peer_id, layers, traces, tasks: tasks.clone(), parked, spans });
    // Last: who asks whether the peer is healthy wants to use it.
    metrics::serve_views(&tasks, observability, Arc::new(registry), health, views);
    Ok(running)
}

/// What the check has not found yet, such as a file that has gone since, is a fault of the configuration too.
fn open_origin(config: &Config) -> Result<Origin, ConfigError> {
    Origin::new(config.origin.clone()).map_err(|error| ConfigError::Faults(origin_faults(&error.0)))
}

fn uploads(peer_id: &Arc<str>, layers: &Arc<Layers>, news: Arc<News>, spans: &Spans) -> Uploads {
    let (peer_id, tasks) = (peer_id.clone(), layers.tasks.clone());
    Uploads {
        peer_id,
        layers: layers.clone(),
        news,
        tasks,
        spans: spans.clone(),
        promised: Promised::default(),
    }
}

/// Where it is told what the peer does.
fn observed(
    config: &Config,
    peer_id: &str,
    tasks: &Tasks,
) -> anyhow::Result<(metrics::Registry, Arc<Metrics>, Spans)> {
    let mut registry = metrics::registry(DAEMON.name, DAEMON.version);
    let peer_metrics = Arc::new(Metrics::register(&mut registry));
    let counts = SpanCounts::register(&mut registry);
    let spans = Spans::start(&config.tracing, &DAEMON, peer_id, counts, tasks)?;
    Ok((registry, peer_metrics, spans))
}

/// Four descriptors for each layer in the store: the usual soft limit of 1,024 ends at some 250 layers.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays low: only some hundred layers can be kept");
    }
}

struct Sockets {
    transfer: TcpListener,
    local: UnixListener,
    observability: Vec<TcpListener>,
}

async fn bind(config: &Config) -> anyhow::Result<Sockets> {
    // First the socket that only another peer of this node answers on: "runs already" says more than "port taken".
    let local = listen::bind_unix(&config.local.socket, "local.socket")?;
    let transfer = listen::bind(config.transfer.listen, "transfer.listen").await?;
    let mut observability = Vec::new();
    for address in &config.observability.listen {
        observability.push(listen::bind(*address, "observability.listen").await?);
    }
    Ok(Sockets { transfer, local, observability })
}

fn serve_peers(tasks: &Tasks, listener: TcpListener, uploads: Uploads) {
    let shutdown = tasks.shutdown();
    let stop = d7y_transfer::Stop {
        closing: shutdown.closing(),
        stopping: shutdown.stopping(),
        under_way: Arc::new(shutdown.drain_guard()),
    };
    let serving = d7y_transfer::serve(listener, Arc::new(uploads), ServerLimits::default(), stop);
    run(tasks, "transfer server", serving);
}

fn serve_node(tasks: &Tasks, listener: UnixListener, service: LocalService) {
    let shutdown = tasks.shutdown();
    let stop = d7y_peer_client::Stop {
        closing: shutdown.closing(),
        stopping: shutdown.stopping(),
        under_way: Arc::new(shutdown.drain_guard()),
    };
    let serving = d7y_peer_client::serve(listener, Arc::new(service), stop);
    run(tasks, "local server", serving);
}

/// What ends with the beginning of a stop: from then on this peer is nobody's parent or seed any more.
pub fn supervise_until_closing(
    tasks: &Tasks,
    name: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let closing = tasks.shutdown().closing();
    run(tasks, name, async move { closing.run_until_cancelled(work).await.unwrap_or_default() });
}

pub fn supervise(tasks: &Tasks, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let stopping = tasks.shutdown().stopping();
    run(tasks, name, async move { stopping.run_until_cancelled(work).await.unwrap_or_default() });
}

/// What ends by itself once it is told to.
fn run(tasks: &Tasks, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(name, OnEnd::Fatal, async move {
        work.await;
        Ok::<_, Infallible>(())
    });
}

fn peer_id(config: &Config) -> anyhow::Result<String> {
    if !config.peer_id.is_empty() {
        return Ok(config.peer_id.clone());
    }
    let name = nix::unistd::gethostname().context("cannot read the host's name; set peerId")?;
    Ok(name.to_string_lossy().into_owned())
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<Store>> {
    let options = StoreOptions {
        directory: config.store.directory.clone(),
        limit_bytes: config.store.limit.as_u64(),
        devices: config.role == Role::Node,
    };
    let opened = tokio::task::spawn_blocking(move || {
        obstacle::writable_directory(&options.directory, STORE)?;
        Store::open(options).map_err(store_obstacle)
    });
    Ok(Arc::new(opened.await??))
}

fn store_obstacle(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::Locked(path) => Obstacle::Twice { path, key: STORE }.into(),
        StoreError::Io { path, source } => Obstacle::Directory { path, key: STORE, source }.into(),
        StoreError::Version { path, found, expected } => Obstacle::Version { path, found, expected }.into(),
        other => other.into(),
    }
}

fn layers_config(config: &Config) -> LayersConfig {
    let seed = config.role == Role::Seed;
    LayersConfig {
        seed,
        // A seed is there to have everything.
        background: config.fetch.background || seed,
        origin_fallback_after: config.fetch.origin_fallback_after.get(),
    }
}

/// Raises one clear alarm while chunks cannot be kept, and takes it back; keeps the metrics of store and origins true.
async fn watch(store: Arc<Store>, origin: Arc<Origin>, metrics: Arc<Metrics>, health: Health) {
    let mut refused_before = 0;
    let mut alarm: Option<Instant> = None;
    let mut lost = false;
    loop {
        tokio::time::sleep(STORE_WATCH).await;
        metrics.kept(&store.usage());
        metrics.asked_of_origins(&origin.stats());
        lost = look_at_directories(&store, &health, lost).await;
        let refused = metrics.store_full.get();
        // A disk that takes nothing is another matter than one without room.
        let full = refused > refused_before && !lost;
        if full && alarm.is_none() {
            tracing::error!("the store is full: reads go on uncached; raise store.limit or free disk space");
            health.fail("store", "full: reads go on uncached; raise store.limit or free disk space");
        }
        if full {
            alarm = Some(Instant::now());
        } else if alarm.is_some_and(|last| last.elapsed() >= STORE_CALM) {
            alarm = None;
            tracing::info!("the store takes chunks again");
            health.recover("store");
        }
        refused_before = refused;
    }
}

/// Raises an alarm when nothing can be kept at all, and takes it back. `lost` is whether it was raised before.
async fn look_at_directories(store: &Arc<Store>, health: &Health, lost: bool) -> bool {
    let looked = store.clone();
    let found = tokio::task::spawn_blocking(move || looked.check_directories()).await;
    match found {
        Ok(Err(error)) => {
            if !lost {
                let error = chain(&error);
                tracing::error!("the store cannot be written, nothing new is kept: {error}");
                health.fail(STORE, error);
            }
            true
        }
        Ok(Ok(())) => {
            if lost {
                tracing::info!("the store can be written again");
                health.recover(STORE);
            }
            false
        }
        // The process is ending.
        Err(_) => lost,
    }
}
