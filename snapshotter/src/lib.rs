//! containerd's remote snapshotter: who an image is, what is mounted, and the reads of what is not there yet.

pub mod config;
pub mod layers;
pub mod meta;
pub mod metrics;
pub mod place;
pub mod resolve;
pub mod trace;
