//! The scheduler as peers and operators meet it: real sockets, the real client, the real binary.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod cluster;
mod managed;
mod process;
mod sessions;
