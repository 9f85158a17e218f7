use d7y_types::Sha256Digest;

use crate::meta::Labels;

/// The label that asks for a remote snapshot; its value is the chain id.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

const CRI_REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
const CRI_MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const CRI_LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
const STARGZ_REFERENCE: &str = "containerd.io/snapshot/remote/stargz.reference";
const STARGZ_LAYER: &str = "containerd.io/snapshot/remote/stargz.digest";

/// What a client tells about the layer that it wants. Only the chain id is certain.
///
/// The lists of further layers (`cri.image-layers`, `stargz.layers`) are cut off where they do not fit in a label,
/// and the manifest says the same: they are not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hints {
    pub chain_id: Sha256Digest,
    pub manifest: Option<Sha256Digest>,
    pub layer: Option<Sha256Digest>,
    /// `registry.example:5000/library/python:3.12`
    pub reference: Option<String>,
}

impl Hints {
    /// Nothing when no remote snapshot is asked for; labels that do not parse count as absent.
    pub fn from_labels(labels: &Labels) -> Option<Self> {
        let digest = |key: &str| labels.get(key).and_then(|value| value.parse().ok());
        Some(Self {
            chain_id: digest(SNAPSHOT_REF)?,
            manifest: digest(CRI_MANIFEST),
            layer: digest(CRI_LAYER).or_else(|| digest(STARGZ_LAYER)),
            reference: labels.get(CRI_REFERENCE).or_else(|| labels.get(STARGZ_REFERENCE)).cloned(),
        })
    }
}

/// containerd's keys and names are `<namespace>/<number>/<client's key>`.
pub fn namespace_of(key: &str) -> Option<&str> {
    let (namespace, rest) = key.split_once('/')?;
    let (number, _) = rest.split_once('/')?;
    (!namespace.is_empty() && number.parse::<u64>().is_ok()).then_some(namespace)
}

/// Registry and repository of a reference, without tag and digest.
pub(super) fn split_reference(reference: &str) -> Option<(&str, &str)> {
    let (registry, path) = reference.split_once('/')?;
    let path = path.split_once('@').map_or(path, |(path, _)| path);
    let name_at = path.rfind('/').map_or(0, |at| at + 1);
    let path = path[name_at..].find(':').map_or(path, |colon| &path[..name_at + colon]);
    let is_host = registry.contains(['.', ':']) || registry == "localhost";
    (is_host && !path.is_empty()).then_some((registry, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let table = [
            ("docker.io/library/python:3.12", Some(("docker.io", "library/python"))),
            ("localhost:5000/a/b:1@sha256:00", Some(("localhost:5000", "a/b"))),
            ("localhost/a", Some(("localhost", "a"))),
            ("r.example/a@sha256:00", Some(("r.example", "a"))),
            ("library/python", None),
            ("python", None),
            ("r.example/", None),
            ("", None),
        ];
        for (reference, expected) in table {
            assert_eq!(split_reference(reference), expected, "{reference}");
        }
    }

    #[test]
    fn namespaces() {
        let table = [
            ("default/3/extract-259151147--maZ sha256:d9a9", Some("default")),
            ("k8s.io/12/a/b", Some("k8s.io")),
            ("default/x/y", None),
            ("plain-key", None),
            ("/1/a", None),
        ];
        for (key, expected) in table {
            assert_eq!(namespace_of(key), expected, "{key}");
        }
    }

    #[test]
    fn all_dialects_are_understood() {
        let digest = |n: u8| Sha256Digest([n; 32]);
        let (chain, manifest, layer) = (digest(1), digest(2), digest(3));
        let labels = |pairs: &[(&str, String)]| {
            pairs.iter().map(|(key, value)| ((*key).into(), value.clone())).collect::<Labels>()
        };
        let bare = (SNAPSHOT_REF, chain.to_string());
        let reference = String::from("r.example/a:1");
        let nothing = Hints { chain_id: chain, manifest: None, layer: None, reference: None };
        let table = [
            (labels(&[]), None),
            (labels(&[(SNAPSHOT_REF, "no digest".into())]), None),
            (labels(&[(CRI_MANIFEST, manifest.to_string())]), None),
            (labels(std::slice::from_ref(&bare)), Some(nothing.clone())),
            (labels(&[bare.clone(), (CRI_MANIFEST, "broken".into())]), Some(nothing.clone())),
            (
                labels(&[
                    bare.clone(),
                    (CRI_MANIFEST, manifest.to_string()),
                    (CRI_LAYER, layer.to_string()),
                    (CRI_REFERENCE, reference.clone()),
                ]),
                Some(Hints {
                    chain_id: chain,
                    manifest: Some(manifest),
                    layer: Some(layer),
                    reference: Some(reference.clone()),
                }),
            ),
            (
                labels(&[bare, (STARGZ_LAYER, layer.to_string()), (STARGZ_REFERENCE, reference.clone())]),
                Some(Hints { layer: Some(layer), reference: Some(reference), ..nothing }),
            ),
        ];
        for (labels, expected) in table {
            assert_eq!(Hints::from_labels(&labels), expected, "{labels:?}");
        }
    }
}
