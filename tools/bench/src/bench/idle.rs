//! What each daemon holds in memory while nothing happens: before any image, and after one.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::Results;
use crate::demo::{Driver, step};
use crate::rig::client::Wanted;
use crate::rig::cluster::{Cluster, D7yNode, Extra};
use crate::rig::daemon::Daemon;
use crate::rig::host::Link;
use crate::rig::image::{Image, obtain, recipe};
use crate::rig::lab::Lab;
use crate::rig::node::Snapshotter;
use crate::rig::places::Places;
use crate::rig::usage::{Memory, memory_of};
use crate::table::{Table, megabytes};

const FIRST_OUTPUT: Duration = Duration::from_secs(300);
/// All of the image's data has to be on the node.
const COMPLETE: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Measure the memory of idle daemons before and after an image, and the size of their programs
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Seconds without work before each look
    #[arg(long, default_value_t = 30)]
    settle: u64,
    /// What drives containerd; nerdctl where it could be built
    #[arg(long, value_enum)]
    client: Option<Driver>,
}

/// One daemon at one time.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Look {
    daemon: &'static str,
    when: &'static str,
    rss_bytes: u64,
    pss_bytes: u64,
    /// Of RSS, in MiB.
    bar_mib: u64,
    is_met: bool,
    /// As it lies beside the bench, with what it has of debugging information.
    program_bytes: u64,
}

/// Runs the bench.
///
/// # Errors
/// A daemon does not come up, or the image does not run.
pub fn run(options: &Options) -> Result<()> {
    let lab = Lab::open(Places::find()?)?;
    lab.keep_logs(measure(&lab, options))
}

fn measure(lab: &Lab, options: &Options) -> Result<()> {
    let settle = Duration::from_secs(options.settle);
    let client = Driver::client(options.client, &lab.places)?;
    let results = Results::new("idle", &lab.places)?;
    let image =
        step("the image", || obtain(lab, &recipe::SERVICE))?.into_iter().next().context("no image")?;
    let cluster = Cluster::managed(lab, Link(None))?;
    let node = cluster.node(lab, "node", Link(None), &Extra::default())?;
    std::thread::sleep(settle);
    let mut looks = look(&cluster, &node, "after start")?;
    results.save(&looks)?;

    let reference = cluster.registry.push(&image.layout, &image.tag, "app")?;
    let wanted = Wanted { reference: reference.parse()?, snapshotter: Snapshotter::D7y };
    let started = step("run the image", || {
        let started = client.start(&node.node, &wanted, "idle")?;
        started.first_output(FIRST_OUTPUT)?;
        Ok(started)
    })?;
    step("all of it on the node", || wait_complete(&node, &image))?;
    started.end();
    std::thread::sleep(settle);
    looks.extend(look(&cluster, &node, "after an image")?);
    results.save(&looks)?;
    println!("\n{}", table(&looks));
    println!("RSS has the bar. Kept in {}", results.path().display());
    Ok(())
}

fn wait_complete(node: &D7yNode, image: &Image) -> Result<()> {
    let deadline = Instant::now() + COMPLETE;
    while node.peer.share_present(image)? < 1.0 {
        ensure!(Instant::now() < deadline, "the node has not all of the image within {COMPLETE:?}");
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

fn look(cluster: &Cluster, node: &D7yNode, when: &'static str) -> Result<Vec<Look>> {
    let manager = cluster.manager.as_ref().context("the cluster has a manager")?;
    let daemons: [(&'static str, &Daemon, u64); 5] = [
        ("d7y-peer, node", &node.peer.service.daemon, 40),
        ("d7y-peer, seed", &cluster.seed.service.daemon, 40),
        ("d7y-snapshotter", &node.snapshotter.daemon, 25),
        ("d7y-scheduler", &cluster.scheduler.daemon, 30),
        ("d7y-manager", &manager.service.daemon, 80),
    ];
    let look = |(name, daemon, bar_mib): (&'static str, &Daemon, u64)| {
        let Memory { rss_bytes, pss_bytes } = memory_of(daemon)?;
        let program = fs::metadata(format!("/proc/{}/exe", daemon.pid())).context(name)?;
        let is_met = rss_bytes <= bar_mib << 20;
        Ok(Look { daemon: name, when, rss_bytes, pss_bytes, bar_mib, is_met, program_bytes: program.len() })
    };
    daemons.into_iter().map(look).collect()
}

fn table(looks: &[Look]) -> Table {
    let mebibytes = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let mut table = Table::new(&["daemon", "when", "RSS MiB", "PSS MiB", "bar MiB", "", "program MB"]);
    for look in looks {
        table.row(vec![
            look.daemon.to_owned(),
            look.when.to_owned(),
            mebibytes(look.rss_bytes),
            mebibytes(look.pss_bytes),
            look.bar_mib.to_string(),
            if look.is_met { "met" } else { "missed" }.to_owned(),
            megabytes(look.program_bytes),
        ]);
    }
    table
}
