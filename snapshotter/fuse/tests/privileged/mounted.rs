//! Mounts that go away with the test, also when it panics, and waiting that ends.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use d7y_fuse::{Filesystem, FuseDevice, MountOptions, Privileges, Session, Start, mounts};

/// How long anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts file systems and needs root (`cargo xtask test --unprivileged` leaves it out)"
    );
}

/// A mount point that is unmounted on drop, and its connection aborted, so that nothing hangs in it.
pub struct MountGuard(PathBuf);

impl MountGuard {
    pub fn new(target: &Path) -> Self {
        Self(target.into())
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        let _ = mounts::abort_connection(&self.0);
        let _ = mounts::unmount_lazy(&self.0);
    }
}

/// A directory with room for mount points.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        require_root();
        let directory = tempfile::Builder::new().prefix("d7y fuse ").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }
}

/// A FUSE mount before anybody serves it.
pub struct Unserved {
    pub device: FuseDevice,
    pub target: PathBuf,
    pub guard: MountGuard,
    pub scratch: Scratch,
}

impl Unserved {
    pub fn new(privileges: Privileges) -> Self {
        let scratch = Scratch::new();
        let target = scratch.directory("mount");
        let device = FuseDevice::mount(&target, &MountOptions { privileges }).unwrap();
        let guard = MountGuard::new(&target);
        Self { device, target, guard, scratch }
    }
}

/// A served FUSE mount. The mount goes before the session, the directory last.
pub struct Mounted {
    pub target: PathBuf,
    _guard: MountGuard,
    pub session: Session,
    pub scratch: Scratch,
}

impl Mounted {
    pub fn new(privileges: Privileges, filesystem: impl Filesystem) -> Self {
        let Unserved { device, target, guard, scratch } = Unserved::new(privileges);
        let session = Session::start(device, Arc::new(filesystem), Start::Fresh, THREADS).unwrap();
        Self { target, _guard: guard, session, scratch }
    }

    pub fn container(filesystem: impl Filesystem) -> Self {
        Self::new(Privileges::Container, filesystem)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }
}

/// The result of something that may hang.
pub struct Pending<T>(mpsc::Receiver<T>);

/// Runs `work` on a thread of its own.
pub fn background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    Pending(receiver)
}

impl<T> Pending<T> {
    pub fn result(self) -> T {
        self.0.recv_timeout(PATIENCE).expect("ends within the test's patience")
    }

    pub fn is_pending(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that differ from block to block and from byte to byte.
pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
