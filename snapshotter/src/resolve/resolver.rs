use std::num::NonZeroUsize;
use std::sync::Arc;

use d7y_types::{LayerRef, Sha256Digest};
use lru::LruCache;
use parking_lot::Mutex;

use crate::resolve::chain::{chain_ids, sha256};
use crate::resolve::content::{BlobInfo, Content, ContentError};
use crate::resolve::documents::{Document, LayerBlob, Manifest};
use crate::resolve::labels::{Hints, split_reference};

/// Larger blobs are neither manifests nor configs (the limit of registries and of containerd), in bytes.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Documents remembered; a manifest and a config per image.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");
/// Blobs that one search looks at, the most recent first.
const MAX_SEARCHED: usize = 4096;
/// containerd labels manifests with the blobs that they keep alive.
const CONFIG_LABEL: &str = "containerd.io/gc.ref.content.config";
/// Which registry and repositories a blob came from: `containerd.io/distribution.source.<registry>=<repository>,..`.
const SOURCE_LABEL: &str = "containerd.io/distribution.source.";

/// An image all of whose layers are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub manifest: Sha256Digest,
    /// For people and for the registry: `registry/repository:tag`, or with the digest where no tag is known.
    pub reference: String,
    /// Bottom first; none for one that is not a tar layer.
    pub layers: Vec<Option<LayerRef>>,
    /// One for each layer.
    pub chain_ids: Vec<Sha256Digest>,
}

impl Image {
    /// Which layer has this chain id; 0 is the bottom.
    pub fn position(&self, chain_id: Sha256Digest) -> Option<usize> {
        self.chain_ids.iter().position(|known| *known == chain_id)
    }
}

/// Why the image of a layer is not known. The layer is then an ordinary one.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    #[error("no image in containerd's content store has this chain id")]
    NoImage,
    #[error("neither a label nor the content store tells the image's registry and repository")]
    NoSource,
    #[error(transparent)]
    Content(#[from] ContentError),
}

/// Finds images in a content store; remembers what its blobs are.
pub struct Resolver {
    content: Arc<dyn Content>,
    documents: Mutex<LruCache<Sha256Digest, Arc<Document>>>,
}

impl Resolver {
    pub fn new(content: Arc<dyn Content>) -> Self {
        Self { content, documents: Mutex::new(LruCache::new(REMEMBERED)) }
    }

    /// The image that has the chain id. `likely` is the image of the layer below: several images share a layer, and
    /// layers of one image are asked for one after another.
    pub async fn resolve(
        &self,
        namespace: &str,
        hints: &Hints,
        likely: Option<Sha256Digest>,
    ) -> Result<Image, Unresolved> {
        let known = [hints.manifest, likely];
        for digest in known.into_iter().flatten() {
            if let Some(blob) = self.content.info(namespace, digest).await?
                && let Some(image) = self.image(namespace, &blob, hints).await?
            {
                return Ok(image);
            }
        }
        for label in [Some(CONFIG_LABEL), None] {
            if let Some(image) = self.search(namespace, label, hints).await? {
                return Ok(image);
            }
        }
        Err(Unresolved::NoImage)
    }

    async fn search(
        &self,
        namespace: &str,
        label: Option<&str>,
        hints: &Hints,
    ) -> Result<Option<Image>, Unresolved> {
        let mut blobs = self.content.list(namespace, label, MAX_DOCUMENT_BYTES).await?;
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.updated));
        blobs.truncate(MAX_SEARCHED);
        let mut without_source = false;
        for blob in &blobs {
            match self.image(namespace, blob, hints).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(Unresolved::NoSource) => without_source = true,
                Err(error) => return Err(error),
            }
        }
        if without_source { Err(Unresolved::NoSource) } else { Ok(None) }
    }

    /// The image of a manifest, if the blob is one and fits the hints.
    async fn image(
        &self,
        namespace: &str,
        blob: &BlobInfo,
        hints: &Hints,
    ) -> Result<Option<Image>, Unresolved> {
        let Some(document) = self.document(namespace, blob.digest).await? else { return Ok(None) };
        let Document::Manifest(manifest) = &*document else { return Ok(None) };
        let Some(config) = self.document(namespace, manifest.config).await? else { return Ok(None) };
        let Document::Config(config) = &*config else { return Ok(None) };
        if config.diff_ids.len() != manifest.layers.len() {
            return Ok(None);
        }
        let chain_ids = chain_ids(&config.diff_ids);
        let Some(position) = chain_ids.iter().position(|id| *id == hints.chain_id) else { return Ok(None) };
        if hints.layer.is_some_and(|layer| layer != manifest.layers[position].digest) {
            return Ok(None);
        }
        let source = source(blob, hints.reference.as_deref()).ok_or(Unresolved::NoSource)?;
        let layers = layers(manifest, &config.diff_ids, &source);
        let (registry, repository) = source;
        let reference =
            hints.reference.clone().unwrap_or_else(|| format!("{registry}/{repository}@{}", blob.digest));
        Ok(Some(Image { manifest: blob.digest, reference, layers, chain_ids }))
    }

    async fn document(
        &self,
        namespace: &str,
        digest: Sha256Digest,
    ) -> Result<Option<Arc<Document>>, Unresolved> {
        if let Some(known) = self.documents.lock().get(&digest) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(blob) = self.content.read(namespace, digest, MAX_DOCUMENT_BYTES).await? else {
            return Ok(None);
        };
        if sha256(&blob) != digest {
            return Err(ContentError::Corrupt(digest).into());
        }
        let document = Arc::new(Document::parse(&blob));
        self.documents.lock().put(digest, Arc::clone(&document));
        Ok(Some(document))
    }
}

fn layers(
    manifest: &Manifest,
    diff_ids: &[Sha256Digest],
    (registry, repository): &(String, String),
) -> Vec<Option<LayerRef>> {
    let layer = |(blob, diff_id): (&LayerBlob, &Sha256Digest)| {
        Some(LayerRef {
            registry: registry.clone(),
            repository: repository.clone(),
            digest: blob.digest,
            diff_id: *diff_id,
            size: blob.size,
            compression: blob.compression?,
        })
    };
    manifest.layers.iter().zip(diff_ids).map(layer).collect()
}

/// Registry and repository: the reference's, where there is one, else what containerd noted at the manifest.
fn source(blob: &BlobInfo, reference: Option<&str>) -> Option<(String, String)> {
    if let Some((registry, repository)) = reference.and_then(split_reference) {
        return Some((registry.into(), repository.into()));
    }
    let mut sources: Vec<(&str, &str)> = blob
        .labels
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(SOURCE_LABEL)?, value.split(',').next()?)))
        .filter(|(registry, repository)| !registry.is_empty() && !repository.is_empty())
        .collect();
    sources.sort_unstable();
    sources.first().map(|(registry, repository)| ((*registry).into(), (*repository).into()))
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
