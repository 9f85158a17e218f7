//! Measurements that are kept: JSON beside a table, with the conditions they were taken under.

pub mod cold_start;
pub mod idle;
mod kernels;
pub mod warm;
pub mod warm_start;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::rig::places::{Places, make_dir};

/// What a figure means little without.
#[derive(Serialize)]
struct Conditions {
    unix_time: u64,
    kernel: String,
    cpus: usize,
    /// Of the one minute before.
    load: String,
    /// `release` or `debug`, of the daemons.
    profile: String,
}

#[derive(Serialize)]
struct Record<'a, T> {
    bench: &'a str,
    conditions: Conditions,
    results: &'a [T],
}

/// Writes `NAME-TIME.json`, anew after each result so that an interrupted bench keeps what it has.
pub(crate) struct Results {
    name: &'static str,
    path: PathBuf,
    places: Places,
}

impl Results {
    pub(crate) fn new(name: &'static str, places: &Places) -> Result<Self> {
        make_dir(&places.results)?;
        let path = places.results.join(format!("{name}-{}.json", now()));
        Ok(Self { name, path, places: places.clone() })
    }

    pub(crate) fn save<T: Serialize>(&self, results: &[T]) -> Result<()> {
        let record = Record { bench: self.name, conditions: conditions(&self.places), results };
        let text = serde_json::to_string_pretty(&record)?;
        std::fs::write(&self.path, text).with_context(|| format!("cannot write {}", self.path.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn conditions(places: &Places) -> Conditions {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let profile = places.binaries.file_name().unwrap_or_default();
    Conditions {
        unix_time: now(),
        kernel: read("/proc/sys/kernel/osrelease"),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        profile: profile.to_string_lossy().into_owned(),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The middle value; the mean of the two middle ones of an even count; NaN of nothing.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        for (values, expected) in
            [(vec![3.0], 3.0), (vec![9.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0, 2.0, 9.0], 3.0)]
        {
            assert!((median(values) - expected).abs() < 1e-9);
        }
        assert!(median([]).is_nan());
    }
}
