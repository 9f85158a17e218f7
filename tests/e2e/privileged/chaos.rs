//! A short run of `cargo xtask chaos`: whichever process dies, no read fails.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use d7y_bench::chaos::{Plan, Process, Sizes, play};

use crate::stage::{SOON, in_lab};

#[test]
fn every_process_dies_once_and_no_read_fails() -> Result<()> {
    in_lab(|lab| {
        let processes = Process::ALL.into_iter().filter(|process| *process != Process::Nothing).collect();
        let plan = Plan {
            kills: 1,
            processes,
            seed: 1,
            down: Duration::from_millis(500),
            converge: SOON,
            sizes: Sizes { walks: 6, preheats: 4, probes: 8, files: 24 },
        };
        let report = play(lab, &plan)?;
        eprintln!("{report}");
        if !report.is_sound() {
            return lab.keep_logs(Err(anyhow!("see above")));
        }
        let done = report.counts;
        ensure!(done.walks > 0 && done.preheats > 0, "nothing was under way: {done:?}");
        Ok(())
    })
}
