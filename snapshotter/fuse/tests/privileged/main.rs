//! The transport against the real kernel. These tests mount file systems and need root; each says so when it has not.

#![allow(clippy::unwrap_used, reason = "in a test a failed expectation should panic")]

#[path = "../../src/erofs_image.rs"]
mod erofs_image;
mod mounted;
mod mounts;
mod reads;
mod recovery;
mod tree;
