//! One job over all schedulers of a cluster. A peer has a session with one of them, and only that one reaches it; which one
//! that is may change at any time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use d7y_manager_db::PeerRole;
use d7y_manager_db::entity::peer;
use d7y_types::Sha256Digest;
use sha2::{Digest, Sha256};

use super::request::Scope;

/// Peers by the scheduler that has a session with them, those of the cluster's living schedulers only.
#[derive(Debug, Default)]
pub(super) struct Crowd(BTreeMap<String, (i64, PeerRole)>);

impl Crowd {
    /// A peer that two schedulers speak of has gone from one to the other: the newer word counts.
    pub fn of(rows: Vec<peer::Model>, cluster: i64) -> Self {
        let mut newest: HashMap<String, peer::Model> = HashMap::new();
        for row in rows.into_iter().filter(|row| row.cluster_id == cluster) {
            let known = newest.get(&row.name);
            if known.is_none_or(|known| (known.created_at, known.id) < (row.created_at, row.id)) {
                newest.insert(row.name.clone(), row);
            }
        }
        Self(newest.into_values().map(|row| (row.name, (row.scheduler_id, row.role))).collect())
    }

    /// Whom the scope names among all of them; other ones for another image.
    pub fn choose(&self, scope: Scope, image: &Sha256Digest) -> Vec<String> {
        let all = |role| {
            let of = self.0.iter().filter(move |(_, (_, is))| *is == role);
            of.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        match scope {
            Scope::AllPeers => self.0.keys().cloned().collect(),
            Scope::AllSeeds => all(PeerRole::Seed),
            Scope::SingleSeed => best(all(PeerRole::Seed), 1, image),
            Scope::Share(percent) => {
                let nodes = all(PeerRole::Node);
                let count = (nodes.len() * percent.min(100) as usize).div_ceil(100);
                best(nodes, count, image)
            }
        }
    }

    /// Those of `chosen` whom this scheduler reaches.
    pub fn reached_by(&self, scheduler: i64, chosen: &BTreeSet<&str>) -> BTreeSet<String> {
        let reached =
            self.0.iter().filter(|(name, (by, _))| *by == scheduler && chosen.contains(name.as_str()));
        reached.map(|(name, _)| name.clone()).collect()
    }
}

/// Rendezvous hashing.
fn best(mut peers: Vec<String>, count: usize, image: &Sha256Digest) -> Vec<String> {
    let score =
        |name: &String| <[u8; 32]>::from(Sha256::new().chain_update(image.0).chain_update(name).finalize());
    peers.sort_by_cached_key(|name| Reverse(score(name)));
    peers.truncate(count);
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: i64, scheduler_id: i64, name: &str, created_at: i64) -> peer::Model {
        let role = if name.starts_with("seed") { PeerRole::Seed } else { PeerRole::Node };
        let address = "h:1".to_owned();
        peer::Model { id, cluster_id: 1, scheduler_id, name: name.into(), role, address, created_at }
    }

    #[test]
    fn scopes_are_of_the_whole_cluster_and_each_peer_is_reached_by_one() {
        let rows = vec![
            peer(1, 1, "node-1", 5),
            peer(2, 1, "node-2", 5),
            peer(3, 2, "node-3", 5),
            peer(4, 2, "node-4", 5),
            peer(5, 2, "node-1", 9),
            peer(6, 1, "seed-1", 5),
            peer(7, 2, "seed-2", 5),
            peer::Model { cluster_id: 2, ..peer(8, 3, "node-9", 5) },
        ];
        let crowd = Crowd::of(rows, 1);
        let image = Sha256Digest([3; 32]);
        let table = [
            (Scope::AllPeers, 6),
            (Scope::AllSeeds, 2),
            (Scope::SingleSeed, 1),
            (Scope::Share(50), 2),
            (Scope::Share(51), 3),
        ];
        for (scope, count) in table {
            let chosen = crowd.choose(scope, &image);
            assert_eq!(chosen.len(), count, "{scope:?}: {chosen:?}");
            assert_eq!(chosen, crowd.choose(scope, &image), "the same question has the same answer");
        }
        let all = crowd.choose(Scope::AllPeers, &image);
        let all: BTreeSet<&str> = all.iter().map(String::as_str).collect();
        let of = |scheduler| crowd.reached_by(scheduler, &all).into_iter().collect::<Vec<_>>();
        assert_eq!(of(1), ["node-2", "seed-1"]);
        assert_eq!(of(2), ["node-1", "node-3", "node-4", "seed-2"], "the newer word counts");
        let elsewhere = (4..64).any(|n| {
            crowd.choose(Scope::SingleSeed, &Sha256Digest([n; 32])) != crowd.choose(Scope::SingleSeed, &image)
        });
        assert!(elsewhere, "images are spread over the seeds");
    }
}
