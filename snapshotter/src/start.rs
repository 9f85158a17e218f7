use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use d7y_chassis::Notifier;
use d7y_chassis::daemon::{Daemon, DaemonName};
use d7y_chassis::listen;
use d7y_chassis::metrics::{self, Health, Views};
use d7y_chassis::obstacle::{self, Obstacle};
use d7y_chassis::spans::{SpanCounts, Spans};
use d7y_chassis::tasks::{OnEnd, Tasks};
use d7y_fuse::{Session, inherited};
use d7y_peer_client::{Link, LocalClient};
use d7y_proto::snapshots::snapshots_server::SnapshotsServer;
use d7y_types::Ids;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::announce::Announcer;
use crate::config::Config;
use crate::images;
use crate::layers::{
    Connection, FUSE_DESCRIPTOR, Failures, LayerFilesystem, Layers, LayersParts, Reader, Registry,
};
use crate::meta::{MetaError, Store};
use crate::metrics::Metrics;
use crate::place::Place;
use crate::pulls::Pulls;
use crate::resolve::{ContainerdContent, Resolver};
use crate::service::SnapshotsService;
use crate::snapshotter::{Snapshotter, Waits};
use crate::starts::Starts;
use crate::trace::Recorder;
use crate::why;

pub const DAEMON: Daemon = Daemon {
    name: DaemonName::new("d7y-snapshotter"),
    about: "Mounts container images for containerd before they have been downloaded",
    version: env!("CARGO_PKG_VERSION"),
    shorthands: &[],
    actions: &[],
};

/// Of everything in rootDirectory.
const FORMAT_VERSION: u32 = 1;
/// Requests of one connection at once: containerd sends all of a node's over one.
const MAX_CONCURRENT_REQUESTS: u32 = 1024;
/// How long handing a descriptor to the peer may take before it is tried again.
const PARK_DEADLINE: Duration = Duration::from_secs(5);
const PARK_PAUSE: Duration = Duration::from_millis(200);
/// A peer that restarts is away for less, and nobody needs to look.
const PEER_RESTART: Duration = Duration::from_secs(3);
/// How long reads in flight may take at the stop; the others are left to the next snapshotter.
const SESSION_STOP: Duration = Duration::from_secs(2);

/// Takes over what an earlier snapshotter left, binds every socket, then spawns the snapshotter's tasks.
pub async fn start(config: Config, tasks: Tasks) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let listener = listen::bind_unix(&config.socket, "socket")?;
    let mut observability = Vec::new();
    if let Some(address) = config.metrics.listen {
        observability.push(listen::bind(address, "metrics.listen").await?);
    }
    let mut registry = metrics::registry(DAEMON.name, DAEMON.version);
    let own_metrics = Metrics::new();
    own_metrics.register(&mut registry);
    let counts = SpanCounts::register(&mut registry);
    let instance = nix::unistd::gethostname().unwrap_or_default();
    let spans = Spans::start(&config.tracing, &DAEMON, &instance.to_string_lossy(), counts, &tasks)?;
    let watched = Watched { metrics: own_metrics, spans };
    let health = Health::new();

    obstacle::writable_directory(&config.root_directory, "rootDirectory")?;
    obstacle::writable_directory(&config.run_directory, "runDirectory")?;
    obstacle::same_format(&config.root_directory, "rootDirectory", FORMAT_VERSION)?;
    let place = Place::create(&config.root_directory, &config.run_directory)
        .context("cannot make rootDirectory or runDirectory")?;
    let peer = LocalClient::new(&config.peer.socket);
    let (snapshotter, session) = take_over(&config, &tasks, place, &peer, watched).await?;

    let layers = Arc::clone(&snapshotter.layers);
    let (starts, named) = (Arc::clone(&snapshotter.starts), Arc::clone(&layers));
    let (rows, mounted) = (Arc::clone(&snapshotter.store), Arc::clone(&layers));
    let views = Views::default()
        .with("/starts", move || why::view(&starts, &named))
        .with("/images", move || images::view(&rows, &mounted));
    metrics::serve_views(&tasks, observability, Arc::new(registry), health, views);
    supervise(&tasks, "pins", {
        let (layers, peer) = (Arc::clone(&layers), peer.clone());
        async move { layers.pins().tell(&peer).await }
    });
    supervise(&tasks, "peer watch", watch_peer(peer.clone(), config.peer.socket));
    supervise(&tasks, "peer link", follow_peer(peer, Arc::clone(&session), layers));
    watch_session(&tasks, session);
    supervise(&tasks, "idle mounts", {
        let snapshotter = Arc::clone(&snapshotter);
        async move { snapshotter.sweep_idle().await }
    });
    serve_containerd(&tasks, listener, snapshotter);
    Ok(())
}

/// Two descriptors for each layer in use: the usual soft limit of 1,024 ends at some 500 layers.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays low: only some hundred layers can be used at once");
    }
}

/// Where it is told what the snapshotter does.
struct Watched {
    metrics: Metrics,
    spans: Spans,
}

async fn take_over(
    config: &Config,
    tasks: &Tasks,
    place: Place,
    peer: &LocalClient,
    Watched { metrics, spans }: Watched,
) -> anyhow::Result<(Arc<Snapshotter>, Arc<Session>)> {
    let store = Arc::new(Store::open(&place.database()).map_err(|error| database_obstacle(error, config))?);
    let registry = Registry::open(store.database()).context("cannot open the snapshot database")?;
    let recorder = Arc::new(Recorder::default());
    let starts = Arc::new(Starts::default());
    let filesystem = Arc::new(LayerFilesystem::new(Arc::new(Reader {
        peer: peer.clone(),
        runtime: Handle::current(),
        waiting: TaskTracker::new(),
        deadline: config.read_deadline.get(),
        metrics: metrics.clone(),
        recorder: Arc::clone(&recorder),
        starts: Arc::clone(&starts),
        failures: Failures::default(),
        spans: spans.clone(),
        ids: Ids::new(RandomState::new().build_hasher().finish()),
    })));
    let connection = Connection::find(inherited::take(), peer, &place, config.driver).await?;
    let layers = Arc::new(Layers::new(LayersParts {
        peer: peer.clone(),
        registry,
        filesystem: Arc::clone(&filesystem),
        driver: connection.driver,
        place: place.clone(),
        metrics: metrics.clone(),
    }));
    tracing::info!(driver = ?connection.driver, "layers are mounted with this driver");
    let is_new = !connection.is_live();
    layers.adopt(!is_new)?;
    let session = Arc::new(connection.serve(&place, filesystem)?);
    keep_at_service_manager(&session, is_new);
    let content = config.containerd.socket.clone().map(ContainerdContent::new);
    let snapshotter = Snapshotter {
        store,
        layers,
        place,
        resolver: content.map(|content| Resolver::new(Arc::new(content))),
        peer: peer.clone(),
        announcer: Announcer::new(peer.clone()),
        pulls: Pulls::default(),
        recorder,
        metrics,
        spans,
        starts,
        tasks: tasks.clone(),
        waits: Waits {
            prepare: config.prepare_wait.get(),
            start: config.start_deadline.get(),
            trace: config.trace.window.get(),
            idle_mounts: config.idle_mounts.get(),
        },
        promotions: Default::default(),
        cleaning: Default::default(),
    };
    Ok((Arc::new(snapshotter), session))
}

/// The peer holds the descriptor too, but may die together with the snapshotter.
fn keep_at_service_manager(session: &Session, is_new: bool) {
    let manager = Notifier::from_environment();
    if is_new {
        manager.remove_descriptor(FUSE_DESCRIPTOR);
    }
    match session.duplicate() {
        // Of one that it keeps already the manager takes no second.
        Ok(descriptor) => manager.store_descriptor(FUSE_DESCRIPTOR, descriptor.as_fd()),
        Err(error) => tracing::warn!(%error, "the service manager does not keep the FUSE descriptor"),
    }
}

fn database_obstacle(error: MetaError, config: &Config) -> anyhow::Error {
    match error {
        MetaError::Database(redb::Error::DatabaseAlreadyOpen) => {
            Obstacle::Twice { path: config.root_directory.clone(), key: "rootDirectory" }.into()
        }
        other => anyhow::Error::from(other).context("cannot open the snapshot database"),
    }
}

/// Says once when nobody answers on the peer's socket, and when somebody does again.
async fn watch_peer(peer: LocalClient, socket: PathBuf) {
    let mut link = peer.link();
    let is_up = |link: &Link| *link != Link::Down;
    loop {
        if tokio::time::timeout(PEER_RESTART, link.wait_for(is_up)).await.is_err() {
            tracing::warn!(
                socket = %socket.display(),
                "the peer does not answer, what is not on this node waits for it: start d7y-peer or correct peer.socket"
            );
            let _ = link.wait_for(is_up).await;
            tracing::info!("the peer answers");
        }
        if link.wait_for(|link| *link == Link::Down).await.is_err() {
            return;
        }
    }
}

/// Parks the FUSE descriptor with each new peer, and opens the layers anew there.
async fn follow_peer(peer: LocalClient, session: Arc<Session>, layers: Arc<Layers>) {
    let (mut link, mut parked_with) = (peer.link(), 0);
    loop {
        let now = *link.borrow_and_update();
        if let Link::Up(generation) = now
            && generation != parked_with
        {
            match park(&peer, &session).await {
                Ok(()) if parked_with == 0 => parked_with = generation,
                Ok(()) => {
                    parked_with = generation;
                    layers.refresh().await;
                }
                Err(error) => {
                    tracing::warn!("the FUSE descriptor is not parked with the peer: {error:#}");
                    tokio::time::sleep(PARK_PAUSE).await;
                    continue;
                }
            }
        }
        if link.changed().await.is_err() {
            return;
        }
    }
}

async fn park(peer: &LocalClient, session: &Session) -> anyhow::Result<()> {
    let descriptor = session.duplicate().context("cannot duplicate the descriptor")?;
    Ok(peer.put_descriptor(FUSE_DESCRIPTOR, descriptor.as_fd(), PARK_DEADLINE).await?)
}

/// A FUSE connection that ends by itself ends the snapshotter: the next one mounts anew.
fn watch_session(tasks: &Tasks, session: Arc<Session>) {
    let stopping = tasks.shutdown().stopping();
    tasks.spawn("fuse session", OnEnd::Fatal, async move {
        let waiting = Arc::clone(&session);
        let ended = tokio::task::spawn_blocking(move || waiting.wait());
        match stopping.run_until_cancelled(ended).await {
            Some(end) => bail!("the FUSE connection has ended: {:?}; containers must be started anew", end?),
            None => {
                let stopped = tokio::task::spawn_blocking(move || session.stop(SESSION_STOP)).await?;
                tracing::info!(?stopped, "the FUSE mount waits for the next snapshotter");
                Ok(())
            }
        }
    });
}

fn serve_containerd(tasks: &Tasks, listener: UnixListener, snapshotter: Arc<Snapshotter>) {
    let closing = tasks.shutdown().closing();
    let serving = Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_REQUESTS)
        .add_service(SnapshotsServer::new(SnapshotsService(snapshotter)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), closing.cancelled_owned());
    tasks.spawn("snapshots service", OnEnd::Fatal, tasks.shutdown().under_way(serving));
}

fn supervise(tasks: &Tasks, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let stopping = tasks.shutdown().stopping();
    tasks.spawn(name, OnEnd::Fatal, async move {
        stopping.run_until_cancelled(work).await;
        Ok::<_, Infallible>(())
    });
}
