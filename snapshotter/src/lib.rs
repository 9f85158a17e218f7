//! containerd's remote snapshotter: who an image is, what is mounted, and the reads of what is not there yet.

pub mod meta;
pub mod resolve;
