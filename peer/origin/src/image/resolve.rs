use d7y_types::{Compression, LayerRef, MediaTypeError, Sha256Digest};
use sha2::{Digest, Sha256};

use super::documents::{self, Descriptor, Document, Manifest, Platform};
use super::name::{ImageName, Version};
use crate::error::OriginError;
use crate::origin::Origin;

/// Manifests and configs have some KiB; registries refuse manifests of more than 4 MiB.
const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// What a name meant when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Of the one platform's manifest.
    pub manifest: Sha256Digest,
    /// Bottom layer first.
    pub layers: Vec<LayerRef>,
}

/// Why an image's layers cannot be listed. Fit for whoever named the image.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("{image} has no manifest for {platform}; it has {known}")]
    Platform { image: String, platform: Platform, known: String },
    #[error("the {document} of {image} is malformed or larger than 4 MiB; push the image again")]
    Malformed { image: String, document: &'static str },
    #[error("the {document} of {image} does not match its digest; the registry's storage is damaged")]
    Digest { image: String, document: &'static str },
    #[error("{image} cannot be fetched")]
    Layer { image: String, source: MediaTypeError },
}

impl Origin {
    /// Lists the layers of an image for one platform.
    ///
    /// # Errors
    /// What the registry refused, or what is wrong with the image.
    pub async fn image(&self, name: &ImageName, platform: &Platform) -> Result<Image, ImageError> {
        let malformed = |document| ImageError::Malformed { image: name.to_string(), document };
        let (mut digest, mut document) = self.document(name, &name.version).await?;
        if let Document::Index(entries) = &document {
            let chosen = documents::choose(entries, platform).ok_or_else(|| ImageError::Platform {
                image: name.to_string(),
                platform: platform.clone(),
                known: documents::platforms(entries),
            })?;
            (digest, document) = self.document(name, &Version::Digest(chosen.digest)).await?;
        }
        let Document::Manifest(Manifest { config, layers }) = document else {
            return Err(malformed("index"));
        };
        let diff_ids = documents::diff_ids(&self.config(name, &config).await?);
        let diff_ids = diff_ids.filter(|ids| ids.len() == layers.len()).ok_or_else(|| malformed("config"))?;
        let layers = layers.into_iter().zip(diff_ids).map(|(layer, diff_id)| {
            let compression = Compression::from_media_type(&layer.media_type);
            Ok(LayerRef {
                compression: compression
                    .map_err(|source| ImageError::Layer { image: name.to_string(), source })?,
                diff_id,
                ..blob(name, &layer)
            })
        });
        Ok(Image { manifest: digest, layers: layers.collect::<Result<_, ImageError>>()? })
    }

    async fn document(
        &self,
        name: &ImageName,
        version: &Version,
    ) -> Result<(Sha256Digest, Document), ImageError> {
        let document = "manifest";
        let place = (name.registry.as_str(), name.repository.as_str());
        let bytes = self.manifest(place, &version.to_string(), MAX_DOCUMENT_BYTES).await?;
        let malformed = || ImageError::Malformed { image: name.to_string(), document };
        let bytes = bytes.ok_or_else(malformed)?;
        let digest = Sha256Digest(Sha256::digest(&bytes).into());
        if matches!(version, Version::Digest(wanted) if *wanted != digest) {
            return Err(ImageError::Digest { image: name.to_string(), document });
        }
        Ok((digest, Document::parse(&bytes).ok_or_else(malformed)?))
    }

    async fn config(&self, name: &ImageName, config: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let document = "config";
        if config.size > MAX_DOCUMENT_BYTES as u64 {
            return Err(ImageError::Malformed { image: name.to_string(), document });
        }
        let mut stream = self.open_blob(&blob(name, config), 0).await?;
        let mut bytes = Vec::new();
        while let Some(part) = stream.next().await {
            bytes.extend_from_slice(&part?);
        }
        if Sha256Digest(Sha256::digest(&bytes).into()) != config.digest {
            return Err(ImageError::Digest { image: name.to_string(), document });
        }
        Ok(bytes)
    }
}

/// A blob by its descriptor, as it lies.
fn blob(name: &ImageName, descriptor: &Descriptor) -> LayerRef {
    LayerRef {
        registry: name.registry.clone(),
        repository: name.repository.clone(),
        digest: descriptor.digest,
        diff_id: descriptor.digest,
        size: descriptor.size,
        compression: Compression::None,
    }
}

impl ImageError {
    /// Whether the same question may be answered a little later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Origin(error) if error.is_transient())
    }
}
