//! What the program runs. Here rather than in `main.rs`, where all that is generic would be compiled once more.

use std::process::ExitCode;

use crate::start::{DAEMON, start};

pub fn main() -> ExitCode {
    DAEMON.main_with_reloads(|config, tasks, reloads| async move {
        start(config, tasks.clone()).await?.follow(&tasks, reloads);
        Ok(())
    })
}
