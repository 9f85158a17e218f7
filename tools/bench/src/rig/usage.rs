//! What daemons cost: processor time and peak memory, from /proc.

use std::fs;

use anyhow::{Context, Result};

use super::daemon::Daemon;

/// The kernel reports processor time in ticks of this many per second (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Of some daemons together, since each one's start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, ended children included.
    pub cpu_seconds: f64,
    /// The sum of each one's own peak.
    pub peak_memory_bytes: u64,
}

/// Those that have ended count nothing.
pub fn of<'a>(daemons: impl IntoIterator<Item = &'a Daemon>) -> Usage {
    let mut sum = Usage::default();
    for daemon in daemons {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{}/{file}", daemon.pid())).unwrap_or_default();
        sum.cpu_seconds += cpu_ticks(&read("stat")) / TICKS_PER_SECOND;
        sum.peak_memory_bytes += peak_bytes(&read("status"));
    }
    sum
}

/// What one daemon holds in memory now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub rss_bytes: u64,
    /// With each page that others map too counted in part.
    pub pss_bytes: u64,
}

/// # Errors
/// It has ended.
pub fn memory_of(daemon: &Daemon) -> Result<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", daemon.pid()));
    Ok(memory(&rollup.with_context(|| format!("{} is not there", daemon.name()))?))
}

fn memory(rollup: &str) -> Memory {
    Memory { rss_bytes: size(rollup, "Rss:"), pss_bytes: size(rollup, "Pss:") }
}

/// Fields 14 to 17 of `/proc/PID/stat`.
fn cpu_ticks(stat: &str) -> f64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum()
}

fn peak_bytes(status: &str) -> u64 {
    size(status, "VmHWM:")
}

fn size(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_peak_are_found() {
        let stat = "7 (a) b) S 1 7 7 0 -1 0 1 2 3 4 10 20 3 4 20 0 1 0 99";
        assert!((cpu_ticks(stat) - 37.0).abs() < 1e-9);
        assert_eq!(peak_bytes("Name:\ta\nVmHWM:\t  12 kB\n"), 12 * 1024);
        assert_eq!(peak_bytes(""), 0);
        let rollup =
            "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:   12 kB\nPss:    5 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(memory(rollup), Memory { rss_bytes: 12 * 1024, pss_bytes: 5 * 1024 });
    }
}
