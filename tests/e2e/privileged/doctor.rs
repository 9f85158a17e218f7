//! `d7y doctor` on a node of a cluster: well, and with something wrong.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::cluster::{Cluster, D7yNode};
use d7y_bench::rig::lab::Lab;

use crate::stage::{UNLIMITED, in_lab, node};

/// The state of each check, and the exit code.
pub struct Found {
    checks: BTreeMap<String, String>,
    code: Option<i32>,
    text: String,
}

impl Found {
    pub fn by(lab: &Lab, cluster: &Cluster, node: &D7yNode) -> Result<Self> {
        let host = &node.node.host;
        let mut doctor = host.command(lab.places.daemon("d7y")?);
        doctor.args(["doctor", "-o", "json", "--registry", &cluster.registry.name()]);
        doctor.arg("--peer").arg(node.peer.service.config_file());
        doctor.arg("--snapshotter").arg(node.snapshotter.config_file());
        doctor.arg("--containerd-config").arg(node.node.config_file());
        doctor.arg("--containerd").arg(node.node.program());
        let output = doctor.output().context("cannot start d7y")?;
        let text = String::from_utf8(output.stdout)?;
        let report: serde_json::Value = serde_json::from_str(&text)
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
        let mut checks: BTreeMap<String, String> = BTreeMap::new();
        for check in report["checks"].as_array().context("no checks")? {
            let word = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            let state = word("state");
            ensure!(state == "ok" || !word("mend").is_empty(), "nothing mends {check}");
            // Several lines may have one name: the worst counts.
            let worst = checks.entry(word("name")).or_insert_with(|| state.clone());
            if state == "failed" || worst == "ok" {
                *worst = state;
            }
        }
        Ok(Self { checks, code: output.status.code(), text })
    }

    /// Of one check.
    pub fn state(&self, check: &str) -> Result<String> {
        self.checks.get(check).cloned().with_context(|| format!("no {check}:\n{}", self.text))
    }

    fn expect(&self, code: i32, states: &[(&str, &str)]) -> Result<()> {
        ensure!(self.code == Some(code), "exit code {:?}:\n{}", self.code, self.text);
        for (name, state) in states {
            let found = self.checks.get(*name).map(String::as_str);
            ensure!(found == Some(state), "{name} is {found:?}, not {state}:\n{}", self.text);
        }
        Ok(())
    }
}

#[test]
fn doctor_knows_a_healthy_node_from_a_broken_one() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let node = node(&cluster, lab, "node", &[], &[])?;
        let well = [
            "config.peer",
            "config.snapshotter",
            "kernel.erofs",
            "kernel.fuse",
            "kernel.overlayfs",
            "containerd.version",
            "containerd.config",
            "containerd.running",
            "store.layout",
            "store.writable",
            "store.limit",
            "disk.store",
            "disk.snapshots",
            "peer.socket",
            "peer.health",
            "snapshotter.socket",
            "snapshotter.health",
            "scheduler",
            "seed",
            "index.trust",
            "registry",
            "clock",
        ];
        Found::by(lab, &cluster, &node)?.expect(0, &well.map(|name| (name, "ok")))?;

        cluster.scheduler.daemon.kill()?;
        node.peer.service.daemon.kill()?;
        node.node.containerd.kill()?;
        Found::by(lab, &cluster, &node)?.expect(
            1,
            &[
                ("peer.socket", "failed"),
                ("peer.health", "failed"),
                ("containerd.running", "failed"),
                ("containerd.version", "ok"),
                ("snapshotter.socket", "ok"),
                ("scheduler", "warning"),
                ("seed", "ok"),
            ],
        )?;

        std::fs::write(node.peer.service.config_file(), "seeds: 7\n")?;
        std::fs::write(node.node.host.dir.join("containerd/config.toml"), "version = 2\n")?;
        Found::by(lab, &cluster, &node)?
            .expect(1, &[("config.peer", "failed"), ("containerd.config", "failed"), ("kernel.erofs", "ok")])
    })
}
