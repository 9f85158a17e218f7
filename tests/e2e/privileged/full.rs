//! A node whose disk is full reads on, uncached, and says so once.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use d7y_bench::measure::drop_caches;
use d7y_bench::rig::cluster::D7yNode;
use d7y_bench::rig::command::{command, run};
use d7y_bench::rig::http;
use d7y_bench::rig::image::Image;
use d7y_bench::rig::places::make_dir;

use crate::images::Data;
use crate::reads::Readers;
use crate::stage::{SOON, in_lab, metric, node, start, wait_complete, wait_until, warm};

fn is_healthy(node: &D7yNode) -> bool {
    http::get(node.peer.service.address(), "/healthy").is_ok()
}

fn alarms(node: &D7yNode) -> Result<usize> {
    let log = fs::read_to_string(node.peer.service.daemon.log())?;
    Ok(log.matches("the store is full").count())
}

#[test]
fn a_full_disk_costs_the_cache_and_no_read() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 64, 256 << 10)?;
        let (cluster, wanted, _warm) = warm(lab, &data.image)?;
        let (disk, store) = (lab.dir().join("disk.img"), lab.dir().join("disk"));
        make_dir(&store)?;
        File::create(&disk)?.set_len(512 << 20)?;
        run(command("mkfs.ext4", ["-q", "-m", "0", "-O", "^has_journal"]).arg(&disk))?;
        run(command("mount", ["-o", "loop"]).arg(&disk).arg(&store))?;
        let filler = store.join("filler");
        let free = rustix::fs::statvfs(&store)?;
        let filled = (free.f_bavail * free.f_frsize).saturating_sub(6 << 20);
        rustix::fs::fallocate(File::create(&filler)?, rustix::fs::FallocateFlags::empty(), 0, filled)?;

        let directory = format!("store.directory={}", store.join("peer").display());
        let node = node(&cluster, lab, "node", &[&directory], &[])?;
        let (first, line) = start(&node, &wanted, "first")?;
        ensure!(line == data.sum(), "the container read {line}");
        ensure!(metric(&node.peer.service, "d7y_peer_store_full_total", &[])? > 0, "the disk was not full");
        wait_until("the alarm is raised", || Ok(alarms(&node)? > 0))?;
        ensure!(alarms(&node)? == 1, "{} alarms", alarms(&node)?);

        fs::remove_file(&filler)?;
        wait_until("the alarm is taken back", || Ok(is_healthy(&node)))?;
        drop_caches();
        Readers::start(&first.rootfs, data.files()).finish(SOON)?;
        let read = Image { layers: vec![data.image.layers[1].clone()], ..data.image };
        wait_complete(&node.peer, &read).context("what was read again is kept now")
    })
}

#[test]
fn a_store_that_is_too_small_serves_everything() -> Result<()> {
    in_lab(|lab| {
        let data = Data::summing(lab, "data", 32, 256 << 10)?;
        let (cluster, wanted, _warm) = warm(lab, &data.image)?;
        let node = node(&cluster, lab, "node", &["store.limit=4MiB", "fetch.background=false"], &[])?;
        let (_first, line) = start(&node, &wanted, "first")?;
        ensure!(line == data.sum(), "the container read {line}");
        ensure!(metric(&node.peer.service, "d7y_peer_store_full_total", &[])? > 0, "the store was not full");
        wait_until("the alarm is taken back", || Ok(is_healthy(&node)))?;
        ensure!(alarms(&node)? <= 1, "{} alarms", alarms(&node)?);
        Ok(())
    })
}
