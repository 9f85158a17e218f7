//! What a scrub costs: CPU for each GiB read, and what readers of the device notice.
//!
//! `cargo run --release -p d7y-store --example scrub -- DIRECTORY [MiB]`
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d7y_store::{Layer, Scrub, Store};
use fixture::CHUNK_BYTES;
use rustix::fs::{Advice, fadvise};
use rustix::time::{ClockId, clock_gettime};

const PACE: u64 = 8 << 20;
const WATCHED: Duration = Duration::from_secs(20);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("a directory");
    let mib: usize = arguments.next().map_or(512, |mib| mib.parse().unwrap());
    let directory = tempfile::tempdir_in(directory).unwrap();
    let store = Arc::new(fixture::open(directory.path(), 1 << 40));
    let layer = filled(&store, (mib << 20) / CHUNK_BYTES);
    let device = layer.paths().device;
    File::open(&device).unwrap().sync_all().unwrap();
    File::open(device.with_file_name("pack")).unwrap().sync_all().unwrap();

    let (cpu, began, read) = (cpu_time(), Instant::now(), read_bytes());
    let bytes = pass(&store, &layer, None, &AtomicBool::new(false));
    let gib = bytes as f64 / f64::from(1 << 30);
    let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_time() - cpu);
    println!(
        "unpaced: {gib:.2} GiB in {took:.2} s, CPU {cpu:.2} s, {:.2} s/GiB, from the disk {:.2} GiB; damaged {}",
        cpu / gib,
        (read_bytes() - read) / f64::from(1 << 30),
        store.usage().damaged_chunks
    );

    sequential(&device, "first");
    sequential(&device, "cached");
    pass(&store, &layer, None, &AtomicBool::new(false));
    sequential(&device, "after a scrub");
    fadvise(File::open(&device).unwrap(), 0, None, Advice::DontNeed).unwrap();
    sequential(&device, "after DONTNEED");

    random(&device, "alone");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| pass(&store, &layer, Some(PACE), &stop));
        random(&device, "with a scrub of 8 MiB/s");
        stop.store(true, Ordering::Relaxed);
    });
}

/// A layer whose chunks compress to about the half.
fn filled(store: &Store, chunks: usize) -> Arc<Layer> {
    let mut noise = blake3::Hasher::new().update(b"noise").finalize_xof();
    let data = (0..chunks).map(|_| {
        let mut data = vec![0; CHUNK_BYTES];
        noise.fill(&mut data[CHUNK_BYTES / 2..]);
        data
    });
    let fixture = fixture::layer_of(1, data.collect(), 3);
    fixture::commit(store, &fixture, chunks)
}

fn pass(store: &Arc<Store>, layer: &Arc<Layer>, pace: Option<u64>, stop: &AtomicBool) -> u64 {
    let mut scrub = Scrub::begin(store, layer).unwrap();
    assert!(scrub.check_files().unwrap());
    let (began, mut bytes) = (Instant::now(), 0);
    for number in 0..layer.chunks().len() as u32 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        bytes += scrub.check(number).unwrap().read_bytes;
        if let Some(rate) = pace {
            let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    bytes
}

fn sequential(device: &Path, when: &str) {
    let (file, mut out) = (File::open(device).unwrap(), vec![0; 1 << 20]);
    let (began, mut at) = (Instant::now(), 0);
    loop {
        match file.read_at(&mut out, at).unwrap() {
            0 => break,
            n => at += n as u64,
        }
    }
    println!("the device read {when}: {:.3} s", began.elapsed().as_secs_f64());
}

/// Reads of 64 KiB that the page cache does not have.
fn random(device: &Path, when: &str) {
    let (file, mut out) = (File::open(device).unwrap(), vec![0; 64 << 10]);
    let places = file.metadata().unwrap().len() / out.len() as u64;
    let (began, mut state, mut took) = (Instant::now(), 1u64, Vec::new());
    while began.elapsed() < WATCHED {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (state >> 33) % places * out.len() as u64;
        fadvise(&file, at, std::num::NonZeroU64::new(out.len() as u64), Advice::DontNeed).unwrap();
        let read = Instant::now();
        file.read_exact_at(&mut out, at).unwrap();
        took.push(read.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    took.sort();
    let at = |share: f64| took[(took.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{} reads {when}: p50 {:.2} ms, p99 {:.2} ms", took.len(), at(0.5), at(0.99));
}

/// What this process had the disk read, whatever the page cache holds.
fn read_bytes() -> f64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    line.unwrap().parse().unwrap()
}

fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
