//! `d7y doctor`: whether this node can start containers through d7y (or this seed serve them), and what to do where it
//! cannot.
//!
//! The daemons' own configuration files say what to look at. Nothing is compared by version where it can be tried, and
//! everything that is tried is removed again.

mod check;
mod containerd;
mod daemons;
mod kernel;
mod machine;
mod manager;
mod network;
pub mod settings;
mod storage;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use check::{Check, State};
use machine::{Machine, ThisMachine};
use settings::Settings;

use crate::output::Output;

/// Exit codes: 0 when nothing has failed (warnings may have been given), 1 otherwise.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Text for people, or JSON
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The peer's configuration file
    #[arg(long, value_name = "PATH", default_value = "/etc/d7y/peer.yaml")]
    peer: PathBuf,
    /// The snapshotter's configuration file
    #[arg(long, value_name = "PATH", default_value = "/etc/d7y/snapshotter.yaml")]
    snapshotter: PathBuf,
    /// containerd's configuration file
    #[arg(long, value_name = "PATH", default_value = crate::containerd::DEFAULT_CONFIG)]
    containerd_config: PathBuf,
    /// The containerd that reads it
    #[arg(long, value_name = "PROGRAM", default_value = crate::containerd::DEFAULT_PROGRAM)]
    containerd: PathBuf,
    /// A registry to ask, besides those in the peer's configuration; may be given many times
    #[arg(long, value_name = "HOST")]
    registry: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    warnings: usize,
    failed: usize,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = Report::new(runtime.block_on(examine(args, &ThisMachine)));
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => report.print(),
    }
    Ok(ExitCode::from(report.exit_code()))
}

async fn examine(args: &Args, machine: &impl Machine) -> Vec<Check> {
    let (settings, mut checks) = Settings::load(&args.peer, &args.snapshotter);
    if settings.mounts() {
        checks.extend(kernel::check(&settings, machine));
        checks.extend(containerd::check(args, &settings, machine).await);
    }
    checks.extend(storage::check(&settings, machine));
    checks.extend(daemons::check(&settings).await);
    checks.extend(network::check(&settings, &args.registry, machine).await);
    checks
}

impl Report {
    fn new(checks: Vec<Check>) -> Self {
        let count = |state| checks.iter().filter(|check| check.state == state).count();
        let (warnings, failed) = (count(State::Warning), count(State::Failed));
        Self { checks, warnings, failed }
    }

    fn exit_code(&self) -> u8 {
        u8::from(self.failed > 0)
    }

    fn print(&self) {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
        for Check { name, state, detail, mend } in &self.checks {
            println!("{state:<8} {name:<width$}  {detail}");
            if let Some(mend) = mend {
                println!("{:<8} {:<width$}  -> {mend}", "", "");
            }
        }
        println!("{} checks, {} failed, {} warnings", self.checks.len(), self.failed, self.warnings);
    }
}
