//! The built `d7y`, as people call it.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod containerd;
mod doctor;
mod installed;
mod preheat;
mod program;
mod reference;
mod units;
mod watch;
