//! Ways to read a tree.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::rig::command::{command, output};

/// What a round repeats its reads for, so that a timer's grain does not show.
const ROUND: Duration = Duration::from_millis(400);

/// Files from this size on are large: sequential, random and mapped reads take them.
const LARGE: u64 = 1 << 20;

/// Files up to this size are small: opened, read and closed one by one.
const SMALL: u64 = 16 << 10;

const PAGE: u64 = 4096;

/// Random reads per look at the clock.
const BATCH: u32 = 1000;

/// Maps each file, touches one byte of each page in one C loop, prints seconds.
const MAP: &str = "
import mmap, sys, time
total = 0.0
for name in sys.argv[1:]:
    with open(name, 'rb') as file:
        start = time.perf_counter()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as map:
            len(map[::4096])
        total += time.perf_counter() - start
print(total)
";

/// A way to read, whose result is a rate: more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Large files in one go, MB/s.
    Sequential,
    /// 4 KiB at random places of large files, thousands per second.
    Random,
    /// Every page of large files through a mapping, MB/s.
    Mapped,
    /// Open, read, close, thousands of files per second.
    SmallFiles,
    /// List and stat everything, thousands of paths per second.
    Walk,
}

impl Kernel {
    pub const ALL: [Self; 5] = [Self::Sequential, Self::Random, Self::Mapped, Self::SmallFiles, Self::Walk];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential, MB/s",
            Self::Random => "random 4 KiB, k/s",
            Self::Mapped => "mmap, MB/s",
            Self::SmallFiles => "small files, k/s",
            Self::Walk => "stat walk, k/s",
        }
    }

    /// Reads what the list names below a root.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn rate(self, root: &Path, files: &Files) -> Result<f64> {
        match self {
            Self::Sequential => repeated(|| Ok(read_files(root, &files.large)? as f64 / 1e6)),
            Self::Random => random(root, &files.large),
            Self::Mapped => mapped(root, files),
            Self::SmallFiles => repeated(|| {
                read_files(root, &files.small)?;
                Ok(files.small.len() as f64 / 1e3)
            }),
            Self::Walk => repeated(|| Ok(walk(root, &mut |_, _| {})? as f64 / 1e3)),
        }
    }
}

/// Paths of a tree, relative to its root, by size.
#[derive(Debug, Default)]
pub struct Files {
    large: Vec<PathBuf>,
    small: Vec<PathBuf>,
    large_bytes: u64,
}

impl Files {
    /// # Errors
    /// A directory cannot be listed.
    pub fn list(root: &Path) -> Result<Self> {
        let mut files = Self::default();
        walk(root, &mut |path, meta| {
            let relative = path.strip_prefix(root).expect("walked from the root").to_path_buf();
            if meta.is_file() && meta.len() >= LARGE {
                files.large_bytes += meta.len();
                files.large.push(relative);
            } else if meta.is_file() && meta.len() <= SMALL {
                files.small.push(relative);
            }
        })?;
        // Directory order differs between file systems; what is read must not.
        files.large.sort();
        files.small.sort();
        Ok(files)
    }
}

/// Reads every file of a tree once, as `tar` would; returns the bytes.
///
/// # Errors
/// Something cannot be read.
pub fn read_all(root: &Path) -> Result<u64> {
    let mut paths = Vec::new();
    walk(root, &mut |path, meta| {
        if meta.is_file() {
            paths.push(path.to_path_buf());
        }
    })?;
    read_files(Path::new("/"), &paths)
}

/// Work per second, repeated until it fills a round.
fn repeated(mut work: impl FnMut() -> Result<f64>) -> Result<f64> {
    let (start, mut done) = (Instant::now(), 0.0);
    while start.elapsed() < ROUND {
        done += work()?;
    }
    Ok(done / start.elapsed().as_secs_f64())
}

fn read_files(root: &Path, files: &[PathBuf]) -> Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    for path in files {
        let path = root.join(path);
        let mut file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        loop {
            let length = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
            if length == 0 {
                break;
            }
            bytes += length as u64;
        }
    }
    Ok(bytes)
}

fn random(root: &Path, files: &[PathBuf]) -> Result<f64> {
    let open = |path: &PathBuf| {
        let file = File::open(root.join(path))?;
        let pages = file.metadata()?.len() / PAGE;
        Ok((file, pages))
    };
    let files = files.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut buffer = [0; PAGE as usize];
    // The same places in every round and on every file system.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit.max(1)
    };
    repeated(|| {
        for _ in 0..BATCH {
            let (file, pages) = &files[usize::try_from(next(files.len() as u64))?];
            file.read_exact_at(&mut buffer, next(*pages) * PAGE)?;
        }
        Ok(f64::from(BATCH) / 1e3)
    })
}

/// With the image's own Python: mapping is unsafe in Rust, and reads through the dynamic linker
/// and Python are what maps in real containers.
fn mapped(root: &Path, files: &Files) -> Result<f64> {
    let mut python = command("chroot", [root]);
    python.args(["python3", "-c", MAP]);
    python.args(files.large.iter().map(|path| Path::new("/").join(path)));
    let seconds: f64 = output(&mut python)?.trim().parse().context("the mapping script prints seconds")?;
    Ok(files.large_bytes as f64 / 1e6 / seconds)
}

/// Calls for every path below the root on the same file system; returns how many there are.
fn walk(root: &Path, each: &mut dyn FnMut(&Path, &fs::Metadata)) -> Result<u64> {
    let device = fs::symlink_metadata(root)?.dev();
    let mut todo = vec![root.to_path_buf()];
    let mut count = 0;
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            count += 1;
            each(&path, &meta);
            if meta.is_dir() && meta.dev() == device {
                todo.push(path);
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_read_what_is_there() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("large"), vec![7; 2 << 20])?;
        fs::create_dir(dir.path().join("d"))?;
        fs::write(dir.path().join("d/small"), "x")?;
        assert_eq!(read_all(dir.path())?, (2 << 20) + 1);
        let files = Files::list(dir.path())?;
        assert_eq!(files.large, [PathBuf::from("large")]);
        assert_eq!(files.small, [PathBuf::from("d/small")]);
        assert_eq!(files.large_bytes, 2 << 20);
        for kernel in [Kernel::Sequential, Kernel::Random, Kernel::SmallFiles, Kernel::Walk] {
            assert!(kernel.rate(dir.path(), &files)? > 0.0, "{kernel:?}");
        }
        Ok(())
    }
}
