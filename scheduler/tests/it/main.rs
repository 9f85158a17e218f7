//! The scheduler as peers and operators meet it: real sockets, the real client, the real binary.
#![allow(clippy::unwrap_used)]

mod cluster;
mod process;
mod sessions;
