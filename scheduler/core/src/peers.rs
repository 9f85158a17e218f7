use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use d7y_types::Sha256Digest;

use crate::event::{PeerId, PeerInfo, Role};
use crate::{MAX_PEERS, rendezvous};

/// A connected peer's place; never names another peer, because the generation grows with every reuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub info: Arc<PeerInfo>,
    pub name_hash: u64,
    pub upload_bytes_in_flight: u64,
    /// Openers that have this peer as a parent now.
    pub links: u32,
    /// Tasks that the peer reported on.
    pub known: BTreeSet<Sha256Digest>,
    pub open: BTreeSet<Sha256Digest>,
    /// Tasks whose origin lease the peer holds.
    pub leases: BTreeSet<Sha256Digest>,
}

#[derive(Debug, Default)]
pub(crate) struct Peers {
    by_id: HashMap<PeerId, Slot>,
    places: Vec<Place>,
    free: Vec<u32>,
    seeds: BTreeSet<Slot>,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    peer: Option<Peer>,
}

impl Peers {
    /// None when the cluster is full.
    pub fn insert(&mut self, info: PeerInfo) -> Option<Slot> {
        if self.by_id.len() >= MAX_PEERS {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.places.push(Place { generation: 0, peer: None });
                u32::try_from(self.places.len() - 1).ok()?
            }
        };
        let place = &mut self.places[index as usize];
        let slot = Slot { index, generation: place.generation };
        if info.role == Role::Seed {
            self.seeds.insert(slot);
        }
        self.by_id.insert(info.id.clone(), slot);
        place.peer = Some(Peer {
            name_hash: rendezvous::name_hash(info.id.as_str()),
            info: Arc::new(info),
            upload_bytes_in_flight: 0,
            links: 0,
            known: BTreeSet::new(),
            open: BTreeSet::new(),
            leases: BTreeSet::new(),
        });
        Some(slot)
    }

    pub fn remove(&mut self, slot: Slot) -> Option<Peer> {
        let place = self.places.get_mut(slot.index as usize).filter(|p| p.generation == slot.generation)?;
        let peer = place.peer.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot.index);
        self.seeds.remove(&slot);
        self.by_id.remove(&peer.info.id);
        Some(peer)
    }

    pub fn find(&self, id: &PeerId) -> Option<Slot> {
        self.by_id.get(id).copied()
    }

    pub fn get(&self, slot: Slot) -> Option<&Peer> {
        self.places
            .get(slot.index as usize)
            .filter(|place| place.generation == slot.generation)?
            .peer
            .as_ref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Peer> {
        let place = self.places.get_mut(slot.index as usize)?;
        if place.generation == slot.generation { place.peer.as_mut() } else { None }
    }

    pub fn seeds(&self) -> impl Iterator<Item = (Slot, &Peer)> {
        self.seeds.iter().filter_map(|slot| Some((*slot, self.get(*slot)?)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.places.iter().filter_map(|place| place.peer.as_ref())
    }

    pub fn count(&self, role: Role) -> usize {
        match role {
            Role::Seed => self.seeds.len(),
            Role::Node => self.by_id.len() - self.seeds.len(),
        }
    }
}
