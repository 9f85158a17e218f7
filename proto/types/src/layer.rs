use serde::{Deserialize, Serialize};

use crate::Sha256Digest;

/// What a layer blob's bytes are wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("media type {0:?} is not a tar layer that d7y can mount")]
pub struct MediaTypeError(String);

impl Compression {
    /// From a layer's media type (OCI image specification, media-types.md; Docker image manifest v2, schema 2).
    pub fn from_media_type(media_type: &str) -> Result<Self, MediaTypeError> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Self::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Self::Zstd),
            other => Err(MediaTypeError(other.chars().take(128).collect())),
        }
    }
}

/// One layer of an image, with all that is needed to fetch and to check it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRef {
    /// Registry host, with the port where one is given: `registry.example:5000`.
    pub registry: String,
    /// Repository without the host: `library/python`.
    pub repository: String,
    /// SHA-256 of the blob as the registry stores it (manifest, `layers[].digest`).
    pub digest: Sha256Digest,
    /// SHA-256 of the uncompressed tar (config, `rootfs.diff_ids[]`).
    pub diff_id: Sha256Digest,
    /// Size of the blob as the registry stores it, in bytes.
    pub size: u64,
    pub compression: Compression,
}
