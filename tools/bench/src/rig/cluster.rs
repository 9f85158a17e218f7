//! A registry, a scheduler, a seed peer, and nodes with d7y.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use d7y_image::IndexSigner;
use d7y_peer_client::LocalClient;

use super::config::{self, PeerRole};
use super::host::{Host, Link};
use super::image::Image;
use super::lab::{Lab, random_bytes};
use super::metrics::Samples;
use super::node::Node;
use super::registry::Registry;
use super::service::{Plan, Service};

const STATUS: Duration = Duration::from_secs(5);

/// More of the daemons' command lines, for tests: `--set KEY=VALUE`.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    pub peer: Vec<String>,
    pub snapshotter: Vec<String>,
}

/// What all nodes share.
pub struct Cluster {
    pub registry: Registry,
    pub scheduler: Service,
    pub seed: Peer,
    shared: config::Shared,
}

impl Cluster {
    /// # Errors
    /// One of the daemons does not come up.
    pub fn start(lab: &Lab, seed: Link) -> Result<Self> {
        let registry = Registry::start(lab)?;
        let seed = lab.host("seed", seed)?;
        let host = lab.host("scheduler", Link(None))?;
        let signing_key = hex::encode(random_bytes::<32>()?);
        let shared = config::Shared {
            registry: registry.name().to_owned(),
            scheduler: SocketAddr::new(host.address.into(), config::SCHEDULER_PORT),
            seed: SocketAddr::new(seed.address.into(), config::TRANSFER_PORT),
            public_key: hex::encode(IndexSigner::from_hex(&signing_key)?.public_key()),
            signing_key,
        };
        let health = SocketAddr::new(host.address.into(), config::SCHEDULER_STATUS_PORT);
        let scheduler = Plan {
            name: "scheduler".into(),
            program: "d7y-scheduler",
            config: config::scheduler(shared.scheduler, health),
            arguments: Vec::new(),
            host,
            health,
        };
        let scheduler = Service::start(lab, scheduler)?;
        let seed = Peer::start(lab, seed, &shared, PeerRole::Seed, &[])?;
        Ok(Self { registry, scheduler, seed, shared })
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
        let socket = dir.socket();
        let snapshotter = Service::start(lab, snapshotter)?;
        let node = Node::start(lab, host, Some(&socket))?;
        Ok(D7yNode { node, peer, snapshotter })
    }
}

/// A node with all that d7y needs.
pub struct D7yNode {
    pub node: Node,
    pub peer: Peer,
    pub snapshotter: Service,
}

/// A peer, seed or node.
pub struct Peer {
    pub host: Host,
    pub service: Service,
    socket: PathBuf,
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
        let socket = config.socket();
        let plan = Plan {
            name: format!("{}-peer", host.name),
            program: "d7y-peer",
            config: config.text(shared),
            arguments: extra.to_vec(),
            host: host.clone(),
            health: SocketAddr::new(host.address.into(), config::PEER_METRICS_PORT),
        };
        Ok(Self { service: Service::start(lab, plan)?, host, socket })
    }

    pub fn address(&self) -> IpAddr {
        self.host.address.into()
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

    /// The part of an image's uncompressed data that is on this node, from 0 to 1.
    ///
    /// # Errors
    /// The peer does not answer.
    pub fn share_present(&self, image: &Image) -> Result<f64> {
        let status = self.status()?;
        let (mut present, mut total) = (0.0, 0.0);
        for (digest, _) in &image.layers {
            let known = |layer: &&d7y_proto::local::LayerStatus| {
                digest.strip_prefix("sha256:") == Some(hex::encode(&layer.digest).as_str())
            };
            if let Some(layer) = status.layers.iter().find(known) {
                let bytes = layer.device_bytes as f64;
                total += bytes;
                present += bytes * f64::from(layer.chunks_present) / f64::from(layer.chunks.max(1));
            }
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
