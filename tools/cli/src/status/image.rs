use anyhow::{Result, bail};
use d7y_peer::view::{LayerView, StatusView};
use d7y_snapshotter::images::ImageView;
use serde::Serialize;

use super::table::{Table, amount, percent, short};
use crate::image_name::Known;

/// One image, each of its layers as far as the peer knows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub reference: String,
    pub manifest: String,
    pub containers: Vec<String>,
    /// Of the uncompressed data of all layers whose index is here.
    pub present: f64,
    pub layers: Vec<LayerStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerStatus {
    pub digest: String,
    pub mounted: bool,
    /// What the kernel asked of it since the snapshotter started.
    pub read_bytes: u64,
    /// Nothing of a layer is known until its index is here.
    pub peer: Option<LayerView>,
}

/// The one image that is meant.
pub fn find<'a>(images: &'a [ImageView], name: &str) -> Result<&'a ImageView> {
    let exact = images.iter().find(|image| image.reference == name || image.manifest == name);
    if let Some(exact) = exact {
        return Ok(exact);
    }
    let meant: Vec<_> = images
        .iter()
        .filter(|image| Known { reference: &image.reference, manifest: &image.manifest }.is_meant_by(name))
        .collect();
    let names = |images: &[&ImageView]| {
        images.iter().map(|image| format!("\n  {} {}", image.reference, image.manifest)).collect::<String>()
    };
    match meant.as_slice() {
        [one] => Ok(one),
        [] if images.is_empty() => bail!("this node has no lazy image"),
        [] => {
            bail!("no lazy image is called {name:?}; these are:{}", names(&images.iter().collect::<Vec<_>>()))
        }
        many => bail!("{name:?} may be several; take one, or the beginning of its digest:{}", names(many)),
    }
}

impl Status {
    pub fn of(image: &ImageView, peer: &StatusView) -> Self {
        let layers: Vec<_> = image
            .layers
            .iter()
            .map(|layer| LayerStatus {
                digest: layer.digest.clone(),
                mounted: layer.mounted,
                read_bytes: layer.read_bytes,
                peer: peer.layers.iter().find(|known| known.digest == layer.digest).cloned(),
            })
            .collect();
        Self {
            reference: image.reference.clone(),
            manifest: image.manifest.clone(),
            containers: image.containers.clone(),
            present: present(layers.iter().filter_map(|layer| layer.peer.as_ref())),
            layers,
        }
    }

    pub fn text(&self) -> String {
        let mut table = Table::new([
            "LAYER",
            "SIZE",
            "PRESENT",
            "MOUNTED",
            "READ",
            "FROM ORIGIN",
            "FROM SEEDS",
            "FROM NODES",
            "REUSED",
        ]);
        for layer in &self.layers {
            let mounted = if layer.mounted { "yes" } else { "no" }.to_owned();
            let unknown = || "-".to_owned();
            let known = layer.peer.as_ref();
            let bytes = |of: fn(&LayerView) -> u64| known.map_or_else(unknown, |layer| amount(of(layer)));
            table.row([
                short(&layer.digest),
                bytes(|layer| layer.device_bytes),
                known.map_or_else(|| "no index".to_owned(), |layer| percent(share(layer))),
                mounted,
                amount(layer.read_bytes),
                bytes(|layer| layer.origin_bytes),
                bytes(|layer| layer.seed_bytes),
                bytes(|layer| layer.node_bytes),
                bytes(|layer| layer.reused_bytes),
            ]);
        }
        let containers = match self.containers.as_slice() {
            [] => "none".to_owned(),
            some => some.join(", "),
        };
        format!(
            "{}\n{}\n{} of its data is here; containers: {containers}\n\n{}\nREAD counts what the kernel asked for since \
             the snapshotter started: not what the page cache or a direct mount answered.\nFROM counts transferred bytes \
             since the peer started; REUSED those that other layers of this node had.\n",
            self.reference,
            self.manifest,
            percent(self.present),
            table.text()
        )
    }
}

/// The part of the layers' data that is here, from 0 to 1.
pub fn present<'a>(layers: impl Iterator<Item = &'a LayerView>) -> f64 {
    let (here, all) = layers.fold((0.0, 0.0), |(here, all), layer| {
        let bytes = layer.device_bytes as f64;
        (here + bytes * share(layer), all + bytes)
    });
    if all > 0.0 { here / all } else { 0.0 }
}

pub fn share(layer: &LayerView) -> f64 {
    f64::from(layer.chunks_present) / f64::from(layer.chunks.max(1))
}
