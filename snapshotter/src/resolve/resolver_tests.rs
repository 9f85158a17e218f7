use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use d7y_types::Compression;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::meta::Timestamp;

const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// A content store with one map per namespace.
#[derive(Default)]
struct Fake {
    blobs: HashMap<(String, Sha256Digest), (BlobInfo, Vec<u8>)>,
    reads: AtomicUsize,
    down: bool,
}

impl Fake {
    fn add(&mut self, blob: String, updated: i64, labels: &[(&str, &str)]) -> Sha256Digest {
        let digest = sha256(blob.as_bytes());
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let info = BlobInfo { digest, size: blob.len() as u64, labels, updated: Timestamp(updated, 0) };
        self.blobs.insert(("default".into(), digest), (info, blob.into_bytes()));
        digest
    }

    /// An image whose layers have the given contents; returns its manifest's digest.
    fn image(&mut self, layers: &[&str], updated: i64, labels: &[(&str, &str)]) -> Sha256Digest {
        let diff_ids: Vec<_> = layers.iter().map(|layer| format!("\"{}\"", diff_id(layer))).collect();
        let config = format!(r#"{{"rootfs":{{"diff_ids":[{}]}},"made":{updated}}}"#, diff_ids.join(","));
        let config = self.add(config, updated, &[]);
        let descriptor = |media_type: &str, digest: Sha256Digest| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":9}}"#)
        };
        let blobs: Vec<_> = layers
            .iter()
            .map(|layer| descriptor(if *layer == "foreign" { "x" } else { GZIP }, blob(layer)))
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor("c", config),
            blobs.join(",")
        );
        self.add(manifest, updated, labels)
    }
}

impl Content for Fake {
    fn info<'a>(
        &'a self,
        namespace: &'a str,
        digest: Sha256Digest,
    ) -> BoxFuture<'a, Result<Option<BlobInfo>, ContentError>> {
        let blob = self.blobs.get(&(namespace.into(), digest)).map(|(info, _)| info.clone());
        async move { self.answer(blob) }.boxed()
    }

    fn list<'a>(
        &'a self,
        namespace: &'a str,
        label: Option<&'a str>,
        max_bytes: u64,
    ) -> BoxFuture<'a, Result<Vec<BlobInfo>, ContentError>> {
        let fits = |info: &BlobInfo| {
            info.size <= max_bytes && label.is_none_or(|label| info.labels.contains_key(label))
        };
        let here = self.blobs.iter().filter(|((ns, _), _)| ns == namespace);
        let blobs = here.map(|(_, (info, _))| info.clone()).filter(fits).collect();
        async move { self.answer(blobs) }.boxed()
    }

    fn read<'a>(
        &'a self,
        namespace: &'a str,
        digest: Sha256Digest,
        _: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>, ContentError>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let blob = self.blobs.get(&(namespace.into(), digest)).map(|(_, blob)| blob.clone());
        async move { self.answer(blob) }.boxed()
    }
}

impl Fake {
    fn answer<T>(&self, value: T) -> Result<T, ContentError> {
        match self.down {
            true => Err(ContentError::Unreachable(Box::new(tonic::Status::unavailable("down")))),
            false => Ok(value),
        }
    }
}

fn diff_id(layer: &str) -> Sha256Digest {
    sha256(format!("diff {layer}").as_bytes())
}

fn blob(layer: &str) -> Sha256Digest {
    sha256(format!("blob {layer}").as_bytes())
}

/// Asks for the topmost of the layers.
fn hints(layers: &[&str]) -> Hints {
    let diff_ids: Vec<_> = layers.iter().map(|layer| diff_id(layer)).collect();
    let chain_id = *chain_ids(&diff_ids).last().unwrap();
    Hints { chain_id, manifest: None, layer: None, reference: None }
}

const SOURCED: &[(&str, &str)] =
    &[(CONFIG_LABEL, "x"), ("containerd.io/distribution.source.r.example:5000", "team/app,other/app")];

#[tokio::test]
async fn an_image_is_found_by_chain_id_alone() {
    let mut fake = Fake::default();
    fake.image(&["a", "x"], 1, SOURCED);
    let manifest = fake.image(&["a", "b", "foreign"], 2, SOURCED);
    let fake = Arc::new(fake);
    let resolver = Resolver::new(fake.clone());
    let image = resolver.resolve("default", &hints(&["a", "b"]), None).await.unwrap();
    assert_eq!(image.manifest, manifest);
    assert_eq!(image.reference, format!("r.example:5000/team/app@{manifest}"));
    assert_eq!(image.position(hints(&["a", "b"]).chain_id), Some(1));
    let layer = image.layers[1].clone().unwrap();
    assert_eq!((layer.registry.as_str(), layer.repository.as_str()), ("r.example:5000", "team/app"));
    assert_eq!((layer.digest, layer.diff_id, layer.size), (blob("b"), diff_id("b"), 9));
    assert_eq!(layer.compression, Compression::Gzip);
    assert_eq!(image.layers[2], None);
    let reads = fake.reads.load(Ordering::Relaxed);
    resolver.resolve("default", &hints(&["a"]), None).await.unwrap();
    assert_eq!(fake.reads.load(Ordering::Relaxed), reads, "known documents were read again");
}

#[tokio::test]
async fn the_hinted_then_the_likely_then_the_recent_image_is_taken() {
    let mut fake = Fake::default();
    let old = fake.image(&["a", "old"], 1, SOURCED);
    let middle = fake.image(&["a", "middle"], 2, SOURCED);
    let recent = fake.image(&["a", "recent"], 3, SOURCED);
    let resolver = Resolver::new(Arc::new(fake));
    let base = hints(&["a"]);
    let hinted = Hints { manifest: Some(old), reference: Some("h.example/app:1".into()), ..base.clone() };
    let mislead = Hints { manifest: Some(old), ..hints(&["a", "recent"]) };
    for (hints, likely, expected) in [
        (&hinted, Some(middle), old),
        (&base, Some(middle), middle),
        (&base, None, recent),
        (&mislead, None, recent),
    ] {
        assert_eq!(resolver.resolve("default", hints, likely).await.unwrap().manifest, expected);
    }
    let image = resolver.resolve("default", &hinted, None).await.unwrap();
    assert_eq!(image.reference, "h.example/app:1");
    assert_eq!(image.layers[0].as_ref().unwrap().registry, "h.example");
}

#[tokio::test]
async fn manifests_without_gc_labels_are_found_too() {
    let mut fake = Fake::default();
    let manifest = fake.image(&["a"], 1, &SOURCED[1..]);
    let resolver = Resolver::new(Arc::new(fake));
    assert_eq!(resolver.resolve("default", &hints(&["a"]), None).await.unwrap().manifest, manifest);
}

#[tokio::test]
async fn what_cannot_be_resolved_says_why() {
    let mut fake = Fake::default();
    fake.image(&["a"], 1, SOURCED);
    let bare = fake.image(&["b"], 2, &[(CONFIG_LABEL, "x")]);
    let orphan = fake.image(&["c"], 3, SOURCED);
    let config = fake.blobs.values().find(|(_, blob)| blob.ends_with(b"\"made\":3}")).unwrap().0.digest;
    fake.blobs.remove(&("default".into(), config));
    let resolver = Resolver::new(Arc::new(fake));
    let fails = async |namespace: &str, hints: Hints| match resolver.resolve(namespace, &hints, None).await {
        Err(Unresolved::NoImage) => "no image",
        Err(Unresolved::NoSource) => "no source",
        Err(Unresolved::Content(_)) => "content",
        Ok(_) => "found",
    };
    assert_eq!(fails("default", hints(&["a"])).await, "found");
    assert_eq!(fails("other", hints(&["a"])).await, "no image", "blobs of another namespace prove nothing");
    assert_eq!(fails("default", hints(&["unknown"])).await, "no image");
    assert_eq!(fails("default", hints(&["b"])).await, "no source");
    assert_eq!(fails("default", Hints { manifest: Some(bare), ..hints(&["b"]) }).await, "no source");
    assert_eq!(fails("default", Hints { manifest: Some(orphan), ..hints(&["c"]) }).await, "no image");
    assert_eq!(fails("default", Hints { layer: Some(blob("x")), ..hints(&["a"]) }).await, "no image");
    let down = Resolver::new(Arc::new(Fake { down: true, ..Fake::default() }));
    assert!(matches!(down.resolve("default", &hints(&["a"]), None).await, Err(Unresolved::Content(_))));
}

#[tokio::test]
async fn a_blob_that_does_not_match_its_digest_is_refused() {
    let mut fake = Fake::default();
    let manifest = fake.image(&["a"], 1, SOURCED);
    fake.blobs.get_mut(&("default".into(), manifest)).unwrap().1.push(b' ');
    let resolver = Resolver::new(Arc::new(fake));
    let error = resolver.resolve("default", &hints(&["a"]), None).await.unwrap_err();
    assert!(matches!(error, Unresolved::Content(ContentError::Corrupt(digest)) if digest == manifest));
}
