//! What the program runs. Here rather than in `main.rs`, where all that is generic would be compiled once more.

use std::process::ExitCode;

use d7y_fuse::process::{Protection, ReclaimProtection, protect_from_reclaim};

use crate::start::{DAEMON, start};

pub fn main() -> ExitCode {
    let protection = protect_from_reclaim();
    DAEMON.main(|config, tasks| {
        report(&protection);
        start(config, tasks)
    })
}

/// In the log, and not where somebody only asks for the version.
fn report(protection: &ReclaimProtection) {
    for (what, outcome) in
        [("PR_SET_IO_FLUSHER", &protection.io_flusher), ("oom_score_adj", &protection.oom_score)]
    {
        if let Protection::Refused(error) = outcome {
            tracing::warn!(%error, "{what} is refused: reads may stall when memory is short");
        }
    }
}
