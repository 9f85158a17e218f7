//! Whatever is not there at first, the rest waits for it or does without.

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::client::Wanted;
use d7y_bench::rig::cluster::{Cluster, D7yNode};
use d7y_bench::rig::command::output;
use d7y_bench::rig::image::{Data, Files};
use d7y_bench::rig::lab::Lab;
use d7y_bench::rig::node::Snapshotter;

use crate::stage::{UNLIMITED, dice, in_lab, node, start, wait_until};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Registry,
    Manager,
    Scheduler,
    Seed,
    Peer,
    Snapshotter,
    Containerd,
}

use Part::{Containerd, Manager, Peer, Registry, Scheduler, Seed, Snapshotter as Mounter};

const PARTS: [Part; 7] = [Registry, Manager, Scheduler, Seed, Peer, Mounter, Containerd];

struct Site {
    cluster: Cluster,
    node: D7yNode,
}

impl Site {
    fn kill(&self, part: Part) -> Result<()> {
        let daemon = match part {
            Registry => &self.cluster.registry.daemon,
            Manager => &self.manager()?.service.daemon,
            Scheduler => &self.cluster.scheduler.daemon,
            Seed => &self.cluster.seed.service.daemon,
            Peer => &self.node.peer.service.daemon,
            Mounter => &self.node.snapshotter.daemon,
            Containerd => &self.node.node.containerd,
        };
        daemon.kill().map(drop)
    }

    fn start(&mut self, lab: &Lab, part: Part) -> Result<()> {
        match part {
            Registry => self.cluster.registry.restart(lab),
            Manager => self.cluster.manager.as_mut().context("a managed cluster")?.service.restart(lab),
            Scheduler => self.cluster.scheduler.restart(lab),
            Seed => self.cluster.seed.service.restart(lab),
            Peer => self.node.peer.service.restart(lab),
            Mounter => self.node.snapshotter.restart(lab),
            Containerd => self.node.node.restart(lab),
        }
        .with_context(|| format!("{part:?}"))
    }

    fn manager(&self) -> Result<&d7y_bench::rig::manager::Manager> {
        self.cluster.manager.as_ref().context("a managed cluster")
    }

    /// An image that nobody has seen before.
    fn image(&self, lab: &Lab, series: u32) -> Result<(Wanted, String)> {
        let files = Files { count: 2, bytes: 100_000, series };
        let script = "cat /data/* | sha256sum; exec sleep 600";
        let data = Data::make(lab, &format!("data-{series}"), script, files)?;
        let reference = self.cluster.registry.push(&data.image.layout, &data.image.tag, "app")?;
        Ok((Wanted { reference: reference.parse()?, snapshotter: Snapshotter::D7y }, data.sum()))
    }

    fn runs(&self, wanted: &Wanted, sum: &str, container: &str) -> Result<()> {
        // containerd itself waits a while before it dials a socket again that nobody served.
        let (mut started, mut attempt) = (None, 0);
        wait_until(&format!("{container} starts"), || {
            attempt += 1;
            started = start(&self.node, wanted, &format!("{container}-{attempt}")).ok();
            Ok(started.is_some())
        })?;
        let (started, line) = started.context("waited for above")?;
        ensure!(line == sum, "{container} read {line}");
        started.end();
        Ok(())
    }
}

#[test]
fn any_part_may_be_absent_at_first() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::managed(lab, UNLIMITED)?;
        let node = node(&cluster, lab, "node", &["fetch.originFallbackAfter=1s"], &[])?;
        let mut site = Site { cluster, node };
        let mut dice = dice()?;
        // Each part is the last one once; how the others die and come back is drawn.
        for (absent, series) in (0..PARTS.len()).zip(1..) {
            let (mut deaths, mut order) = (PARTS, PARTS);
            order.swap(absent, PARTS.len() - 1);
            dice.shuffle(&mut deaths);
            dice.shuffle(&mut order[..PARTS.len() - 1]);
            let (last, others) = order.split_last().context("seven parts")?;
            let images = [site.image(lab, 2 * series)?, site.image(lab, 2 * series + 1)?];
            deaths.iter().try_for_each(|part| site.kill(*part))?;
            others
                .iter()
                .try_for_each(|part| site.start(lab, *part))
                .with_context(|| format!("killed {deaths:?}, started {order:?}"))?;
            let [(first, first_sum), (second, second_sum)] = &images;
            // What the data path does not need. Without a seed the node reads the registry itself.
            if [Manager, Scheduler, Seed].contains(last) {
                site.runs(first, first_sum, &format!("without-{last:?}"))
                    .with_context(|| format!("killed {deaths:?}, started {order:?}"))?;
            }
            site.start(lab, *last)?;
            site.runs(second, second_sum, &format!("after-{last:?}"))
                .with_context(|| format!("killed {deaths:?}, started {order:?}"))?;
            let mut preheat = site.manager()?.preheat(&lab.places, &second.reference)?;
            output(&mut preheat).with_context(|| format!("killed {deaths:?}, started {order:?}"))?;
        }
        Ok(())
    })
}
