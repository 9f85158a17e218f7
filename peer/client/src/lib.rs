//! The node's local socket: what snapshotter and tools ask of the peer, and how a peer answers.
//!
//! A connection carries frames both ways: length u32, request id u64 (both little-endian), then one protobuf
//! message of `d7y.local.v1`, [`Request`](d7y_proto::local::Request) or
//! [`Response`](d7y_proto::local::Response). The length's highest bit says that one descriptor travels with
//! the frame as `SCM_RIGHTS`. Answers come in any order; the id ties them to their request.
//!
//! [`LocalClient`] outlives the peer: while the peer is away calls wait until their deadline, and what was not
//! answered is sent again after the reconnect. So every request must be safe to repeat, and all of them are.
//! A server that stops answers what is under way by then, then closes its connections and leaves the rest to that rule.

mod client;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod server;
mod socket;

pub use client::{ClientError, Link, LocalClient};
pub use d7y_proto::{ConvertError, digest_from_wire, layer_from_wire, layer_to_wire};
pub use frame::{FrameError, MAX_FRAME_BYTES};
pub use server::{Answer, Handler, Stop, UnderWay, serve};
