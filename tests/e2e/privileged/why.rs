//! A slow start can be explained.

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::http;
use serde_json::Value;

use crate::images::Data;
use crate::stage::{in_lab, node, start, warm};

#[test]
fn a_start_is_told_step_by_step_and_file_by_file() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 16, 256 << 10)?;
        let (cluster, wanted, _warm) = warm(lab, &data.image)?;
        let node = node(&cluster, lab, "node", &["fetch.background=false"], &[])?;
        let (_started, line) = start(&node, &wanted, "first")?;
        ensure!(line == data.sum(), "the container read {line}");

        let starts: Value = serde_json::from_str(&http::get(node.snapshotter.address(), "/starts")?)?;
        let last = &starts[0];
        ensure!(last["container"].as_str().is_some_and(|key| key.ends_with("/first")), "{last}");
        ensure!(last["image"] == wanted.reference.to_string(), "{last}");
        for what in ["resolve", "announce", "index", "mount"] {
            let steps = last["steps"].as_array().context("steps")?;
            ensure!(steps.iter().any(|step| step["what"] == what), "no {what} in {last}");
        }
        let slowest = last["reads"]["slowest"].as_array().context("slowest")?;
        let named = |wait: &Value| wait["path"].as_str().is_some_and(|path| path.starts_with("/data/"));
        ensure!(slowest.iter().any(named), "no read of the data is named: {last}");
        let sources = last["reads"]["bySource"].as_array().context("bySource")?;
        let given = sources.iter().any(|by| by["source"] == "seed" || by["source"] == "node");
        ensure!(given, "nobody gave anything: {last}");
        Ok(())
    })
}
