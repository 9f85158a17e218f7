//! The cluster whose processes are killed, and how each of them is.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::dice::Dice;
use super::stock::Sizes;
use crate::rig::cluster::{Cluster, D7yNode, Extra};
use crate::rig::daemon::Daemon;
use crate::rig::host::Link;
use crate::rig::lab::Lab;
use crate::rig::manager::Manager;
use crate::rig::metrics::Samples;

/// Each node's link in Mbit/s: reads of missing data are under way at any time.
const NODE: Link = Link(Some(200));
const SEED: Link = Link(Some(1000));

/// What can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Process {
    /// Kills nobody: what the same measurement shows without a kill
    Nothing,
    Snapshotter,
    Peer,
    Seed,
    Scheduler,
    Manager,
    Containerd,
    Registry,
}

impl Process {
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Snapshotter,
        Self::Peer,
        Self::Seed,
        Self::Scheduler,
        Self::Manager,
        Self::Containerd,
        Self::Registry,
    ];
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "(nothing)",
            Self::Snapshotter => "d7y-snapshotter",
            Self::Peer => "d7y-peer, node",
            Self::Seed => "d7y-peer, seed",
            Self::Scheduler => "d7y-scheduler",
            Self::Manager => "d7y-manager",
            Self::Containerd => "containerd",
            Self::Registry => "registry",
        })
    }
}

/// A process of a certain node, or of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Victim {
    pub process: Process,
    node: usize,
}

impl Victim {
    /// Of a process that every node has, a random node's.
    pub fn choose(process: Process, dice: &mut Dice) -> Self {
        Self { process, node: dice.below(2) as usize }
    }
}

/// Everything that runs.
pub struct Site {
    pub cluster: Cluster,
    pub nodes: [D7yNode; 2],
}

impl Site {
    /// # Errors
    /// One of the daemons does not come up.
    pub fn set(lab: &Lab, sizes: Sizes) -> Result<Self> {
        let mut cluster = Cluster::managed(lab, SEED)?;
        let seed = &mut cluster.seed.service;
        let text = fs::read_to_string(seed.config_file())?;
        let limit = format!("store:\n  limit: {}MiB\n", sizes.seed_limit_mib());
        let limited = text.replacen("store:\n", &limit, 1);
        fs::write(seed.config_file(), limited).context("cannot limit the seed's store")?;
        seed.daemon.kill()?;
        seed.restart(lab)?;
        let set = |option: &str| ["--set".to_owned(), option.to_owned()];
        let limit = format!("store.limit={}MiB", sizes.node_limit_mib());
        // Nothing comes to a node but what a container reads: something is missing at any time.
        let extra = Extra {
            peer: [set(&limit), set("fetch.background=false")].concat(),
            snapshotter: set("trace.window=0s").to_vec(),
            ..Extra::default()
        };
        let node = |name| cluster.node(lab, name, NODE, &extra);
        let nodes = [node("node1")?, node("node2")?];
        Ok(Self { cluster, nodes })
    }

    pub fn manager(&self) -> Result<&Manager> {
        self.cluster.manager.as_ref().context("the cluster has a manager")
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It cannot die, or had ended before.
    pub fn kill(&self, victim: Victim) -> Result<()> {
        let Some(daemon) = self.daemon(victim)? else { return Ok(()) };
        if let Some(status) = daemon.ended() {
            bail!("{} has ended by itself with {status}:\n{}", daemon.name(), daemon.log_tail());
        }
        daemon.kill().map(drop)
    }

    fn daemon(&self, victim: Victim) -> Result<Option<&Daemon>> {
        let node = &self.nodes[victim.node];
        Ok(Some(match victim.process {
            Process::Nothing => return Ok(None),
            Process::Snapshotter => &node.snapshotter.daemon,
            Process::Peer => &node.peer.service.daemon,
            Process::Seed => &self.cluster.seed.service.daemon,
            Process::Scheduler => &self.cluster.scheduler.daemon,
            Process::Manager => &self.manager()?.service.daemon,
            Process::Containerd => &node.node.containerd,
            Process::Registry => &self.cluster.registry.daemon,
        }))
    }

    /// Starts it again, and waits until it says that it is ready.
    ///
    /// # Errors
    /// It does not come up.
    pub fn revive(&mut self, lab: &Lab, victim: Victim) -> Result<()> {
        let node = &mut self.nodes[victim.node];
        match victim.process {
            Process::Nothing => Ok(()),
            Process::Snapshotter => node.snapshotter.restart(lab),
            Process::Peer => node.peer.service.restart(lab),
            Process::Seed => self.cluster.seed.service.restart(lab),
            Process::Scheduler => self.cluster.scheduler.restart(lab),
            Process::Manager => match &mut self.cluster.manager {
                Some(manager) => manager.service.restart(lab),
                None => Ok(()),
            },
            Process::Containerd => node.node.restart(lab),
            Process::Registry => self.cluster.registry.restart(lab),
        }
    }

    /// Waits until each node's peer holds the FUSE descriptor, as systemd does where it runs: without either, peer and
    /// snapshotter may not die one after the other.
    ///
    /// # Errors
    /// Not before `deadline`.
    pub fn wait_parked(&self, deadline: Instant) -> Result<()> {
        let parked = |node: &D7yNode| {
            let samples = Samples::of(node.peer.service.address());
            samples.is_ok_and(|samples| samples.sum("d7y_peer_parked_descriptors", &[]) > 0.0)
        };
        while !self.nodes.iter().all(parked) {
            if Instant::now() >= deadline {
                bail!("a peer does not hold the FUSE descriptor");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}
