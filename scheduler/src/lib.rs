//! The scheduler daemon: sessions with peers around the decision core.
//!
//! Each peer keeps one session stream open. What it says becomes an event of [`d7y_scheduler_core`]; what the
//! core decides goes into that peer's outbox, which holds at most the newest assignment per task and is read
//! as fast as the peer reads. Nothing is stored: after a restart peers announce themselves again.
//!
//! Actors: one acceptor (tonic), one task per session, one ticker. The core is behind one lock that nobody
//! holds across an await. With `manager.address` set one more task keeps alive with the manager, which tells peers where
//! the scheduler is and asks it to place preheats; nothing here waits for it. On shutdown the ticker stops first and no departure reaches the core, so that no
//! decision is taken from a half-empty cluster; then every session ends with `UNAVAILABLE`.

mod config;
mod convert;
mod grant;
mod hub;
mod manager;
mod metrics;
mod outbox;
mod placement;
mod preheats;
mod program;
mod session;
mod status;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use d7y_chassis::listen::{self, BindError};
use d7y_chassis::spans::{SpanCounts, Spans};
use d7y_chassis::{Daemon, DaemonName, Health, OnEnd, Reloads, Tasks};
use d7y_proto::scheduler::placement_server::PlacementServer;
use d7y_proto::scheduler::scheduler_server::SchedulerServer;
use d7y_scheduler_core::{MAX_TRACE_BYTES, TICK};
use tokio::time::MissedTickBehavior;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

pub use config::{Config, HeartbeatConfig, ListenConfig};
use hub::Hub;
pub use metrics::described as described_metrics;
use placement::Placements;
pub use program::main;
use session::Sessions;

pub const DAEMON: Daemon = Daemon {
    name: DaemonName::new("d7y-scheduler"),
    about: "Tells d7y peers who to fetch from and who reads the origin",
    version: env!("CARGO_PKG_VERSION"),
    shorthands: &[],
    actions: &[],
};

/// A message on top of the largest trace, in bytes.
const MAX_MESSAGE_BYTES: usize = MAX_TRACE_BYTES + 4096;
/// Streams on one connection: a peer needs one, and a second while it reconnects.
const MAX_STREAMS_PER_CONNECTION: u32 = 16;

/// Where a started scheduler listens; with port 0 in the configuration, the ports it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub server: SocketAddr,
    pub metrics: SocketAddr,
}

/// Takes over what can be set while the scheduler runs, when the manager says so.
pub fn follow(config: &Config, tasks: &Tasks, reloads: Reloads<Config>) -> anyhow::Result<()> {
    manager::follow(config, tasks, reloads)
}

/// Binds all sockets and starts to serve; [`Tasks::finish`] waits for the end.
pub async fn run(config: Config, tasks: &Tasks) -> anyhow::Result<Addresses> {
    let (server, server_address) = open(config.server.listen, "server.listen").await?;
    let (metrics_listener, metrics_address) = open(config.metrics.listen, "metrics.listen").await?;
    let mut registry = d7y_chassis::metrics::registry(DAEMON.name, DAEMON.version);
    let metrics = metrics::Metrics::register(&mut registry);
    let counts = SpanCounts::register(&mut registry);
    let spans = Spans::start(&config.tracing, &DAEMON, &server_address.to_string(), counts, tasks)?;
    d7y_chassis::metrics::serve(tasks, vec![metrics_listener], Arc::new(registry), Health::new());

    let hub = Arc::new(Hub::new(config.settle.get(), metrics));
    let sessions = Sessions::new(hub.clone(), tasks.clone(), config.heartbeat.interval.get());
    let service = SchedulerServer::new(sessions).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let incoming = TcpIncoming::from(server).with_nodelay(Some(true));
    let closing = tasks.shutdown().closing();
    let serving = Server::builder()
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(config.heartbeat.interval.get()))
        .http2_keepalive_timeout(Some(config.heartbeat.interval.get()))
        .add_service(service)
        .add_service(PlacementServer::new(Placements { hub: hub.clone(), spans }))
        .serve_with_incoming_shutdown(incoming, closing.clone().cancelled_owned());
    tasks.spawn("session acceptor", OnEnd::Fatal, tasks.shutdown().under_way(serving));
    manager::keep_alive(&config, server_address, &hub, tasks)?;
    tasks.spawn("ticker", OnEnd::Fatal, async move {
        closing.run_until_cancelled(tick(&hub)).await;
        Ok::<_, Infallible>(())
    });
    tracing::info!(server = %server_address, metrics = %metrics_address, "listening");
    Ok(Addresses { server: server_address, metrics: metrics_address })
}

async fn open(
    address: SocketAddr,
    key: &'static str,
) -> Result<(tokio::net::TcpListener, SocketAddr), BindError> {
    let listener = listen::bind(address, key).await?;
    let bound = listener.local_addr().map_err(|source| BindError::Tcp { address, key, source })?;
    Ok((listener, bound))
}

async fn tick(hub: &Hub) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        hub.tick();
    }
}
