//! A slow start can be explained.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::client::Wanted;
use d7y_bench::rig::cluster::D7yNode;
use d7y_bench::rig::http;
use d7y_bench::rig::lab::Lab;
use serde_json::Value;

use crate::images::Data;
use crate::stage::{in_lab, node, start, warm};

/// `d7y why` on a node, as a person types it.
fn why(lab: &Lab, node: &D7yNode, words: &[&str]) -> Result<Output> {
    let mut d7y = node.node.host.command(lab.places.daemon("d7y")?);
    d7y.arg("why").args(words).arg("--snapshotter").arg(node.snapshotter.address().to_string());
    d7y.output().context("cannot start d7y")
}

fn text(output: &Output) -> Result<&str> {
    ensure!(output.status.success(), "{output:?}");
    Ok(std::str::from_utf8(&output.stdout)?)
}

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
        the_command_tells_it(lab, &node, &wanted, last)
    })
}

/// Of the container and of the image, for people and for programs.
fn the_command_tells_it(lab: &Lab, node: &D7yNode, wanted: &Wanted, last: &Value) -> Result<()> {
    let image = wanted.reference.to_string();
    for name in ["first", &image] {
        let shown = why(lab, node, &[name])?;
        let shown = text(&shown)?;
        let begins = |what: &str| {
            // Two times and their unit stand before what was done.
            shown.lines().any(|line| line.split_whitespace().nth(3) == Some(what))
        };
        for what in ["resolve", "index", "mount"] {
            ensure!(begins(what), "d7y why {name} shows no {what}:\n{shown}");
        }
        let heading = shown.lines().next().unwrap_or_default();
        ensure!(heading.contains("/first  ") && heading.contains(&image), "{shown}");
        for part in ["reads found data missing, from ", "the longest waits:", " /data/"] {
            ensure!(shown.contains(part), "d7y why {name} shows no {part:?}:\n{shown}");
        }
        let told = why(lab, node, &[name, "-o", "json"])?;
        let told: Value = serde_json::from_str(text(&told)?)?;
        ensure!(told[0] == *last, "d7y why {name} -o json says {told}, the snapshotter {last}");
    }
    let unknown = why(lab, node, &["no-such-container"])?;
    let said = String::from_utf8_lossy(&unknown.stderr);
    ensure!(unknown.status.code() == Some(1) && said.contains("/first ("), "{unknown:?}");
    Ok(())
}
