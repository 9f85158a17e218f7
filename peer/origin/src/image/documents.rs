//! Indexes, manifests and configs as registries send them (OCI image specification 1.1; Docker image manifest v2,
//! schema 2). Parsers take bytes that somebody else bounded.

use std::fmt;
use std::str::FromStr;

use d7y_types::Sha256Digest;
use serde::Deserialize;

/// More layers than overlayfs can stack are refused (`OVL_MAX_STACK`).
pub(crate) const MAX_LAYERS: usize = 500;

/// What an image runs on: `linux/amd64`, `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform such as linux/amd64 or linux/arm64/v8")]
pub struct PlatformError(String);

#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Entry>),
    Manifest(Manifest),
}

/// One manifest of an index.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub digest: Sha256Digest,
    platform: Option<PlatformJson>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Sha256Digest,
    pub size: u64,
}

#[derive(Debug, Deserialize)]
struct PlatformJson {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct DocumentJson {
    manifests: Option<Vec<Entry>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
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
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let document: DocumentJson = serde_json::from_slice(bytes).ok()?;
        match document {
            DocumentJson { manifests: Some(entries), .. } => Some(Self::Index(entries)),
            DocumentJson { config: Some(config), layers: Some(layers), .. } if layers.len() <= MAX_LAYERS => {
                Some(Self::Manifest(Manifest { config, layers }))
            }
            _ => None,
        }
    }
}

/// The uncompressed digests of the layers that an image's config lists, bottom first.
pub(crate) fn diff_ids(config: &[u8]) -> Option<Vec<Sha256Digest>> {
    let config: ConfigJson = serde_json::from_slice(config).ok()?;
    Some(config.rootfs.diff_ids).filter(|ids| ids.len() <= MAX_LAYERS)
}

/// Reads a document and looks at all that is looked at of it.
#[cfg(feature = "fuzzing")]
pub(crate) fn exercise(bytes: &[u8], platform: &Platform) {
    match Document::parse(bytes) {
        Some(Document::Index(entries)) => {
            if let Some(chosen) = choose(&entries, platform) {
                let of = chosen.platform.as_ref().expect("only what names a platform is chosen");
                assert_eq!((&of.os, &of.architecture), (&platform.os, &platform.architecture));
            }
            let known = platforms(&entries);
            assert!(known.chars().count() <= 400 && !known.contains(char::is_control));
        }
        Some(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= MAX_LAYERS);
            for layer in &manifest.layers {
                let _ = d7y_types::Compression::from_media_type(&layer.media_type);
            }
        }
        None => {}
    }
}

/// The entry for a platform: the same variant before one without, before any other.
pub(super) fn choose<'a>(entries: &'a [Entry], wanted: &Platform) -> Option<&'a Entry> {
    let fits = |entry: &&Entry| {
        let of = entry.platform.as_ref();
        of.is_some_and(|of| of.os == wanted.os && of.architecture == wanted.architecture)
    };
    let distance = |entry: &&Entry| {
        let variant = entry.platform.as_ref().and_then(|of| of.variant.as_ref());
        match variant {
            variant if variant == wanted.variant.as_ref() => 0,
            None => 1,
            Some(_) => 2,
        }
    };
    let found = entries.iter().filter(fits).min_by_key(distance)?;
    let exact = wanted.variant.is_none() || distance(&found) < 2;
    exact.then_some(found)
}

/// What an index has, for the sentence that says what it has not.
pub(super) fn platforms(entries: &[Entry]) -> String {
    let known = entries.iter().filter_map(|entry| entry.platform.as_ref());
    let names = known.filter(|of| !of.os.is_empty() && of.os != "unknown").map(|of| {
        let variant = of.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{}/{}{variant}", of.os, of.architecture)
    });
    let names: Vec<_> = names.take(16).collect();
    let text = if names.is_empty() { "none that is named".to_owned() } else { names.join(", ") };
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}

impl Platform {
    /// The one that this program was built for.
    pub fn own() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let refuse = || PlatformError(text.chars().take(64).collect());
        let word = |part: &&str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(word) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: rest.first().map(|variant| (*variant).to_owned()),
            }),
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_chosen_by_variant() {
        let entry = |n: u8, platform: &str| {
            let mut parts = platform.split('/');
            let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
            let variant = parts.next().map(|v| format!(r#","variant":"{v}""#)).unwrap_or_default();
            let digest = Sha256Digest([n; 32]);
            format!(
                r#"{{"digest":"{digest}","size":1,"platform":{{"os":"{os}","architecture":"{architecture}"{variant}}}}}"#
            )
        };
        let index = format!(
            r#"{{"manifests":[{},{},{},{},{{"digest":"{}","size":1}}]}}"#,
            entry(1, "linux/amd64"),
            entry(2, "linux/arm/v6"),
            entry(3, "linux/arm/v7"),
            entry(4, "unknown/unknown"),
            Sha256Digest([5; 32]),
        );
        let Some(Document::Index(entries)) = Document::parse(index.as_bytes()) else { panic!("no index") };
        let table = [
            ("linux/amd64", Some(1)),
            ("linux/amd64/v1", Some(1)),
            ("linux/arm/v7", Some(3)),
            ("linux/arm", Some(2)),
            ("linux/arm/v5", None),
            ("linux/arm64", None),
            ("windows/amd64", None),
        ];
        for (wanted, expected) in table {
            let found = choose(&entries, &wanted.parse().unwrap()).map(|entry| entry.digest.0[0]);
            assert_eq!(found, expected, "{wanted}");
        }
        assert_eq!(platforms(&entries), "linux/amd64, linux/arm/v6, linux/arm/v7");
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let long = format!(
            r#"{{"config":{{"digest":"sha256:{0}","size":1}},"layers":[{1}]}}"#,
            "0a".repeat(32),
            vec![format!(r#"{{"digest":"sha256:{}","size":1}}"#, "0a".repeat(32)); MAX_LAYERS + 1].join(",")
        );
        for bad in ["", "[]", "{}", r#"{"layers":[]}"#, r#"{"manifests":{}}"#, &"[".repeat(100_000), &long] {
            assert!(Document::parse(bad.as_bytes()).is_none(), "{}", &bad[..bad.len().min(80)]);
        }
        assert!(diff_ids(b"{}").is_none());
    }
}
