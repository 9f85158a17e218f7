//! The manager daemon: clusters, who is in them, users, and jobs that outlive any process.
//!
//! It is never on the data path: peers keep the last answer that it gave. All that must survive it is in the database
//! (`d7y-manager-db`); what is in memory can be lost at any time. Actors: the gRPC server with one task per member, the
//! REST server, one reconciler of jobs with one task per job under way. On shutdown listeners close first, streams of
//! members end without a word about their members, requests under way are answered, drivers of jobs stop between two
//! steps, and the database is closed last.

mod config;
mod identity;
mod manager;
mod members;
mod metrics;
mod preheat;
mod program;
mod rest;
mod secrets;
pub mod settings;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use d7y_chassis::config::ConfigError;
use d7y_chassis::listen::{self, BindError};
use d7y_chassis::obstacle::{self, Obstacle};
use d7y_chassis::spans::{SpanCounts, Spans};
use d7y_chassis::{Action, Daemon, DaemonName, Health, OnEnd, Secret, Tasks};
use d7y_manager_db::{Database, DbError, Timestamp};
use d7y_origin::Origin;
use d7y_proto::manager::manager_server::ManagerServer;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

pub use config::{Config, DiscoveryConfig, JobsConfig, KeepAliveConfig, ListenConfig, SecretsConfig};
use manager::{Manager, Settings};
use members::Members;
pub use metrics::described as described_metrics;
pub use program::main;
pub use secrets::reset_root_password;

pub const DAEMON: Daemon = Daemon {
    name: DaemonName::new("d7y-manager"),
    about: "Keeps clusters, users and jobs of d7y",
    version: env!("CARGO_PKG_VERSION"),
    shorthands: &[],
    actions: &[RESET_ROOT_PASSWORD],
};

pub const RESET_ROOT_PASSWORD: Action = Action {
    flag: "reset-root-password",
    help: "Give the user root a new password, print it once, and stop; a running manager takes it at once",
};

/// The configuration key of the database's place.
const DIRECTORY: &str = "directory";
/// A scheduler's list of 131,072 peers with names of some 60 bytes.
const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// A started manager; with port 0 in the configuration, the ports it was given.
#[derive(Debug, Clone)]
pub struct Running {
    pub rest: SocketAddr,
    pub grpc: SocketAddr,
    pub metrics: SocketAddr,
    /// Of the user `root`, when one was made up at this very start.
    pub first_password: Option<Secret>,
}

/// Opens the database, binds all sockets and starts to serve; [`Tasks::finish`] waits for the end.
pub async fn start(config: Config, tasks: &Tasks) -> anyhow::Result<Running> {
    obstacle::writable_directory(&config.directory, DIRECTORY)?;
    // First of all, as its ports are this manager's too: "runs already" says more than "port taken".
    let lock = obstacle::lock(&config.directory, DIRECTORY)?;
    let (rest, rest_address) = open(config.rest.listen, "rest.listen").await?;
    let (grpc, grpc_address) = open(config.grpc.listen, "grpc.listen").await?;
    let (metrics_listener, metrics_address) = open(config.metrics.listen, "metrics.listen").await?;
    let db = open_database(&config).await?;
    let mut registry = d7y_chassis::metrics::registry(DAEMON.name, DAEMON.version);
    let metrics = metrics::Metrics::register(&mut registry);
    let counts = SpanCounts::register(&mut registry);
    let manager = Arc::new(Manager {
        spans: Spans::start(&config.tracing, &DAEMON, &grpc_address.to_string(), counts, tasks)?,
        vault: secrets::vault(&config)?,
        origin: Origin::new(config.origin.clone())
            .map_err(|error| ConfigError::Faults(config::origin_faults(&error.0)))?,
        settings: Settings {
            interval: config.keep_alive.interval.get(),
            refresh: config.discovery.refresh.get(),
            keep_for: config.jobs.keep_for.get(),
            keep_most: config.jobs.keep_most.get().into(),
        },
        metrics,
        new_job: Notify::new(),
        db: db.clone(),
        _lock: lock,
    });
    manager.db.default_cluster(Timestamp::now()).await?;
    d7y_chassis::metrics::serve(tasks, vec![metrics_listener], Arc::new(registry), Health::new());
    serve_grpc(tasks, manager.clone(), grpc);
    serve_rest(tasks, manager.clone(), rest);
    let carry_on = preheat::CarryOn::new(manager.clone(), tasks.clone());
    let stopping = tasks.shutdown().stopping();
    tasks.spawn("job reconciler", OnEnd::Fatal, async move {
        stopping.run_until_cancelled(carry_on.run()).await;
        Ok::<_, Infallible>(())
    });
    tasks.on_flush("database", async move { Ok(db.close().await?) });
    tracing::info!(rest = %rest_address, grpc = %grpc_address, metrics = %metrics_address, "listening");
    let first_password = secrets::first_user(&manager.db, &config).await?;
    Ok(Running { rest: rest_address, grpc: grpc_address, metrics: metrics_address, first_password })
}

async fn open_database(config: &Config) -> anyhow::Result<Database> {
    Database::open(&config.directory.join(secrets::DATABASE)).await.map_err(|error| match error {
        DbError::Newer { path, found } => {
            Obstacle::Version { path, found, expected: Database::version() }.into()
        }
        other => other.into(),
    })
}

async fn open(address: SocketAddr, key: &'static str) -> Result<(TcpListener, SocketAddr), BindError> {
    let listener = listen::bind(address, key).await?;
    let bound = listener.local_addr().map_err(|source| BindError::Tcp { address, key, source })?;
    Ok((listener, bound))
}

fn serve_grpc(tasks: &Tasks, manager: Arc<Manager>, listener: TcpListener) {
    let interval = manager.settings.interval;
    let members = Members::new(manager, tasks.clone());
    let service = ManagerServer::new(members).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let closing = tasks.shutdown().closing();
    let serving = Server::builder()
        .http2_keepalive_interval(Some(interval))
        .http2_keepalive_timeout(Some(interval))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, closing.cancelled_owned());
    tasks.spawn("grpc server", OnEnd::Fatal, tasks.shutdown().under_way(serving));
}

fn serve_rest(tasks: &Tasks, manager: Arc<Manager>, listener: TcpListener) {
    let closing = tasks.shutdown().closing();
    let serving =
        axum::serve(listener, rest::router(manager)).with_graceful_shutdown(closing.cancelled_owned());
    let serving = tasks.shutdown().under_way(async move { serving.await });
    tasks.spawn("rest server", OnEnd::Fatal, serving);
}
