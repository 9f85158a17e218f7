//! containerd 2.x, told of d7y by `d7y containerd config`; and the CRI plugin of both 1.6 and 2.x, asked as the kubelet
//! asks it. Whoever pulls: all layers are prepared lazily, none of them goes to the node, and a container reads what
//! umoci unpacks.

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::client::{Cri, Nerdctl, PAUSE, Started, Wanted};
use d7y_bench::rig::cluster::{Cluster, D7yNode, Extra};
use d7y_bench::rig::command::output;
use d7y_bench::rig::compare::{self, Tree};
use d7y_bench::rig::image::{Content, Image, assemble, busybox};
use d7y_bench::rig::lab::Lab;
use d7y_bench::rig::leftovers::mounts_below;
use d7y_bench::rig::metrics::Samples;
use d7y_bench::rig::node::{Containerd, Snapshotter};

use super::doctor::Found;
use crate::images::{Data, STAY, everything};
use crate::stage::{SOON, UNLIMITED, in_lab, push, start, start_with};

/// More than manifests and configs take, and less than any layer of more than a few files.
const DOCUMENTS_BYTES: u64 = 32 << 10;

/// Pulls and starts, and says what the container said first.
type Start = fn(&Lab, &D7yNode, &Wanted) -> Result<(Started, String)>;

#[test]
fn nerdctl_starts_lazily_on_containerd_2() -> Result<()> {
    on_containerd_2(|lab, containerd| match lab.places.nerdctl() {
        Some(_) => starts_lazily(lab, containerd, by_nerdctl),
        None => {
            d7y_skip::test("nerdctl, which needs Go");
            Ok(())
        }
    })
}

#[test]
fn the_transfer_service_of_containerd_2_pulls_lazily() -> Result<()> {
    on_containerd_2(|lab, containerd| starts_lazily(lab, containerd, by_transfer_service))
}

#[test]
fn the_cri_plugin_of_containerd_2_starts_lazily() -> Result<()> {
    on_containerd_2(|lab, containerd| starts_lazily(lab, containerd, by_cri))
}

#[test]
fn the_cri_plugin_of_containerd_1_starts_lazily() -> Result<()> {
    in_lab(|lab| starts_lazily(lab, Containerd::Packaged, by_cri))
}

fn on_containerd_2(test: impl FnOnce(&Lab, Containerd) -> Result<()>) -> Result<()> {
    in_lab(|lab| match lab.places.containerd_2() {
        Some(containerd) => test(lab, containerd),
        None => {
            d7y_skip::test("containerd 2.x, which needs Go");
            Ok(())
        }
    })
}

fn by_nerdctl(lab: &Lab, node: &D7yNode, wanted: &Wanted) -> Result<(Started, String)> {
    let nerdctl = lab.places.nerdctl().context("looked for above")?;
    start_with(&Nerdctl::new(nerdctl), node, wanted, "app")
}

fn by_cri(_lab: &Lab, node: &D7yNode, wanted: &Wanted) -> Result<(Started, String)> {
    start_with(&Cri, node, wanted, "app")
}

/// As `ctr` of 2.x pulls unless it is told `--local`. The container then starts on what is there.
fn by_transfer_service(_lab: &Lab, node: &D7yNode, wanted: &Wanted) -> Result<(Started, String)> {
    let reference = wanted.reference.to_string();
    let words = ["images", "pull", "--snapshotter", Snapshotter::D7y.name(), "--plain-http", &reference];
    output(&mut node.node.ctr(&words))?;
    start(node, wanted, "app")
}

fn starts_lazily(lab: &Lab, containerd: Containerd, start: Start) -> Result<()> {
    let site = Site::set(lab)?;
    let node = site.cluster.node(lab, "node", UNLIMITED, &Extra { containerd, ..Extra::default() })?;
    let (started, line) = start(lab, &node, &site.wanted)?;
    ensure!(line == "up", "the container said {line:?}");
    all_was_prepared_lazily(&node, site.image.layers.len())?;
    site.is_read_by(&started)?;
    site.no_layer_went_to(&node)
}

/// As people upgrade: the programs, then `d7y containerd config --write`, then a restart.
#[test]
fn containers_outlive_the_upgrade_from_containerd_1_to_2() -> Result<()> {
    on_containerd_2(|lab, containerd| {
        let site = Site::set(lab)?;
        let data = Data::summing(lab, "data", 4, 100_000)?;
        let next = push(&site.cluster, &data.image)?;
        let mut node = site.cluster.node(lab, "node", UNLIMITED, &Extra::default())?;
        let (old, line) = start_with(&Cri, &node, &site.wanted, "old")?;
        ensure!(line == "up", "the container said {line:?}");

        node.node.replace(containerd);
        let of_config = |node: &D7yNode| Found::by(lab, &site.cluster, node)?.state("containerd.config");
        ensure!(of_config(&node)? == "failed", "the doctor finds nothing to do for containerd 2.x");
        node.introduce(lab)?;
        ensure!(of_config(&node)? == "ok", "the doctor finds more to do than d7y containerd config");
        node.node.containerd.stop(SOON)?;
        node.node.restart(lab)?;
        site.is_read_by(&old)?;
        let (_new, line) = start_with(&Cri, &node, &next, "new")?;
        ensure!(line == data.sum(), "the container read {line}");
        all_was_prepared_lazily(&node, site.image.layers.len() + data.image.layers.len())?;
        let rootfs = old.rootfs.clone();
        old.end();
        ensure!(mounts_below(&rootfs).is_empty(), "containerd 2.x cannot end what 1.x has started");
        Ok(())
    })
}

/// An image that no peer has seen before, with everything that a tar can hold, and what a pod takes beside it.
struct Site {
    cluster: Cluster,
    image: Image,
    expected: Tree,
    pause: Image,
    wanted: Wanted,
}

impl Site {
    fn set(lab: &Lab) -> Result<Self> {
        let image = everything(lab, "all")?;
        let expected = compare::unpacked(lab, &image)?;
        let pause = pause(lab)?;
        let cluster = Cluster::start(lab, UNLIMITED)?;
        cluster.registry.push(&pause.layout, &pause.tag, PAUSE.0)?;
        let wanted = push(&cluster, &image)?;
        Ok(Self { cluster, image, expected, pause, wanted })
    }

    fn is_read_by(&self, container: &Started) -> Result<()> {
        let report = compare::container(&self.expected, &container.rootfs)?;
        ensure!(report.is_equal(), "{report}");
        Ok(())
    }

    /// Neither to containerd nor to the peer, which has them from the seed.
    fn no_layer_went_to(&self, node: &D7yNode) -> Result<()> {
        let sent = self.cluster.registry.counter.of(node.node.host.address);
        for (digest, _) in self.image.layers.iter().chain(&self.pause.layers) {
            ensure!(!sent.blobs.contains_key(digest), "the node asked the registry for {digest}");
        }
        ensure!(
            !sent.blobs.is_empty() && sent.body_bytes < DOCUMENTS_BYTES,
            "the registry sent the node {} bytes",
            sent.body_bytes
        );
        let received = node.peer.received()?;
        let from_seed = received.origin_bytes == 0 && received.seed_bytes > 0;
        ensure!(from_seed, "the node's peer received {received:?}");
        Ok(())
    }
}

/// What holds a pod's namespaces; it has no layer in common with another image.
fn pause(lab: &Lab) -> Result<Image> {
    let root = busybox(lab, "pause")?;
    std::fs::write(root.join("etc/pause"), "")?;
    assemble(lab, PAUSE.1, &STAY, &[Content::Tree(&root)])
}

fn all_was_prepared_lazily(node: &D7yNode, layers: usize) -> Result<()> {
    let samples = Samples::of(node.snapshotter.address())?;
    let prepares = |labels: &[(&str, &str)]| samples.sum("d7y_snapshotter_prepares_total", labels) as usize;
    let (lazy, all) = (prepares(&[("outcome", "Lazy")]), prepares(&[]));
    ensure!(lazy == all && lazy >= layers, "{lazy} of {all} layers were prepared lazily");
    Ok(())
}
