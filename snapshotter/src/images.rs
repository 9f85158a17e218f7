//! `GET /images`: the lazy images of this node and who uses them, for `d7y status`.

use std::collections::{BTreeMap, HashSet};

use d7y_types::Sha256Digest;
use serde::{Deserialize, Serialize};

use crate::layers::Layers;
use crate::meta::{Filters, Kind, Snapshot, Store};
use crate::prepare::is_container;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageView {
    pub reference: String,
    /// Digest of the manifest.
    pub manifest: String,
    /// containerd's keys of the containers that stand on it.
    pub containers: Vec<String>,
    /// The lowest first.
    pub layers: Vec<ImageLayerView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLayerView {
    /// `sha256:...`
    pub digest: String,
    pub mounted: bool,
    /// What the kernel asked of it through FUSE since the snapshotter started, in bytes. Neither the page cache nor a
    /// direct mount asks.
    #[serde(default)]
    pub read_bytes: u64,
}

/// An image is known by its topmost layer; layers below may be shared, and keep the name of whoever brought them first.
pub fn view(store: &Store, layers: &Layers) -> Vec<ImageView> {
    let rows = store.list(&Filters::default());
    let below: HashSet<&str> =
        rows.iter().filter(|row| row.remote.is_some()).map(|row| row.parent.as_str()).collect();
    let mounted = layers.mounted();
    let mut images = BTreeMap::new();
    for row in &rows {
        if row.remote.is_some() && !below.contains(row.name.as_str()) {
            images.entry(row.name.clone()).or_insert_with(Vec::new);
        }
        let holds_container = row.kind == Kind::Active && is_container(&row.name);
        if holds_container && let Some(image) = topmost_remote(store, &row.name) {
            images.entry(image).or_insert_with(Vec::new).push(row.name.clone());
        }
    }
    let shown = Shown { store, layers, mounted };
    images.into_iter().filter_map(|(top, containers)| shown.image(&top, containers)).collect()
}

fn topmost_remote(store: &Store, name: &str) -> Option<String> {
    let chain = store.chain(name).ok()?;
    chain.iter().find(|row| row.remote.is_some()).map(|row| row.name.clone())
}

struct Shown<'a> {
    store: &'a Store,
    layers: &'a Layers,
    mounted: HashSet<Sha256Digest>,
}

impl Shown<'_> {
    fn image(&self, top: &str, containers: Vec<String>) -> Option<ImageView> {
        let chain = self.store.chain(top).ok()?;
        let remote = chain.first()?.remote.as_ref()?;
        Some(ImageView {
            reference: remote.reference.clone(),
            manifest: remote.manifest.to_string(),
            containers,
            layers: chain.iter().rev().filter_map(|row| self.layer(row)).collect(),
        })
    }

    fn layer(&self, row: &Snapshot) -> Option<ImageLayerView> {
        let digest = row.remote.as_ref()?.layer.digest;
        let (mounted, read_bytes) = (self.mounted.contains(&digest), self.layers.read_bytes(digest));
        Some(ImageLayerView { digest: digest.to_string(), mounted, read_bytes })
    }
}
