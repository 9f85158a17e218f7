//! Wire contracts: the scheduler session, the node's local socket, containerd's snapshotter plugin.
#![allow(clippy::too_many_lines, reason = "generated code")]

/// Peer and scheduler: `protos/scheduler.proto`.
pub mod scheduler {
    tonic::include_proto!("d7y.scheduler.v1");
}

/// Snapshotter and peer on one node: `protos/local.proto`.
pub mod local {
    tonic::include_proto!("d7y.local.v1");
}

/// containerd and snapshotter: `protos/snapshots.proto`.
pub mod snapshots {
    tonic::include_proto!("containerd.services.snapshots.v1");
}
