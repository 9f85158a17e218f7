//! A preheated image needs nobody any more.
//!
//! What is said here: `d7y preheat` brings every layer of two images to both nodes before either has been asked for them,
//! through daemons that know nobody but the manager. The client then pulls, which takes manifest and config from the registry
//! and no layer: containerd has to have these two, as for any image, and the registry sees the client's credentials.
//! After that registry, seed, scheduler and manager are killed for good, and each node starts both images all the same.

use anyhow::{Context, Result, ensure};
use d7y_bench::measure::drop_caches;
use d7y_bench::rig::client::{Api, Client, Wanted};
use d7y_bench::rig::cluster::{Cluster, D7yNode};
use d7y_bench::rig::command::output;
use d7y_bench::rig::lab::Lab;

use crate::images::{Data, Files};
use crate::reads::Readers;
use crate::stage::{SOON, UNLIMITED, in_lab, layer_bytes, node, push, start_with, with_nerdctl};

#[test]
fn nerdctl_starts_what_was_preheated_when_everybody_else_is_gone() -> Result<()> {
    with_nerdctl(starts_alone)
}

#[test]
fn a_cri_starts_what_was_preheated_when_everybody_else_is_gone() -> Result<()> {
    in_lab(|lab| starts_alone(lab, &Api))
}

fn starts_alone(lab: &Lab, client: &dyn Client) -> Result<()> {
    let images = [Data::summing(lab, "one", 16, 256 << 10)?, another(lab)?];
    let cluster = Cluster::managed(lab, UNLIMITED)?;
    let wanted = images.iter().map(|data| push(&cluster, &data.image)).collect::<Result<Vec<_>>>()?;
    // Without the background lane a node has what a reader or a preheat asked for, and nothing else.
    let lazy = |name| node(&cluster, lab, name, &["fetch.background=false"], &[]);
    let mut nodes = [lazy("node1")?, lazy("node2")?];
    nodes.iter().try_for_each(knows_the_manager_only)?;
    wanted.iter().try_for_each(|wanted| preheat(lab, &cluster, wanted))?;
    for (node, data) in nodes.iter().flat_map(|node| images.iter().map(move |data| (node, data))) {
        let present = node.peer.share_present(&data.image)?;
        ensure!(present >= 1.0, "{}: {present} of {} is there", node.node.host.name, data.image.tag);
    }
    sent_once(&cluster, &images)?;
    for node in &nodes {
        wanted.iter().try_for_each(|wanted| client.pull(&node.node, wanted)).context(client.name())?;
    }
    sent_once(&cluster, &images).context("a client pulled layers")?;
    everybody_else_dies(&cluster)?;
    drop_caches();

    // Nor does the peer remember anybody who could help.
    let again = &mut nodes[1].peer.service;
    again.daemon.kill()?;
    again.restart(lab)?;
    for (node, (wanted, data)) in
        nodes.iter().flat_map(|node| wanted.iter().zip(&images).map(move |image| (node, image)))
    {
        reads_everything(client, node, wanted, data)?;
    }
    Ok(())
}

/// Of the same command and other files.
fn another(lab: &Lab) -> Result<Data> {
    let files = Files { count: 12, bytes: 300_000, series: 1 };
    Data::make(lab, "two", "cat /data/* | sha256sum; exec sleep 600", files)
}

/// By the registry, to all of the cluster.
fn sent_once(cluster: &Cluster, images: &[Data]) -> Result<()> {
    for Data { image, .. } in images {
        let (sent, size) = (layer_bytes(cluster, image), image.blob_bytes());
        ensure!(sent == size, "the registry sent {sent} bytes of layers of {} that have {size}", image.tag);
    }
    Ok(())
}

fn everybody_else_dies(cluster: &Cluster) -> Result<()> {
    let Cluster { registry, manager, scheduler, seed, .. } = cluster;
    let manager = &manager.as_ref().context("a cluster with a manager")?.service;
    let daemons = [&registry.daemon, &seed.service.daemon, &scheduler.daemon, &manager.daemon];
    daemons.into_iter().try_for_each(|daemon| daemon.kill().map(drop))
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
    let name = &format!("{}-{}", node.node.host.name, data.image.tag);
    let before = node.peer.received()?.total();
    let (started, line) = start_with(client, node, wanted, name).with_context(|| name.clone())?;
    ensure!(line == data.sum(), "{name} read {line}");
    Readers::start(&started.rootfs, data.files()).finish(SOON)?;
    let received = node.peer.received()?.total() - before;
    ensure!(received == 0, "{name} received {received} bytes from somebody");
    Ok(())
}
