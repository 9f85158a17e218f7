//! Pull and unpack, in the order of containerd's unpacker; and what an earlier pull has left.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, CreateImageRequest, GetImageRequest, Image, InfoRequest, ReadContentRequest,
    UpdateImageRequest, WriteAction, WriteContentRequest,
};
use containerd_client::types::{Descriptor, Mount};
use futures_util::stream::{StreamExt, unfold};
use http_body_util::BodyExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tonic::Code;

use super::session::Session;

/// Bytes per content message: gRPC's usual limit is 4 MiB.
const WRITE_BYTES: usize = 1 << 20;

/// As containerd's CRI plugin has it by default.
const CONCURRENT_DOWNLOADS: usize = 3;

/// A label of containerd holds 4,096 bytes, its key included.
const LABEL_LIMIT: usize = 4096;

const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// What running needs to know of an image.
pub struct Pulled {
    pub config: Value,
    /// The name of the uppermost snapshot.
    pub chain_id: String,
}

struct Layer {
    descriptor: Descriptor,
    chain_id: String,
}

/// The image as an earlier pull left it, read without a word to any registry: as kubelet's `IfNotPresent` and nerdctl's
/// `--pull=missing` have it. Nothing where the image or its uppermost snapshot is not there.
pub async fn present(session: &Session) -> Result<Option<Pulled>> {
    let name = session.image.reference.to_string();
    let known = match session.client.images().get(session.ask(GetImageRequest { name })).await {
        Ok(known) => known.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(status).context("cannot ask for the image"),
    };
    let target = known.image.and_then(|image| image.target).context("an image without target")?;
    let manifest = stored(session, &target.digest).await?;
    let config = stored(session, &descriptor(&manifest["config"])?.digest).await?;
    let chain_id = layers(&manifest, &config)?.last().context("an image without layers")?.chain_id.clone();
    Ok(is_prepared(session, &chain_id).await?.then_some(Pulled { config, chain_id }))
}

/// Fetches manifest and config, then prepares each layer; from the first that the snapshotter
/// does not have at once, downloads and applies all that remain.
pub async fn pull(session: &Arc<Session>) -> Result<Pulled> {
    let manifest_bytes = session.registry.manifest(&session.image.reference.tag).await?;
    let manifest: Value = serde_json::from_slice(&manifest_bytes).context("the manifest is not JSON")?;
    let manifest_digest = sha256(&manifest_bytes);
    let config_descriptor = descriptor(&manifest["config"])?;
    let config_bytes = session.registry.small_blob(&config_descriptor.digest).await?;
    let config: Value = serde_json::from_slice(&config_bytes).context("the config is not JSON")?;
    let layers = layers(&manifest, &config)?;
    let chain_id = layers.last().context("an image without layers")?.chain_id.clone();

    let target = Descriptor {
        media_type: manifest["mediaType"].as_str().unwrap_or_default().to_owned(),
        digest: manifest_digest.clone(),
        size: i64::try_from(manifest_bytes.len())?,
        ..Default::default()
    };
    let mut config_labels = source_label(session);
    config_labels
        .insert(format!("containerd.io/gc.ref.snapshot.{}", session.snapshotter()), chain_id.clone());
    store_small(session, &config_descriptor, config_bytes, config_labels).await?;
    store_small(session, &target, manifest_bytes, manifest_labels(session, &config_descriptor, &layers))
        .await?;
    unpack(session, &manifest_digest, &layers).await?;
    record(session, target).await?;
    Ok(Pulled { config, chain_id })
}

async fn unpack(session: &Arc<Session>, manifest_digest: &str, layers: &[Layer]) -> Result<()> {
    let mut parent = String::new();
    for (number, layer) in layers.iter().enumerate() {
        match prepare(session, manifest_digest, &layers[number..], &parent).await? {
            Prepared::Exists => parent.clone_from(&layer.chain_id),
            Prepared::Empty(first) => {
                return apply_all(session, manifest_digest, &layers[number..], parent, first).await;
            }
        }
    }
    Ok(())
}

enum Prepared {
    Exists,
    Empty(Active),
}

struct Active {
    key: String,
    mounts: Vec<Mount>,
}

/// Prepares the first of `layers`; the labels name the rest, too.
async fn prepare(
    session: &Session,
    manifest_digest: &str,
    layers: &[Layer],
    parent: &str,
) -> Result<Prepared> {
    let layer = layers.first().context("no layer to prepare")?;
    if is_prepared(session, &layer.chain_id).await? {
        return Ok(Prepared::Exists);
    }
    let key = format!("extract-{} {}", hex::encode(crate::rig::lab::random_bytes::<6>()?), layer.chain_id);
    let request = PrepareSnapshotRequest {
        snapshotter: session.snapshotter(),
        key: key.clone(),
        parent: parent.to_owned(),
        labels: snapshot_labels(session, manifest_digest, layers),
    };
    match session.client.snapshots().prepare(session.ask(request)).await {
        Ok(response) => Ok(Prepared::Empty(Active { key, mounts: response.into_inner().mounts })),
        Err(status) if status.code() == Code::AlreadyExists => Ok(Prepared::Exists),
        Err(status) => Err(status).with_context(|| format!("cannot prepare {}", layer.chain_id)),
    }
}

async fn is_prepared(session: &Session, chain_id: &str) -> Result<bool> {
    let stat = StatSnapshotRequest { snapshotter: session.snapshotter(), key: chain_id.to_owned() };
    match session.client.snapshots().stat(session.ask(stat)).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status).context("cannot stat a snapshot"),
    }
}

/// What the CRI plugin of containerd tells a snapshotter of the layer and of those above it.
fn snapshot_labels(session: &Session, manifest_digest: &str, layers: &[Layer]) -> HashMap<String, String> {
    let mut above = String::new();
    for layer in layers {
        let digest = &layer.descriptor.digest;
        if IMAGE_LAYERS.len() + above.len() + 1 + digest.len() > LABEL_LIMIT {
            break;
        }
        if !above.is_empty() {
            above.push(',');
        }
        above.push_str(digest);
    }
    let first = &layers[0];
    HashMap::from([
        ("containerd.io/snapshot.ref".into(), first.chain_id.clone()),
        ("containerd.io/snapshot/cri.image-ref".into(), session.image.reference.to_string()),
        ("containerd.io/snapshot/cri.manifest-digest".into(), manifest_digest.to_owned()),
        ("containerd.io/snapshot/cri.layer-digest".into(), first.descriptor.digest.clone()),
        (IMAGE_LAYERS.into(), above),
    ])
}

/// Downloads several at a time, applies in order; downloads go on while a layer is applied.
async fn apply_all(
    session: &Arc<Session>,
    manifest_digest: &str,
    layers: &[Layer],
    mut parent: String,
    first: Active,
) -> Result<()> {
    let downloads = start_downloads(session, layers);
    let mut prepared = Some(first);
    for ((number, layer), download) in layers.iter().enumerate().zip(downloads) {
        let active = match prepared.take() {
            Some(active) => Prepared::Empty(active),
            None => prepare(session, manifest_digest, &layers[number..], &parent).await?,
        };
        let key = match &active {
            Prepared::Empty(active) => Some(active.key.clone()),
            Prepared::Exists => None,
        };
        let unpacked = async {
            download.await.context("a download was given up")??;
            match active {
                Prepared::Empty(active) => apply(session, layer, active).await,
                Prepared::Exists => Ok(()),
            }
        };
        if let Err(error) = unpacked.await {
            // As containerd's unpacker does: the layers below would stay mounted.
            if let Some(key) = key {
                let remove = RemoveSnapshotRequest { snapshotter: session.snapshotter(), key };
                let _ = session.client.snapshots().remove(session.ask(remove)).await;
            }
            return Err(error);
        }
        parent.clone_from(&layer.chain_id);
    }
    Ok(())
}

/// One task per layer. They end with the pull's runtime at the latest.
fn start_downloads(session: &Arc<Session>, layers: &[Layer]) -> Vec<JoinHandle<Result<()>>> {
    let slots = Arc::new(Semaphore::new(CONCURRENT_DOWNLOADS));
    let start = |layer: &Layer| {
        let (session, slots, blob) = (session.clone(), slots.clone(), layer.descriptor.clone());
        tokio::spawn(async move {
            let _slot = slots.acquire().await?;
            download(&session, &blob).await
        })
    };
    layers.iter().map(start).collect()
}

async fn apply(session: &Session, layer: &Layer, active: Active) -> Result<()> {
    let Active { key, mounts } = active;
    let request = ApplyRequest { diff: Some(layer.descriptor.clone()), mounts, ..Default::default() };
    session.client.diff().apply(session.ask(request)).await.context("cannot apply a layer")?;
    let snapshotter = session.snapshotter();
    let commit = CommitSnapshotRequest {
        snapshotter: snapshotter.clone(),
        name: layer.chain_id.clone(),
        key: key.clone(),
        labels: HashMap::from([("containerd.io/snapshot.ref".into(), layer.chain_id.clone())]),
    };
    match session.client.snapshots().commit(session.ask(commit)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {
            let remove = RemoveSnapshotRequest { snapshotter, key };
            session.client.snapshots().remove(session.ask(remove)).await?;
            Ok(())
        }
        Err(status) => Err(status).context("cannot commit a snapshot"),
    }
}

async fn download(session: &Session, blob: &Descriptor) -> Result<()> {
    if is_stored(session, &blob.digest).await? {
        return Ok(());
    }
    let mut body = session.registry.blob(&blob.digest).await?;
    let (sender, receiver) = mpsc::channel::<Bytes>(4);
    let feed = async move {
        while let Some(frame) = body.frame().await {
            let Ok(mut data) = frame.context("the registry broke off")?.into_data() else { continue };
            while !data.is_empty() {
                let part = data.split_to(data.len().min(WRITE_BYTES));
                if sender.send(part).await.is_err() {
                    // containerd's answer says why.
                    return Ok(());
                }
            }
        }
        anyhow::Ok(())
    };
    let store = store(session, blob, receiver, source_label(session));
    tokio::try_join!(feed, store).map(|_| ())
}

async fn store_small(
    session: &Session,
    blob: &Descriptor,
    data: Bytes,
    labels: HashMap<String, String>,
) -> Result<()> {
    if is_stored(session, &blob.digest).await? {
        return Ok(());
    }
    let (sender, receiver) = mpsc::channel(8.max(data.len().div_ceil(WRITE_BYTES)));
    for part in data.chunks(WRITE_BYTES) {
        sender.send(data.slice_ref(part)).await?;
    }
    drop(sender);
    store(session, blob, receiver, labels).await
}

async fn is_stored(session: &Session, digest: &str) -> Result<bool> {
    match session.client.content().info(session.ask(InfoRequest { digest: digest.to_owned() })).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status).context("cannot ask for content"),
    }
}

/// A manifest or config in containerd's content store.
async fn stored(session: &Session, digest: &str) -> Result<Value> {
    let read = ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
    let missing = || format!("{digest} is not in the content store");
    let answer = session.client.content().read(session.ask(read)).await.with_context(missing)?;
    let (mut parts, mut bytes) = (answer.into_inner(), Vec::new());
    while let Some(part) = parts.next().await {
        bytes.extend(part.with_context(missing)?.data);
    }
    serde_json::from_slice(&bytes).with_context(|| format!("{digest} is not JSON"))
}

/// Streams a blob into containerd's content store, which checks size and digest.
async fn store(
    session: &Session,
    blob: &Descriptor,
    parts: mpsc::Receiver<Bytes>,
    labels: HashMap<String, String>,
) -> Result<()> {
    let message = WriteContentRequest {
        r#ref: format!("layer-{}", blob.digest),
        total: blob.size,
        expected: blob.digest.clone(),
        ..Default::default()
    };
    let messages = unfold(Some((parts, 0_i64, message, labels)), |state| async move {
        let (mut parts, offset, message, labels) = state?;
        let mut next = message.clone();
        next.offset = offset;
        let Some(data) = parts.recv().await else {
            next.action = WriteAction::Commit.into();
            next.labels = labels;
            return Some((next, None));
        };
        let end = offset + i64::try_from(data.len()).ok()?;
        next.action = WriteAction::Write.into();
        next.data = data.to_vec();
        Some((next, Some((parts, end, message, labels))))
    });
    let answers = session.client.content().write(session.ask(messages)).await;
    let mut answers = answers.context("cannot write content")?.into_inner();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(_) => {}
            Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
            Err(status) => return Err(status).with_context(|| format!("cannot store {}", blob.digest)),
        }
    }
    Ok(())
}

/// Makes the image known under its reference.
async fn record(session: &Session, target: Descriptor) -> Result<()> {
    let image =
        Image { name: session.image.reference.to_string(), target: Some(target), ..Default::default() };
    let create = CreateImageRequest { image: Some(image.clone()), ..Default::default() };
    match session.client.images().create(session.ask(create)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {
            let update = UpdateImageRequest { image: Some(image), ..Default::default() };
            session.client.images().update(session.ask(update)).await?;
            Ok(())
        }
        Err(status) => Err(status).context("cannot record the image"),
    }
}

fn layers(manifest: &Value, config: &Value) -> Result<Vec<Layer>> {
    let descriptors = manifest["layers"].as_array().context("a manifest without layers")?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array().context("a config without diff ids")?;
    if descriptors.len() != diff_ids.len() {
        bail!("{} layers, but {} diff ids", descriptors.len(), diff_ids.len());
    }
    let mut chain_id = String::new();
    let mut layers = Vec::with_capacity(descriptors.len());
    for (layer, diff_id) in descriptors.iter().zip(diff_ids) {
        let diff_id = diff_id.as_str().context("a diff id that is no string")?;
        // Image specification, "Layer ChainID".
        chain_id = match chain_id.as_str() {
            "" => diff_id.to_owned(),
            below => sha256(format!("{below} {diff_id}").as_bytes()),
        };
        layers.push(Layer { descriptor: descriptor(layer)?, chain_id: chain_id.clone() });
    }
    Ok(layers)
}

fn descriptor(value: &Value) -> Result<Descriptor> {
    Ok(Descriptor {
        media_type: value["mediaType"].as_str().context("a descriptor without media type")?.to_owned(),
        digest: value["digest"].as_str().context("a descriptor without digest")?.to_owned(),
        size: value["size"].as_i64().context("a descriptor without size")?,
        ..Default::default()
    })
}

fn source_label(session: &Session) -> HashMap<String, String> {
    let reference = &session.image.reference;
    // As containerd writes it: without the port.
    let host = reference.registry.split(':').next().unwrap_or_default();
    let key = format!("containerd.io/distribution.source.{host}");
    HashMap::from([(key, reference.repository.clone())])
}

fn manifest_labels(session: &Session, config: &Descriptor, layers: &[Layer]) -> HashMap<String, String> {
    let mut labels = source_label(session);
    labels.insert("containerd.io/gc.ref.content.config".into(), config.digest.clone());
    for (number, layer) in layers.iter().enumerate() {
        labels.insert(format!("containerd.io/gc.ref.content.l.{number}"), layer.descriptor.digest.clone());
    }
    labels
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
