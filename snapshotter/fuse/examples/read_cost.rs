//! What a read costs on its way through FUSE when the bytes are in the page cache: `cargo run --release --example
//! read_cost [THREADS]`, as root. Medians of a few rounds; the mount's own pages are dropped before each.

use std::ffi::OsStr;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use d7y_fuse::{
    Attributes, DirectorySink, Entry, Errno, FileKind, Filesystem, FuseDevice, MountOptions, NodeId,
    Privileges, ReadReply, Session, Start, Timestamp, mounts,
};
use d7y_types::ByteRange;
use rustix::fs::{Advice, fadvise};

const FILE_BYTES: u64 = 512 << 20;
const RANDOM_READS: u64 = 20_000;
const ROUNDS: usize = 7;
const DEVICE: NodeId = NodeId(2);

struct OneFile(File);

impl OneFile {
    fn attributes_of(kind: FileKind, size: u64) -> Attributes {
        let modified = Timestamp::default();
        Attributes { kind, permissions: 0o755, links: 1, uid: 0, gid: 0, rdev: 0, size, modified }
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _parent: NodeId, _name: &OsStr) -> Result<Option<Entry>, Errno> {
        Ok(Some(Entry { node: DEVICE, attributes: self.attributes(DEVICE)? }))
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        Ok(match node {
            DEVICE => Self::attributes_of(FileKind::Regular, FILE_BYTES),
            _ => Self::attributes_of(FileKind::Directory, 0),
        })
    }

    fn read(&self, _node: NodeId, range: ByteRange, reply: ReadReply) {
        reply.file(&self.0, range);
    }

    fn read_directory(
        &self,
        _node: NodeId,
        _offset: u64,
        _sink: &mut DirectorySink<'_>,
    ) -> Result<(), Errno> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |threads| threads.parse())?;
    let scratch = tempfile::tempdir()?;
    let backing =
        File::options().read(true).write(true).create_new(true).open(scratch.path().join("backing"))?;
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for offset in (0..FILE_BYTES).step_by(block.len()) {
        backing.write_all_at(&block, offset)?;
    }
    println!("page cache itself: {}", measure(&backing, || Ok(()))?);

    let target = scratch.path().join("mount");
    std::fs::create_dir(&target)?;
    let device = FuseDevice::mount(&target, &MountOptions { privileges: Privileges::Sealed })?;
    let threads = NonZeroUsize::new(threads).ok_or("at least one thread")?;
    let session = Session::start(device, Arc::new(OneFile(backing)), Start::Fresh, threads)?;
    let result = through_fuse(&target, &session);
    mounts::unmount_lazy(&target)?;
    println!("through FUSE, {threads} threads: {}", result?);
    Ok(())
}

fn through_fuse(target: &Path, session: &Session) -> std::io::Result<Cost> {
    let file = File::open(target.join("device"))?;
    let before = session.counters().reads;
    let cost = measure(&file, || Ok(fadvise(&file, 0, None, Advice::DontNeed)?))?;
    println!("{} READs", session.counters().reads - before);
    Ok(cost)
}

struct Cost {
    sequential_mb_per_second: f64,
    random_iops: f64,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sequential_mb_per_second: sequential, random_iops: random } = self;
        write!(
            out,
            "1 MiB sequential {sequential:.0} MB/s, 4 KiB random {random:.0}/s, {:.1} us each",
            1e6 / random
        )
    }
}

fn measure(file: &File, forget: impl Fn() -> std::io::Result<()>) -> std::io::Result<Cost> {
    let mut buffer = vec![0; 1 << 20];
    let (mut sequential, mut random) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        forget()?;
        fadvise(file, 0, None, Advice::Normal)?;
        let start = Instant::now();
        for offset in (0..FILE_BYTES).step_by(buffer.len()) {
            file.read_exact_at(&mut buffer, offset)?;
        }
        sequential.push(FILE_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64());

        forget()?;
        fadvise(file, 0, None, Advice::Random)?;
        let start = Instant::now();
        for number in 0..RANDOM_READS {
            let block = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (FILE_BYTES / 4096);
            file.read_exact_at(&mut buffer[..4096], block * 4096)?;
        }
        random.push(RANDOM_READS as f64 / start.elapsed().as_secs_f64());
    }
    Ok(Cost { sequential_mb_per_second: median(sequential), random_iops: median(random) })
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
