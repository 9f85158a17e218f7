//! Warm reads of one tree, through d7y and through overlayfs on the same disk, in turns.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::kernels::{Files, Kernel, read_all};
use super::{Results, median};
use crate::demo::{Driver, step};
use crate::rig::client::{Client, Started, Wanted};
use crate::rig::cluster::{Cluster, D7yNode, Extra};
use crate::rig::host::Link;
use crate::rig::image::{obtain, recipe};
use crate::rig::lab::Lab;
use crate::rig::node::{Node, Snapshotter};
use crate::rig::places::Places;
use crate::rig::registry::Registry;
use crate::table::Table;

/// Compare warm reads through d7y and through overlayfs
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Rounds; the order turns around in every second one
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Compare overlayfs with overlayfs: how much the bench itself scatters
    #[arg(long)]
    control: bool,
    /// What drives containerd; nerdctl where it could be built
    #[arg(long, value_enum)]
    client: Option<Driver>,
}

/// Both sides of one round.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    round: u32,
    kernel: &'static str,
    d7y: f64,
    overlayfs: f64,
}

/// Runs the bench.
///
/// # Errors
/// A start or a read failed.
pub fn run(options: &Options) -> Result<()> {
    let lab = Lab::open(Places::find()?)?;
    let client = Driver::client(options.client, &lab.places)?;
    let results = Results::new("warm", &lab.places)?;
    let image =
        step("the image", || obtain(&lab, &recipe::SERVICE))?.into_iter().next().context("no image")?;
    let (measured, place) = match options.control {
        true => (Snapshotter::Overlayfs, Place::plain(&lab)?),
        false => (Snapshotter::D7y, Place::d7y(&lab)?),
    };
    let reference = place.registry().push(&image.layout, &image.tag, "app")?;
    let start = |snapshotter, name: &str| start(client.as_ref(), place.node(), &reference, snapshotter, name);
    let d7y = step("start the measured one, read all of it", || start(measured, "measured"))?;
    let overlayfs =
        step("start on overlayfs, read all of it", || start(Snapshotter::Overlayfs, "overlayfs"))?;
    let files = Files::list(&overlayfs.rootfs)?;
    let mut pairs = Vec::new();
    for round in 0..options.rounds {
        for kernel in Kernel::ALL {
            pairs.push(pair(round, kernel, [&d7y.rootfs, &overlayfs.rootfs], &files)?);
        }
        results.save(&pairs)?;
    }
    println!("\n{}", table(&pairs, measured.name()));
    println!(
        "Medians of {} rounds; the ratio is the median of the rounds' ratios. Kept in {}",
        options.rounds,
        results.path.display()
    );
    Ok(())
}

/// One node, and what it needs.
enum Place {
    Plain(Box<(Registry, Node)>),
    D7y(Box<(Cluster, D7yNode)>),
}

impl Place {
    fn plain(lab: &Lab) -> Result<Self> {
        let node = Node::start(lab, lab.host("node", Link(None))?, None)?;
        Ok(Self::Plain(Box::new((Registry::start(lab)?, node))))
    }

    fn d7y(lab: &Lab) -> Result<Self> {
        let cluster = Cluster::start(lab, Link(None))?;
        let node = cluster.node(lab, "node", Link(None), &Extra::default())?;
        Ok(Self::D7y(Box::new((cluster, node))))
    }

    fn registry(&self) -> &Registry {
        match self {
            Self::Plain(both) => &both.0,
            Self::D7y(both) => &both.0.registry,
        }
    }

    fn node(&self) -> &Node {
        match self {
            Self::Plain(both) => &both.1,
            Self::D7y(both) => &both.1.node,
        }
    }
}

fn start(
    client: &dyn Client,
    node: &Node,
    reference: &str,
    snapshotter: Snapshotter,
    name: &str,
) -> Result<Started> {
    const FIRST_OUTPUT: std::time::Duration = std::time::Duration::from_secs(300);
    let wanted = Wanted { reference: reference.parse()?, snapshotter };
    let started = client.start(node, &wanted, name)?;
    started.first_output(FIRST_OUTPUT)?;
    read_all(&started.rootfs)?;
    Ok(started)
}

fn pair(round: u32, kernel: Kernel, [d7y, overlayfs]: [&Path; 2], files: &Files) -> Result<Pair> {
    let rate = |root| kernel.rate(root, files).with_context(|| kernel.name());
    let (d7y, overlayfs) = if round.is_multiple_of(2) {
        let first = rate(d7y)?;
        (first, rate(overlayfs)?)
    } else {
        let first = rate(overlayfs)?;
        (rate(d7y)?, first)
    };
    Ok(Pair { round, kernel: kernel.name(), d7y, overlayfs })
}

fn table(pairs: &[Pair], measured: &str) -> Table {
    let mut table = Table::new(&["warm reads", measured, "overlayfs", "ratio"]);
    for kernel in Kernel::ALL {
        let of = |figure: fn(&Pair) -> f64| {
            let these = pairs.iter().filter(|pair| pair.kernel == kernel.name());
            median(these.map(figure))
        };
        table.row(vec![
            kernel.name().to_owned(),
            format!("{:.1}", of(|pair| pair.d7y)),
            format!("{:.1}", of(|pair| pair.overlayfs)),
            format!("{:.2}", of(|pair| pair.d7y / pair.overlayfs)),
        ]);
    }
    table
}
