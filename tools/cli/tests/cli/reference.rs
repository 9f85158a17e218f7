use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::program::d7y;

fn kept(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap_or_default()
}

#[test]
fn the_references_are_up_to_date() {
    for (path, command) in
        [("docs/configuration.md", "config-reference"), ("docs/metrics.md", "metrics-reference")]
    {
        let (kept, made) = (kept(path), d7y([command]).stdout);
        let differs = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
        assert!(made == kept, "{path} is out of date at {differs:?}: it says how it is made");
    }
}

#[test]
fn the_dashboard_shows_only_metrics_that_exist() {
    let reference = d7y(["metrics-reference"]).stdout;
    let known: HashSet<&str> = reference.split('`').filter(|word| word.starts_with("d7y_")).collect();
    let dashboard = kept("deploy/grafana/d7y.json");
    let named = |word: &&str| word.starts_with("d7y_");
    let used: HashSet<&str> =
        dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(named).collect();
    assert!(used.len() >= 20, "{used:?}");
    for daemon in ["d7y_peer_", "d7y_snapshotter_", "d7y_scheduler_", "d7y_manager_"] {
        assert!(used.iter().any(|metric| metric.starts_with(daemon)), "nothing of {daemon} is shown");
    }
    for metric in used {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| metric.strip_suffix(suffix));
        let exists = known.contains(metric) || base.is_some_and(|base| known.contains(base));
        assert!(exists, "the dashboard shows {metric}, which no daemon has");
    }
    for shown in ["damaged_chunks", "scrubbed_bytes", "scrub_finished_timestamp_seconds", "reused_bytes"] {
        assert!(dashboard.contains(&format!("d7y_peer_{shown}")), "nothing shows {shown}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().unwrap().iter();
    for target in panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
        let query = target["expr"].as_str().unwrap();
        let metric = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').find(named).unwrap();
        let base = metric.strip_suffix("_bucket").unwrap_or(metric);
        let row = reference.lines().find(|line| line.starts_with(&format!("| `{base}` "))).unwrap();
        let by = query.split("by (").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
        for label in by.split(", ").filter(|label| !["", "le", "instance"].contains(label)) {
            assert!(row.contains(&format!("`{label}`: ")), "{metric} has no label {label}: {row}");
        }
    }
}

#[test]
fn every_key_says_what_it_is() {
    let reference = d7y(["config-reference"]).stdout;
    let silent: Vec<_> =
        reference.lines().filter(|line| line.starts_with("| `") && line.ends_with("|  |")).collect();
    assert!(silent.is_empty(), "keys without a doc comment:\n{}", silent.join("\n"));
}

#[test]
fn what_the_manager_can_set_is_what_the_daemons_reload() {
    use d7y_chassis::DaemonConfig;
    use d7y_manager::settings::{Of, keys};
    assert_eq!(keys(Of::Peer), d7y_peer::Config::reloadable());
    assert_eq!(keys(Of::Scheduler), d7y_scheduler::Config::reloadable());
}
