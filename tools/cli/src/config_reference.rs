//! `d7y config-reference`: docs/configuration.md, made from the daemons' own types.

use std::process::ExitCode;

use anyhow::Result;
use d7y_chassis::config::reference;

const INTRODUCTION: &str = "\
# Configuration

Made by `cargo run -p d7y-cli -- config-reference > docs/configuration.md`; a test compares.

Every daemon reads one YAML file (`--config PATH`). Over the file goes the environment, over that the command line:
`store.limit` of `d7y-peer` is also `D7Y_PEER__STORE__LIMIT=200GiB` and `--set store.limit=200GiB`. `--check-config` names
all faults with line and column, `--print-config` shows what holds and where each value comes from, with secrets masked.
Under the file lies what a manager sets for a whole cluster: keys with *SIGHUP* of peers and schedulers
(`PATCH /api/v1/clusters/ID`).

A *size* is `64MiB`, `1.5GB` or a number of bytes; a *duration* has a unit: `500ms`, `30s`, `5m`; a *secret* is text in
quotes that is never shown. Keys with *SIGHUP* are taken over by a running daemon that is told to reload
(`systemctl reload`); all others need a restart, and the log names those that have changed.
";

pub fn run() -> Result<ExitCode> {
    let sections = [
        reference::<d7y_peer::Config>(&d7y_peer::DAEMON),
        reference::<d7y_snapshotter::Config>(&d7y_snapshotter::DAEMON),
        reference::<d7y_scheduler::Config>(&d7y_scheduler::DAEMON),
        reference::<d7y_manager::Config>(&d7y_manager::DAEMON),
    ];
    println!("{INTRODUCTION}\n{}", sections.join("\n").trim_end());
    Ok(ExitCode::SUCCESS)
}
