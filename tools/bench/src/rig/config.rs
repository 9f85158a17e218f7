//! Every configuration file that the rig writes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What one containerd is told.
pub struct Containerd<'a> {
    /// Holds root, state and the socket, beside those of no other containerd.
    pub dir: &'a Path,
    /// d7y-snapshotter's socket, where the node has one.
    pub snapshotter: Option<&'a Path>,
}

impl Containerd<'_> {
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The file's text: places of its own, then the stanza that d7y's README has users write.
    pub fn text(&self) -> String {
        let dir = self.dir.display();
        let mut text = format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
"#
        );
        if let Some(socket) = self.snapshotter {
            text += &stanza(socket);
        }
        text
    }
}

fn stanza(socket: &Path) -> String {
    format!(
        r#"
[proxy_plugins.d7y]
  type = "snapshot"
  address = "{}"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "d7y"
  disable_snapshot_annotations = false
"#,
        socket.display()
    )
}

/// The ports that d7y's daemons have by default; every host has an address of its own.
pub const TRANSFER_PORT: u16 = 4000;
pub const PEER_METRICS_PORT: u16 = 4002;
pub const PEER_HEALTH_PORT: u16 = 4003;
pub const SNAPSHOTTER_STATUS_PORT: u16 = 4004;
pub const SCHEDULER_PORT: u16 = 8002;
pub const SCHEDULER_STATUS_PORT: u16 = 8000;

/// What the daemons of one cluster agree on.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The registry's host, which speaks plain HTTP.
    pub registry: String,
    pub scheduler: SocketAddr,
    /// The seed peer's piece protocol.
    pub seed: SocketAddr,
    /// What the seed signs with, 32 bytes in hex. Nodes make their own keys, as with the README's configuration.
    pub signing_key: String,
    /// What nodes trust.
    pub public_key: String,
}

pub fn scheduler(server: SocketAddr, status: SocketAddr) -> String {
    format!("server:\n  listen: {server}\nmetrics:\n  listen: {status}\n")
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

    pub fn text(&self, shared: &Shared) -> String {
        let Self { name, dir, address, role } = self;
        let Shared { registry, scheduler, seed, signing_key, public_key } = shared;
        let dir = dir.display();
        let (role, seeds, keys) = match role {
            PeerRole::Seed => ("seed", String::new(), format!("signingKey: \"{signing_key}\"")),
            PeerRole::Node => ("node", format!("\"{seed}\""), format!("publicKeys: [\"{public_key}\"]")),
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
scheduler:
  address: {scheduler}
seeds: [{seeds}]
origin:
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
