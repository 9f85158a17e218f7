//! Any one of our processes may be killed: readers wait, none fails, nothing is lost.

use anyhow::{Context, Result, ensure};
use d7y_bench::measure::drop_caches;
use d7y_bench::rig::client::{Api, Client};
use d7y_bench::rig::cluster::Cluster;
use d7y_bench::rig::host::Link;
use d7y_bench::rig::lab::Lab;

use crate::images::Data;
use crate::reads::Readers;
use crate::stage::{SOON, UNLIMITED, in_lab, metric, node, push, start, wait_parked, wait_until, warm};

/// Slow enough that reads are under way when something is killed: 3 MB/s.
const SLOW: Link = Link(Some(24));

/// Frames that were sent, or lay in socket buffers, when the receiver was killed.
const IN_FLIGHT_BYTES: u64 = 6 << 20;

/// 48 MiB: sixteen seconds on the slow link.
fn data(lab: &Lab) -> Result<Data> {
    Data::summing(lab, "data", 96, 512 << 10)
}

#[test]
fn a_killed_snapshotter_fails_no_read() -> Result<()> {
    in_lab(|lab| {
        let data = data(lab)?;
        let (_cluster, wanted, _warm) = warm(lab, &data.image)?;
        let mut node = node(&_cluster, lab, "node", &[], &[])?;
        node.node.host.limit(SLOW)?;
        let first = Api.start(&node.node, &wanted, "first")?;
        let readers = Readers::start(&first.rootfs, data.files());
        wait_until("reads are under way", || Ok(readers.read() >= 4))?;
        node.snapshotter.daemon.kill()?;
        let present = node.peer.share_present(&data.image)?;
        ensure!(present < 0.8, "{present} of the data was there already: nothing was tested");
        node.snapshotter.restart(lab)?;
        node.node.host.limit(UNLIMITED)?;
        readers.finish(SOON)?;
        let line = first.first_output(SOON)?.line;
        ensure!(line == data.sum(), "the container read {line}");
        let (_second, line) = start(&node, &wanted, "second").context("after the restart")?;
        ensure!(line == data.sum(), "the second container read {line}");
        Ok(())
    })
}

#[test]
fn a_killed_peer_fails_no_read_and_keeps_its_chunks() -> Result<()> {
    in_lab(|lab| {
        let data = data(lab)?;
        let (cluster, wanted, warm) = warm(lab, &data.image)?;
        let mut node = node(&cluster, lab, "node", &[], &[])?;
        let uploaded = || -> Result<u64> {
            let of = |peer: &d7y_bench::rig::cluster::Peer| {
                metric(&peer.service, "d7y_peer_uploaded_bytes_total", &[])
            };
            Ok(of(&cluster.seed)? + of(&warm.peer)?)
        };
        let before = uploaded()?;
        node.node.host.limit(SLOW)?;
        let first = Api.start(&node.node, &wanted, "first")?;
        let readers = Readers::start(&first.rootfs, data.files());
        wait_until("half is there", || Ok(node.peer.share_present(&data.image)? > 0.5))?;
        let present = node.peer.share_present(&data.image)?;
        node.peer.service.daemon.kill()?;
        ensure!(present < 0.9, "{present} of the data was there already: nothing was tested");
        node.peer.service.restart(lab)?;
        let kept = node.peer.share_present(&data.image)?;
        ensure!(kept >= present - 0.05, "{present} was there before the kill, {kept} after it");
        node.node.host.limit(UNLIMITED)?;
        readers.finish(SOON)?;
        let line = first.first_output(SOON)?.line;
        ensure!(line == data.sum(), "the container read {line}");
        let (sent, size) = (uploaded()? - before, data.image.blob_bytes());
        ensure!(sent <= size + IN_FLIGHT_BYTES, "{sent} bytes were sent for an image of {size}");

        // The new peer has to hold the FUSE descriptor, and the reads have to come through it.
        wait_parked(&node)?;
        drop_caches();
        node.snapshotter.daemon.kill()?;
        node.snapshotter.restart(lab)?;
        Readers::start(&first.rootfs, data.files()).finish(SOON)
    })
}

#[test]
fn a_seed_killed_in_the_first_read_ever_delays_the_start() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 16, 512 << 10)?;
        let mut cluster = Cluster::start(lab, UNLIMITED)?;
        let wanted = push(&cluster, &data.image)?;
        let one = node(&cluster, lab, "node1", &[], &[])?;
        cluster.seed.host.limit(SLOW)?;
        let line = std::thread::scope(|scope| {
            let running = scope.spawn(|| start(&one, &wanted, "first"));
            let counter = cluster.registry.counter.of(cluster.seed.address());
            ensure!(counter.body_bytes < data.image.blob_bytes(), "the seed was faster than the kill");
            let (seed, counter) = (&mut cluster.seed, &cluster.registry.counter);
            wait_until("the seed reads", || Ok(counter.of(seed.address()).body_bytes > 2 << 20))?;
            seed.service.daemon.kill()?;
            let sent = counter.of(seed.address()).body_bytes;
            ensure!(sent < data.image.blob_bytes(), "the seed had read all {sent} bytes: nothing was tested");
            seed.host.limit(UNLIMITED)?;
            seed.service.restart(lab)?;
            let (started, line) = running.join().expect("a client does not panic")?;
            started.end();
            anyhow::Ok(line)
        })?;
        ensure!(line == data.sum(), "the container read {line}");
        for (digest, size) in &data.image.layers {
            let sent = cluster.registry.counter.total().blobs[digest].body_bytes;
            ensure!(sent <= 2 * size, "the registry sent {sent} bytes of a blob of {size}");
        }

        cluster.scheduler.daemon.kill()?;
        let two = node(&cluster, lab, "node2", &[], &[])?;
        let (_second, line) = start(&two, &wanted, "second").context("without scheduler")?;
        ensure!(line == data.sum(), "the container read {line}");
        Ok(())
    })
}
