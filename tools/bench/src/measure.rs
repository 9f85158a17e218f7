//! One measured run of an image on a node: seconds, and where the bytes came from.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::own_disk::Had;
use crate::rig::client::{Client, FirstOutput, Started, Wanted};
use crate::rig::cluster::{Peer, Received};
use crate::rig::counter::{Counter, Traffic};
use crate::rig::image::Image;
use crate::rig::node::Node;

/// An application that says nothing for so long is taken for one that never will.
const FIRST_OUTPUT: Duration = Duration::from_secs(300);

/// Transfers have settled when the image is complete and nothing came for this long,
const QUIET: Duration = Duration::from_millis(1000);

/// or when nothing came for this long: peers begin with the rest only after a pause,
const IDLE: Duration = Duration::from_secs(5);

/// and are not waited for longer than this.
const SETTLED: Duration = Duration::from_secs(120);

/// A share of 1 but for rounding.
const COMPLETE: f64 = 0.999_999;

const LOOK: Duration = Duration::from_millis(100);

/// Who runs what, where.
pub struct Run<'a> {
    pub node: &'a Node,
    /// The node's peer, where it has one.
    pub peer: Option<&'a Peer>,
    pub image: &'a Image,
    pub wanted: Wanted,
    pub container: String,
    pub counter: &'a Counter,
}

/// Bytes and requests, from the start of a run on.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// Out of the registry, whoever asked.
    pub registry: Traffic,
    /// Into this node's peer.
    pub received: Received,
}

/// What a run took.
pub struct Measured {
    pub first: FirstOutput,
    pub until_first: Moved,
    /// Part of the image's data on the node at the first output, 0 to 1; plain nodes have all of it.
    pub share_at_first: f64,
    /// What was on the node's disk before; nothing on plain nodes.
    pub had: Had,
    /// Keeps the container running.
    pub started: Started,
    before: Moved,
}

/// Runs, and measures up to the application's first output.
///
/// # Errors
/// The client's, or the application ended without output.
pub fn run(client: &dyn Client, run: &Run<'_>) -> Result<Measured> {
    let had = run.peer.map_or_else(Had::default, |peer| Had::look(peer, run.image));
    let before = moved(run)?;
    let started = client.start(run.node, &run.wanted, &run.container)?;
    let first = started.first_output(FIRST_OUTPUT)?;
    let until_first = since(&moved(run)?, &before);
    let share_at_first = run.peer.map_or(Ok(1.0), |peer| peer.share_present(run.image))?;
    Ok(Measured { first, until_first, share_at_first, had, started, before })
}

/// Waits until nothing moves any more, and returns all that did since the run began.
///
/// # Errors
/// The peer does not answer.
pub fn settled(run: &Run<'_>, measured: &Measured) -> Result<Moved> {
    let deadline = Instant::now() + SETTLED;
    let (mut last, mut quiet_since) = (moved(run)?, Instant::now());
    let is_complete =
        || anyhow::Ok(run.peer.map_or(Ok(1.0), |peer| peer.share_present(run.image))? > COMPLETE);
    while quiet_since.elapsed() < if is_complete()? { QUIET } else { IDLE } && Instant::now() < deadline {
        std::thread::sleep(LOOK);
        let now = moved(run)?;
        if now.registry.body_bytes != last.registry.body_bytes
            || now.received.total() != last.received.total()
        {
            quiet_since = Instant::now();
        }
        last = now;
    }
    Ok(since(&last, &measured.before))
}

fn moved(run: &Run<'_>) -> Result<Moved> {
    let received = run.peer.map_or(Ok(Received::default()), Peer::received)?;
    Ok(Moved { registry: run.counter.total(), received })
}

fn since(now: &Moved, before: &Moved) -> Moved {
    Moved { registry: now.registry.since(&before.registry), received: now.received.since(before.received) }
}

/// Forgets the machine's page cache, so that a cold run reads from its sources.
pub fn drop_caches() {
    nix::unistd::sync();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("warning: page caches stay warm: {error}");
    }
}
