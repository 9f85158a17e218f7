//! Which of a task's holders become an asker's parents.
//!
//! Links that still serve are kept, because a warm connection is worth more than a slightly better parent.
//! Free places go to one complete seed (the source that stays), then to complete nodes, partial nodes and at last to
//! more seeds; within a class by two draws, of which the less loaded wins (Mitzenmacher: The power of two
//! choices in randomized load balancing, 2001). The draws are a hash of asker, task and `rotation`: rotating
//! links means to raise that number and to drop some links before the call.

use d7y_types::Sha256Digest;

use crate::event::Parent;
use crate::peers::{Peer, Peers, Slot};
use crate::rendezvous;
use crate::task::{Class, Holders};

/// Links per asker and task: within the 8 to 16 at which distribution gets close to its bound.
pub const MAX_PARENTS: usize = 12;
/// Places for complete nodes before partial ones get theirs: rare chunks come from partial holders too.
const COMPLETE_NODE_LINKS: usize = 8;
/// Draws per free place; more than these, and most holders are links already.
const DRAWS_PER_LINK: usize = 4;
/// Bytes waiting for upload that weigh as much as one more link.
const BYTES_PER_LINK: u64 = 8 << 20;
/// Links at which a parent's weight has halved.
const HALF_WEIGHT_LINKS: u64 = 16;

/// A parent as it was given: a change of class is worth telling, a change of load is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub slot: Slot,
    pub class: Class,
}

pub(crate) struct Choice<'a> {
    pub holders: &'a Holders,
    pub peers: &'a Peers,
    pub asker: Slot,
    /// From [`draw_seed`].
    pub draws: u64,
}

/// The start of an asker's sequence of draws for a task.
pub(crate) fn draw_seed(asker: u64, task: &Sha256Digest, rotation: u64) -> u64 {
    rendezvous::score(rendezvous::mix(asker ^ rotation), task)
}

impl Choice<'_> {
    /// The asker's links from now on, kept ones first.
    pub fn links(mut self, before: &[Link]) -> Vec<Link> {
        let current = before.iter().filter_map(|link| self.link(link.slot));
        let mut links: Vec<_> = current.collect();
        let full_without_source = links.len() == MAX_PARENTS && !links.iter().any(|l| l.class.is_complete());
        if full_without_source && self.holders.any_complete() {
            links.pop();
        }
        self.fill(&mut links, Class::CompleteSeed, 1);
        self.fill(&mut links, Class::CompleteNode, COMPLETE_NODE_LINKS);
        for class in [Class::PartialNode, Class::CompleteNode, Class::CompleteSeed, Class::PartialSeed] {
            self.fill(&mut links, class, MAX_PARENTS);
        }
        links
    }

    fn link(&self, slot: Slot) -> Option<Link> {
        let class = self.holders.class(slot).filter(|class| *class != Class::Ingesting)?;
        (slot != self.asker).then_some(Link { slot, class })
    }

    /// Adds holders of a class until it has `quota` links or all links are taken.
    fn fill(&mut self, links: &mut Vec<Link>, class: Class, quota: usize) {
        let members = self.holders.of(class);
        let have = links.iter().filter(|link| link.class == class).count();
        let want = quota.saturating_sub(have).min(MAX_PARENTS - links.len());
        if want == 0 || members.len() <= have {
            return;
        }
        if members.len() <= have + want + 1 {
            let rest = members.iter().filter(|slot| self.is_new(links, **slot)).take(want);
            let rest: Vec<_> = rest.map(|slot| Link { slot: *slot, class }).collect();
            links.extend(rest);
            return;
        }
        let end = links.len() + want;
        for _ in 0..want * DRAWS_PER_LINK {
            if links.len() == end {
                break;
            }
            let (first, second) = (self.draw(members), self.draw(members));
            let candidates = [first, second].into_iter().filter(|slot| self.is_new(links, *slot));
            if let Some(slot) = candidates.min_by_key(|slot| self.peers.get(*slot).map_or(u64::MAX, load)) {
                links.push(Link { slot, class });
            }
        }
    }

    fn is_new(&self, links: &[Link], slot: Slot) -> bool {
        slot != self.asker && links.iter().all(|link| link.slot != slot)
    }

    /// `members` is not empty.
    fn draw(&mut self, members: &[Slot]) -> Slot {
        self.draws = rendezvous::mix(self.draws);
        let scaled = (u128::from(self.draws) * members.len() as u128) >> 64;
        members[scaled as usize]
    }
}

fn load(peer: &Peer) -> u64 {
    u64::from(peer.links).saturating_add(peer.upload_bytes_in_flight / BYTES_PER_LINK)
}

/// A complete node before a partial one, and both before the seed: it is kept calm for what only it has.
pub(crate) fn parent(peer: &Peer, class: Class) -> Parent {
    let base: u64 = match class {
        Class::CompleteNode => 1000,
        Class::PartialNode => 500,
        Class::CompleteSeed => 200,
        Class::PartialSeed | Class::Ingesting => 100,
    };
    let shared = base.saturating_mul(HALF_WEIGHT_LINKS) / HALF_WEIGHT_LINKS.saturating_add(load(peer));
    Parent { peer: peer.info.clone(), weight: u32::try_from(shared.max(1)).unwrap_or(1) }
}
