//! What is removed is gone, and whatever order things start in, they end up working.

use std::fs;

use anyhow::{Context, Result, ensure};
use d7y_bench::measure::drop_caches;
use d7y_bench::rig::cluster::{Cluster, D7yNode};
use d7y_bench::rig::command::{output, run};
use d7y_bench::rig::lab::Lab;
use d7y_bench::rig::leftovers::mounts_below;

use crate::images::Data;
use crate::stage::{UNLIMITED, ctr, dice, in_lab, metric, node, push, start, wait_parked, wait_until};

#[test]
fn removed_containers_and_images_leave_nothing() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 4, 100_000)?;
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let wanted = push(&cluster, &data.image)?;
        let node = node(&cluster, lab, "node", &[], &[])?;
        let dir = &node.node.host.dir;
        let before = mounts_below(dir);
        for round in ["first", "second"] {
            let (started, line) = start(&node, &wanted, round)?;
            ensure!(line == data.sum(), "{round}: the container read {line}");
            ensure!(mounts_below(dir).len() > before.len(), "{round}: no layer is mounted");
            started.end();
            run(&mut ctr(&node, &["images", "rm", "--sync", &wanted.reference.to_string()]))?;
            wait_until("no snapshot is left", || {
                let listed = output(&mut ctr(&node, &["snapshots", "--snapshotter", "d7y", "ls"]))?;
                Ok(listed.lines().count() <= 1)
            })?;
            wait_until("no layer is mounted", || Ok(mounts_below(dir) == before))
                .with_context(|| format!("{:?}", mounts_below(dir)))?;
            wait_until("no directory is left", || Ok(fs::read_dir(dir.join("snapshotter/s"))?.count() == 0))?;
            ensure!(
                metric(&node.snapshotter, "d7y_snapshotter_mounted_layers", &[])? == 0,
                "{round}: the metric"
            );
        }
        Ok(())
    })
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Containerd,
    Snapshotter,
    Peer,
}

fn kill(node: &D7yNode, part: Part) -> Result<()> {
    match part {
        Part::Containerd => node.node.containerd.kill(),
        Part::Snapshotter => node.snapshotter.daemon.kill(),
        Part::Peer => node.peer.service.daemon.kill(),
    }
    .map(drop)
}

fn revive(node: &mut D7yNode, lab: &Lab, part: Part) -> Result<()> {
    match part {
        Part::Containerd => node.node.restart(lab),
        Part::Snapshotter => node.snapshotter.restart(lab),
        Part::Peer => node.peer.service.restart(lab),
    }
    .with_context(|| format!("{part:?}"))
}

#[test]
fn restarts_in_any_order_converge() -> Result<()> {
    use Part::{Containerd, Peer, Snapshotter};
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 4, 100_000)?;
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let wanted = push(&cluster, &data.image)?;
        let mut node = node(&cluster, lab, "node", &[], &[])?;
        let (first, line) = start(&node, &wanted, "first")?;
        ensure!(line == data.sum(), "the container read {line}");

        let one_by_one = [Peer, Snapshotter, Containerd, Snapshotter, Peer];
        for part in one_by_one {
            wait_parked(&node)?;
            kill(&node, part)?;
            revive(&mut node, lab, part)?;
        }
        drop_caches();
        let probe = fs::read(first.rootfs.join("data/0000")).context("after restarts one by one")?;
        ensure!(probe == data.files().content(0), "wrong bytes after restarts one by one");
        first.end();

        let orders = [
            [Peer, Snapshotter, Containerd],
            [Peer, Containerd, Snapshotter],
            [Snapshotter, Containerd, Peer],
            [Snapshotter, Peer, Containerd],
            [Containerd, Peer, Snapshotter],
            [Containerd, Snapshotter, Peer],
        ];
        let mut dice = dice()?;
        for (round, order) in orders.into_iter().enumerate() {
            let name = format!("after-{round}");
            let mut deaths = order;
            dice.shuffle(&mut deaths);
            deaths.iter().try_for_each(|part| kill(&node, *part))?;
            for part in order {
                revive(&mut node, lab, part)
                    .with_context(|| format!("killed {deaths:?}, started {order:?}"))?;
            }
            // containerd itself waits a while before it dials a socket again that nobody served.
            let mut started = None;
            wait_until(&format!("a container starts after {order:?}"), || {
                started = start(&node, &wanted, &name).ok();
                Ok(started.is_some())
            })?;
            let (started, line) = started.context("waited for above")?;
            ensure!(line == data.sum(), "after {order:?} the container read {line}");
            started.end();
        }
        Ok(())
    })
}
