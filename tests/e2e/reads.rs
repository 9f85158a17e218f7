//! Readers of a container's files, beside the container: on threads, so that a read that hangs
//! fails the test instead of hanging it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::images::Files;

/// Reads under way at any time.
const READERS: usize = 4;

/// Reads every file once, the last first: away from a container that reads them in order.
pub struct Readers {
    read: Arc<AtomicU32>,
    results: Receiver<Result<()>>,
}

impl Readers {
    pub fn start(rootfs: &Path, files: Files) -> Self {
        let (next, read) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (sender, results) = channel();
        for _ in 0..READERS {
            let (next, read, sender, root) =
                (next.clone(), read.clone(), sender.clone(), rootfs.to_path_buf());
            std::thread::spawn(move || {
                let result = read_all(&root, files, &next, &read);
                let _ = sender.send(result);
            });
        }
        Self { read, results }
    }

    /// Files that were read and were right.
    pub fn read(&self) -> u32 {
        self.read.load(Ordering::SeqCst)
    }

    /// Waits until all are read.
    pub fn finish(self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for _ in 0..READERS {
            let left = deadline.saturating_duration_since(Instant::now());
            self.results.recv_timeout(left).with_context(|| format!("reads hang for {limit:?}"))??;
        }
        Ok(())
    }
}

fn read_all(root: &Path, files: Files, next: &AtomicU32, read: &AtomicU32) -> Result<()> {
    loop {
        let taken = next.fetch_add(1, Ordering::SeqCst);
        let Some(number) = files.count.checked_sub(taken + 1) else { return Ok(()) };
        let path = root.join(Files::name(number));
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(bytes == files.content(number), "{}: wrong bytes", path.display());
        read.fetch_add(1, Ordering::SeqCst);
    }
}

/// One read that may fail, and how long it took.
pub fn read_within(path: PathBuf, limit: Duration) -> Result<(std::io::Result<Vec<u8>>, Duration)> {
    let (sender, result) = channel();
    let began = Instant::now();
    std::thread::spawn(move || sender.send(fs::read(path)));
    match result.recv_timeout(limit) {
        Ok(result) => Ok((result, began.elapsed())),
        Err(_) => bail!("a read hangs for {limit:?}"),
    }
}
