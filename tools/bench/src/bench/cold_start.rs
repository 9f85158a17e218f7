//! Time to first output, and then to have read everything: overlayfs, and d7y first ever in the
//! cluster, on a second node, and warm.
//!
//! Every measurement has a lab of its own, and systems alternate, so that noise falls on all.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{Results, median};
use crate::bench::kernels::read_all;
use crate::demo::Driver;
use crate::measure::{self, Run, drop_caches};
use crate::rig::client::{Client, Wanted};
use crate::rig::cluster::{Cluster, D7yNode, Extra};
use crate::rig::counter::Counter;
use crate::rig::daemon::Daemon;
use crate::rig::host::Link;
use crate::rig::image::recipe::{LEARN, Recipe, SERVICE};
use crate::rig::image::{Image, obtain};
use crate::rig::lab::Lab;
use crate::rig::node::{Node, Snapshotter};
use crate::rig::places::Places;
use crate::rig::registry::Registry;
use crate::rig::usage;
use crate::table::{Table, megabytes};

/// The seed's link in Mbit/s: not what is measured here.
const SEED_MBIT: u32 = 1000;

/// Measure starts with and without d7y
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Rounds; each measures everything once
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// The nodes' links, in Mbit/s
    #[arg(long, value_delimiter = ',', default_values_t = [100, 500])]
    rates: Vec<u32>,
    /// service: the demo's image; learn: the one on which the neighbours were measured
    #[arg(long, value_delimiter = ',', default_values_t = ["service".to_owned(), "learn".to_owned()])]
    images: Vec<String>,
    /// overlayfs, d7y
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["overlayfs", "d7y"])]
    systems: Vec<System>,
    /// What drives containerd; nerdctl where it could be built
    #[arg(long, value_enum)]
    client: Option<Driver>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum System {
    Overlayfs,
    D7y,
}

/// What follows the first output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    ReadAll,
    End,
}

/// One start.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Start {
    run: u32,
    image: &'static str,
    rate_mbit: u32,
    system: &'static str,
    client: &'static str,
    first_output_seconds: f64,
    /// From the first output until every file has been read; warm starts do not read, nor does the first ever, whose
    /// access trace would then say that the application needs every file.
    read_all_seconds: Option<f64>,
    until_first: Bytes,
    in_all: Bytes,
    /// Part of the image's data on the node at the first output.
    share_at_first: f64,
    /// Of the node's daemons, until the first output.
    cpu_seconds: f64,
    /// Of the node's daemons, containerd included.
    peak_memory_bytes: u64,
    /// Of d7y's own daemons.
    own_peak_memory_bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bytes {
    registry: u64,
    registry_requests: u64,
    from_seed: u64,
    from_nodes: u64,
}

const OVERLAYFS: &str = "overlayfs";
const OVERLAYFS_WARM: &str = "overlayfs, warm";
const FIRST_EVER: &str = "d7y, first ever";
const SECOND_NODE: &str = "d7y, second node";
const WARM: &str = "d7y, warm";
const SYSTEMS: [&str; 5] = [OVERLAYFS, FIRST_EVER, SECOND_NODE, OVERLAYFS_WARM, WARM];

/// Runs the bench.
///
/// # Errors
/// A start failed; what was measured before is kept.
pub fn run(options: &Options) -> Result<()> {
    let places = Places::find()?;
    let client = Driver::client(options.client, &places)?;
    let results = Results::new("cold-start", &places)?;
    let recipes = options.images.iter().map(|name| recipe(name)).collect::<Result<Vec<_>>>()?;
    let mut starts = Vec::new();
    for run in 0..options.runs {
        for recipe in &recipes {
            for &rate in &options.rates {
                let mut bench = Bench { client: client.as_ref(), recipe, rate, run, starts: &mut starts };
                for system in &options.systems {
                    match system {
                        System::Overlayfs => in_lab(&places, |lab| bench.overlayfs(lab))?,
                        System::D7y => in_lab(&places, |lab| bench.d7y(lab))?,
                    }
                }
                results.save(&starts)?;
            }
        }
    }
    println!("\n{}", table(&starts));
    println!(
        "Medians of {} runs; bytes in MB, until the first output / in all. Kept in {}",
        options.runs,
        results.path.display()
    );
    Ok(())
}

fn in_lab(places: &Places, work: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::open(places.clone())?;
    lab.keep_logs(work(&lab))
}

pub(super) fn recipe(name: &str) -> Result<Recipe> {
    match [SERVICE, LEARN].into_iter().find(|recipe| recipe.name == name) {
        Some(recipe) => Ok(recipe),
        None => bail!("no image {name:?}: service or learn"),
    }
}

struct Bench<'a> {
    client: &'a dyn Client,
    recipe: &'a Recipe,
    rate: u32,
    run: u32,
    starts: &'a mut Vec<Start>,
}

impl Bench<'_> {
    fn overlayfs(&mut self, lab: &Lab) -> Result<()> {
        let image = self.image(lab)?;
        let registry = Registry::start(lab)?;
        let wanted = push(&registry, &image, Snapshotter::Overlayfs)?;
        let node = Node::start(lab, lab.host("plain", Link(Some(self.rate)))?, None)?;
        let daemons = [&node.containerd];
        let cold = Run {
            node: &node,
            peer: None,
            image: &image,
            wanted,
            container: "cold".into(),
            counter: &registry.counter,
        };
        self.start(OVERLAYFS, &cold, &daemons, Then::ReadAll)?;
        let warm = Run { container: "warm".into(), ..cold };
        self.start(OVERLAYFS_WARM, &warm, &daemons, Then::End)
    }

    fn d7y(&mut self, lab: &Lab) -> Result<()> {
        let image = self.image(lab)?;
        let cluster = Cluster::start(lab, Link(Some(SEED_MBIT)))?;
        let wanted = push(&cluster.registry, &image, Snapshotter::D7y)?;
        let node = |name| cluster.node(lab, name, Link(Some(self.rate)), &Extra::default());
        let (first, second) = (node("first")?, node("second")?);
        let counter = &cluster.registry.counter;
        self.start(FIRST_EVER, &on(&first, &image, &wanted, counter), &daemons(&first), Then::End)?;
        self.start(SECOND_NODE, &on(&second, &image, &wanted, counter), &daemons(&second), Then::ReadAll)?;
        let warm = Run { container: "warm".into(), ..on(&second, &image, &wanted, counter) };
        self.start(WARM, &warm, &daemons(&second), Then::End)
    }

    fn image(&self, lab: &Lab) -> Result<Image> {
        obtain(lab, self.recipe)?.into_iter().next().context("a recipe without versions")
    }

    fn start(&mut self, system: &'static str, run: &Run<'_>, daemons: &[&Daemon], then: Then) -> Result<()> {
        if !is_warm(system) {
            drop_caches();
        }
        let before = usage::of(daemons.iter().copied());
        let measured = measure::run(self.client, run)?;
        let cpu_seconds = usage::of(daemons.iter().copied()).cpu_seconds - before.cpu_seconds;
        let read_all_seconds = match then {
            Then::End => None,
            Then::ReadAll => {
                let start = Instant::now();
                read_all(&measured.started.rootfs)?;
                Some(start.elapsed().as_secs_f64())
            }
        };
        let start = Start {
            run: self.run,
            image: self.recipe.name,
            rate_mbit: self.rate,
            system,
            client: self.client.name(),
            first_output_seconds: measured.first.after.as_secs_f64(),
            read_all_seconds,
            until_first: (&measured.until_first).into(),
            in_all: (&measure::settled(run, &measured)?).into(),
            share_at_first: measured.share_at_first,
            cpu_seconds,
            peak_memory_bytes: usage::of(daemons.iter().copied()).peak_memory_bytes,
            own_peak_memory_bytes: usage::of(daemons[1..].iter().copied()).peak_memory_bytes,
        };
        eprintln!("{}", serde_json::to_string(&start)?);
        self.starts.push(start);
        measured.started.end();
        Ok(())
    }
}

impl From<&measure::Moved> for Bytes {
    fn from(moved: &measure::Moved) -> Self {
        Self {
            registry: moved.registry.body_bytes,
            registry_requests: moved.registry.requests,
            from_seed: moved.received.seed_bytes,
            from_nodes: moved.received.node_bytes,
        }
    }
}

fn push(registry: &Registry, image: &Image, snapshotter: Snapshotter) -> Result<Wanted> {
    Ok(Wanted { reference: registry.push(&image.layout, &image.tag, "app")?.parse()?, snapshotter })
}

fn on<'a>(node: &'a D7yNode, image: &'a Image, wanted: &Wanted, counter: &'a Counter) -> Run<'a> {
    let container = "cold".into();
    Run { node: &node.node, peer: Some(&node.peer), image, wanted: wanted.clone(), container, counter }
}

fn daemons(node: &D7yNode) -> [&Daemon; 3] {
    [&node.node.containerd, &node.peer.service.daemon, &node.snapshotter.daemon]
}

fn is_warm(system: &str) -> bool {
    [OVERLAYFS_WARM, WARM].contains(&system)
}

fn table(starts: &[Start]) -> Table {
    let mut table = Table::new(&[
        "image, Mbit/s, system",
        "first output s",
        "x overlayfs",
        "then read all s",
        "sum x overlayfs",
        "registry",
        "requests",
        "swarm",
        "present",
        "CPU s",
        "peak MB: all, d7y's",
    ]);
    let mut groups: Vec<(&str, u32)> = starts.iter().map(|start| (start.image, start.rate_mbit)).collect();
    groups.sort_unstable();
    groups.dedup();
    for (image, rate) in groups {
        for system in SYSTEMS {
            let of = |system: &str| -> Vec<&Start> {
                let fits =
                    |start: &&Start| (start.image, start.rate_mbit, start.system) == (image, rate, system);
                starts.iter().filter(fits).collect()
            };
            let baseline = of(if is_warm(system) { OVERLAYFS_WARM } else { OVERLAYFS });
            let these = of(system);
            if !these.is_empty() {
                table.row(cells(format!("{image}, {rate}, {system}"), &these, &baseline));
            }
        }
    }
    table
}

fn cells(title: String, these: &[&Start], baseline: &[&Start]) -> Vec<String> {
    let of = |starts: &[&Start], figure: fn(&Start) -> f64| median(starts.iter().map(|start| figure(start)));
    let first = |start: &Start| start.first_output_seconds;
    let sum = |start: &Start| start.first_output_seconds + start.read_all_seconds.unwrap_or(f64::NAN);
    let number =
        |value: f64, digits: usize| if value.is_nan() { "-".into() } else { format!("{value:.digits$}") };
    let both = |until: fn(&Start) -> f64, all: fn(&Start) -> f64| {
        format!("{} / {}", megabytes(of(these, until) as u64), megabytes(of(these, all) as u64))
    };
    vec![
        title,
        number(of(these, first), 2),
        number(of(these, first) / of(baseline, first), 2),
        number(of(these, |start| start.read_all_seconds.unwrap_or(f64::NAN)), 2),
        number(of(these, sum) / of(baseline, sum), 2),
        both(|start| start.until_first.registry as f64, |start| start.in_all.registry as f64),
        number(of(these, |start| start.until_first.registry_requests as f64), 0),
        both(
            |start| (start.until_first.from_seed + start.until_first.from_nodes) as f64,
            |start| (start.in_all.from_seed + start.in_all.from_nodes) as f64,
        ),
        format!("{:.0} %", of(these, |start| start.share_at_first) * 100.0),
        number(of(these, |start| start.cpu_seconds), 1),
        format!(
            "{:.0}, {:.0}",
            of(these, |start| start.peak_memory_bytes as f64 / 1e6),
            of(these, |start| start.own_peak_memory_bytes as f64 / 1e6)
        ),
    ]
}
