//! What the node can do without the others, and how it fails when it can do nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use d7y_bench::rig::client::Api;
use d7y_bench::rig::cluster::Cluster;
use d7y_bench::rig::counter::{Answer, Rule};
use d7y_bench::rig::image::Image;
use http::StatusCode;

use crate::images::{Data, Files};
use crate::reads::{Readers, read_within};
use crate::stage::{
    SOON, UNLIMITED, in_lab, layer_bytes, node, push, start, wait_complete, wait_within, warm,
};

/// A registry that is down for layers: clients still have to see manifests and configs.
fn down_for(image: &Image) -> Rule {
    let layers: Vec<String> = image.layers.iter().map(|(digest, _)| digest.clone()).collect();
    Arc::new(move |asked| match &asked.blob {
        Some(blob) if layers.contains(blob) => Answer::Refuse(StatusCode::SERVICE_UNAVAILABLE, Vec::new()),
        _ => Answer::Pass,
    })
}

#[test]
fn the_swarm_starts_what_the_registry_has_lost() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 16, 256 << 10)?;
        let (cluster, wanted, _warm) = warm(lab, &data.image)?;
        cluster.registry.counter.set_rule(Some(down_for(&data.image)));
        let two = node(&cluster, lab, "node2", &[], &[])?;
        let (_second, line) = start(&two, &wanted, "second")?;
        ensure!(line == data.sum(), "from the seed: {line}");
        cluster.seed.service.daemon.kill()?;
        let three = node(&cluster, lab, "node3", &[], &[])?;
        let (_third, line) = start(&three, &wanted, "third")?;
        ensure!(line == data.sum(), "from the other nodes: {line}");
        ensure!(
            layer_bytes(&cluster, &data.image) == data.image.blob_bytes(),
            "the registry was asked again"
        );
        Ok(())
    })
}

#[test]
fn standalone_peers_need_no_scheduler() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 16, 256 << 10)?;
        let cluster = Cluster::start(lab, UNLIMITED)?;
        cluster.scheduler.daemon.kill()?;
        let wanted = push(&cluster, &data.image)?;
        for name in ["node1", "node2"] {
            let node = node(&cluster, lab, name, &["scheduler.address=", "standalone=true"], &[])?;
            let (_started, line) = start(&node, &wanted, name)?;
            ensure!(line == data.sum(), "{name}: {line}");
            wait_complete(&node.peer, &data.image)?;
            let received = node.peer.received()?;
            ensure!(received.origin_bytes == 0 && received.seed_bytes > 0, "{name}: {received:?}");
        }
        ensure!(layer_bytes(&cluster, &data.image) == data.image.blob_bytes(), "each layer once");
        Ok(())
    })
}

#[test]
fn a_read_that_nobody_can_serve_fails_at_its_deadline() -> Result<()> {
    const DEADLINE: Duration = Duration::from_secs(3);
    in_lab(|lab| {
        let data = Data::idle(lab, "data", 16, 256 << 10)?;
        let (mut cluster, wanted, warm) = warm(lab, &data.image)?;
        let node = node(&cluster, lab, "node", &["fetch.background=false"], &["readDeadline=3s"])?;
        let held = Api.hold(&node.node, &wanted, "held")?;
        cluster.registry.counter.set_rule(Some(down_for(&data.image)));
        warm.peer.service.daemon.kill()?;
        cluster.seed.service.daemon.kill()?;
        let path = held.rootfs.join(Files::name(7));
        let (result, after) = read_within(path.clone(), SOON)?;
        match result {
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => {}
            other => bail!("expected EIO, got {:?}", other.map(|bytes| bytes.len())),
        }
        ensure!(after >= DEADLINE / 2 && after < 4 * DEADLINE, "the read failed after {after:?}");

        cluster.seed.service.restart(lab)?;
        let mut last = String::new();
        wait_within(SOON, "the read works once the seed is back", || {
            match read_within(path.clone(), SOON)?.0 {
                Ok(bytes) => Ok(bytes == data.files().content(7)),
                Err(error) => {
                    last = error.to_string();
                    Ok(false)
                }
            }
        })?;
        Readers::start(&held.rootfs, data.files()).finish(SOON)?;
        let rootfs = held.rootfs.clone();
        held.end();
        ensure!(
            d7y_bench::rig::leftovers::mounts_below(&rootfs).is_empty(),
            "the container's root stays mounted"
        );
        Ok(())
    })
}
