//! Layers that are not what they say, or that are made to harm: a clear error, nothing kept.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use d7y_bench::rig::client::{Api, Client, Nerdctl, Wanted};
use d7y_bench::rig::cluster::{Cluster, D7yNode};
use d7y_bench::rig::counter::Answer;
use d7y_bench::rig::image::{Content, Image};
use d7y_bench::rig::lab::Lab;
use d7y_bench::rig::leftovers::mounts_below;

use crate::images::{noise, over_busybox};
use crate::stage::{SOON, UNLIMITED, in_lab, node, push, wait_until};
use crate::tar::Tar;

/// Zeros that deflate 1,030 times, beyond the size from which that is refused.
const BOMB_BYTES: usize = (1 << 30) + (8 << 20);

#[test]
fn changed_bytes_are_refused() -> Result<()> {
    in_lab(|lab| {
        let tar = Tar::default().file(b"noise", &noise(1, 300_000)).end();
        refused(lab, Content::Tar(&tar), |cluster, image| {
            let bad = image.layers[1].0.clone();
            cluster.registry.counter.set_rule(Some(Arc::new(move |asked| match &asked.blob {
                Some(blob) if *blob == bad => Answer::Flip(200_000),
                _ => Answer::Pass,
            })));
            Ok(())
        })
    })
}

#[test]
fn a_truncated_blob_is_refused() -> Result<()> {
    in_lab(|lab| {
        let tar = Tar::default().file(b"noise", &noise(2, 300_000)).end();
        refused(lab, Content::Tar(&tar), |_, image| {
            let (digest, size) = &image.layers[1];
            let hex = digest.trim_start_matches("sha256:");
            let blob = lab.dir().join("registry/data/docker/registry/v2/blobs/sha256").join(&hex[..2]);
            let file = fs::File::options().write(true).open(blob.join(hex).join("data"));
            Ok(file.context("the registry's own file of the blob")?.set_len(size / 2)?)
        })
    })
}

#[test]
fn a_gzip_bomb_is_refused() -> Result<()> {
    in_lab(|lab| {
        let mut tar = Tar::default().file(b"before", b"before").end();
        tar.resize(BOMB_BYTES, 0);
        refused(lab, Content::Tar(&tar), |_, _| Ok(()))
    })
}

#[test]
fn names_that_lead_out_of_the_layer_are_refused() -> Result<()> {
    in_lab(|lab| {
        let tar = Tar::default().file(b"../../escaped", b"outside").end();
        refused(lab, Content::Tar(&tar), |_, _| Ok(()))
    })
}

/// Every client says no to an image whose upper layer is bad, and neither node nor seed keeps of it.
fn refused(lab: &Lab, layer: Content<'_>, spoil: impl FnOnce(&Cluster, &Image) -> Result<()>) -> Result<()> {
    let image = over_busybox(lab, "bad", layer)?;
    let cluster = Cluster::start(lab, UNLIMITED)?;
    let wanted = push(&cluster, &image)?;
    spoil(&cluster, &image)?;
    // The good layer below is mounted for containerd to unpack the bad one on.
    let node = node(&cluster, lab, "node", &[], &["idleMounts=0s"])?;
    if let Some(program) = lab.places.nerdctl() {
        fails(&Nerdctl::new(program), &node, &wanted)?;
    } else {
        d7y_skip::part("nerdctl, which needs Go");
    }
    fails(&Api, &node, &wanted)?;
    let bad = Image { layers: vec![image.layers[1].clone()], ..image };
    for peer in [&node.peer, &cluster.seed] {
        let kept = peer.share_present(&bad)?;
        ensure!(kept == 0.0, "{} keeps {kept} of the bad layer", peer.host.name);
    }
    let session = node.node.host.dir.join("run/fuse");
    wait_until("nothing but the FUSE session is mounted", || {
        Ok(mounts_below(&node.node.host.dir).iter().all(|point| *point == session))
    })
}

fn fails(client: &dyn Client, node: &D7yNode, wanted: &Wanted) -> Result<()> {
    let error = match client.start(&node.node, wanted, "bad") {
        Ok(started) => match started.first_output(SOON) {
            Ok(output) => bail!("{} runs it: {}", client.name(), output.line),
            Err(error) => error,
        },
        Err(error) => error,
    };
    let message = format!("{error:#}");
    eprintln!("    {}: {message}", client.name());
    let clear = ["digest", "corrupt", "sha256", "limit", "..", "length", "bytes"];
    ensure!(clear.iter().any(|word| message.contains(word)), "this does not say why: {message}");
    Ok(())
}
