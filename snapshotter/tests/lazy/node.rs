use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use d7y_fuse::mounts;
use d7y_proto::snapshots::Mount;
use nix::mount::{MsFlags, mount};
use tokio::sync::watch;

/// Everything here is local: what takes longer is broken.
const DEADLINE: Duration = Duration::from_secs(30);

/// Polls until there is something, or the test has waited too long.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, mut poll: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = poll().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for a value that somebody sends.
pub async fn wait_until<T>(watched: &watch::Sender<T>, what: &str, wanted: impl FnMut(&T) -> bool) {
    let mut watched = watched.subscribe();
    let waiting = tokio::time::timeout(DEADLINE, watched.wait_for(wanted));
    waiting.await.unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}")).unwrap();
}

/// Runs blocking code, which may wait for the daemon, away from the runtime that serves the fake peer.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work));
    done.await.expect("a call into the kernel hangs").unwrap()
}

/// A child's standard error, shown when the test fails.
pub struct LogFile {
    name: &'static str,
    path: PathBuf,
}

impl LogFile {
    pub fn new(name: &'static str, path: PathBuf) -> Self {
        Self { name, path }
    }

    pub fn file(&self) -> File {
        File::options().create(true).append(true).open(&self.path).unwrap()
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = std::fs::read_to_string(&self.path).unwrap_or_default();
            eprintln!("--- {}\n{text}", self.name);
        }
    }
}

/// A directory in which everything lies; on drop nothing stays mounted in it.
pub struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test mounts file systems and needs root");
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.path().join("snapshotter.sock")
    }

    pub fn peer_socket(&self) -> PathBuf {
        self.path().join("peer.sock")
    }

    /// Mounts what containerd was given, as a runtime does.
    pub fn mount(&self, name: &str, mounts: &[Mount]) -> PathBuf {
        let target = self.path().join(name);
        std::fs::create_dir_all(&target).unwrap();
        let [Mount { r#type, source, options, .. }] = mounts else { panic!("{mounts:?}") };
        let (flags, data): (Vec<_>, Vec<_>) =
            options.iter().partition(|option| matches!(option.as_str(), "ro" | "rw" | "rbind"));
        let bind = if r#type == "bind" { MsFlags::MS_BIND } else { MsFlags::empty() };
        let data = data.into_iter().map(String::as_str).collect::<Vec<_>>().join(",");
        mount(Some(source.as_str()), &target, Some(r#type.as_str()), bind, Some(data.as_str())).unwrap();
        if flags.iter().any(|flag| *flag == "ro") {
            let flags = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, &target, None::<&str>, flags, None::<&str>).unwrap();
        }
        target
    }

    pub fn layers_mounted(&self) -> usize {
        mounts::mount_points_below(&self.path().join("run/m")).unwrap().len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for mounted in mounts::mount_points_below(self.directory.path()).unwrap_or_default() {
            if mounted.file_system.starts_with("fuse") {
                let _ = mounts::abort_connection(&mounted.path);
            }
            let _ = mounts::unmount_lazy(&mounted.path);
        }
    }
}

/// The daemon under test.
pub struct Snapshotter {
    child: Child,
    _log: LogFile,
}

impl Snapshotter {
    pub const PROGRAM: &str = env!("CARGO_BIN_EXE_d7y-snapshotter");

    pub async fn start(node: &Node, driver: &str, settings: &[&str]) -> Self {
        Self::start_by(Command::new(Self::PROGRAM), node, driver, settings).await
    }

    pub async fn start_by(mut command: Command, node: &Node, driver: &str, settings: &[&str]) -> Self {
        let at = |name: &str| node.path().join(name).display().to_string();
        let config = node.path().join("snapshotter.yaml");
        let text = format!(
            "socket: {}\nrootDirectory: {}\nrunDirectory: {}\ndriver: {driver}\nmetrics: {{listen: null}}\n\
             containerd: {{socket: {}}}\npeer: {{socket: {}}}\nlog: {{level: 'info,d7y_snapshotter=debug,d7y_peer_client=debug'}}\n",
            at("snapshotter.sock"),
            at("root"),
            at("run"),
            at("containerd/containerd.sock"),
            at("peer.sock"),
        );
        std::fs::write(&config, text).unwrap();
        let log = LogFile::new("snapshotter", node.path().join("snapshotter.log"));
        command.arg("--config").arg(&config).stderr(log.file());
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        let mut started = Self { child: command.stdout(Stdio::null()).spawn().unwrap(), _log: log };
        let socket = node.socket();
        wait_for("the snapshotter's socket", || {
            assert!(started.child.try_wait().unwrap().is_none(), "the snapshotter has exited");
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.ok() }
        })
        .await;
        started
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and an orderly end.
    pub async fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let child = &mut self.child;
        let status = wait_for("the snapshotter's end", || {
            let status = child.try_wait().unwrap();
            async move { status }
        });
        assert!(status.await.success());
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
