//! containerd's remote snapshotter: who an image is, what is mounted, and the reads of what is not there yet.
//!
//! A call of containerd's enters at [`service`], becomes an operation of the [`Snapshotter`], and ends as a row of
//! [`meta`], durable before the reply, and as mounts. A Prepare of an image's layer asks [`resolve`] whose it is
//! and the peer whether it can supply it; nothing is downloaded for it. A Prepare of a container mounts the chain
//! through [`layers`]; from then on the kernel's reads of what is missing come in over FUSE and wait for the peer.
//!
//! All bytes come through the peer's local socket: the snapshotter never touches the network.

mod announce;
pub mod config;
mod error;
pub mod images;
pub mod layers;
pub mod meta;
mod metrics;
mod overlay;
mod place;
mod prepare;
mod program;
mod promote;
mod pulls;
pub mod resolve;
pub mod service;
mod snapshotter;
mod start;
mod starts;
mod status;
mod trace;
mod usage;
pub mod why;

pub use config::Config;
pub use error::SnapshotError;
pub use metrics::described as described_metrics;
pub use program::main;
pub use snapshotter::Snapshotter;
pub use start::{DAEMON, start};
