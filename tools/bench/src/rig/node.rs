//! A node: a host with a containerd of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

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

/// A host with containerd. Clones name the same one; after a restart, only the one that was told of it knows the new process.
#[derive(Clone, Debug)]
pub struct Node {
    pub host: Host,
    pub containerd: Daemon,
    /// Of containerd's objects; unique to the lab, because control groups are named after it.
    pub namespace: String,
    socket: PathBuf,
    state: PathBuf,
}

impl Node {
    /// Starts containerd on a host.
    ///
    /// # Errors
    /// It does not come up; the error has the tail of its log.
    pub fn start(lab: &Lab, host: Host, snapshotter: Option<&Path>) -> Result<Self> {
        let dir = host.dir.join("containerd");
        make_dir(&dir)?;
        let config = config::Containerd { dir: &dir, snapshotter };
        let file = dir.join("config.toml");
        std::fs::write(&file, config.text()).context("cannot write containerd's configuration")?;
        let socket = config.socket();
        let containerd = launch(lab, &host, &file, &socket)?;
        Ok(Self { containerd, namespace: lab.id().to_owned(), state: config.state(), socket, host })
    }

    /// Starts containerd again, from the same files, after it has ended.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn restart(&mut self, lab: &Lab) -> Result<()> {
        let file = self.host.dir.join("containerd/config.toml");
        self.containerd = launch(lab, &self.host, &file, &self.socket)?;
        Ok(())
    }

    /// containerd's.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where the root of a running container is mounted.
    pub fn rootfs(&self, container: &str) -> PathBuf {
        let tasks = self.state.join("io.containerd.runtime.v2.task");
        tasks.join(&self.namespace).join(container).join("rootfs")
    }
}

fn launch(lab: &Lab, host: &Host, config: &Path, socket: &Path) -> Result<Daemon> {
    let mut command = host.command("containerd");
    let containerd = lab.start(&format!("{}-containerd", host.name), command.arg("--config").arg(config))?;
    containerd.wait_ready(READY, || std::os::unix::net::UnixStream::connect(socket).is_ok())?;
    Ok(containerd)
}
