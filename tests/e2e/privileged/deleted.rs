//! Somebody deletes the node's cache under running containers: they read on, and so does what is started next.

use std::fs;

use anyhow::{Context, Result, ensure};
use d7y_bench::measure::drop_caches;
use d7y_bench::rig::client::{Api, Client};
use d7y_bench::rig::host::Link;

use crate::images::Data;
use crate::reads::Readers;
use crate::stage::{SOON, UNLIMITED, in_lab, node, start, wait_until, warm};

/// 3 MB/s: most is missing when the cache goes.
const SLOW: Link = Link(Some(24));

#[test]
fn containers_read_on_when_the_cache_is_deleted() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 96, 512 << 10)?;
        let (cluster, wanted, _warm) = warm(lab, &data.image)?;
        let mut node = node(&cluster, lab, "node", &[], &[])?;
        node.node.host.limit(SLOW)?;
        let first = Api.start(&node.node, &wanted, "first")?;
        let readers = Readers::start(&first.rootfs, data.files());
        wait_until("reads are under way", || Ok(readers.read() >= 4))?;
        fs::remove_dir_all(node.peer.store().join("layers")).context("the cache")?;
        node.node.host.limit(UNLIMITED)?;
        readers.finish(SOON).context("after the cache was deleted")?;
        let line = first.first_output(SOON)?.line;
        ensure!(line == data.sum(), "the container read {line}");

        drop_caches();
        Readers::start(&first.rootfs, data.files()).finish(SOON).context("past the page cache")?;
        node.peer.service.daemon.kill()?;
        node.peer.service.restart(lab)?;
        drop_caches();
        Readers::start(&first.rootfs, data.files()).finish(SOON).context("after a restart of the peer")?;
        let (_second, line) = start(&node, &wanted, "second")?;
        ensure!(line == data.sum(), "the second container read {line}");
        node.snapshotter.daemon.kill()?;
        node.snapshotter.restart(lab)?;
        drop_caches();
        Readers::start(&first.rootfs, data.files()).finish(SOON).context("after a restart of the snapshotter")
    })
}
