//! A node: a host with a containerd of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::command::run;
use super::config;
use super::daemon::Daemon;
use super::host::Host;
use super::lab::Lab;
use super::places::make_dir;

const READY: Duration = Duration::from_secs(30);

/// Who makes the root file systems of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshotter {
    Overlayfs,
    D7y,
}

impl Snapshotter {
    /// containerd's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::D7y => "d7y",
        }
    }
}

/// Whose containerd runs on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Containerd {
    /// The machine's own: Debian 12 has 1.6.
    #[default]
    Packaged,
    /// 2.x with its shim and its ctr, in a directory: see [`super::places::Places::containerd_2`].
    Built(PathBuf),
}

impl Containerd {
    fn program(&self, name: &str) -> PathBuf {
        match self {
            Self::Packaged => name.into(),
            Self::Built(dir) => dir.join(name),
        }
    }

    /// Where it finds its shim: in the first of these directories that has one.
    fn path(&self) -> Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = match self {
            Self::Packaged => None,
            Self::Built(dir) => Some(dir.clone()),
        };
        std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)))
            .context("containerd is in a directory that PATH cannot name")
    }
}

/// What a containerd is told of d7y.
pub struct D7y<'a> {
    pub containerd: &'a Containerd,
    pub snapshotter: &'a config::Snapshotter<'a>,
    /// The registry's host, which speaks plain HTTP.
    pub registry: &'a str,
}

/// A host with containerd. Clones name the same one; after a restart, only the one that was told of it knows the new process.
#[derive(Clone, Debug)]
pub struct Node {
    pub host: Host,
    pub containerd: Daemon,
    /// Of containerd's objects; unique to the lab, because control groups are named after it.
    pub namespace: String,
    pub(super) build: Containerd,
    socket: PathBuf,
    state: PathBuf,
}

impl Node {
    /// Starts containerd on a host, the machine's own where nothing else is said.
    ///
    /// # Errors
    /// It does not come up; the error has the tail of its log.
    pub fn start(lab: &Lab, host: Host, d7y: Option<&D7y<'_>>) -> Result<Self> {
        let dir = host.dir.join("containerd");
        make_dir(&dir)?;
        let build = d7y.map(|d7y| d7y.containerd.clone()).unwrap_or_default();
        let config = config::Containerd { dir: &dir, build: &build, registry: d7y.map(|d7y| d7y.registry) };
        let file = dir.join("config.toml");
        std::fs::write(&file, config.text()).context("cannot write containerd's configuration")?;
        if let Some(d7y) = d7y {
            config.write_hosts(d7y.registry)?;
            introduce(lab, d7y.containerd, d7y.snapshotter, &file)?;
        }
        let (state, socket) = (config.state(), config.socket());
        let containerd = launch(lab, &host, &build, &file)?;
        let node = Self { containerd, namespace: lab.id().to_owned(), build, state, socket, host };
        node.wait_ready()?;
        Ok(node)
    }

    /// Starts containerd again, from the same files, after it has ended.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn restart(&mut self, lab: &Lab) -> Result<()> {
        self.containerd = launch(lab, &self.host, &self.build, &self.config_file())?;
        self.wait_ready()
    }

    /// Changes the programs under containers that run on: the next restart starts them.
    pub fn replace(&mut self, containerd: Containerd) {
        self.build = containerd;
    }

    /// The containerd that is started next, by its path or as PATH has it.
    pub fn program(&self) -> PathBuf {
        self.build.program("containerd")
    }

    /// containerd's.
    pub fn config_file(&self) -> PathBuf {
        self.host.dir.join("containerd/config.toml")
    }

    fn wait_ready(&self) -> Result<()> {
        let answers = || std::os::unix::net::UnixStream::connect(&self.socket).is_ok();
        self.containerd.wait_ready(READY, answers)
    }

    /// containerd's own client, of the same version, in the lab's namespace of containerd's objects.
    pub fn ctr(&self, words: &[&str]) -> Command {
        let mut ctr = self.host.command(self.build.program("ctr"));
        ctr.arg("--address").arg(&self.socket).args(["--namespace", &self.namespace]).args(words);
        ctr
    }

    /// containerd's.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where the root of a running container is mounted.
    pub fn rootfs(&self, container: &str) -> PathBuf {
        self.rootfs_in(&self.namespace, container)
    }

    /// As [`Node::rootfs`], for another namespace of containerd's objects.
    pub fn rootfs_in(&self, namespace: &str, container: &str) -> PathBuf {
        let tasks = self.state.join("io.containerd.runtime.v2.task");
        tasks.join(namespace).join(container).join("rootfs")
    }
}

/// Has d7y's own command write what containerd must know, as people do.
pub(super) fn introduce(
    lab: &Lab,
    containerd: &Containerd,
    snapshotter: &config::Snapshotter<'_>,
    file: &Path,
) -> Result<()> {
    let mut command = Command::new(lab.places.daemon("d7y")?);
    command.args(["containerd", "config", "--write", "--config"]).arg(file);
    command.arg("--containerd").arg(containerd.program("containerd"));
    command.arg("--socket").arg(snapshotter.socket()).arg("--root").arg(snapshotter.root());
    run(&mut command).context("cannot tell containerd of d7y")
}

fn launch(lab: &Lab, host: &Host, build: &Containerd, config: &Path) -> Result<Daemon> {
    let mut command = host.command(build.program("containerd"));
    command.env("PATH", build.path()?).arg("--config").arg(config);
    lab.start(&format!("{}-containerd", host.name), &mut command)
}
