//! How far jobs are, until all have ended.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::Job;
use crate::manager::Api;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The manager ends a job that is overdue itself; one that is away so long is not waited for.
const GRACE: Duration = Duration::from_secs(30);
/// Exit code when all that was missing is time.
const OVERDUE: u8 = 3;

/// What is known of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    state: String,
    note: String,
    /// Failed because its time was over.
    overdue: bool,
    bytes_done: u64,
    /// Of a layer whose index is not known yet, the size in the registry.
    bytes_total: u64,
    peers_done: usize,
    peers: usize,
}

/// Follows the jobs, and says how each ended. Success only when every image is on every peer that it was meant for.
pub async fn to_the_end(api: &Api, jobs: &[Job], timeout: Duration) -> Result<ExitCode> {
    let bars = MultiProgress::new();
    let following =
        jobs.iter().map(|job| Following { job, bar: bars.add(bar(&job.image)), seen: Seen::default() });
    let mut following: Vec<_> = following.collect();
    let give_up = Instant::now() + timeout + GRACE;
    loop {
        for one in following.iter_mut().filter(|one| !one.seen.has_ended()) {
            one.look(api, give_up).await?;
        }
        if following.iter().all(|one| one.seen.has_ended()) {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    following.iter().for_each(|one| one.bar.finish_and_clear());
    println!("{:<8} {:>7} {:>10}  IMAGE", "STATE", "PEERS", "BYTES");
    for Following { job, seen, .. } in &following {
        let state = match (seen.is_done(), seen.overdue) {
            (true, _) => "done",
            (false, true) => "overdue",
            (false, false) => "failed",
        };
        let peers = format!("{}/{}", seen.peers_done, seen.peers);
        println!("{state:<8} {peers:>7} {:>10}  {}", HumanBytes(seen.bytes_done).to_string(), job.image);
        match seen.overdue {
            true => eprintln!(
                "d7y: {}: {}; the job has ended, what has come stays on the disks: preheat again, with a longer --timeout",
                job.image, seen.note
            ),
            false if !seen.is_done() => eprintln!("d7y: {}: {}", job.image, seen.note),
            false => {}
        }
    }
    let all = |wanted: fn(&Seen) -> bool| following.iter().all(|one| wanted(&one.seen));
    Ok(match (all(Seen::is_done), all(|seen| seen.is_done() || seen.overdue)) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => ExitCode::from(OVERDUE),
        (false, false) => ExitCode::FAILURE,
    })
}

struct Following<'a> {
    job: &'a Job,
    bar: ProgressBar,
    seen: Seen,
}

impl Following<'_> {
    /// A manager that is away for a while goes on with the job when it is back; so does this.
    async fn look(&mut self, api: &Api, give_up: Instant) -> Result<()> {
        match api.get(&format!("/api/v1/jobs/{}", self.job.id)).await {
            Ok(answer) => self.seen = Seen::from(&answer),
            Err(error) if Instant::now() < give_up => {
                self.bar.set_message(format!("{error:#}; still trying"));
                return Ok(());
            }
            Err(error) => return Err(error).with_context(|| format!("job {} is lost sight of", self.job.id)),
        }
        self.bar.set_length(self.seen.bytes_total);
        self.bar.set_position(self.seen.bytes_done);
        let Seen { peers_done, peers, note, .. } = &self.seen;
        self.bar.set_message(match note.is_empty() {
            true => format!("{peers_done} of {peers} peers"),
            false => note.clone(),
        });
        Ok(())
    }
}

impl Seen {
    fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "SUCCESS" | "FAILURE")
    }

    fn is_done(&self) -> bool {
        self.state == "SUCCESS"
    }
}

impl From<&Value> for Seen {
    fn from(job: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut seen = Self { state: text(&job["state"]), note: text(&job["note"]), ..Self::default() };
        seen.overdue = job["overdue"] == true;
        let size = |layer: &Value| {
            let number = layer.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(usize::MAX);
            job["progress"]["layers"][number]["size"].as_u64().unwrap_or(0)
        };
        let mut peers: BTreeMap<(Option<i64>, String), bool> = BTreeMap::new();
        for row in job["progress"]["placements"].as_array().into_iter().flatten() {
            let done = row["bytes_done"].as_u64().unwrap_or(0);
            let total = row["bytes_total"].as_u64().filter(|total| *total > 0);
            seen.bytes_done += done;
            seen.bytes_total += total.unwrap_or_else(|| size(&row["layer"])).max(done);
            let peer = (row["scheduler_cluster_id"].as_i64(), text(&row["peer"]));
            *peers.entry(peer).or_insert(true) &= row["state"] == "done";
        }
        (seen.peers, seen.peers_done) = (peers.len(), peers.values().filter(|done| **done).count());
        seen
    }
}

fn bar(image: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {bytes}/{total_bytes} {wide_msg}");
    let bar = ProgressBar::new(0).with_prefix(image.to_owned());
    // The template is a constant; a bar without it is still a bar.
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style.progress_chars("=> ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_peer_is_done_when_all_its_layers_are() {
        let row = |peer: &str, layer: u32, state: &str, done: u64, total: u64| json!({ "scheduler_cluster_id": 1, "peer": peer, "layer": layer, "state": state, "bytes_done": done, "bytes_total": total });
        let placements = [
            row("a", 0, "done", 10, 10),
            row("a", 1, "done", 5, 5),
            row("b", 0, "done", 10, 10),
            row("b", 1, "fetching", 3, 0),
        ];
        let job = json!({
            "state": "PENDING",
            "note": "",
            "progress": { "layers": [{ "size": 8 }, { "size": 7 }], "placements": placements },
        });
        let expected = Seen {
            state: "PENDING".into(),
            note: String::new(),
            overdue: false,
            bytes_done: 28,
            bytes_total: 32,
            peers_done: 1,
            peers: 2,
        };
        assert_eq!(Seen::from(&job), expected);
        assert!(!expected.has_ended());
        let nothing = Seen::from(&json!({ "state": "FAILURE", "note": "no such image" }));
        assert!(nothing.has_ended() && !nothing.is_done() && nothing.peers == 0);
    }
}
