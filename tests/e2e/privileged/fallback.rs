//! What d7y cannot supply lazily, containerd pulls as ever; and it is counted.

use std::fs;

use anyhow::{Result, ensure};
use d7y_bench::rig::cluster::{Cluster, D7yNode};
use d7y_bench::rig::command::run;
use d7y_bench::rig::compare;

use crate::images::{Data, everything, with_media_type};
use crate::stage::{UNLIMITED, ctr, in_lab, metric, node, push, start};

/// A tar layer to containerd, which looks for itself how it is compressed; nothing to d7y.
const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";

fn prepares(node: &D7yNode, outcome: &str) -> Result<u64> {
    metric(&node.snapshotter, "d7y_snapshotter_prepares_total", &[("outcome", outcome)])
}

#[test]
fn a_foreign_media_type_is_left_to_containerd() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 4, 100_000)?;
        let foreign = with_media_type(&data.image, FOREIGN)?;
        let expected = compare::unpacked(lab, &data.image);
        drop(expected);
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let wanted = push(&cluster, &foreign)?;
        let node = node(&cluster, lab, "node", &[], &[])?;
        let (_first, line) = start(&node, &wanted, "first")?;
        ensure!(line == data.sum(), "the container read {line}");
        ensure!(prepares(&node, "MediaType")? > 0, "the fallback is not counted");
        ensure!(prepares(&node, "Lazy")? == 0, "a layer counts as lazy");
        Ok(())
    })
}

#[test]
fn without_its_peer_the_node_pulls_as_ever() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 4, 100_000)?;
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let wanted = push(&cluster, &data.image)?;
        let node = node(&cluster, lab, "node", &[], &[])?;
        node.peer.service.daemon.kill()?;
        let (_first, line) = start(&node, &wanted, "first")?;
        ensure!(line == data.sum(), "the container read {line}");
        ensure!(prepares(&node, "PeerUnavailable")? > 0, "the fallback is not counted");
        Ok(())
    })
}

#[test]
fn a_client_without_labels_gets_an_overlay_snapshotter() -> Result<()> {
    in_lab(|lab| {
        let image = everything(lab, "all")?;
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let wanted = push(&cluster, &image)?;
        let node = node(&cluster, lab, "node", &[], &[])?;
        let reference = wanted.reference.to_string();
        run(&mut ctr(&node, &["images", "pull", "--plain-http", "--snapshotter", "d7y", &reference]))?;
        ensure!(prepares(&node, "Lazy")? == 0, "ctr of containerd 1.6 sends no labels");
        let (first, line) = start(&node, &wanted, "first")?;
        ensure!(line == "up", "the container said {line}");
        let kept = fs::read_to_string(first.rootfs.join("kept"))?;
        ensure!(kept == "kept" && !first.rootfs.join("gone").exists(), "whiteouts do not work");
        ensure!(!first.rootfs.join("opaque/hidden").exists(), "opaque directories do not work");
        Ok(())
    })
}
