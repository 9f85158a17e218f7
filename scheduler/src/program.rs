//! What the program runs. Here rather than in `main.rs`, where all that is generic would be compiled once more.

use std::process::ExitCode;

use crate::{Config, DAEMON, follow, run};

pub fn main() -> ExitCode {
    DAEMON.main_with_reloads(|config, tasks, reloads| async move {
        run(Config::clone(&config), &tasks).await?;
        follow(&config, &tasks, reloads)
    })
}
