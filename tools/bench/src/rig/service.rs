//! One of d7y's daemons: program, configuration file, and how to see that it is up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::daemon::Daemon;
use super::host::Host;
use super::http;
use super::lab::Lab;

const READY: Duration = Duration::from_secs(30);

/// What is started, and started again after a kill.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Also the name of the log.
    pub name: String,
    /// `d7y-peer` and so on.
    pub program: &'static str,
    pub config: String,
    /// More of the command line, for tests: `--set KEY=VALUE`.
    pub arguments: Vec<String>,
    pub host: Host,
    /// Its `/healthy`.
    pub health: SocketAddr,
}

/// Peers are started with what this sets for the allocator, so that figures are those of a node that is set up with it.
const PEER_UNIT: &str = include_str!("../../../../deploy/systemd/d7y-peer.service");

/// A running daemon of ours.
pub struct Service {
    plan: Plan,
    file: PathBuf,
    pub daemon: Daemon,
}

impl Service {
    /// Writes the configuration, starts the daemon, and waits until it says that it is healthy.
    ///
    /// # Errors
    /// It is not built, or does not come up: with the tail of its log.
    pub fn start(lab: &Lab, plan: Plan) -> Result<Self> {
        let file = plan.host.dir.join(format!("{}.yaml", plan.program));
        std::fs::write(&file, &plan.config).with_context(|| format!("cannot write {}", file.display()))?;
        let daemon = launch(lab, &plan, &file)?;
        Ok(Self { plan, file, daemon })
    }

    /// Starts it again, from the same file, after it has ended.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn restart(&mut self, lab: &Lab) -> Result<()> {
        self.daemon = launch(lab, &self.plan, &self.file)?;
        Ok(())
    }

    /// The configuration that it was started with.
    pub fn config_file(&self) -> &std::path::Path {
        &self.file
    }

    /// Its `/healthy` and `/metrics`.
    pub fn address(&self) -> SocketAddr {
        self.plan.health
    }
}

fn launch(lab: &Lab, plan: &Plan, file: &std::path::Path) -> Result<Daemon> {
    let program = lab.places.daemon(plan.program)?;
    let mut command = plan.host.command(&program);
    command.arg("--config").arg(file).args(&plan.arguments);
    if plan.program == "d7y-peer" {
        command.envs(allocator_of(PEER_UNIT));
    }
    let daemon = lab.start(&plan.name, &mut command)?;
    daemon.wait_ready(READY, || http::get(plan.health, "/healthy").is_ok())?;
    Ok(daemon)
}

/// What a unit tells the allocator.
fn allocator_of(unit: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let set = unit.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once('='));
    set.filter(|(name, _)| name.starts_with("MALLOC_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_have_the_allocator_of_their_unit() {
        assert_eq!(allocator_of(PEER_UNIT).collect::<Vec<_>>(), [("MALLOC_TRIM_THRESHOLD_", "131072")]);
    }
}
