//! A registry, a scheduler, a seed peer, nodes with d7y, and a manager where it is wanted.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use d7y_image::IndexSigner;
use d7y_peer_client::LocalClient;

use super::config::{self, Found, PeerRole};
use super::host::{Host, Link};
use super::image::Image;
use super::lab::{Lab, random_bytes};
use super::manager::{Manager, Member};
use super::metrics::Samples;
use super::node::{self, Containerd, D7y, Node};
use super::registry::Registry;
use super::service::{Plan, Service};

const STATUS: Duration = Duration::from_secs(5);

/// How long a peer may take to find its scheduler.
const CONNECTED: Duration = Duration::from_secs(30);

/// More of the daemons' command lines, for tests: `--set KEY=VALUE`; and another containerd.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    pub peer: Vec<String>,
    pub snapshotter: Vec<String>,
    pub containerd: Containerd,
}

/// What all nodes share.
pub struct Cluster {
    pub registry: Registry,
    pub manager: Option<Manager>,
    pub scheduler: Service,
    pub seed: Peer,
    shared: config::Shared,
}

impl Cluster {
    /// Without a manager: the peers' configuration lists scheduler and seed.
    ///
    /// # Errors
    /// One of the daemons does not come up.
    pub fn start(lab: &Lab, seed: Link) -> Result<Self> {
        let registry = Registry::start(lab)?;
        Self::around(lab, registry, None, seed)
    }

    /// As [`Cluster::start`], with the registry at a port of which nobody tells the peers.
    ///
    /// # Errors
    /// One of the daemons does not come up.
    pub fn with_registry_at(lab: &Lab, port: u16) -> Result<Self> {
        Self::around(lab, Registry::start_at(lab, port)?, None, Link(None))
    }

    /// With a manager, through which peers find scheduler and seed.
    ///
    /// # Errors
    /// One of the daemons does not come up.
    pub fn managed(lab: &Lab, seed: Link) -> Result<Self> {
        let registry = Registry::start(lab)?;
        let manager = Manager::start(lab, registry.host())?;
        Self::around(lab, registry, Some(manager), seed)
    }

    fn around(lab: &Lab, registry: Registry, manager: Option<Manager>, seed: Link) -> Result<Self> {
        let (host, seed) = (lab.host("scheduler", Link(None))?, lab.host("seed", seed)?);
        let server = SocketAddr::new(host.address.into(), config::SCHEDULER_PORT);
        let found = match &manager {
            Some(manager) => Found::Through { manager: manager.grpc() },
            None => Found::Listed {
                scheduler: server,
                seed: SocketAddr::new(seed.address.into(), config::TRANSFER_PORT),
            },
        };
        let signing_key = hex::encode(random_bytes::<32>()?);
        let shared = config::Shared {
            registry: registry.host().to_owned(),
            found,
            public_key: hex::encode(IndexSigner::from_hex(&signing_key)?.public_key()),
            signing_key,
        };
        let health = SocketAddr::new(host.address.into(), config::SCHEDULER_STATUS_PORT);
        let scheduler = Plan {
            name: "scheduler".into(),
            program: "d7y-scheduler",
            config: config::scheduler(server, health, manager.as_ref().map(Manager::grpc)),
            arguments: Vec::new(),
            host,
            health,
        };
        let scheduler = Service::start(lab, scheduler)?;
        manager.as_ref().map_or(Ok(()), |manager| manager.wait_for(Member::Scheduler))?;
        let seed = Peer::start(lab, seed, &shared, PeerRole::Seed, &[])?;
        manager.as_ref().map_or(Ok(()), |manager| manager.wait_for(Member::Seed))?;
        Ok(Self { registry, manager, scheduler, seed, shared })
    }

    /// Adds a node whose containerd uses d7y.
    ///
    /// # Errors
    /// One of its daemons does not come up.
    pub fn node(&self, lab: &Lab, name: &str, link: Link, extra: &Extra) -> Result<D7yNode> {
        let host = lab.host(name, link)?;
        let peer = Peer::start(lab, host.clone(), &self.shared, PeerRole::Node, &extra.peer)?;
        let dir = config::Snapshotter { dir: &host.dir, address: host.address };
        let snapshotter = Plan {
            name: format!("{name}-snapshotter"),
            program: "d7y-snapshotter",
            config: dir.text(),
            arguments: extra.snapshotter.clone(),
            host: host.clone(),
            health: SocketAddr::new(host.address.into(), config::SNAPSHOTTER_STATUS_PORT),
        };
        let snapshotter = Service::start(lab, snapshotter)?;
        let d7y = D7y { containerd: &extra.containerd, snapshotter: &dir, registry: &self.shared.registry };
        let node = Node::start(lab, host.clone(), Some(&d7y))?;
        Ok(D7yNode { node, peer, snapshotter })
    }
}

/// A node with all that d7y needs.
pub struct D7yNode {
    pub node: Node,
    pub peer: Peer,
    pub snapshotter: Service,
}

impl D7yNode {
    /// Has `d7y containerd config` add to containerd's file what the programs that it starts next must know.
    ///
    /// # Errors
    /// The command's.
    pub fn introduce(&self, lab: &Lab) -> Result<()> {
        let Node { host, build, .. } = &self.node;
        let snapshotter = config::Snapshotter { dir: &host.dir, address: host.address };
        node::introduce(lab, build, &snapshotter, &self.node.config_file())
    }
}

/// A peer, seed or node.
pub struct Peer {
    pub host: Host,
    pub service: Service,
    socket: PathBuf,
    store: PathBuf,
}

/// What a peer has received and has, at one time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    pub origin_bytes: u64,
    pub seed_bytes: u64,
    pub node_bytes: u64,
}

impl Received {
    pub fn total(self) -> u64 {
        self.origin_bytes + self.seed_bytes + self.node_bytes
    }

    /// What was added since an earlier look.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            origin_bytes: self.origin_bytes.saturating_sub(earlier.origin_bytes),
            seed_bytes: self.seed_bytes.saturating_sub(earlier.seed_bytes),
            node_bytes: self.node_bytes.saturating_sub(earlier.node_bytes),
        }
    }
}

impl Peer {
    fn start(
        lab: &Lab,
        host: Host,
        shared: &config::Shared,
        role: PeerRole,
        extra: &[String],
    ) -> Result<Self> {
        let config = config::Peer { name: &host.name, dir: &host.dir, address: host.address, role };
        let (socket, store) = (config.socket(), config.store());
        let plan = Plan {
            name: format!("{}-peer", host.name),
            program: "d7y-peer",
            config: config.text(shared),
            arguments: extra.to_vec(),
            host: host.clone(),
            health: SocketAddr::new(host.address.into(), config::PEER_METRICS_PORT),
        };
        let peer = Self { service: Service::start(lab, plan)?, host, socket, store };
        if let Found::Through { .. } = shared.found {
            peer.wait_connected()?;
        }
        Ok(peer)
    }

    /// Waits for the session with the scheduler.
    fn wait_connected(&self) -> Result<()> {
        let connected = || {
            Samples::of(self.service.address())
                .is_ok_and(|samples| samples.sum("d7y_peer_scheduler_connected", &[]) > 0.0)
        };
        let waited = self.service.daemon.wait_ready(CONNECTED, connected);
        waited.with_context(|| format!("{} has no session with the scheduler", self.host.name))
    }

    pub fn address(&self) -> IpAddr {
        self.host.address.into()
    }

    /// Its chunks and traces, as `peer/store` describes them.
    pub fn store(&self) -> &std::path::Path {
        &self.store
    }

    /// Where the snapshotter reaches it.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// # Errors
    /// The peer does not answer.
    pub fn received(&self) -> Result<Received> {
        let samples = Samples::of(self.service.address())?;
        let bytes = |source| samples.sum("d7y_peer_received_bytes_total", &[("source", source)]) as u64;
        Ok(Received { origin_bytes: bytes("origin"), seed_bytes: bytes("seed"), node_bytes: bytes("node") })
    }

    /// The part of an image's uncompressed data that is on this node, from 0 to 1. A layer that the peer does not know
    /// counts with its compressed size.
    ///
    /// # Errors
    /// The peer does not answer.
    pub fn share_present(&self, image: &Image) -> Result<f64> {
        let status = self.status()?;
        let (mut present, mut total) = (0.0, 0.0);
        for (digest, size) in &image.layers {
            let known = |layer: &&d7y_proto::local::LayerStatus| {
                digest.strip_prefix("sha256:") == Some(hex::encode(&layer.digest).as_str())
            };
            let Some(layer) = status.layers.iter().find(known) else {
                total += *size as f64;
                continue;
            };
            let bytes = layer.device_bytes as f64;
            total += bytes;
            present += bytes * f64::from(layer.chunks_present) / f64::from(layer.chunks.max(1));
        }
        Ok(if total > 0.0 { present / total } else { 0.0 })
    }

    fn status(&self) -> Result<d7y_proto::local::Status> {
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = LocalClient::new(&self.socket);
                client.status(STATUS).await.context("the peer does not answer on its local socket")
            })
        };
        // A thread of its own: the caller may be inside a runtime.
        std::thread::scope(|scope| {
            scope.spawn(ask).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
