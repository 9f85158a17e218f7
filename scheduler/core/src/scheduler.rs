use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use d7y_types::Sha256Digest;

use crate::choice::{self, Choice};
use crate::event::{Action, Assignment, Event, HoldState, Lease, PeerId, PeerInfo, Refusal, Role};
use crate::peers::{Peers, Slot};
use crate::preheat::{self, PreheatScope};
use crate::task::{Moment, Task};
use crate::traces::Traces;
use crate::{MAX_OPEN_PER_PEER, MAX_PUSHES_PER_TICK, MAX_TASKS, MAX_TASKS_PER_PEER};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// For this long after the start no node gets an origin lease: after a restart of the scheduler, seeds and
    /// holders need a moment to announce themselves again, and the registry should not pay for that.
    pub settle: Duration,
}

/// The decision core of one cluster. Every method is a bounded amount of work.
#[derive(Debug)]
pub struct Scheduler {
    settings: Settings,
    peers: Peers,
    tasks: HashMap<Sha256Digest, Task>,
    traces: Traces,
    /// Tasks whose openers should hear of a change, each once.
    changed: VecDeque<Sha256Digest>,
    /// When to look at a task's lease again though nothing happened.
    deadlines: BTreeSet<(Duration, Sha256Digest)>,
    next_turn: u64,
    open_tasks: usize,
    decisions: u64,
}

/// What there is now, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub nodes: usize,
    pub seeds: usize,
    pub tasks: usize,
    /// Tasks that at least one peer has open.
    pub open_tasks: usize,
    pub traces: usize,
    pub trace_bytes: usize,
    /// Sets of parents chosen since the start.
    pub decisions: u64,
}

impl Scheduler {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            peers: Peers::default(),
            tasks: HashMap::new(),
            traces: Traces::new(),
            changed: VecDeque::new(),
            deadlines: BTreeSet::new(),
            next_turn: 0,
            open_tasks: 0,
            decisions: 0,
        }
    }

    /// Takes in one event at `now`, the time since the start, which never goes back. Events of peers that have
    /// not announced themselves change nothing.
    pub fn apply(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::PeerAnnounced(info) => return self.announce(info),
            Event::PeerGone { peer } => self.leave(&peer),
            Event::Load { peer, upload_bytes_in_flight } => {
                if let Some(peer) = self.peers.find(&peer).and_then(|slot| self.peers.get_mut(slot)) {
                    peer.upload_bytes_in_flight = upload_bytes_in_flight;
                }
            }
            Event::TaskOpened { peer, task } => return self.open(peer, task, now),
            Event::TaskClosed { peer, task } => self.close(&peer, task),
            Event::Inventory { peer, task, state } => return self.report(peer, task, state, now),
            Event::TracePublished { peer, image, body } => {
                let published = self.peers.find(&peer).map_or(Ok(()), |_| self.traces.publish(image, body));
                if published.is_err() {
                    return refuse(peer, Refusal::TraceSize);
                }
            }
            Event::TraceWanted { peer, image } => {
                let body = self.traces.get(&image);
                return vec![Action::SendTrace { to: peer, image, body }];
            }
            Event::Tick => return self.tick(now),
        }
        Vec::new()
    }

    /// Whose disks an image is to be put on, in no order: among those who are connected now. Changes nothing.
    pub fn preheat_targets(&self, scope: PreheatScope, image: &Sha256Digest) -> Vec<PeerId> {
        preheat::targets(&self.peers, scope, image)
    }

    /// Everybody who is connected.
    pub fn peers(&self) -> impl Iterator<Item = &PeerInfo> {
        self.peers.iter().map(|peer| &*peer.info)
    }

    pub fn stats(&self) -> Stats {
        Stats {
            nodes: self.peers.count(Role::Node),
            seeds: self.peers.count(Role::Seed),
            tasks: self.tasks.len(),
            open_tasks: self.open_tasks,
            traces: self.traces.count(),
            trace_bytes: self.traces.bytes(),
            decisions: self.decisions,
        }
    }

    fn announce(&mut self, info: PeerInfo) -> Vec<Action> {
        self.leave(&info.id);
        let (id, role) = (info.id.clone(), info.role);
        if self.peers.insert(info).is_none() {
            return refuse(id, Refusal::Peers);
        }
        if role == Role::Seed {
            self.reconsider_unleased();
        }
        Vec::new()
    }

    /// A seed that comes can take leases that nobody could; those tasks are all waiting for a deadline.
    fn reconsider_unleased(&mut self) {
        let waiting: Vec<_> = self.deadlines.iter().map(|(_, task)| *task).collect();
        for id in waiting {
            if self.tasks.get(&id).is_some_and(|task| task.lease_holder().is_none()) {
                self.mark_changed(id);
            }
        }
    }

    fn leave(&mut self, id: &PeerId) {
        let Some(slot) = self.peers.find(id) else { return };
        let Some(peer) = self.peers.remove(slot) else { return };
        for id in &peer.open {
            self.drop_opener(slot, id);
        }
        for id in peer.known.iter().chain(&peer.open).chain(&peer.leases) {
            let Some(task) = self.tasks.get_mut(id) else { continue };
            let told = task.forget(slot) || peer.leases.contains(id);
            self.settle_task(*id, told);
        }
    }

    fn open(&mut self, peer: PeerId, id: Sha256Digest, now: Duration) -> Vec<Action> {
        let Some(slot) = self.peers.find(&peer) else { return Vec::new() };
        if !self.tasks.contains_key(&id) && self.tasks.len() >= MAX_TASKS {
            return refuse(peer, Refusal::Tasks);
        }
        let Some(asker) = self.peers.get_mut(slot) else { return Vec::new() };
        if !asker.open.contains(&id) && asker.open.len() >= MAX_OPEN_PER_PEER {
            return refuse(peer, Refusal::OpenTasks);
        }
        asker.open.insert(id);
        let task = self.tasks.entry(id).or_default();
        self.next_turn += 1;
        let turn = self.next_turn;
        self.open_tasks += usize::from(task.openers.is_empty());
        task.openers.entry(slot).or_insert_with(|| crate::task::Opener { turn, ..Default::default() }).told =
            None;
        if self.renew_lease(id, now) {
            self.mark_changed(id);
        }
        self.decide(slot, id).into_iter().collect()
    }

    fn close(&mut self, peer: &PeerId, id: Sha256Digest) {
        let Some(slot) = self.peers.find(peer) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.open.remove(&id) {
            let leased = peer.leases.contains(&id);
            self.drop_opener(slot, &id);
            self.settle_task(id, leased);
        }
    }

    fn report(&mut self, peer: PeerId, id: Sha256Digest, state: HoldState, now: Duration) -> Vec<Action> {
        let Some(slot) = self.peers.find(&peer) else { return Vec::new() };
        let Some(reporter) = self.peers.get_mut(slot) else { return Vec::new() };
        let role = reporter.info.role;
        if state == HoldState::None {
            reporter.known.remove(&id);
        } else if !reporter.known.contains(&id) {
            if reporter.known.len() >= MAX_TASKS_PER_PEER {
                return refuse(peer, Refusal::TasksOfPeer);
            }
            if !self.tasks.contains_key(&id) && self.tasks.len() >= MAX_TASKS {
                return refuse(peer, Refusal::Tasks);
            }
            reporter.known.insert(id);
            self.tasks.entry(id).or_default();
        }
        let Some(task) = self.tasks.get_mut(&id) else { return Vec::new() };
        let told = task.report(slot, role, state, now);
        let moved = told && self.renew_lease(id, now);
        self.settle_task(id, told || moved);
        Vec::new()
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        while let Some((_, id)) = self.deadlines.first().copied().filter(|(due, _)| *due <= now) {
            self.deadlines.pop_first();
            let moved = self.renew_lease(id, now);
            self.settle_task(id, moved);
        }
        let mut actions = Vec::new();
        let mut budget = MAX_PUSHES_PER_TICK;
        for _ in 0..self.changed.len() {
            let Some(id) = self.changed.pop_front() else { break };
            if self.renew_lease(id, now) {
                self.tasks.get_mut(&id).map(Task::begin_lap);
            }
            while let Some(slot) = self.next_opener(&id, &mut budget) {
                actions.extend(self.decide(slot, id));
            }
            match self.tasks.get(&id) {
                Some(task) if !task.lap_is_over() => self.changed.push_back(id),
                _ => self.settle_task(id, false),
            }
            if budget == 0 {
                break;
            }
        }
        actions
    }

    fn next_opener(&mut self, id: &Sha256Digest, budget: &mut usize) -> Option<Slot> {
        *budget = budget.checked_sub(1)?;
        self.tasks.get_mut(id)?.next_in_lap()
    }

    /// Forgets a task that nobody holds or wants; queues one whose openers should be told.
    fn settle_task(&mut self, id: Sha256Digest, told: bool) {
        if self.tasks.get(&id).is_some_and(Task::is_idle) {
            self.tasks.remove(&id);
        } else if told {
            self.mark_changed(id);
        }
    }

    fn mark_changed(&mut self, id: Sha256Digest) {
        if self.tasks.get_mut(&id).is_some_and(Task::begin_lap) {
            self.changed.push_back(id);
        }
    }

    /// True when the holder changed.
    fn renew_lease(&mut self, id: Sha256Digest, now: Duration) -> bool {
        let moment = Moment { now, settled_at: self.settings.settle };
        let Some(task) = self.tasks.get_mut(&id) else { return false };
        let before = task.lease_holder();
        task.renew_lease(&id, &self.peers, moment);
        let after = task.lease_holder();
        if let Some(deadline) = task.next_deadline(moment) {
            self.deadlines.insert((deadline, id));
        }
        if before == after {
            return false;
        }
        if let Some(loser) = before.and_then(|slot| self.peers.get_mut(slot)) {
            loser.leases.remove(&id);
        }
        if let Some(winner) = after.and_then(|slot| self.peers.get_mut(slot)) {
            winner.leases.insert(id);
        }
        true
    }

    /// Chooses an opener's parents; the assignment if it differs from what the opener was told last.
    fn decide(&mut self, slot: Slot, id: Sha256Digest) -> Option<Action> {
        self.decisions += 1;
        let asker = self.peers.get(slot)?;
        let task = self.tasks.get_mut(&id)?;
        let told = task.state();
        let lease = match told.holder {
            Some(holder) if holder == slot => Lease::Yourself(asker.info.clone()),
            Some(holder) => Lease::Peer(self.peers.get(holder)?.info.clone()),
            None if told.complete => Lease::Unneeded,
            None => Lease::Nobody,
        };
        let draws = choice::draw_seed(asker.name_hash, &id, 0);
        let opener = task.openers.get_mut(&slot)?;
        let choice = Choice { holders: &task.holders, peers: &self.peers, asker: slot, draws };
        let links = choice.links(&opener.links);
        if opener.links == links && opener.told == Some(told) {
            return None;
        }
        let to = asker.info.id.clone();
        opener.told = Some(told);
        let before = std::mem::replace(&mut opener.links, links.clone());
        for link in before {
            self.count_link(link.slot, |links| links.saturating_sub(1));
        }
        for link in &links {
            self.count_link(link.slot, |links| links.saturating_add(1));
        }
        let parents =
            links.iter().filter_map(|link| Some(choice::parent(self.peers.get(link.slot)?, link.class)));
        let assignment = Assignment { task: id, parents: parents.collect(), index: told.index, lease };
        Some(Action::Assign { to, assignment })
    }

    fn drop_opener(&mut self, slot: Slot, id: &Sha256Digest) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let Some(opener) = task.openers.remove(&slot) else { return };
        self.open_tasks -= usize::from(task.openers.is_empty());
        for link in opener.links {
            self.count_link(link.slot, |links| links.saturating_sub(1));
        }
    }

    fn count_link(&mut self, slot: Slot, change: impl Fn(u32) -> u32) {
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.links = change(peer.links);
        }
    }
}

fn refuse(to: PeerId, reason: Refusal) -> Vec<Action> {
    vec![Action::Refuse { to, reason }]
}
