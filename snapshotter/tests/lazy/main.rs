//! The daemon as it is started on a node: a real containerd in front, a peer of our own behind, the kernel beside.

#![cfg(test)]

mod containerd;
mod image;
mod manager;
mod node;
mod peer;
mod privileged;
