//! The main job: an ordinary image starts lazily on two nodes through the swarm; and a preheated one from their disks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::measure::{self, Measured, Moved, Run, drop_caches};
use crate::own_disk::Reads;
use crate::progress::while_at;
use crate::rig::client::{self, Api, Client, Nerdctl, Reference, Wanted};
use crate::rig::cluster::{Cluster, D7yNode, Extra, Peer};
use crate::rig::command::shown;
use crate::rig::compare::{self, Tree};
use crate::rig::host::Link;
use crate::rig::image::{self, Image, recipe};
use crate::rig::interrupt;
use crate::rig::lab::Lab;
use crate::rig::leftovers::mounts_below;
use crate::rig::manager::Manager;
use crate::rig::node::{Node, Snapshotter};
use crate::rig::places::Places;
use crate::table::{Table, megabytes};

/// How long a preheat may take, on any link that somebody would choose.
const PREHEATED: Duration = Duration::from_secs(3600);

/// Start an ordinary image lazily on two nodes of a local cluster.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Each node's link, in Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// The seed peer's link, in Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    seed_rate: u32,
    /// Run this image, which has to print something, instead: a local OCI layout DIR:TAG, or whatever skopeo reads (docker://..., docker-archive:FILE)
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// What drives containerd; nerdctl where it could be built
    #[arg(long, value_enum)]
    client: Option<Driver>,
    /// Leave everything running until Ctrl-C, and print how to look around and to preheat
    #[arg(long)]
    keep: bool,
}

/// A way to drive containerd.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Driver {
    Nerdctl,
    Api,
}

impl Driver {
    /// # Errors
    /// nerdctl was asked for and is not built.
    pub fn client(choice: Option<Self>, places: &Places) -> Result<Box<dyn Client>> {
        Ok(match choice {
            None => client::usual(places),
            Some(Self::Api) => Box::new(Api),
            Some(Self::Nerdctl) => Box::new(Nerdctl::new(
                places.nerdctl().context("nerdctl is not built: cargo xtask setup builds it")?,
            )),
        })
    }
}

/// Runs the demo.
///
/// # Errors
/// A step failed, or a container's root differs from the image.
pub fn run(options: &Options) -> Result<()> {
    let lab = Lab::open(Places::find()?)?;
    lab.keep_logs(show(&lab, options))
}

fn show(lab: &Lab, options: &Options) -> Result<()> {
    let stage = Stage::set(lab, options)?;
    let mut rows = Vec::new();
    stage.play(&mut rows)?;
    println!("\n{}", stage.table(&rows)?);
    println!(
        "Bytes in MB: until the first output / when all transfers had settled. read: part of the image's data that"
    );
    println!(
        "the start reads (by node 1's access trace). own disk: part of that which the node had in these layers."
    );
    println!(
        "present: part of the image's data on the node at its first output. Links: nodes {} Mbit/s, seed {} Mbit/s.",
        options.rate, options.seed_rate
    );
    stage.say_egress();
    let equal = stage.compare(&rows)?;
    if options.keep {
        stage.say_how_to_look()?;
        interrupt::wait_forever();
    }
    drop(rows);
    if !equal {
        bail!("a container's root differs from the image");
    }
    Ok(())
}

/// Everything that stands before the first run.
struct Stage<'a> {
    lab: &'a Lab,
    client: Box<dyn Client>,
    images: Vec<Image>,
    /// What umoci unpacks, by tag.
    expected: BTreeMap<String, Tree>,
    cluster: Cluster,
    nodes: [D7yNode; 2],
    baseline: Node,
}

/// One run, with its container still running.
struct Row<'a> {
    title: String,
    run: Run<'a>,
    measured: Measured,
    settled: Moved,
}

impl<'a> Stage<'a> {
    fn set(lab: &'a Lab, options: &Options) -> Result<Self> {
        let client = Driver::client(options.client, &lab.places)?;
        let images = match &options.image {
            Some(reference) => step("fetch the image", || Ok(vec![image::Image::import(lab, reference)?]))?,
            None => step("the image, from Debian packages", || image::obtain(lab, &recipe::SERVICE))?,
        };
        let unpacked = AtomicUsize::new(0);
        let unpack = || {
            let one = |image: &Image| {
                let tree = compare::unpacked(lab, image)?;
                unpacked.fetch_add(1, Ordering::Relaxed);
                Ok((image.tag.clone(), tree))
            };
            images.iter().map(one).collect()
        };
        let far = || format!("{} of {} versions", unpacked.load(Ordering::Relaxed), images.len());
        let expected = step_of("unpack it with umoci, to compare with", far, unpack)?;
        let link = Link(Some(options.rate));
        let cluster = step("registry, manager, scheduler, seed peer", || {
            Cluster::managed(lab, Link(Some(options.seed_rate)))
        })?;
        let extra = Extra::default();
        let nodes = step("two nodes with d7y, one without", || {
            Ok((
                [cluster.node(lab, "node1", link, &extra)?, cluster.node(lab, "node2", link, &extra)?],
                Node::start(lab, lab.host("node3", link)?, None)?,
            ))
        })?;
        let (nodes, baseline) = nodes;
        let stage = Self { lab, client, images, expected, cluster, nodes, baseline };
        let before_preheat = &stage.images[..stage.images.len().min(2)];
        step("push the image, unconverted", || {
            before_preheat.iter().try_for_each(|image| stage.push(image))
        })?;
        Ok(stage)
    }

    fn push(&self, image: &Image) -> Result<()> {
        self.cluster.registry.push(&image.layout, &image.tag, "app").map(drop)
    }

    fn reference(&self, image: &Image) -> Result<Reference> {
        format!("{}/app:{}", self.cluster.registry.name(), image.tag).parse()
    }

    fn manager(&self) -> Result<&Manager> {
        self.cluster.manager.as_ref().context("the cluster was started without a manager")
    }

    /// The runs, in order; each leaves its container running.
    fn play<'s>(&'s self, rows: &mut Vec<Row<'s>>) -> Result<()> {
        let first = self.images.first().context("no image")?;
        println!(
            "client: {}; image: {} MB gzip in {} layers",
            self.client.name(),
            megabytes(first.blob_bytes()),
            first.layers.len()
        );
        drop_caches();
        rows.push(self.row("overlayfs, node 3", None, first)?);
        drop_caches();
        rows.push(self.row("d7y, node 1, first ever", Some(0), first)?);
        drop_caches();
        rows.push(self.row("d7y, node 2", Some(1), first)?);
        rows.push(self.row("d7y, node 1, warm", Some(0), first)?);
        if let Some(second) = self.images.get(1) {
            drop_caches();
            rows.push(self.row("d7y, node 1, version 2", Some(0), second)?);
            drop_caches();
            rows.push(self.row("d7y, node 2, version 2", Some(1), second)?);
        }
        if let Some(third) = self.images.get(2) {
            step("push version 3, with one more layer of packages", || self.push(third))?;
            step_of("preheat version 3 to every peer", || self.far(third), || self.preheat(third))?;
            drop_caches();
            rows.push(self.row("d7y, node 1, version 3, preheated", Some(0), third)?);
            drop_caches();
            rows.push(self.row("d7y, node 2, version 3, preheated", Some(1), third)?);
        }
        Ok(())
    }

    /// Has the manager bring an image to every disk before anybody starts it.
    fn preheat(&self, image: &Image) -> Result<()> {
        let mut d7y = self.manager()?.preheat(&self.lab.places, &self.reference(image)?)?;
        println!("    {}", shown(&d7y));
        let counter = &self.cluster.registry.counter;
        let before = counter.total();
        self.lab.show("preheat", &mut d7y, PREHEATED)?;
        let sent = counter.total().since(&before).body_bytes;
        println!("    sent by the registry: {} MB", megabytes(sent));
        for D7yNode { peer, .. } in &self.nodes {
            let present = peer.share_present(image)?;
            if present < 1.0 {
                bail!("{} has only {present} of what is said to be preheated", peer.host.name);
            }
        }
        Ok(())
    }

    /// How much has come, for a line of progress.
    fn far(&self, image: &Image) -> String {
        let sent = self.cluster.registry.counter.total().body_bytes;
        let present = self.nodes.iter().map(|D7yNode { peer, .. }| match peer.share_present(image) {
            Ok(share) => format!("{} has {:.0} %", peer.host.name, share * 100.0),
            Err(_) => format!("{} does not say", peer.host.name),
        });
        let present = present.collect::<Vec<_>>().join(", ");
        format!("{present}; sent by the registry so far: {} MB", megabytes(sent))
    }

    fn row<'s>(&'s self, title: &str, d7y: Option<usize>, image: &'s Image) -> Result<Row<'s>> {
        step_of(
            title,
            || self.far(image),
            || {
                let (node, snapshotter) = match d7y {
                    Some(number) => (&self.nodes[number].node, Snapshotter::D7y),
                    None => (&self.baseline, Snapshotter::Overlayfs),
                };
                let reference = self.reference(image)?;
                let run = Run {
                    node,
                    peer: d7y.map(|number| &self.nodes[number].peer),
                    image,
                    wanted: Wanted { reference, snapshotter },
                    container: format!("{}-{}", title.replace([',', ' '], ""), image.tag),
                    counter: &self.cluster.registry.counter,
                };
                let measured = measure::run(self.client.as_ref(), &run)?;
                let settled = measure::settled(&run, &measured)?;
                println!("    {:.2} s: {}", measured.first.after.as_secs_f64(), measured.first.line.trim());
                Ok(Row { title: title.to_owned(), run, measured, settled })
            },
        )
    }

    /// The registry's bytes for the cluster, beside what it would be to send each blob once.
    fn say_egress(&self) {
        let counter = &self.cluster.registry.counter;
        let peers = [&self.cluster.seed, &self.nodes[0].peer, &self.nodes[1].peer];
        let sent = |peer: &Peer| -> u64 {
            counter
                .of(peer.address())
                .blobs
                .iter()
                .filter(|(digest, _)| self.is_layer(digest))
                .map(|(_, blob)| blob.body_bytes)
                .sum()
        };
        let all: BTreeMap<_, _> = self.images.iter().flat_map(|image| image.layers.iter().cloned()).collect();
        let (sent, once): (u64, u64) = (peers.into_iter().map(sent).sum(), all.values().sum());
        println!(
            "The registry sent the d7y nodes and their seed {} MB of layers; once each would be {} MB: {:.2}x.",
            megabytes(sent),
            megabytes(once),
            sent as f64 / once.max(1) as f64
        );
    }

    fn is_layer(&self, digest: &str) -> bool {
        self.images.iter().any(|image| image.layers.iter().any(|(layer, _)| layer == digest))
    }

    /// Compares the root of every container that still runs.
    fn compare(&self, rows: &[Row<'_>]) -> Result<bool> {
        println!("\nEvery file of the running containers, against umoci's unpacking of the same image:");
        let mut equal = true;
        for row in rows {
            let image = &row.run.image.tag;
            let expected = self.expected.get(image).context("unpacked before")?;
            let title = &row.title;
            let report = while_at(|| format!("comparing {title}"), || report(expected, row));
            let report = report.with_context(|| format!("cannot compare: {}", row.title))?;
            equal &= report.is_equal();
            println!("  {} ({image}): {report}", row.title);
        }
        Ok(equal)
    }

    fn say_how_to_look(&self) -> Result<()> {
        println!(
            "\nEverything runs until Ctrl-C. Files, logs and configurations: {}",
            self.lab.dir().display()
        );
        println!("registry (counted)  http://{}/v2/", self.cluster.registry.name());
        self.say_how_to_preheat()?;
        println!("scheduler           http://{}/metrics", self.cluster.scheduler.address());
        println!("seed                http://{}/metrics", self.cluster.seed.service.address());
        let nodes = [&self.nodes[0].node, &self.nodes[1].node, &self.baseline];
        for (node, snapshotter) in nodes.into_iter().zip(["d7y", "d7y", "overlayfs"]) {
            println!("{}", node.host.name);
            println!("  containerd  {}", node.socket().display());
            if let Some(nerdctl) = self.lab.places.nerdctl() {
                let mut line = Nerdctl::new(nerdctl).command(node);
                let reference = self.reference(&self.images[0])?.to_string();
                line.args(["--snapshotter", snapshotter, "run", "--rm", "--net", "host", &reference]);
                println!("  {}", shown(&line));
            }
        }
        for node in &self.nodes {
            let name = &node.node.host.name;
            println!(
                "{name}: peer http://{}/metrics, snapshotter http://{}/metrics, local socket {}",
                node.peer.service.address(),
                node.snapshotter.address(),
                node.peer.socket().display()
            );
        }
        Ok(())
    }

    fn say_how_to_preheat(&self) -> Result<()> {
        let manager = self.manager()?;
        println!("manager             http://{}, root's password {}", manager.rest(), manager.password());
        println!("  a token of root's {}", manager.token());
        let image = self.images.last().context("no image")?;
        let line = manager.preheat(&self.lab.places, &self.reference(image)?)?;
        println!("  D7Y_TOKEN={} {}", manager.token(), shown(&line));
        Ok(())
    }

    fn table(&self, rows: &[Row<'_>]) -> Result<Table> {
        let reads = |row: &Row<'_>| row.measured.had.reads(row.run.image, &self.nodes[0].peer);
        let reads = rows.iter().map(reads).collect::<Result<Vec<_>>>()?;
        Ok(table(rows, &reads))
    }
}

/// A user's image may have ended by now: its root is mounted once more then.
fn report(expected: &Tree, row: &Row<'_>) -> Result<compare::Report> {
    let Run { node, wanted, container, .. } = &row.run;
    let running = &row.measured.started.rootfs;
    if !mounts_below(running).is_empty() {
        return compare::container(expected, running);
    }
    let held = Api.hold(node, wanted, &format!("{container}-again"))?;
    compare::container(expected, &held.rootfs)
}

/// `reads` has what each row's start reads, where it is known.
fn table(rows: &[Row<'_>], reads: &[Option<Reads>]) -> Table {
    let mut table = Table::new(&[
        "run",
        "first output s",
        "x overlayfs",
        "registry MB",
        "requests",
        "seed MB",
        "other node MB",
        "read",
        "own disk",
        "present",
    ]);
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let baseline = rows.first().map_or(1.0, |row| row.measured.first.after.as_secs_f64());
    for (Row { title, measured, settled, .. }, reads) in rows.iter().zip(reads) {
        let of_reads =
            |part: fn(Reads) -> f64| reads.map_or_else(|| "-".into(), |reads| percent(part(reads)));
        let both = |of: fn(&Moved) -> u64| {
            format!("{} / {}", megabytes(of(&measured.until_first)), megabytes(of(settled)))
        };
        let seconds = measured.first.after.as_secs_f64();
        table.row(vec![
            title.clone(),
            format!("{seconds:.2}"),
            format!("{:.2}", seconds / baseline),
            both(|moved| moved.registry.body_bytes),
            format!("{} / {}", measured.until_first.registry.requests, settled.registry.requests),
            both(|moved| moved.received.seed_bytes),
            both(|moved| moved.received.node_bytes),
            of_reads(|reads| reads.of_image),
            of_reads(|reads| reads.own),
            percent(measured.share_at_first),
        ]);
    }
    table
}

/// Says what is done, now and then that it still is, and how long it took.
pub fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    step_of(title, || "still at it".to_owned(), work)
}

/// The same where something says how far it is.
fn step_of<T>(title: &str, far: impl Fn() -> String + Send, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {title}");
    let start = Instant::now();
    let result = while_at(far, work).with_context(|| title.to_owned())?;
    println!("    {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}
