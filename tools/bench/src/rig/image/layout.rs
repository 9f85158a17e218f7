//! Writes an OCI image layout.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layer::LayerBlob;
use crate::rig::places::make_dir;

/// A layout that grows; it counts as complete when `finish` has written its index.
pub struct Layout {
    dir: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    /// # Errors
    /// The directory cannot be made.
    pub fn create(dir: &Path) -> Result<Self> {
        make_dir(dir.join("blobs/sha256"))?;
        Ok(Self { dir: dir.to_path_buf(), manifests: Vec::new() })
    }

    /// Where a blob is, or is to be, stored.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// A place on the same file system for a blob whose digest is not known yet.
    pub fn unnamed(&self) -> PathBuf {
        self.dir.join("blobs/unnamed")
    }

    /// Adds an image under a tag.
    ///
    /// # Errors
    /// The disk's.
    pub fn image(&mut self, tag: &str, command: &[&str], layers: &[LayerBlob]) -> Result<()> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
            "os": "linux",
            "config": {
                "Cmd": command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1"],
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.put(&config, "application/vnd.oci.image.config.v1+json")?;
        let layers: Vec<_> = layers.iter().map(LayerBlob::descriptor).collect();
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut entry = self.put(&manifest, MANIFEST)?;
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.push(entry);
        Ok(())
    }

    /// Writes the index.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(self) -> Result<()> {
        fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.dir.join("index.json"), index.to_string()).context("cannot write index.json")
    }

    fn put(&self, value: &Value, media_type: &str) -> Result<Value> {
        let bytes = value.to_string();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        fs::write(self.blob(&digest), &bytes).with_context(|| format!("cannot write {digest}"))?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }
}
