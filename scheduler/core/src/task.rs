//! One task: who holds it, who wants it, and who holds its origin lease.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use d7y_types::Sha256Digest;

use crate::choice::Link;
use crate::event::{HoldState, IndexState, Role};
use crate::peers::{Peers, Slot};
use crate::{FAILURE_MEMORY, LEASE_CLAIM, MAX_FAILED_PER_TASK, rendezvous};

/// What a holder is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    CompleteNode,
    PartialNode,
    CompleteSeed,
    PartialSeed,
    Ingesting,
}

impl Class {
    const COUNT: usize = 5;

    fn of(state: HoldState, role: Role) -> Option<Self> {
        match (state, role) {
            (HoldState::Complete, Role::Node) => Some(Self::CompleteNode),
            (HoldState::Partial, Role::Node) => Some(Self::PartialNode),
            (HoldState::Complete, Role::Seed) => Some(Self::CompleteSeed),
            (HoldState::Partial, Role::Seed) => Some(Self::PartialSeed),
            (HoldState::Ingesting, _) => Some(Self::Ingesting),
            (HoldState::None | HoldState::Failed, _) => None,
        }
    }

    pub fn is_complete(self) -> bool {
        matches!(self, Self::CompleteNode | Self::CompleteSeed)
    }
}

/// Holders by class, each class a vector to draw from.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    places: HashMap<Slot, (Class, usize)>,
    classes: [Vec<Slot>; Class::COUNT],
}

impl Holders {
    pub fn class(&self, slot: Slot) -> Option<Class> {
        self.places.get(&slot).map(|(class, _)| *class)
    }

    pub fn of(&self, class: Class) -> &[Slot] {
        &self.classes[class as usize]
    }

    /// True when something changed.
    fn set(&mut self, slot: Slot, class: Option<Class>) -> bool {
        if self.class(slot) == class {
            return false;
        }
        if let Some((old, place)) = self.places.remove(&slot) {
            let members = &mut self.classes[old as usize];
            members.swap_remove(place);
            if let Some(moved) = members.get(place) {
                self.places.insert(*moved, (old, place));
            }
        }
        if let Some(class) = class {
            let members = &mut self.classes[class as usize];
            self.places.insert(slot, (class, members.len()));
            members.push(slot);
        }
        true
    }

    pub fn any_complete(&self) -> bool {
        !self.of(Class::CompleteNode).is_empty() || !self.of(Class::CompleteSeed).is_empty()
    }

    pub fn index(&self) -> IndexState {
        let partial = !self.of(Class::PartialNode).is_empty() || !self.of(Class::PartialSeed).is_empty();
        if partial || self.any_complete() { IndexState::Known } else { IndexState::Absent }
    }
}

/// A peer that wants the task, and what it was told last.
#[derive(Debug, Default)]
pub(crate) struct Opener {
    /// Order of asking.
    pub turn: u64,
    pub links: Vec<Link>,
    pub told: Option<Told>,
}

/// The part of an assignment that is the same for all openers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub index: IndexState,
    pub complete: bool,
    pub holder: Option<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grant {
    holder: Slot,
    at: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Task {
    pub holders: Holders,
    pub openers: BTreeMap<Slot, Opener>,
    grant: Option<Grant>,
    /// Who failed, and until when that counts.
    failed: Vec<(Slot, Duration)>,
    lap: Lap,
}

/// A round over the openers that may take several ticks; a change in the middle makes it one full round longer.
#[derive(Debug, Default)]
struct Lap {
    last: Option<Slot>,
    remaining: usize,
}

/// What a lease decision depends on beside the task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub now: Duration,
    /// Nodes get leases only from this time on.
    pub settled_at: Duration,
}

impl Task {
    /// Records what a peer says of itself; true when openers should hear of it.
    pub fn report(&mut self, slot: Slot, role: Role, state: HoldState, now: Duration) -> bool {
        let changed = self.holders.set(slot, Class::of(state, role));
        if state != HoldState::Failed {
            return changed;
        }
        self.fail(slot, now);
        true
    }

    /// True when openers should hear of it.
    pub fn forget(&mut self, slot: Slot) -> bool {
        self.failed.retain(|(failed, _)| *failed != slot);
        self.holders.set(slot, None)
    }

    pub fn state(&self) -> Told {
        let complete = self.holders.any_complete();
        Told { index: self.holders.index(), complete, holder: self.lease_holder() }
    }

    pub fn is_idle(&self) -> bool {
        self.openers.is_empty() && self.holders.places.is_empty() && self.failed.is_empty()
    }

    pub fn lease_holder(&self) -> Option<Slot> {
        self.grant.map(|grant| grant.holder)
    }

    fn fail(&mut self, slot: Slot, now: Duration) {
        self.failed.retain(|(failed, _)| *failed != slot);
        if self.failed.len() >= MAX_FAILED_PER_TASK {
            self.failed.remove(0);
        }
        self.failed.push((slot, now + FAILURE_MEMORY));
    }

    fn has_failed(&self, slot: Slot) -> bool {
        self.failed.iter().any(|(failed, _)| *failed == slot)
    }

    fn ingests(&self, slot: Slot) -> bool {
        self.holders.class(slot) == Some(Class::Ingesting)
    }

    /// Keeps, moves, grants or ends the lease. Idempotent at one moment.
    pub fn renew_lease(&mut self, task: &Sha256Digest, peers: &Peers, moment: Moment) {
        self.failed.retain(|(_, until)| *until > moment.now);
        let before = self.lease_holder();
        if let Some(idle) = self.grant.filter(|grant| self.never_began(*grant, moment.now)) {
            self.fail(idle.holder, moment.now);
        }
        let after = match self.holders.any_complete() || self.openers.is_empty() {
            true => None,
            false => before
                .filter(|holder| self.may_keep(*holder, peers))
                .or_else(|| self.successor(task, peers, moment)),
        };
        if before != after {
            self.grant = after.map(|holder| Grant { holder, at: moment.now });
        }
    }

    /// Only while the index is absent: otherwise nobody may have needed the holder yet.
    fn never_began(&self, grant: Grant, now: Duration) -> bool {
        self.holders.index() == IndexState::Absent
            && !self.ingests(grant.holder)
            && now >= grant.at + LEASE_CLAIM
    }

    fn may_keep(&self, holder: Slot, peers: &Peers) -> bool {
        let Some(peer) = peers.get(holder) else { return false };
        if self.has_failed(holder) {
            return false;
        }
        let another_began = !self.holders.of(Class::Ingesting).is_empty();
        let wants_it = peer.info.role == Role::Seed || self.openers.contains_key(&holder);
        self.ingests(holder) || (wants_it && !another_began)
    }

    /// Who ingests already, else the seed that wins the rendezvous, else the first node that asked.
    fn successor(&self, task: &Sha256Digest, peers: &Peers, moment: Moment) -> Option<Slot> {
        let able = |slot: &Slot| !self.has_failed(*slot);
        if let Some(already) = self.holders.of(Class::Ingesting).iter().copied().filter(able).min() {
            return Some(already);
        }
        let seed = peers.seeds().filter(|(slot, _)| able(slot)).max_by(|(_, a), (_, b)| {
            let score = |name_hash| rendezvous::score(name_hash, task);
            score(a.name_hash).cmp(&score(b.name_hash)).then_with(|| b.info.id.cmp(&a.info.id))
        });
        if let Some((slot, _)) = seed {
            return Some(slot);
        }
        if moment.now < moment.settled_at {
            return None;
        }
        let asking = self.openers.iter().filter(|(slot, _)| able(slot));
        asking.min_by_key(|(_, opener)| opener.turn).map(|(slot, _)| *slot)
    }

    /// The next time at which the lease may change with no event.
    pub fn next_deadline(&self, moment: Moment) -> Option<Duration> {
        let unclaimed = self
            .grant
            .filter(|grant| self.holders.index() == IndexState::Absent && !self.ingests(grant.holder));
        let claim = unclaimed.map(|grant| grant.at + LEASE_CLAIM);
        let retry = self.failed.iter().map(|(_, until)| *until).min();
        let gathering = self.grant.is_none() && !self.openers.is_empty() && moment.now < moment.settled_at;
        let settled = gathering.then_some(moment.settled_at);
        [claim, retry, settled].into_iter().flatten().min()
    }

    /// Starts a full round over the openers; true when none was under way.
    pub fn begin_lap(&mut self) -> bool {
        let idle = self.lap.remaining == 0;
        self.lap.remaining = self.openers.len();
        idle && self.lap.remaining > 0
    }

    /// The next opener of the round.
    pub fn next_in_lap(&mut self) -> Option<Slot> {
        self.lap.remaining = self.lap.remaining.min(self.openers.len()).checked_sub(1)?;
        let after = |last: Slot| {
            let rest = (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
            self.openers.range(rest).next()
        };
        let next = self.lap.last.and_then(after).or_else(|| self.openers.first_key_value());
        self.lap.last = next.map(|(slot, _)| *slot);
        self.lap.last
    }

    pub fn lap_is_over(&self) -> bool {
        self.lap.remaining == 0 || self.openers.is_empty()
    }
}
