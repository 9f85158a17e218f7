//! Starts of an image whose data is all on the node, through d7y and through overlayfs on the same node, in turns.
//!
//! An image's second start may meet other mounts than its first (those of the first began before its data was there),
//! so the starts are told apart by their number.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::cold_start::recipe;
use super::kernels::read_all;
use super::{Results, median};
use crate::demo::Driver;
use crate::rig::client::{Client, Wanted};
use crate::rig::cluster::{Cluster, Extra};
use crate::rig::host::Link;
use crate::rig::image::{obtain, recipe::Recipe};
use crate::rig::lab::Lab;
use crate::rig::node::{Node, Snapshotter};
use crate::rig::places::Places;
use crate::table::Table;

const FIRST_OUTPUT: Duration = Duration::from_secs(300);
/// All of the image's data has to be on the node.
const COMPLETE: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const SIDES: [Snapshotter; 2] = [Snapshotter::D7y, Snapshotter::Overlayfs];

/// Measure starts of an image that is on the node, with and without d7y, in turns
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Rounds, each on nodes of its own
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Warm starts in each round
    #[arg(long, default_value_t = 6)]
    starts: u32,
    /// Seconds between a container's end and the next start
    #[arg(long, default_value_t = 2.0)]
    pause: f64,
    /// service: the demo's image; learn: the one on which the neighbours were measured
    #[arg(long, value_delimiter = ',', default_values_t = ["learn".to_owned()])]
    images: Vec<String>,
    /// What drives containerd; nerdctl where it could be built
    #[arg(long, value_enum)]
    client: Option<Driver>,
}

/// One start on each side.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    image: &'static str,
    run: u32,
    /// Of this image on this node: the first warm one is its second.
    start: u32,
    d7y_seconds: f64,
    overlayfs_seconds: f64,
}

/// Runs the bench.
///
/// # Errors
/// A start failed; what was measured before is kept.
pub fn run(options: &Options) -> Result<()> {
    let places = Places::find()?;
    let client = Driver::client(options.client, &places)?;
    let results = Results::new("warm-start", &places)?;
    let recipes = options.images.iter().map(|name| recipe(name)).collect::<Result<Vec<_>>>()?;
    let mut pairs = Vec::new();
    for run in 0..options.runs {
        for recipe in &recipes {
            let lab = Lab::open(places.clone())?;
            let mut bench = Bench { client: client.as_ref(), recipe, run, options, pairs: &mut pairs };
            lab.keep_logs(bench.one_node(&lab))?;
            results.save(&pairs)?;
        }
    }
    println!("\n{}", table(&pairs));
    println!(
        "Medians of {} runs; the ratio is the median of the pairs' ratios. Kept in {}",
        options.runs,
        results.path().display()
    );
    Ok(())
}

struct Bench<'a> {
    client: &'a dyn Client,
    recipe: &'a Recipe,
    run: u32,
    options: &'a Options,
    pairs: &'a mut Vec<Pair>,
}

impl Bench<'_> {
    fn one_node(&mut self, lab: &Lab) -> Result<()> {
        let image = obtain(lab, self.recipe)?.into_iter().next().context("a recipe without versions")?;
        let cluster = Cluster::start(lab, Link(None))?;
        let node = cluster.node(lab, "node", Link(None), &Extra::default())?;
        let reference = cluster.registry.push(&image.layout, &image.tag, "app")?.parse()?;
        let mut wanted = Wanted { reference, snapshotter: Snapshotter::D7y };
        for side in SIDES {
            wanted.snapshotter = side;
            self.start(&node.node, &wanted, "cold", true)?;
        }
        let deadline = Instant::now() + COMPLETE;
        while node.peer.share_present(&image)? < 1.0 {
            ensure!(Instant::now() < deadline, "the node has not all of the image within {COMPLETE:?}");
            sleep(LOOK_AGAIN);
        }
        for start in 2..self.options.starts + 2 {
            let mut seconds = [0.0; 2];
            // Neither side always follows the other.
            for turn in 0..2 {
                let side = (turn + start as usize + self.run as usize) % 2;
                wanted.snapshotter = SIDES[side];
                sleep(Duration::from_secs_f64(self.options.pause));
                seconds[side] = self.start(&node.node, &wanted, &format!("warm-{start}"), false)?;
            }
            let [d7y_seconds, overlayfs_seconds] = seconds;
            let (image, run) = (self.recipe.name, self.run);
            let pair = Pair { image, run, start, d7y_seconds, overlayfs_seconds };
            eprintln!("{}", serde_json::to_string(&pair)?);
            self.pairs.push(pair);
        }
        Ok(())
    }

    /// Seconds until the first output; the container ends again.
    fn start(&self, node: &Node, wanted: &Wanted, name: &str, read: bool) -> Result<f64> {
        let container = format!("{name}-{}", wanted.snapshotter.name());
        let started = self.client.start(node, wanted, &container)?;
        let first = started.first_output(FIRST_OUTPUT)?;
        if read {
            read_all(&started.rootfs)?;
        }
        started.end();
        Ok(first.after.as_secs_f64())
    }
}

fn table(pairs: &[Pair]) -> Table {
    let mut table = Table::new(&["image, start", "d7y s", "overlayfs s", "ratio"]);
    let mut groups: Vec<(&str, u32)> = pairs.iter().map(|pair| (pair.image, pair.start)).collect();
    groups.sort_unstable();
    groups.dedup();
    for (image, start) in groups {
        let these = pairs.iter().filter(|pair| (pair.image, pair.start) == (image, start));
        table.row(cells(format!("{image}, start {start}"), these.collect()));
    }
    for image in ["service", "learn"] {
        let these: Vec<_> = pairs.iter().filter(|pair| pair.image == image).collect();
        if !these.is_empty() {
            table.row(cells(format!("{image}, all"), these));
        }
    }
    table
}

fn cells(title: String, these: Vec<&Pair>) -> Vec<String> {
    let of = |figure: fn(&Pair) -> f64| format!("{:.2}", median(these.iter().map(|pair| figure(pair))));
    vec![
        title,
        of(|pair| pair.d7y_seconds),
        of(|pair| pair.overlayfs_seconds),
        of(|pair| pair.d7y_seconds / pair.overlayfs_seconds),
    ]
}
