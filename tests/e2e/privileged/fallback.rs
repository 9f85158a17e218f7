//! What d7y cannot supply lazily, containerd pulls as ever; and it is counted.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::client::{Api, Client};
use d7y_bench::rig::cluster::{Cluster, D7yNode};
use d7y_bench::rig::command::run;
use d7y_bench::rig::compare;
use d7y_bench::rig::counter::{Answer, Rule};
use d7y_bench::rig::image::{Content, assemble, busybox};
use http::StatusCode;

use crate::images::{Data, everything, tar, with_media_type};
use crate::stage::{
    UNLIMITED, ctr, in_lab, layer_bytes, metric, node, push, start, start_with, with_nerdctl,
};
use crate::tar::Tar;

/// A tar layer to containerd, which looks for itself how it is compressed; nothing to d7y.
const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";

/// A port that no peer guesses.
const ODD_PORT: u16 = 5077;

/// The snapshotter waits for fifteen seconds at most, for all layers together; the rest is a loaded machine's.
const FALLBACK_WITHIN: Duration = Duration::from_secs(30);

/// A registry that gives peers nothing of these layers, and containerd all.
fn refused_to_peers(layers: &[(String, u64)]) -> Rule {
    let layers: Vec<String> = layers.iter().map(|(digest, _)| digest.clone()).collect();
    Arc::new(move |asked| {
        let agent = asked.headers.get(http::header::USER_AGENT);
        let is_peer = agent.is_some_and(|agent| agent.as_bytes().starts_with(b"d7y-peer/"));
        match &asked.blob {
            Some(blob) if is_peer && layers.contains(blob) => {
                Answer::Refuse(StatusCode::SERVICE_UNAVAILABLE, Vec::new())
            }
            _ => Answer::Pass,
        }
    })
}

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

#[test]
fn nerdctl_pulls_as_ever_from_a_registry_that_only_it_reaches() -> Result<()> {
    with_nerdctl(pulls_from_an_odd_port)
}

#[test]
fn a_cri_pulls_as_ever_from_a_registry_that_only_it_reaches() -> Result<()> {
    in_lab(|lab| pulls_from_an_odd_port(lab, &Api))
}

/// With nerdctl the peers know a host without its port, at which nobody listens; with a CRI they know the port, and take
/// the plain registry for one with TLS.
fn pulls_from_an_odd_port(lab: &d7y_bench::rig::lab::Lab, client: &dyn Client) -> Result<()> {
    let data = Data::summing(lab, "data", 4, 100_000)?;
    let cluster = Cluster::with_registry_at(lab, ODD_PORT)?;
    let wanted = push(&cluster, &data.image)?;
    let node = node(&cluster, lab, "node", &[], &[])?;
    let began = Instant::now();
    let (_first, line) = start_with(client, &node, &wanted, "first")?;
    let took = began.elapsed();
    eprintln!("    {}: {took:?} until the first output", client.name());
    ensure!(line == data.sum(), "the container read {line}");
    ensure!(took < FALLBACK_WITHIN, "falling back took {took:?}");
    let left = prepares(&node, "Unsupplied")?;
    ensure!(left == data.image.layers.len() as u64, "{left} layers are counted as left to containerd");
    ensure!(prepares(&node, "Lazy")? == 0, "a layer counts as lazy");
    let log = fs::read_to_string(node.snapshotter.daemon.log())?;
    let warnings = log.matches("containerd downloads this layer").count();
    ensure!(warnings == 1, "{warnings} warnings instead of one");
    ensure!(layer_bytes(&cluster, &data.image) == data.image.blob_bytes(), "each layer once");
    Ok(())
}

#[test]
fn layers_that_are_pulled_as_ever_stand_above_and_below_lazy_ones() -> Result<()> {
    in_lab(|lab| {
        let base = tar(&busybox(lab, "base")?, ".")?;
        let saying = |word: &str| {
            let layer = Tar::default().file(b"word", format!("{word}\n").as_bytes()).end();
            let command = ["sh", "-c", "cat /word; exec sleep 600"];
            assemble(lab, word, &command, &[Content::Tar(&base), Content::Tar(&layer)])
        };
        let (first, second) = (saying("one")?, saying("two")?);
        ensure!(first.layers[0] == second.layers[0], "the images share no layer");
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let counter = &cluster.registry.counter;
        let (one, two) = (push(&cluster, &first)?, push(&cluster, &second)?);

        counter.set_rule(Some(refused_to_peers(&first.layers[1..])));
        let node1 = node(&cluster, lab, "node1", &[], &[])?;
        let (_upper, line) = start(&node1, &one, "upper").context("the upper layer pulled")?;
        ensure!(line == "one", "the container read {line}");
        let counts = (prepares(&node1, "Lazy")?, prepares(&node1, "Unsupplied")?);
        ensure!(counts == (1, 1), "lazy and not: {counts:?}");

        // The swarm has the base by now, but not for this node.
        cluster.seed.service.daemon.kill()?;
        cluster.scheduler.daemon.kill()?;
        counter.set_rule(Some(refused_to_peers(&first.layers)));
        let node2 = node(&cluster, lab, "node2", &[], &[])?;
        let (_both, line) = start(&node2, &one, "both").context("both layers pulled")?;
        ensure!(line == "one", "the container read {line}");
        ensure!(prepares(&node2, "Lazy")? == 0, "a layer counts as lazy");
        counter.set_rule(None);
        let (_lower, line) = start(&node2, &two, "lower").context("a lazy layer on a pulled one")?;
        ensure!(line == "two", "the container read {line}");
        ensure!(prepares(&node2, "Lazy")? == 1, "the upper layer was pulled");
        Ok(())
    })
}
