//! A preheated image needs nobody any more.
//!
//! What is said here: `d7y preheat` brings every layer to both nodes before either has been asked for the image, through
//! daemons that know nobody but the manager. The client then pulls, which takes manifest and config from the registry
//! and no layer: containerd has to have these two, as for any image, and the registry sees the client's credentials.
//! After that registry, seed, scheduler and manager are killed for good, and each node starts the image all the same.

use anyhow::{Context, Result, ensure};
use d7y_bench::measure::drop_caches;
use d7y_bench::rig::client::{Api, Client, Nerdctl, Wanted};
use d7y_bench::rig::cluster::{Cluster, D7yNode};
use d7y_bench::rig::command::output;
use d7y_bench::rig::lab::Lab;

use crate::images::Data;
use crate::reads::Readers;
use crate::stage::{SOON, UNLIMITED, in_lab, layer_bytes, node, push, start_with};

#[test]
fn nerdctl_starts_what_was_preheated_when_everybody_else_is_gone() -> Result<()> {
    in_lab(|lab| match lab.places.nerdctl() {
        Some(program) => starts_alone(lab, &Nerdctl::new(program)),
        None => {
            eprintln!("not run: nerdctl is not built here");
            Ok(())
        }
    })
}

#[test]
fn a_cri_starts_what_was_preheated_when_everybody_else_is_gone() -> Result<()> {
    in_lab(|lab| starts_alone(lab, &Api))
}

fn starts_alone(lab: &Lab, client: &dyn Client) -> Result<()> {
    let data = Data::summing(lab, "data", 16, 256 << 10)?;
    let cluster = Cluster::managed(lab, UNLIMITED)?;
    let wanted = push(&cluster, &data.image)?;
    // Without the background lane a node has what a reader or a preheat asked for, and nothing else.
    let lazy = |name| node(&cluster, lab, name, &["fetch.background=false"], &[]);
    let mut nodes = [lazy("node1")?, lazy("node2")?];
    nodes.iter().try_for_each(knows_the_manager_only)?;
    preheat(lab, &cluster, &wanted)?;
    for node in &nodes {
        let present = node.peer.share_present(&data.image)?;
        ensure!(present >= 1.0, "{}: {present} of the image is there", node.node.host.name);
    }
    let (sent, size) = (layer_bytes(&cluster, &data.image), data.image.blob_bytes());
    ensure!(sent == size, "the registry sent {sent} bytes of layers that have {size}");

    nodes.iter().try_for_each(|node| client.pull(&node.node, &wanted)).context(client.name())?;
    ensure!(layer_bytes(&cluster, &data.image) == size, "a client pulled layers");
    let Cluster { registry, manager, scheduler, seed, .. } = &cluster;
    let manager = &manager.as_ref().context("a cluster with a manager")?.service;
    for daemon in [&registry.daemon, &seed.service.daemon, &scheduler.daemon, &manager.daemon] {
        daemon.kill()?;
    }
    drop_caches();

    let [one, two] = &mut nodes;
    reads_everything(client, one, &wanted, &data)?;
    // Nor does the peer remember anybody who could help.
    two.peer.service.daemon.kill()?;
    two.peer.service.restart(lab)?;
    reads_everything(client, two, &wanted, &data)
}

/// Neither a scheduler nor a seed is named in the node's configuration.
fn knows_the_manager_only(node: &D7yNode) -> Result<()> {
    let config = std::fs::read_to_string(node.peer.service.config_file())?;
    let names = |key: &str| config.lines().any(|line| line.starts_with(key));
    ensure!(names("manager:") && !names("scheduler:") && !names("seeds:"), "{config}");
    Ok(())
}

fn preheat(lab: &Lab, cluster: &Cluster, wanted: &Wanted) -> Result<()> {
    let manager = cluster.manager.as_ref().context("a cluster with a manager")?;
    let said = output(&mut manager.preheat(&lab.places, &wanted.reference)?)?;
    let job = said.lines().find(|line| line.ends_with(&wanted.reference.to_string()));
    let words: Vec<_> = job.with_context(|| said.clone())?.split_whitespace().collect();
    ensure!(words.starts_with(&["done", "3/3"]), "the seed and two nodes: {said}");
    Ok(())
}

/// The container's own sum, and every file once more beside it; nothing comes from anywhere.
fn reads_everything(client: &dyn Client, node: &D7yNode, wanted: &Wanted, data: &Data) -> Result<()> {
    let name = &node.node.host.name;
    let before = node.peer.received()?.total();
    let (started, line) = start_with(client, node, wanted, name).with_context(|| name.clone())?;
    ensure!(line == data.sum(), "{name} read {line}");
    Readers::start(&started.rootfs, data.files()).finish(SOON)?;
    let received = node.peer.received()?.total() - before;
    ensure!(received == 0, "{name} received {received} bytes from somebody");
    Ok(())
}
