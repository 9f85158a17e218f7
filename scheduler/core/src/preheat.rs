use std::cmp::Reverse;

use d7y_types::Sha256Digest;

use crate::event::{PeerId, Role};
use crate::peers::{Peer, Peers};
use crate::rendezvous;

/// Whose disks an image is put on ahead of need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreheatScope {
    /// One seed, another one for another image.
    SingleSeed,
    AllSeeds,
    /// Nodes and seeds.
    AllPeers,
    /// This many percent of the nodes, rounded up; other ones for another image.
    Share(u32),
}

pub(crate) fn targets(peers: &Peers, scope: PreheatScope, image: &Sha256Digest) -> Vec<PeerId> {
    let ids = |found: Vec<&Peer>| found.into_iter().map(|peer| peer.info.id.clone()).collect();
    match scope {
        PreheatScope::SingleSeed => ids(best(of(peers, Role::Seed), 1, image)),
        PreheatScope::AllSeeds => ids(of(peers, Role::Seed)),
        PreheatScope::AllPeers => ids(peers.iter().collect()),
        PreheatScope::Share(percent) => {
            let nodes = of(peers, Role::Node);
            let count = (nodes.len() * percent.min(100) as usize).div_ceil(100);
            ids(best(nodes, count, image))
        }
    }
}

fn of(peers: &Peers, role: Role) -> Vec<&Peer> {
    peers.iter().filter(|peer| peer.info.role == role).collect()
}

/// Those with the highest scores for the image.
fn best<'a>(mut peers: Vec<&'a Peer>, count: usize, image: &Sha256Digest) -> Vec<&'a Peer> {
    peers.sort_by_key(|peer| (Reverse(rendezvous::score(peer.name_hash, image)), peer.info.id.clone()));
    peers.truncate(count);
    peers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::PeerInfo;

    #[test]
    fn scopes_name_their_peers() {
        let mut peers = Peers::default();
        let all = (0..7)
            .map(|n| (format!("node-{n}"), Role::Node))
            .chain([("a", Role::Seed), ("b", Role::Seed)].map(|(n, r)| (n.to_owned(), r)));
        for (name, role) in all {
            peers.insert(PeerInfo { id: PeerId::new(&name).unwrap(), role, address: "h:1".into() });
        }
        let image = Sha256Digest([3; 32]);
        let table = [
            (PreheatScope::SingleSeed, 1, "ab"),
            (PreheatScope::AllSeeds, 2, "ab"),
            (PreheatScope::AllPeers, 9, "abn"),
            (PreheatScope::Share(1), 1, "n"),
            (PreheatScope::Share(50), 4, "n"),
            (PreheatScope::Share(100), 7, "n"),
        ];
        for (scope, count, first_letters) in table {
            let found = targets(&peers, scope, &image);
            assert_eq!(found.len(), count, "{scope:?}");
            assert!(found.iter().all(|id| first_letters.contains(&id.as_str()[..1])), "{scope:?}: {found:?}");
            assert_eq!(found, targets(&peers, scope, &image), "the same question has the same answer");
        }
        let elsewhere = (4..64).any(|n| {
            let other = Sha256Digest([n; 32]);
            targets(&peers, PreheatScope::SingleSeed, &other)
                != targets(&peers, PreheatScope::SingleSeed, &image)
        });
        assert!(elsewhere, "images are spread over the seeds");
    }
}
