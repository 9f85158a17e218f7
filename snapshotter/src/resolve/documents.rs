use d7y_types::{Compression, Sha256Digest};
use oci_spec::image::{Descriptor, ImageManifest};
use serde::Deserialize;

/// More layers than overlayfs can stack are refused (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;

/// What a blob of the content store turned out to be.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    Config(Config),
    Other,
}

/// An image manifest (OCI image specification, manifest.md; Docker image manifest v2, schema 2).
#[derive(Debug)]
pub(super) struct Manifest {
    pub config: Sha256Digest,
    pub layers: Vec<LayerBlob>,
}

#[derive(Debug)]
pub(super) struct LayerBlob {
    pub digest: Sha256Digest,
    pub size: u64,
    /// None for a media type that is no tar layer.
    pub compression: Option<Compression>,
}

/// An image's config (OCI image specification, config.md): only what names its layers, so that a config that lacks
/// something else is no obstacle.
#[derive(Debug)]
pub(super) struct Config {
    pub diff_ids: Vec<Sha256Digest>,
}

#[derive(Deserialize)]
struct ConfigJson {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Sha256Digest>,
}

impl Document {
    pub fn parse(blob: &[u8]) -> Self {
        if let Some(manifest) = serde_json::from_slice(blob).ok().and_then(Manifest::of) {
            return Self::Manifest(manifest);
        }
        match serde_json::from_slice(blob) {
            Ok(ConfigJson { rootfs: RootFs { diff_ids } }) if diff_ids.len() <= MAX_LAYERS => {
                Self::Config(Config { diff_ids })
            }
            _ => Self::Other,
        }
    }
}

impl Manifest {
    /// None when a digest is no SHA-256, or of too many layers.
    fn of(manifest: ImageManifest) -> Option<Self> {
        let layers = manifest.layers();
        let digest = |descriptor: &Descriptor| descriptor.digest().to_string().parse().ok();
        let layer = |descriptor: &Descriptor| {
            let compression = Compression::from_media_type(descriptor.media_type().as_ref()).ok();
            Some(LayerBlob { digest: digest(descriptor)?, size: descriptor.size(), compression })
        };
        let few = layers.len() <= MAX_LAYERS;
        let layers = few.then(|| layers.iter().map(layer).collect::<Option<Vec<_>>>())??;
        Some(Self { config: digest(manifest.config())?, layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let layer =
            |media_type: &str| format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":7}}"#);
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = |layers: &[String]| {
            format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, layer("x"), layers.join(","))
        };
        let config = format!(r#"{{"config":{{}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#);
        let kind = |blob: &str| match Document::parse(blob.as_bytes()) {
            Document::Manifest(m) => {
                format!("manifest {:?}", m.layers.iter().map(|l| l.compression).collect::<Vec<_>>())
            }
            Document::Config(c) => format!("config {}", c.diff_ids.len()),
            Document::Other => "other".into(),
        };
        let table = [
            (manifest(&[layer(tar), layer("foreign")]), "manifest [Some(Gzip), None]"),
            (manifest(&[]), "manifest []"),
            (manifest(&vec![layer(tar); MAX_LAYERS + 1]), "other"),
            (manifest(&[layer(tar).replace("sha256", "sha512")]), "other"),
            (
                manifest(&[layer("application/vnd.docker.image.rootfs.diff.tar.gzip")]),
                "manifest [Some(Gzip)]",
            ),
            (manifest(&[layer("application/vnd.oci.image.layer.v1.tar+zstd")]), "manifest [Some(Zstd)]"),
            (manifest(&[layer("application/vnd.oci.image.layer.v1.tar")]), "manifest [Some(None)]"),
            (config, "config 1"),
            (r#"{"manifests":[]}"#.into(), "other"),
            ("[]".into(), "other"),
            ("\u{1f}\u{8b}".into(), "other"),
            ("[".repeat(100_000), "other"),
        ];
        for (blob, expected) in table {
            assert_eq!(kind(&blob), expected, "{}", &blob[..blob.len().min(100)]);
        }
    }
}
