//! An ordinary image starts lazily on two nodes, its bytes taken from where they should come from.

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::client::{Api, Client};
use d7y_bench::rig::cluster::Cluster;
use d7y_bench::rig::compare;

use crate::images::{Data, everything};
use crate::stage::{
    UNLIMITED, in_lab, layer_bytes, metric, node, push, start, start_with, wait_complete, with_nerdctl,
};

#[test]
fn nerdctl_runs_everything_that_a_tar_can_hold() -> Result<()> {
    with_nerdctl(runs_everything)
}

#[test]
fn a_cri_runs_everything_that_a_tar_can_hold() -> Result<()> {
    in_lab(|lab| runs_everything(lab, &Api))
}

fn runs_everything(lab: &d7y_bench::rig::lab::Lab, client: &dyn Client) -> Result<()> {
    let image = everything(lab, "all")?;
    let expected = compare::unpacked(lab, &image)?;
    let cluster = Cluster::start(lab, UNLIMITED)?;
    let wanted = push(&cluster, &image)?;
    let one = node(&cluster, lab, "node1", &[], &[])?;
    let (first, line) = start_with(client, &one, &wanted, "first")?;
    ensure!(line == "up", "the container said {line:?}");
    let report = compare::container(&expected, &first.rootfs)?;
    ensure!(report.is_equal(), "node 1: {report}");
    let sent = cluster.registry.counter.total();
    for (digest, size) in &image.layers {
        let blob = sent.blobs.get(digest).context("a layer that nobody asked for")?;
        ensure!(
            blob.body_bytes == *size,
            "{digest} has {size} bytes, and the registry sent {}",
            blob.body_bytes
        );
    }
    wait_complete(&one.peer, &image)?;

    let two = node(&cluster, lab, "node2", &[], &["trace.window=0s"])?;
    let (second, line) = start_with(client, &two, &wanted, "second")?;
    ensure!(line == "up", "the container said {line:?}");
    let report = compare::container(&expected, &second.rootfs)?;
    ensure!(report.is_equal(), "node 2: {report}");
    wait_complete(&two.peer, &image)?;
    let (warm, line) = start_with(client, &two, &wanted, "warm")?;
    ensure!(line == "up", "the container said {line:?}");
    let report = compare::container(&expected, &warm.rootfs)?;
    ensure!(report.is_equal(), "node 2, mounted directly: {report}");
    let direct = metric(&two.snapshotter, "d7y_snapshotter_mounts_total", &[("kind", "Direct")])?;
    ensure!(direct > 0, "nothing of a complete image was mounted directly");
    ensure!(
        layer_bytes(&cluster, &image) == image.blob_bytes(),
        "node 2 made the registry send layers again"
    );
    Ok(())
}

#[test]
fn what_node_1_has_comes_from_node_1() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 40, 200_000)?;
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let wanted = push(&cluster, &data.image)?;
        let one = node(&cluster, lab, "node1", &[], &[])?;
        let (_first, line) = start(&one, &wanted, "first")?;
        ensure!(line == data.sum(), "node 1 read {line}");
        wait_complete(&one.peer, &data.image)?;
        let two = node(&cluster, lab, "node2", &[], &[])?;
        let (_second, line) = start(&two, &wanted, "second")?;
        ensure!(line == data.sum(), "node 2 read {line}");
        wait_complete(&two.peer, &data.image)?;
        let received = two.peer.received()?;
        ensure!(received.origin_bytes == 0, "node 2 asked the registry: {received:?}");
        ensure!(received.node_bytes > received.seed_bytes, "node 2 asked the seed for more: {received:?}");
        Ok(())
    })
}
