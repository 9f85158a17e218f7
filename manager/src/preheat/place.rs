//! The schedulers' side of a job: what is asked of them, and what they answer.

use std::collections::HashMap;
use std::time::Duration;

use d7y_manager_db::{Placement, PlacementState, Timestamp};
use d7y_proto::scheduler as wire;
use d7y_proto::scheduler::placement_client::PlacementClient;
use d7y_types::{LayerRef, Sha256Digest};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::request::Scope;
use super::resolve::chain;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A scheduler answers from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Progress of a whole cluster: 100 bytes for each layer on each of some 100,000 peers.
const MAX_REPORT_BYTES: usize = 64 << 20;
/// Connections kept; one per scheduler.
const MAX_CHANNELS: usize = 1024;

/// One job in one cluster.
pub(super) struct Wanted<'a> {
    pub job: i64,
    pub created_at: i64,
    pub cluster: i64,
    pub image: Sha256Digest,
    pub layers: &'a [LayerRef],
    pub scope: Scope,
    /// Opens the layers.
    pub grant: Option<wire::PullGrant>,
}

/// What a scheduler said last about a job; only what changed since then is asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    incarnation: String,
    version: u64,
}

/// What a scheduler answered.
pub(super) struct Answer {
    pub settling: bool,
    /// Nobody is in the scope.
    pub nobody: bool,
    /// Rows that are other than they were.
    pub changed: Vec<Placement>,
    pub seen: Seen,
}

/// Ways to schedulers, by address.
#[derive(Debug, Default)]
pub(super) struct Schedulers(Mutex<HashMap<String, Channel>>);

impl Schedulers {
    /// Says what is wanted, and hears how far it is. `rows` are this cluster's.
    pub async fn place(
        &self,
        scheduler: &str,
        wanted: &Wanted<'_>,
        (rows, seen): (&[Placement], Seen),
    ) -> Result<Answer, String> {
        let (scope, percent) = wanted.scope.to_wire();
        let mut peers: Vec<String> = rows.iter().map(|row| row.peer.clone()).collect();
        peers.dedup();
        let request = wire::PreheatRequest {
            job: wanted.key(),
            image: wanted.image.0.to_vec(),
            layers: wanted.layers.iter().map(d7y_proto::layer_to_wire).collect(),
            scope: scope.into(),
            percent,
            peers,
            incarnation: seen.incarnation,
            version: seen.version,
            grant: wanted.grant.clone(),
        };
        let report = self.client(scheduler)?.preheat(request).await;
        let report = report.map_err(|status| said(&status))?.into_inner();
        let seen = Seen { incarnation: report.incarnation.clone(), version: report.version };
        let nobody = report.peers.is_empty();
        let settling = report.settling;
        Ok(Answer { settling, nobody, changed: wanted.changed(rows, report), seen })
    }

    /// Tells a scheduler that a job has ended. It finds out by itself when this fails.
    pub async fn end(&self, scheduler: &str, wanted: &Wanted<'_>) {
        let Ok(mut client) = self.client(scheduler) else { return };
        let _ = client.end_preheat(wire::EndPreheatRequest { job: wanted.key() }).await;
    }

    fn client(&self, scheduler: &str) -> Result<PlacementClient<Channel>, String> {
        let mut channels = self.0.lock();
        if channels.len() >= MAX_CHANNELS {
            channels.clear();
        }
        let channel = match channels.get(scheduler) {
            Some(channel) => channel.clone(),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{scheduler}"));
                let endpoint = endpoint.map_err(|error| chain(&error))?;
                let channel =
                    endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).connect_lazy();
                channels.insert(scheduler.to_owned(), channel.clone());
                channel
            }
        };
        Ok(PlacementClient::new(channel).max_decoding_message_size(MAX_REPORT_BYTES))
    }
}

impl Wanted<'_> {
    /// With the time: a manager that lost its database begins again at 1.
    fn key(&self) -> String {
        format!("{}.{}", self.job, self.created_at)
    }

    /// Rows for whom the scheduler chose, and how far it says they are.
    fn changed(&self, rows: &[Placement], report: wire::PreheatReport) -> Vec<Placement> {
        let now = Timestamp::now().0;
        let mut known: HashMap<(String, i32), Placement> =
            rows.iter().map(|row| ((row.peer.clone(), row.layer), row.clone())).collect();
        let mut changed = HashMap::new();
        if rows.is_empty() {
            for peer in &report.peers {
                for layer in (0..).take(self.layers.len()) {
                    let row = self.waiting(peer, layer, now);
                    known.insert((peer.clone(), layer), row.clone());
                    changed.insert((peer.clone(), layer), row);
                }
            }
        }
        for progress in report.changed {
            let key = (progress.peer.clone(), i32::try_from(progress.layer).unwrap_or(i32::MAX));
            let Some(before) = known.get(&key) else { continue };
            let row = Placement {
                state: state(progress.state()),
                bytes_done: bytes(progress.bytes_done),
                bytes_total: bytes(progress.bytes_total),
                error: progress.error.chars().take(1024).collect(),
                updated_at: before.updated_at,
                ..before.clone()
            };
            if row != *before {
                changed.insert(key, Placement { updated_at: now, ..row });
            }
        }
        changed.into_values().collect()
    }

    pub fn waiting(&self, peer: &str, layer: i32, now: i64) -> Placement {
        Placement {
            job_id: self.job,
            cluster_id: self.cluster,
            peer: peer.to_owned(),
            layer,
            state: PlacementState::Waiting,
            bytes_done: 0,
            bytes_total: 0,
            error: String::new(),
            updated_at: now,
        }
    }
}

fn state(state: wire::PreheatState) -> PlacementState {
    match state {
        wire::PreheatState::Unspecified | wire::PreheatState::Waiting => PlacementState::Waiting,
        wire::PreheatState::Fetching => PlacementState::Fetching,
        wire::PreheatState::Done => PlacementState::Done,
        wire::PreheatState::Failed => PlacementState::Failed,
    }
}

fn bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn said(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => chain(cause),
        None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(peers: &[&str], changed: &[(&str, u32, wire::PreheatState, u64)]) -> wire::PreheatReport {
        let progress = changed.iter().map(|(peer, layer, state, bytes_done)| wire::LayerProgress {
            peer: (*peer).to_owned(),
            layer: *layer,
            state: (*state).into(),
            bytes_done: *bytes_done,
            bytes_total: 9,
            error: String::new(),
        });
        let peers = peers.iter().map(|peer| (*peer).to_owned()).collect();
        wire::PreheatReport { peers, changed: progress.collect(), ..Default::default() }
    }

    #[test]
    fn rows_follow_what_the_scheduler_says() {
        use wire::PreheatState::{Done, Fetching};
        let layer = |n: u8| LayerRef {
            registry: "r".into(),
            repository: "a".into(),
            digest: Sha256Digest([n; 32]),
            diff_id: Sha256Digest([n; 32]),
            size: 9,
            compression: d7y_types::Compression::None,
        };
        let layers = [layer(1), layer(2)];
        let image = Sha256Digest([0; 32]);
        let wanted = Wanted {
            job: 1,
            created_at: 2,
            cluster: 3,
            image,
            layers: &layers,
            scope: Scope::AllPeers,
            grant: None,
        };
        let first = wanted.changed(&[], report(&["a", "b"], &[("a", 1, Fetching, 4), ("c", 0, Done, 9)]));
        assert_eq!(first.len(), 4, "a row for each layer on each chosen peer, none for others");
        let fetching: Vec<_> = first.iter().filter(|row| row.state == PlacementState::Fetching).collect();
        assert_eq!((fetching.len(), fetching[0].peer.as_str(), fetching[0].bytes_done), (1, "a", 4));
        let same = wanted.changed(&first, report(&["a", "b"], &[("a", 1, Fetching, 4)]));
        assert!(same.is_empty(), "what is as it was is not written again");
        let more = wanted.changed(&first, report(&["a", "b"], &[("b", 0, Done, 9), ("b", 7, Done, 9)]));
        assert_eq!((more.len(), more[0].state), (1, PlacementState::Done));
        assert_eq!(wanted.key(), "1.2");
    }
}
