use std::time::{Duration, SystemTime, UNIX_EPOCH};

use d7y_chassis::recent::RecentEvent;
use d7y_peer::Role;
use d7y_peer::view::{LayerView, StatusView};
use d7y_snapshotter::images::ImageView;
use serde::Serialize;

use super::Places;
use super::image::{Status, share};
use super::table::{Table, amount, percent, short};

/// An incomplete layer that received something within this time is being downloaded.
const UNDER_WAY_MS: u64 = 5_000;
/// Warnings and errors that are shown.
const SHOWN_EVENTS: usize = 8;

/// A node as its daemons see it; what is missing did not answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub peer: Option<StatusView>,
    pub images: Option<Vec<Status>>,
    pub events: Vec<DaemonEvent>,
    /// Why something is missing.
    pub faults: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct DaemonEvent {
    pub daemon: &'static str,
    #[serde(flatten)]
    pub event: RecentEvent,
}

impl Node {
    pub async fn look(places: &Places) -> Self {
        let mut faults = Vec::new();
        let mut or_fault = |error: anyhow::Error| faults.push(format!("{error:#}"));
        let peer = places.peer_status().await.map_err(&mut or_fault).ok();
        let images: Option<Vec<ImageView>> = places.images().await.map_err(&mut or_fault).ok();
        let events = [
            ("peer", places.peer_events().await.unwrap_or_default()),
            ("snapshotter", places.snapshotter_events().await.unwrap_or_default()),
        ];
        let of_daemon = |(daemon, events): (&'static str, Vec<RecentEvent>)| {
            events.into_iter().map(move |event| DaemonEvent { daemon, event })
        };
        let mut events: Vec<_> = events.into_iter().flat_map(of_daemon).collect();
        events.sort_by_key(|event| event.event.unix_ms);
        let images = match (&peer, images) {
            (Some(peer), Some(images)) => Some(images.iter().map(|image| Status::of(image, peer)).collect()),
            _ => None,
        };
        Self { peer, images, events, faults }
    }

    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        self.faults.iter().for_each(|fault| text.push_str(&format!("not reachable: {fault}\n")));
        if let Some(peer) = &self.peer {
            text.push_str(&head(peer));
        }
        if let Some(images) = &self.images {
            text.push_str(&format!("\n{}", image_table(images)));
        }
        if let Some(peer) = &self.peer {
            text.push_str(&downloads(peer));
        }
        text + &self.event_list()
    }

    fn event_list(&self) -> String {
        if self.events.is_empty() {
            return "\nno warnings or errors\n".to_owned();
        }
        let skipped = self.events.len().saturating_sub(SHOWN_EVENTS);
        let line = |DaemonEvent { daemon, event }: &DaemonEvent| {
            let at = UNIX_EPOCH + Duration::from_millis(event.unix_ms);
            let ago = SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
            format!("  {ago:>6} s ago  {daemon:<11}  {:<5}  {}\n", event.level, event.message)
        };
        let lines: String = self.events.iter().skip(skipped).map(line).collect();
        format!("\nlast warnings and errors (journalctl -u d7y-peer -u d7y-snapshotter has all):\n{lines}")
    }
}

fn head(peer: &StatusView) -> String {
    let scheduler = if peer.scheduler_connected { "connected" } else { "not connected" };
    let seeds = peer.parents.iter().filter(|parent| parent.role == Role::Seed).count();
    let nodes = peer.parents.len() - seeds;
    let store = &peer.store;
    let used = store.kept_bytes as f64 / store.limit_bytes.max(1) as f64;
    format!(
        "{}  scheduler {scheduler}, {seeds} seeds and {nodes} nodes to fetch from\ncache  {} of {} ({}) in {} layers, {} \
         evicted\n",
        peer.peer_id,
        amount(store.kept_bytes),
        amount(store.limit_bytes),
        percent(used),
        peer.layers.len(),
        store.evicted_layers
    )
}

fn image_table(images: &[Status]) -> String {
    if images.is_empty() {
        return "no lazy images\n".to_owned();
    }
    let mut table = Table::new(["IMAGE", "PRESENT", "LAYERS", "MOUNTED", "CONTAINERS"]);
    for image in images {
        let mounted = image.layers.iter().filter(|layer| layer.mounted).count();
        table.row([
            image.reference.clone(),
            percent(image.present),
            image.layers.len().to_string(),
            mounted.to_string(),
            image.containers.len().to_string(),
        ]);
    }
    table.text()
}

fn downloads(peer: &StatusView) -> String {
    let under_way = |layer: &&LayerView| {
        layer.chunks_present < layer.chunks && layer.quiet_ms.is_some_and(|quiet| quiet < UNDER_WAY_MS)
    };
    let layers: Vec<_> = peer.layers.iter().filter(under_way).collect();
    if layers.is_empty() {
        return "\nno downloads under way\n".to_owned();
    }
    let mut table = Table::new(["DOWNLOADING", "PRESENT", "SIZE"]);
    for layer in layers {
        table.row([short(&layer.digest), percent(share(layer)), amount(layer.device_bytes)]);
    }
    format!("\n{}", table.text())
}
