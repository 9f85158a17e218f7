//! Every configuration file that the rig writes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::node;
use super::places::make_dir;

/// The image that holds a pod's namespaces, in the lab's registry: `REPOSITORY:TAG`. Who starts pods pushes it.
pub const PAUSE: (&str, &str) = ("pause", "v1");

/// What one containerd is told, but for what `d7y containerd config` adds.
pub struct Containerd<'a> {
    /// Holds root, state and the socket, beside those of no other containerd.
    pub dir: &'a Path,
    pub build: &'a node::Containerd,
    /// The host of a registry that speaks plain HTTP, for the CRI plugin.
    pub registry: Option<&'a str>,
}

impl Containerd<'_> {
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn hosts(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    pub fn text(&self) -> String {
        let (dir, version) = (self.dir.display(), self.version());
        let mut text = format!(
            r#"version = {version}
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
# Its socket is one for the whole machine.
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"#
        );
        text += &self.registry.map(|registry| self.cri(registry)).unwrap_or_default();
        text
    }

    fn version(&self) -> u32 {
        match self.build {
            node::Containerd::Packaged => 2,
            node::Containerd::Built(_) => 3,
        }
    }

    /// Where this machine does not let root lower a process's OOM score, pods do without, as containerd in containers does.
    fn cri(&self, registry: &str) -> String {
        let (hosts, (repository, tag)) = (self.hosts(), PAUSE);
        let (hosts, pause) = (hosts.display(), format!("{registry}/{repository}:{tag}"));
        match self.build {
            node::Containerd::Packaged => format!(
                r#"[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{hosts}"
"#
            ),
            node::Containerd::Built(_) => format!(
                r#"[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{hosts}"
"#
            ),
        }
    }

    /// Says to the CRI plugin how the registry is spoken to.
    pub fn write_hosts(&self, registry: &str) -> Result<()> {
        let dir = self.hosts().join(registry);
        make_dir(&dir)?;
        let server = format!("\"http://{registry}\"");
        // 1.6 refuses a file without hosts.
        let text = format!("server = {server}\n[host.{server}]\n  capabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(dir.join("hosts.toml"), text).context("cannot write containerd's hosts.toml")
    }
}

/// The ports that d7y's daemons have by default; every host has an address of its own.
pub const TRANSFER_PORT: u16 = 4000;
pub const PEER_METRICS_PORT: u16 = 4002;
pub const PEER_HEALTH_PORT: u16 = 4003;
pub const SNAPSHOTTER_STATUS_PORT: u16 = 4004;
pub const SCHEDULER_PORT: u16 = 8002;
pub const SCHEDULER_STATUS_PORT: u16 = 8000;
pub const MANAGER_REST_PORT: u16 = 8080;
pub const MANAGER_GRPC_PORT: u16 = 65003;
pub const MANAGER_STATUS_PORT: u16 = 8001;

/// What the daemons of one cluster agree on.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The registry's host, which speaks plain HTTP.
    pub registry: String,
    pub found: Found,
    /// What the seed signs with, 32 bytes in hex. Nodes make their own keys, as with the README's configuration.
    pub signing_key: String,
    /// What nodes trust.
    pub public_key: String,
}

/// How peers know where scheduler and seed are.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// Their configuration says it.
    Listed {
        scheduler: SocketAddr,
        /// The seed peer's piece protocol.
        seed: SocketAddr,
    },
    /// The manager says it; the configuration names nobody else.
    Through { manager: SocketAddr },
}

impl Found {
    fn text(self, role: PeerRole) -> String {
        match (self, role) {
            (Self::Listed { scheduler, .. }, PeerRole::Seed) => {
                format!("scheduler:\n  address: {scheduler}\n")
            }
            (Self::Listed { scheduler, seed }, PeerRole::Node) => {
                format!("scheduler:\n  address: {scheduler}\nseeds: [\"{seed}\"]\n")
            }
            (Self::Through { manager }, _) => in_cluster_of(manager),
        }
    }
}

fn in_cluster_of(manager: SocketAddr) -> String {
    format!("manager:\n  address: {manager}\n")
}

/// What one d7y-manager is told.
pub struct Manager<'a> {
    pub dir: &'a Path,
    pub rest: SocketAddr,
    pub grpc: SocketAddr,
    pub status: SocketAddr,
    /// The registry's host, which speaks plain HTTP.
    pub registry: &'a str,
}

impl Manager<'_> {
    pub fn text(&self) -> String {
        let Self { dir, rest, grpc, status, registry } = self;
        let dir = dir.display();
        format!(
            r#"directory: {dir}/manager
rest:
  listen: {rest}
grpc:
  listen: {grpc}
metrics:
  listen: {status}
origin:
  registries:
    - host: {registry}
      scheme: http
"#
        )
    }
}

/// With a manager, for a scheduler that lets itself be found.
pub fn scheduler(server: SocketAddr, status: SocketAddr, manager: Option<SocketAddr>) -> String {
    let found = manager.map(in_cluster_of).unwrap_or_default();
    format!("name: scheduler\nserver:\n  listen: {server}\nmetrics:\n  listen: {status}\n{found}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    Seed,
    Node,
}

/// What one d7y-peer is told.
pub struct Peer<'a> {
    pub name: &'a str,
    pub dir: &'a Path,
    pub address: Ipv4Addr,
    pub role: PeerRole,
}

impl Peer<'_> {
    pub fn socket(&self) -> PathBuf {
        self.dir.join("peer.sock")
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join("peer")
    }

    pub fn text(&self, shared: &Shared) -> String {
        let Self { name, dir, address, role } = self;
        let Shared { registry, found, signing_key, public_key } = shared;
        let (dir, found) = (dir.display(), found.text(*role));
        let (role, keys) = match role {
            PeerRole::Seed => ("seed", format!("signingKey: \"{signing_key}\"")),
            PeerRole::Node => ("node", format!("publicKeys: [\"{public_key}\"]")),
        };
        format!(
            r#"peerId: {name}
role: {role}
store:
  directory: {dir}/peer
local:
  socket: {dir}/peer.sock
transfer:
  listen: {address}:{TRANSFER_PORT}
observability:
  listen: ["{address}:{PEER_METRICS_PORT}", "{address}:{PEER_HEALTH_PORT}"]
{found}origin:
  registries:
    - host: {registry}
      scheme: http
indexTrust:
  {keys}
"#
        )
    }
}

/// What one d7y-snapshotter is told.
pub struct Snapshotter<'a> {
    pub dir: &'a Path,
    pub address: Ipv4Addr,
}

impl Snapshotter<'_> {
    pub fn socket(&self) -> PathBuf {
        self.dir.join("snapshotter.sock")
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("snapshotter")
    }

    pub fn text(&self) -> String {
        let (dir, address) = (self.dir.display(), self.address);
        format!(
            r#"socket: {dir}/snapshotter.sock
rootDirectory: {dir}/snapshotter
runDirectory: {dir}/run
containerd:
  socket: {dir}/containerd/containerd.sock
peer:
  socket: {dir}/peer.sock
metrics:
  listen: {address}:{SNAPSHOTTER_STATUS_PORT}
"#
        )
    }
}
