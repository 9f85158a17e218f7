//! What a run of kills came to.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::log::{Counts, Fault, FaultKind};
use super::site::Process;
use crate::bench::median;
use crate::table::Table;

/// One kill and what followed.
#[derive(Clone, Debug)]
pub struct Kill {
    pub process: Process,
    pub at: Instant,
    /// Until it was started again.
    pub down: Duration,
    /// From then on until it was ready, a container had started on each node and a preheat had ended.
    pub converged: Duration,
    /// The longest of the reads that were under way in all that time.
    pub pause: Duration,
}

impl Kill {
    pub fn until(&self) -> Instant {
        self.at + self.down + self.converged
    }
}

/// All kills of one process.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    process: String,
    kills: usize,
    failed_reads: usize,
    wrong_bytes: usize,
    down_ms: Summary,
    pause_ms: Summary,
    converged_s: Summary,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Summary {
    median: f64,
    max: f64,
}

impl Summary {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        Self { median: median(values.clone()), max: values.fold(0.0, f64::max) }
    }
}

/// What is printed.
pub struct Report {
    pub rows: Vec<Row>,
    pub counts: Counts,
    pub faults: Vec<Fault>,
    pub more_faults: usize,
    /// What each node received meanwhile, in bytes.
    pub received: Vec<u64>,
}

impl Report {
    /// One row for each process that was killed.
    pub fn rows(kills: &[Kill], faults: &[Fault]) -> Vec<Row> {
        let row = |process: Process| {
            let kills: Vec<&Kill> = kills.iter().filter(|kill| kill.process == process).collect();
            let during = |kind: FaultKind| {
                let in_time = |fault: &&Fault| {
                    fault.kind == kind
                        && kills.iter().any(|kill| (kill.at..=kill.until()).contains(&fault.at))
                };
                faults.iter().filter(in_time).count()
            };
            let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
            (!kills.is_empty()).then(|| Row {
                process: process.to_string(),
                kills: kills.len(),
                failed_reads: during(FaultKind::FailedRead),
                wrong_bytes: during(FaultKind::WrongByte),
                down_ms: Summary::of(kills.iter().map(|kill| millis(kill.down))),
                pause_ms: Summary::of(kills.iter().map(|kill| millis(kill.pause))),
                converged_s: Summary::of(kills.iter().map(|kill| kill.converged.as_secs_f64())),
            })
        };
        Process::ALL.into_iter().filter_map(row).collect()
    }

    /// Whether nothing happened that must not.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "killed",
            "kills",
            "failed reads",
            "wrong bytes",
            "down ms: median, max",
            "longest read ms: median, max",
            "converged s: median, max",
        ]);
        for row in &self.rows {
            let pair = |summary: Summary, digits: usize| {
                format!("{:.digits$}, {:.digits$}", summary.median, summary.max)
            };
            table.row(vec![
                row.process.clone(),
                row.kills.to_string(),
                row.failed_reads.to_string(),
                row.wrong_bytes.to_string(),
                pair(row.down_ms, 0),
                pair(row.pause_ms, 0),
                pair(row.converged_s, 1),
            ]);
        }
        writeln!(f, "{table}")?;
        let Counts { reads, walks, retries, preheats } = self.counts;
        let received: Vec<String> =
            self.received.iter().map(|bytes| format!("{}", bytes / 1_000_000)).collect();
        writeln!(
            f,
            "{reads} reads in {walks} containers, {preheats} preheats; {retries} starts tried again; MB received by each \
             node: {}",
            received.join(", ")
        )?;
        for fault in &self.faults {
            writeln!(f, "VIOLATION {:?}: {}", fault.kind, fault.what)?;
        }
        if self.more_faults > 0 {
            writeln!(f, "and {} more", self.more_faults)?;
        }
        Ok(())
    }
}
