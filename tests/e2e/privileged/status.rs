//! `d7y status` and `d7y image status` on a node that runs an image.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::cluster::D7yNode;
use d7y_bench::rig::lab::Lab;

use crate::images::Data;
use crate::stage::{in_lab, node, start, wait_complete, warm};

fn d7y(lab: &Lab, node: &D7yNode, words: &[&str]) -> Result<Output> {
    let mut command = node.node.host.command(lab.places.daemon("d7y")?);
    command.args(words);
    command.arg("--peer").arg(node.peer.service.config_file());
    command.arg("--snapshotter").arg(node.snapshotter.config_file());
    command.output().context("cannot start d7y")
}

fn json(output: &Output) -> Result<serde_json::Value> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn status_shows_images_sources_and_faults() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 8, 512 << 10)?;
        let (cluster, wanted, _warm) = warm(lab, &data.image)?;
        let node = node(&cluster, lab, "node", &[], &[])?;
        let empty = json(&d7y(lab, &node, &["status", "-o", "json"])?)?;
        ensure!(empty["images"].as_array().is_some_and(Vec::is_empty), "{empty}");

        let (container, _) = start(&node, &wanted, "app")?;
        wait_complete(&node.peer, &data.image)?;
        let status = d7y(lab, &node, &["status", "-o", "json"])?;
        ensure!(status.status.code() == Some(0));
        let status = json(&status)?;
        let image = &status["images"][0];
        ensure!(image["reference"].as_str().is_some_and(|name| name.contains("/app:")), "{status}");
        ensure!(
            image["present"] == 1.0 && image["containers"].as_array().is_some_and(|all| all.len() == 1),
            "{status}"
        );
        let layers = image["layers"].as_array().context("no layers")?;
        ensure!(layers.len() == data.image.layers.len(), "{status}");
        ensure!(layers.iter().all(|layer| layer["mounted"] == true), "{status}");
        let read: u64 = layers.iter().filter_map(|layer| layer["readBytes"].as_u64()).sum();
        ensure!(read >= 8 * (512 << 10), "{read} bytes were read: {status}");
        let from = |name: &str| layers.iter().filter_map(|layer| layer["peer"][name].as_u64()).sum::<u64>();
        let (origin, peers) = (from("originBytes"), from("seedBytes") + from("nodeBytes"));
        ensure!(
            origin == 0 && peers > 4 << 20,
            "{origin} bytes from the origin, {peers} from peers: {status}"
        );
        ensure!(status["peer"]["parents"].as_array().is_some_and(|parents| !parents.is_empty()), "{status}");

        let text = d7y(lab, &node, &["image", "status", "app"])?;
        let text = String::from_utf8(text.stdout)?;
        for part in ["100 % of its data is here", "READ", "FROM SEEDS", "yes"] {
            ensure!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let unknown = d7y(lab, &node, &["image", "status", "no-such-image"])?;
        ensure!(unknown.status.code() == Some(1), "{unknown:?}");
        ensure!(String::from_utf8_lossy(&unknown.stderr).contains("/app:"), "{unknown:?}");

        container.end();
        node.peer.service.daemon.kill()?;
        let status = d7y(lab, &node, &["status"])?;
        let text = String::from_utf8(status.stdout)?;
        ensure!(status.status.code() == Some(1) && text.contains("d7y-peer does not answer"), "{text}");
        Ok(())
    })
}
