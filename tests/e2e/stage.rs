//! What every test stands on: a lab of its own, daemons as built from this tree, and waiting.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use d7y_bench::chaos::dice::Dice;
use d7y_bench::rig::client::{Api, Client, Nerdctl, Started, Wanted};
use d7y_bench::rig::cluster::{Cluster, D7yNode, Extra, Peer};
use d7y_bench::rig::command::tail;
use d7y_bench::rig::host::Link;
use d7y_bench::rig::image::Image;
use d7y_bench::rig::lab::Lab;
use d7y_bench::rig::leftovers::mounts_below;
use d7y_bench::rig::metrics::Samples;
use d7y_bench::rig::node::Snapshotter;

/// Everything that a test waits for comes much sooner on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Between two looks at something that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One lab at a time: two cores carry one cluster.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a test in a lab. Afterwards nothing of the lab may be left, also when the test failed; then
/// the ends of all its logs are shown.
pub fn in_lab(test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() || std::env::var_os("D7Y_TEST_UNPRIVILEGED").is_some() {
        d7y_skip::test("root: an end-to-end test makes namespaces and mounts");
        return Ok(());
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let places = d7y_tests::built().clone();
    let began = Instant::now();
    let lab = Lab::open(places)?;
    let dir = lab.dir().to_path_buf();
    let ended = catch_unwind(AssertUnwindSafe(|| test(&lab)));
    if !matches!(ended, Ok(Ok(()))) {
        show_logs(&dir);
    }
    drop(lab);
    eprintln!("    in the lab for {:.1} s", began.elapsed().as_secs_f64());
    ended.unwrap_or_else(|panic| resume_unwind(panic))?;
    ensure!(mounts_below(&dir).is_empty(), "mounts are left: {:?}", mounts_below(&dir));
    ensure!(!dir.exists(), "{} is left", dir.display());
    Ok(())
}

/// The same orders in each run, so that a failure is of what was changed; `D7Y_ORDER_SEED` asks for others.
pub fn dice() -> Result<Dice> {
    const SEED: &str = "D7Y_ORDER_SEED";
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().with_context(|| format!("{SEED} is not a number"))?,
        Err(_) => 20261122,
    };
    eprintln!("    {SEED}={seed} gives these orders");
    Ok(Dice::new(seed))
}

/// As [`in_lab`], with the client that people use.
pub fn with_nerdctl(test: impl FnOnce(&Lab, &dyn Client) -> Result<()>) -> Result<()> {
    in_lab(|lab| match lab.places.nerdctl() {
        Some(program) => test(lab, &Nerdctl::new(program)),
        None => {
            d7y_skip::test("nerdctl, which needs Go");
            Ok(())
        }
    })
}

fn show_logs(dir: &Path) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = file.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = std::fs::read(&path).unwrap_or_default();
            eprintln!("--- {}\n{}", path.display(), tail(&String::from_utf8_lossy(&text)));
        }
    }
}

/// Links as fast as the machine is.
pub const UNLIMITED: Link = Link(None);

/// A node named `name` with its daemons' options changed: `KEY=VALUE` each.
pub fn node(
    cluster: &Cluster,
    lab: &Lab,
    name: &str,
    peer: &[&str],
    snapshotter: &[&str],
) -> Result<D7yNode> {
    let extra = Extra { peer: options(peer), snapshotter: options(snapshotter), ..Extra::default() };
    cluster.node(lab, name, UNLIMITED, &extra)
}

/// `KEY=VALUE` as a daemon's command line has it.
pub fn options(settings: &[&str]) -> Vec<String> {
    settings.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]).collect()
}

/// Pushes an image, and says how to ask for it through d7y.
pub fn push(cluster: &Cluster, image: &Image) -> Result<Wanted> {
    let reference = cluster.registry.push(&image.layout, &image.tag, "app")?.parse()?;
    Ok(Wanted { reference, snapshotter: Snapshotter::D7y })
}

/// Starts a container as a CRI would, and returns it with the first line that it prints.
pub fn start(node: &D7yNode, wanted: &Wanted, container: &str) -> Result<(Started, String)> {
    start_with(&Api, node, wanted, container)
}

/// As [`start`], with another client.
pub fn start_with(
    client: &dyn Client,
    node: &D7yNode,
    wanted: &Wanted,
    container: &str,
) -> Result<(Started, String)> {
    let started = client.start(&node.node, wanted, container).context(client.name())?;
    let line = started.first_output(SOON).context(client.name())?.line;
    Ok((started, line))
}

/// Waits until the node's peer holds the FUSE descriptor: from then on the snapshotter may die.
pub fn wait_parked(node: &D7yNode) -> Result<()> {
    wait_until("the FUSE descriptor is parked", || {
        Ok(metric(&node.peer.service, "d7y_peer_parked_descriptors", &[])? > 0)
    })
}

/// Waits until a look says yes.
pub fn wait_until(what: &str, look: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_within(SOON, what, look)
}

/// As [`wait_until`], with a deadline of its own.
pub fn wait_within(limit: Duration, what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !look().with_context(|| what.to_owned())? {
        if Instant::now() >= deadline {
            bail!("not within {limit:?}: {what}");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Waits until all data of an image is on a node.
pub fn wait_complete(peer: &Peer, image: &Image) -> Result<()> {
    wait_until("all of the image is on the node", || Ok(peer.share_present(image)? >= 1.0))
}

/// The sum of a metric of a daemon.
pub fn metric(
    service: &d7y_bench::rig::service::Service,
    name: &str,
    labels: &[(&str, &str)],
) -> Result<u64> {
    Ok(Samples::of(service.address())?.sum(name, labels) as u64)
}

/// Bytes of an image's layers that the registry has sent to anybody.
pub fn layer_bytes(cluster: &Cluster, image: &Image) -> u64 {
    let blobs = cluster.registry.counter.total().blobs;
    image.layers.iter().filter_map(|(digest, _)| blobs.get(digest)).map(|blob| blob.body_bytes).sum()
}

/// A cluster whose seed has the image, as a node that is named `warm` left it: other nodes find the
/// indexes at once and miss all data.
pub fn warm(lab: &Lab, image: &Image) -> Result<(Cluster, Wanted, D7yNode)> {
    let cluster = Cluster::start(lab, UNLIMITED)?;
    let wanted = push(&cluster, image)?;
    let warm = node(&cluster, lab, "warm", &[], &[])?;
    start(&warm, &wanted, "warm").context("on the node that warms the cluster")?.0.end();
    wait_complete(&warm.peer, image)?;
    Ok((cluster, wanted, warm))
}

/// containerd's own client, on a node.
pub fn ctr(node: &D7yNode, words: &[&str]) -> Command {
    node.node.ctr(words)
}
