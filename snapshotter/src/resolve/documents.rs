use d7y_types::{Compression, Sha256Digest};
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

/// An image's config (OCI image specification, config.md): only what names its layers.
#[derive(Debug)]
pub(super) struct Config {
    pub diff_ids: Vec<Sha256Digest>,
}

#[derive(Deserialize)]
struct ManifestJson {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Sha256Digest,
    size: u64,
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
        if let Ok(ManifestJson { config, layers }) = serde_json::from_slice(blob)
            && layers.len() <= MAX_LAYERS
        {
            let layers = layers.into_iter().map(LayerBlob::from).collect();
            return Self::Manifest(Manifest { config: config.digest, layers });
        }
        match serde_json::from_slice(blob) {
            Ok(ConfigJson { rootfs: RootFs { diff_ids } }) if diff_ids.len() <= MAX_LAYERS => {
                Self::Config(Config { diff_ids })
            }
            _ => Self::Other,
        }
    }
}

impl From<Descriptor> for LayerBlob {
    fn from(descriptor: Descriptor) -> Self {
        let Descriptor { media_type, digest, size } = descriptor;
        Self { digest, size, compression: Compression::from_media_type(&media_type).ok() }
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
