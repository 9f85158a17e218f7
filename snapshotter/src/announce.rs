use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_peer_client::{ClientError, Link, LocalClient, layer_to_wire};
use d7y_proto::local::OpenImage;
use d7y_types::{LayerRef, Sha256Digest};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// How long the peer may take to take note of an image.
const DEADLINE: Duration = Duration::from_secs(5);
/// Images remembered; the one announced longest ago goes first.
const MAX_REMEMBERED: usize = 256;

/// What the peer has said about an image.
#[derive(Debug, Clone, Copy)]
pub struct Announced {
    /// Whether the cluster knows how the image is used.
    pub has_trace: bool,
}

/// Tells the peer once about each image that is about to be used, and once more after the peer restarted.
pub struct Announcer {
    peer: LocalClient,
    images: Mutex<BTreeMap<Sha256Digest, Image>>,
}

struct Image {
    started: Instant,
    link: Link,
    cell: Arc<OnceCell<Announced>>,
}

impl Announcer {
    pub fn new(peer: LocalClient) -> Self {
        Self { peer, images: Mutex::default() }
    }

    /// `layers` has the bottom layer first.
    pub async fn announce(
        &self,
        manifest: Sha256Digest,
        reference: &str,
        layers: &[LayerRef],
    ) -> Result<Announced, ClientError> {
        let cell = self.remember(manifest);
        let announce = async || {
            let image = OpenImage {
                manifest_digest: manifest.0.to_vec(),
                reference: reference.into(),
                layers: layers.iter().map(layer_to_wire).collect(),
            };
            let has_trace = self.peer.open_image(image, DEADLINE).await?;
            Ok(Announced { has_trace })
        };
        cell.get_or_try_init(announce).await.copied()
    }

    fn remember(&self, manifest: Sha256Digest) -> Arc<OnceCell<Announced>> {
        let link = *self.peer.link().borrow();
        let mut images = self.images.lock();
        let known = images.get(&manifest).filter(|image| image.link == link);
        if let Some(image) = known {
            return Arc::clone(&image.cell);
        }
        while images.len() >= MAX_REMEMBERED {
            let Some(oldest) = images.iter().min_by_key(|(_, image)| image.started).map(|(key, _)| *key)
            else {
                break;
            };
            images.remove(&oldest);
        }
        let image = Image { started: Instant::now(), link, cell: Arc::default() };
        let cell = Arc::clone(&image.cell);
        images.insert(manifest, image);
        cell
    }
}
