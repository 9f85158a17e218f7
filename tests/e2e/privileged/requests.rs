//! One slow read can be followed from process to process.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::http;
use d7y_bench::rig::service::Service;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::images::Data;
use crate::stage::{in_lab, node, start, wait_until, warm};

/// The ids of requests in a daemon's log, of lines with these words that bring what another peer gave.
fn ids(service: &Service, words: &str) -> Result<BTreeSet<String>> {
    let log = fs::read_to_string(service.daemon.log())?;
    let lines = log.lines().filter(|line| line.contains(words) && !line.contains("source=\"shared\""));
    let ids = lines.filter_map(|line| line.split_once("request_id=")?.1.get(..16));
    Ok(ids.map(str::to_owned).collect())
}

fn log_more(service: &Service) -> Result<()> {
    let mut config = fs::File::options().append(true).open(service.config_file())?;
    config.write_all(b"log: {level: debug}\n")?;
    service.daemon.signal(Signal::SIGHUP)?;
    wait_until("the configuration is read again", || {
        Ok(fs::read_to_string(service.daemon.log())?.contains("the configuration was read again"))
    })
}

#[test]
fn a_missed_read_has_one_id_in_all_logs() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 16, 256 << 10)?;
        let (cluster, wanted, warm) = warm(lab, &data.image)?;
        let parents = [&cluster.seed.service, &warm.peer.service];
        parents.into_iter().try_for_each(log_more)?;
        let debug = ["fetch.background=false", "log.level=debug"];
        let node = node(&cluster, lab, "node", &debug, &debug[1..])?;
        let (_started, line) = start(&node, &wanted, "first")?;
        ensure!(line == data.sum(), "the container read {line}");

        let peer = &node.peer.service;
        let read = || ids(&node.snapshotter, "a read waited");
        ensure!(!read()?.is_empty(), "no read is in the snapshotter's log");
        wait_until("the peer's log has the reads of the snapshotter's", || {
            Ok(read()?.is_subset(&ids(peer, "a read waited")?))
        })?;
        let asked = ids(peer, "asks a parent for a read")?;
        wait_until("what parents were asked is what was read", || Ok(asked.is_subset(&read()?)))?;
        wait_until("the parents' logs have the reads that they were asked for", || {
            let [one, two] = parents.map(|parent| ids(parent, "a peer's read was served"));
            let served = &one? | &two?;
            Ok(!asked.is_empty() && asked.is_subset(&served))
        })?;

        let starts: Value = serde_json::from_str(&http::get(node.snapshotter.address(), "/starts")?)?;
        let slowest = starts[0]["reads"]["slowest"].as_array().context("slowest")?;
        let log = fs::read_to_string(node.snapshotter.daemon.log())?;
        let told = |wait: &Value| wait["requestId"].as_str().is_some_and(|id| log.contains(id));
        ensure!(!slowest.is_empty() && slowest.iter().all(told), "not in the log: {slowest:?}");
        Ok(())
    })
}
