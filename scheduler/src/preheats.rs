//! Preheats under way: what the manager wants, who is at it, how far they are. A cache like all else here: the manager
//! says what it wants again and again, and peers say how far they are whenever they are asked anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use d7y_proto::scheduler as wire;
use d7y_scheduler_core::PeerId;
use d7y_types::Sha256Digest;

use crate::grant::Grant;

/// Without a word from the manager for this long, a job is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Jobs at once.
const MAX_JOBS: usize = 1024;
/// Layers of one image; containerd itself stops earlier.
const MAX_LAYERS: usize = 1024;
const MAX_JOB_BYTES: usize = 128;
/// One sentence.
const MAX_ERROR_CHARS: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Preheats {
    jobs: HashMap<String, Job>,
    version: u64,
}

#[derive(Debug)]
struct Job {
    order: Arc<wire::Preheat>,
    peers: BTreeMap<PeerId, Vec<Entry>>,
    grant: Option<Arc<Grant>>,
    asked_at: Duration,
}

/// How far one layer is on one peer.
#[derive(Debug, Clone)]
struct Entry {
    state: wire::PreheatState,
    bytes_done: u64,
    bytes_total: u64,
    error: String,
    /// When it last changed.
    version: u64,
}

/// A request that breaks the contract, or is too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PreheatError {
    #[error("PreheatRequest.{0} is malformed")]
    Malformed(&'static str),
    #[error("{MAX_JOBS} preheats are under way; wait until some have ended")]
    TooMany,
}

/// A request that was read.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub image: Sha256Digest,
    pub scope: d7y_scheduler_core::PreheatScope,
    /// Chosen earlier; empty when they are to be chosen now.
    pub peers: Vec<PeerId>,
    /// Opens the layers.
    pub grant: Option<Grant>,
    order: wire::Preheat,
}

/// Something for peers to hear.
pub(crate) type Order = (PeerId, Arc<wire::Preheat>);

impl Wanted {
    pub fn parse(request: wire::PreheatRequest) -> Result<Self, PreheatError> {
        use d7y_scheduler_core::PreheatScope;
        let malformed = PreheatError::Malformed;
        let scope = match (request.scope(), request.percent) {
            (wire::Scope::SingleSeed, _) => PreheatScope::SingleSeed,
            (wire::Scope::AllSeeds, _) => PreheatScope::AllSeeds,
            (wire::Scope::AllPeers, _) => PreheatScope::AllPeers,
            (wire::Scope::Share, percent @ 1..=100) => PreheatScope::Share(percent),
            _ => return Err(malformed("scope")),
        };
        if request.job.is_empty() || request.job.len() > MAX_JOB_BYTES {
            return Err(malformed("job"));
        }
        let digest = |raw: &[u8]| raw.try_into().map(Sha256Digest);
        let image = digest(&request.image).map_err(|_| malformed("image"))?;
        let sound = |layer: &d7y_proto::local::Layer| d7y_proto::layer_from_wire(layer.clone()).is_ok();
        if request.layers.len() > MAX_LAYERS || !request.layers.iter().all(sound) {
            return Err(malformed("layers"));
        }
        let peers = request.peers.iter().map(|peer| PeerId::new(peer)).collect::<Result<_, _>>();
        let peers = peers.map_err(|_| malformed("peers"))?;
        let granted = request.grant.is_some();
        let grant = request.grant.map(|grant| Grant::parse(grant).ok_or(malformed("grant"))).transpose()?;
        let order = wire::Preheat { job: request.job, layers: request.layers, granted };
        Ok(Self { image, scope, peers, grant, order })
    }

    pub fn job(&self) -> &str {
        &self.order.job
    }
}

impl Preheats {
    pub fn is_known(&self, job: &str) -> bool {
        self.jobs.contains_key(job)
    }

    /// The manager wants this, maybe not for the first time. Returns what peers have to be told for the first time.
    pub fn want(
        &mut self,
        wanted: Wanted,
        peers: Vec<PeerId>,
        now: Duration,
    ) -> Result<Vec<Order>, PreheatError> {
        if let Some(job) = self.jobs.get_mut(wanted.job()) {
            job.asked_at = now;
            // They come from another scheduler.
            let added: Vec<_> = peers.into_iter().filter(|peer| !job.peers.contains_key(peer)).collect();
            if !added.is_empty() {
                self.version += 1;
            }
            let entries = vec![Entry::waiting(self.version); job.order.layers.len()];
            job.peers.extend(added.iter().map(|peer| (peer.clone(), entries.clone())));
            return Ok(added.into_iter().map(|peer| (peer, job.order.clone())).collect());
        }
        if self.jobs.len() >= MAX_JOBS {
            return Err(PreheatError::TooMany);
        }
        self.version += 1;
        let entries = vec![Entry::waiting(self.version); wanted.order.layers.len()];
        let order = Arc::new(wanted.order);
        let orders = peers.iter().map(|peer| (peer.clone(), order.clone())).collect();
        let peers = peers.into_iter().map(|peer| (peer, entries.clone())).collect();
        self.jobs.insert(order.job.clone(), Job { order, peers, grant: None, asked_at: now });
        Ok(orders)
    }

    /// Takes what opens a job's layers; returns it, and who is at the job, when it is another one than before.
    pub fn grant(&mut self, job: &str, grant: Grant) -> Option<(Arc<Grant>, Vec<PeerId>)> {
        let job = self.jobs.get_mut(job)?;
        if job.grant.as_ref().is_some_and(|known| known.is_same(&grant)) {
            return None;
        }
        let grant = job.grant.insert(Arc::new(grant)).clone();
        Some((grant, job.peers.keys().cloned().collect()))
    }

    /// What a peer that has just come may have to open; a seed reads layers for all others.
    pub fn grants_for(&self, peer: &PeerId, seed: bool) -> Vec<Arc<Grant>> {
        let concerned = self.jobs.values().filter(|job| seed || job.peers.contains_key(peer));
        concerned.filter_map(|job| job.grant.clone()).filter(|grant| !grant.is_over()).collect()
    }

    /// What a peer that has just come is to be at.
    pub fn orders_for(&self, peer: &PeerId) -> Vec<Arc<wire::Preheat>> {
        let unfinished = |job: &&Job| {
            let entries = job.peers.get(peer);
            entries.is_some_and(|all| all.iter().any(|entry| entry.state != wire::PreheatState::Done))
        };
        self.jobs.values().filter(unfinished).map(|job| job.order.clone()).collect()
    }

    /// Takes in what a peer says of a job that it was given.
    pub fn progress(&mut self, peer: &PeerId, said: wire::PreheatProgress) {
        let Some(progress) = said.progress else { return };
        let entries = self.jobs.get_mut(&said.job).and_then(|job| job.peers.get_mut(peer));
        let Some(entry) = entries.and_then(|all| all.get_mut(progress.layer as usize)) else { return };
        self.version += 1;
        *entry = Entry {
            state: progress.state(),
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            error: progress.error.chars().take(MAX_ERROR_CHARS).collect(),
            version: self.version,
        };
    }

    /// What a peer that goes had not finished waits for it.
    pub fn gone(&mut self, peer: &PeerId) {
        for job in self.jobs.values_mut() {
            let entries = job.peers.get_mut(peer).into_iter().flatten();
            for entry in entries.filter(|entry| entry.state != wire::PreheatState::Done) {
                self.version += 1;
                entry.state = wire::PreheatState::Waiting;
                entry.error = "the peer is not connected; start d7y-peer there again".to_owned();
                entry.version = self.version;
            }
        }
    }

    /// What changed in a job since a version.
    pub fn report(&self, job: &str, since: u64) -> wire::PreheatReport {
        let Some(job) = self.jobs.get(job) else { return wire::PreheatReport::default() };
        let changed = job.peers.iter().flat_map(|(peer, entries)| {
            (0..).zip(entries).filter(|(_, entry)| entry.version > since).map(|(layer, entry)| {
                wire::LayerProgress {
                    peer: peer.to_string(),
                    layer,
                    state: entry.state.into(),
                    bytes_done: entry.bytes_done,
                    bytes_total: entry.bytes_total,
                    error: entry.error.clone(),
                }
            })
        });
        wire::PreheatReport {
            version: self.version,
            peers: job.peers.keys().map(ToString::to_string).collect(),
            changed: changed.collect(),
            ..wire::PreheatReport::default()
        }
    }

    /// Forgets a job; returns who was at it.
    pub fn end(&mut self, job: &str) -> Vec<PeerId> {
        self.jobs.remove(job).map(|job| job.peers.into_keys().collect()).unwrap_or_default()
    }

    /// Forgets what nobody has asked for in a long time; returns the jobs and who was at them.
    pub fn expire(&mut self, now: Duration) -> Vec<(String, Vec<PeerId>)> {
        let old = |job: &Job| now.saturating_sub(job.asked_at) > FORGET_AFTER;
        let old: Vec<_> =
            self.jobs.iter().filter(|(_, job)| old(job)).map(|(name, _)| name.clone()).collect();
        old.into_iter().map(|name| (name.clone(), self.end(&name))).collect()
    }
}

impl Entry {
    fn waiting(version: u64) -> Self {
        let state = wire::PreheatState::Waiting;
        Self { state, bytes_done: 0, bytes_total: 0, error: String::new(), version }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> wire::PreheatRequest {
        let layer = d7y_proto::local::Layer {
            registry: "r".into(),
            repository: "a".into(),
            digest: vec![1; 32],
            diff_id: vec![2; 32],
            size: 3,
            compression: d7y_proto::local::Compression::Gzip.into(),
        };
        wire::PreheatRequest {
            job: "1.2".into(),
            image: vec![0; 32],
            layers: vec![layer.clone(), layer],
            scope: wire::Scope::AllPeers.into(),
            ..wire::PreheatRequest::default()
        }
    }

    fn peer(name: &str) -> PeerId {
        PeerId::new(name).unwrap()
    }

    fn said(layer: u32, state: wire::PreheatState) -> wire::PreheatProgress {
        let progress = wire::LayerProgress { layer, state: state.into(), ..wire::LayerProgress::default() };
        wire::PreheatProgress { job: "1.2".into(), progress: Some(progress) }
    }

    #[test]
    fn malformed_requests_are_refused() {
        type Break = fn(&mut wire::PreheatRequest);
        let table: [(Break, &str); 6] = [
            (|request| request.job.clear(), "job"),
            (|request| request.image.clear(), "image"),
            (|request| request.layers[0].registry.clear(), "layers"),
            (|request| request.scope = 9, "scope"),
            (|request| request.scope = wire::Scope::Share.into(), "scope"),
            (|request| request.peers.push(String::new()), "peers"),
        ];
        for (break_it, expected) in table {
            let mut broken = request();
            break_it(&mut broken);
            assert_eq!(Wanted::parse(broken).unwrap_err(), PreheatError::Malformed(expected));
        }
    }

    #[test]
    fn only_what_changed_is_reported_and_who_comes_back_is_told_again() {
        use wire::PreheatState::{Done, Fetching, Waiting};
        let (mut preheats, now) = (Preheats::default(), Duration::ZERO);
        let want = |preheats: &mut Preheats, now| {
            let wanted = Wanted::parse(request()).unwrap();
            preheats.want(wanted, vec![peer("a"), peer("b")], now).unwrap()
        };
        assert_eq!(want(&mut preheats, now).len(), 2);
        assert!(want(&mut preheats, now).is_empty(), "said once");
        let first = preheats.report("1.2", 0);
        assert_eq!((first.peers.len(), first.changed.len()), (2, 4));
        assert!(preheats.report("1.2", first.version).changed.is_empty());
        preheats.progress(&peer("a"), said(1, Fetching));
        preheats.progress(&peer("stranger"), said(1, Done));
        preheats.progress(&peer("a"), said(7, Done));
        let second = preheats.report("1.2", first.version);
        let changed: Vec<_> =
            second.changed.iter().map(|one| (one.peer.as_str(), one.layer, one.state())).collect();
        assert_eq!(changed, [("a", 1, Fetching)]);

        preheats.progress(&peer("a"), said(0, Done));
        preheats.gone(&peer("a"));
        let third = preheats.report("1.2", second.version);
        let states: Vec<_> = third.changed.iter().map(|one| (one.layer, one.state())).collect();
        assert_eq!(states, [(0, Done), (1, Waiting)], "what is done stays done");
        assert_eq!(preheats.orders_for(&peer("a")).len(), 1);
        preheats.progress(&peer("a"), said(1, Done));
        assert!(preheats.orders_for(&peer("a")).is_empty(), "nothing is left to do");

        let before = preheats.report("1.2", 0).version;
        let more = vec![peer("a"), peer("c")];
        let orders = preheats.want(Wanted::parse(request()).unwrap(), more, now).unwrap();
        assert_eq!(orders.len(), 1, "who came from another scheduler is told");
        let report = preheats.report("1.2", before);
        let changed: Vec<_> = report.changed.iter().map(|one| (one.peer.as_str(), one.state())).collect();
        assert_eq!(changed, [("c", Waiting), ("c", Waiting)], "and nobody else");
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let mut preheats = Preheats::default();
        let wanted = || Wanted::parse(request()).unwrap();
        preheats.want(wanted(), vec![peer("a")], Duration::ZERO).unwrap();
        preheats.want(wanted(), vec![peer("a")], FORGET_AFTER).unwrap();
        assert!(preheats.expire(FORGET_AFTER * 2).is_empty(), "asked for again");
        let expired = preheats.expire(FORGET_AFTER * 2 + Duration::from_millis(1));
        assert_eq!(expired, [("1.2".to_owned(), vec![peer("a")])]);
        assert!(!preheats.is_known("1.2"));
    }
}
