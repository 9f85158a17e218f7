//! The rig that starts a whole d7y cluster on one machine with real clients, and what is measured on it.
//!
//! Used by the demo, the benches and the end-to-end tests. Everything here blocks: it waits for
//! processes, mounts and files; what needs a runtime ([`rig::counter`], [`rig::client`]) has its own.

pub mod bench;
pub mod chaos;
pub mod demo;
pub mod measure;
pub mod own_disk;
pub mod progress;
pub mod rig;
pub mod table;
