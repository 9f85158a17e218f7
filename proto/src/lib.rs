//! Wire contracts: the scheduler session, the manager, the node's local socket, containerd's snapshotter plugin.
#![allow(clippy::too_many_lines, reason = "generated code")]

mod convert;
mod masked;

pub use convert::{ConvertError, digest_from_wire, layer_from_wire, layer_to_wire};
pub use d7y::local::v1 as local;
pub use d7y::manager::v1 as manager;
pub use d7y::scheduler::v1 as scheduler;

/// Nested as the packages are: generated code refers to other packages by relative paths.
mod d7y {
    pub mod local {
        /// Snapshotter and peer on one node: `protos/local.proto`.
        pub mod v1 {
            tonic::include_proto!("d7y.local.v1");
        }
    }
    pub mod manager {
        /// Manager, schedulers, seed peers and peers: `protos/manager.proto`.
        pub mod v1 {
            tonic::include_proto!("d7y.manager.v1");
        }
    }
    pub mod scheduler {
        /// Peer and scheduler, scheduler and manager: `protos/scheduler.proto`.
        pub mod v1 {
            tonic::include_proto!("d7y.scheduler.v1");
        }
    }
}

/// containerd and snapshotter: `protos/snapshots.proto`.
pub mod snapshots {
    tonic::include_proto!("containerd.services.snapshots.v1");
}
