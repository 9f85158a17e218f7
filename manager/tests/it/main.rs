#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
//! A manager in this process, members and peers that speak its real protocol.

mod manager;
mod members;
mod preheat;
mod process;

use std::time::Duration;

/// Longer than anything here takes; a test that waits this long has failed.
const SOON: Duration = Duration::from_secs(60);
