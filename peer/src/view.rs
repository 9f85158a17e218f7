//! `GET /status`: the peer at a glance, for `d7y status`.

use std::sync::Arc;

use d7y_chassis::metrics::Views;
use d7y_store::Store;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Role};
use crate::directory::Directory;
use crate::fetch::FetchContext;
use crate::metrics::Metrics;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    pub peer_id: String,
    pub role: Role,
    pub scheduler_connected: bool,
    /// Works without a scheduler, by its configuration or by a flag.
    #[serde(default)]
    pub standalone: bool,
    pub store: StoreView,
    /// Peers with an open connection to fetch from.
    pub parents: Vec<ParentView>,
    pub layers: Vec<LayerView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreView {
    pub directory: String,
    pub kept_bytes: u64,
    pub limit_bytes: u64,
    pub evicted_layers: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentView {
    pub address: String,
    pub role: Role,
}

/// Bytes are as they were transferred, since the peer started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerView {
    /// `sha256:...`
    pub digest: String,
    pub chunks: u32,
    pub chunks_present: u32,
    pub device_bytes: u64,
    pub origin_bytes: u64,
    pub seed_bytes: u64,
    pub node_bytes: u64,
    /// Not transferred: other layers of this node have the same chunks.
    pub reused_bytes: u64,
    /// How long ago the last bytes came; nothing when none came since the start.
    pub quiet_ms: Option<u64>,
}

/// What the view is made of.
struct Sources {
    peer_id: Arc<str>,
    role: Role,
    standalone: bool,
    store_directory: String,
    directory: Arc<Directory>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
}

/// What the peer serves beside its metrics.
pub(crate) fn views(config: &Config, context: &FetchContext, directory: &Arc<Directory>) -> Views {
    let sources = Sources {
        peer_id: context.peer_id.clone(),
        role: config.role,
        standalone: config.standalone,
        store_directory: config.store.directory.display().to_string(),
        directory: directory.clone(),
        store: context.store.clone(),
        metrics: context.metrics.clone(),
    };
    Views::default().with("/status", move || status(&sources))
}

fn status(sources: &Sources) -> StatusView {
    let ledger = &sources.metrics.ledger;
    let usage = sources.store.usage();
    let mut layers: Vec<_> = sources
        .store
        .layers()
        .into_iter()
        .map(|layer| {
            let received = ledger.of(layer.digest());
            LayerView {
                digest: layer.digest().to_string(),
                chunks: layer.chunks().len() as u32,
                chunks_present: layer.readable().count(),
                device_bytes: layer.device_bytes(),
                origin_bytes: received.map_or(0, |received| received.origin_bytes),
                seed_bytes: received.map_or(0, |received| received.seed_bytes),
                node_bytes: received.map_or(0, |received| received.node_bytes),
                reused_bytes: layer.reused_bytes(),
                quiet_ms: received.map(|received| received.quiet().as_millis() as u64),
            }
        })
        .collect();
    layers.sort_by(|a, b| a.digest.cmp(&b.digest));
    let role = |seed| if seed { Role::Seed } else { Role::Node };
    let parents = ledger.parents().into_iter();
    StatusView {
        peer_id: sources.peer_id.to_string(),
        role: sources.role,
        scheduler_connected: sources.directory.is_connected(),
        standalone: sources.standalone,
        store: StoreView {
            directory: sources.store_directory.clone(),
            kept_bytes: usage.kept_bytes,
            limit_bytes: usage.limit_bytes,
            evicted_layers: usage.evicted_layers,
        },
        parents: parents
            .map(|parent| ParentView { address: parent.address.to_string(), role: role(parent.seed) })
            .collect(),
        layers,
    }
}
