//! `d7y metrics-reference`: docs/metrics.md, made from what the daemons register.

use std::process::ExitCode;

use anyhow::Result;
use d7y_chassis::metrics::{Described, DescribedLabel};

const INTRODUCTION: &str = "\
# Metrics

Made by `cargo run -p d7y-cli -- metrics-reference > docs/metrics.md`; a test compares.

Every daemon serves OpenMetrics text at `/metrics`. Of a histogram there are `_bucket`, `_sum` and `_count`. A metric with
labels appears once it has a value. Of a label all values are named, or, when nobody knows them beforehand, such as there may
be. `deploy/grafana/d7y.json` is a dashboard of the ones to watch.
";

/// All metrics of all daemons.
pub fn described() -> [(&'static str, Vec<Described>); 4] {
    [
        (d7y_peer::DAEMON.name.as_str(), d7y_peer::described_metrics()),
        (d7y_snapshotter::DAEMON.name.as_str(), d7y_snapshotter::described_metrics()),
        (d7y_scheduler::DAEMON.name.as_str(), d7y_scheduler::described_metrics()),
        (d7y_manager::DAEMON.name.as_str(), d7y_manager::described_metrics()),
    ]
}

pub fn run() -> Result<ExitCode> {
    print!("{INTRODUCTION}");
    for (daemon, metrics) in described() {
        println!("\n## {daemon}\n\n| Metric | Kind | Labels | What |\n|---|---|---|---|");
        for Described { name, kind, labels, help } in metrics {
            let labels: Vec<_> = labels.iter().map(shown).collect();
            println!("| `{name}` | {kind} | {} | {help} |", labels.join("; "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `source`: node, origin, seed
fn shown(DescribedLabel { name, values, are_all }: &DescribedLabel) -> String {
    let values = values.join(", ");
    match are_all {
        true => format!("`{name}`: {values}"),
        false => format!("`{name}`: such as {values}"),
    }
}
