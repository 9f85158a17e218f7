//! The decision core, and the outboxes of those who are connected.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use d7y_proto::scheduler as wire;
use d7y_scheduler_core::{Action, Event, PeerId, PeerInfo, Refusal, Role, Scheduler, Settings};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::grant::Grant;
use crate::metrics::Metrics;
use crate::outbox::{Outbox, Outgoing};
use crate::preheats::{PreheatError, Preheats, Wanted};
use crate::status::SessionEnd;

#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    started: Instant,
    settle: Duration,
    /// Changes with every start of the process.
    incarnation: String,
    pub metrics: Metrics,
}

#[derive(Debug)]
struct State {
    core: Scheduler,
    preheats: Preheats,
    /// Grows when somebody comes or goes.
    crowd: u64,
    sessions: HashMap<PeerId, Session>,
    next_session: u64,
}

#[derive(Debug)]
struct Session {
    number: u64,
    outbox: Arc<Outbox>,
    incarnation: String,
    address: String,
}

/// A connected peer's place in the hub; worthless once the peer has a newer session.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub peer: PeerId,
    number: u64,
}

impl Hub {
    pub fn new(settle: Duration, metrics: Metrics) -> Self {
        let core = Scheduler::new(Settings { settle });
        let preheats = Preheats::default();
        let state = State { core, preheats, crowd: 0, sessions: HashMap::new(), next_session: 0 };
        let incarnation = format!("{:016x}", rand::random::<u64>());
        Self { state: Mutex::new(state), started: Instant::now(), settle, incarnation, metrics }
    }

    /// Announces a peer; an older session of the same peer ends. Another process under the same id is refused while
    /// the first one is there: the two would end each other's sessions for ever. One that has the first one's address is
    /// the first one started again.
    pub fn join(
        &self,
        info: PeerInfo,
        incarnation: String,
        outbox: &Arc<Outbox>,
    ) -> Result<Member, SessionEnd> {
        let mut state = self.state.lock();
        let older = state.sessions.get(&info.id);
        let other = |older: &&Session| older.incarnation != incarnation && older.address != info.address;
        if let Some(first) = older.filter(other) {
            return Err(SessionEnd::Taken { peer: info.id, address: first.address.clone() });
        }
        state.next_session += 1;
        let member = Member { peer: info.id.clone(), number: state.next_session };
        let address = info.address.clone();
        let session = Session { number: member.number, outbox: outbox.clone(), incarnation, address };
        if let Some(older) = state.sessions.insert(info.id.clone(), session) {
            older.outbox.close(SessionEnd::Replaced);
        }
        let seed = info.role == Role::Seed;
        self.carry_out(&mut state, Event::PeerAnnounced(info));
        state.crowd += 1;
        for grant in state.preheats.grants_for(&member.peer, seed) {
            outbox.push(Outgoing::Grant(grant));
        }
        for order in state.preheats.orders_for(&member.peer) {
            outbox.push(Outgoing::Preheat(order));
        }
        Ok(member)
    }

    /// Takes in what a member says, unless it has a newer session.
    pub fn apply(&self, member: &Member, event: Event) {
        let mut state = self.state.lock();
        if state.is_current(member) {
            self.carry_out(&mut state, event);
        }
    }

    pub fn leave(&self, member: &Member) {
        let mut state = self.state.lock();
        if state.is_current(member) {
            state.sessions.remove(&member.peer);
            self.carry_out(&mut state, Event::PeerGone { peer: member.peer.clone() });
            state.crowd += 1;
            state.preheats.gone(&member.peer);
        }
    }

    pub fn tick(&self) {
        let mut state = self.state.lock();
        self.carry_out(&mut state, Event::Tick);
        for (job, peers) in state.preheats.expire(self.started.elapsed()) {
            state.tell_end(&job, peers);
        }
        self.metrics.show(&state.core.stats());
    }

    /// Takes in what a member says of a preheat, unless it has a newer session.
    pub fn preheat_progress(&self, member: &Member, said: wire::PreheatProgress) {
        let mut state = self.state.lock();
        if state.is_current(member) {
            state.preheats.progress(&member.peer, said);
        }
    }

    /// The manager wants a preheat, maybe not for the first time. `seen` is the incarnation and version of the last
    /// report that it has.
    pub fn preheat(
        &self,
        mut wanted: Wanted,
        seen: (String, u64),
    ) -> Result<wire::PreheatReport, PreheatError> {
        let now = self.started.elapsed();
        let settling = now < self.settle;
        let grant = wanted.grant.take();
        let (job, since) = (wanted.job().to_owned(), if seen.0 == self.incarnation { seen.1 } else { 0 });
        let mut state = self.state.lock();
        let known = state.preheats.is_known(&job);
        let peers = match wanted.peers.is_empty() && !known && !settling {
            true => state.core.preheat_targets(wanted.scope, &wanted.image),
            false => wanted.peers.clone(),
        };
        // Nobody to place it on: it is not begun, so that it is placed well when somebody is there.
        if known || !peers.is_empty() {
            let orders = state.preheats.want(wanted, peers, now)?;
            // Before the orders: nobody is to be refused for lack of it.
            if let Some((grant, peers)) = grant.and_then(|grant| state.preheats.grant(&job, grant)) {
                state.tell_grant(&grant, peers);
            }
            for (peer, order) in orders {
                match state.sessions.get(&peer) {
                    Some(session) => session.outbox.push(Outgoing::Preheat(order)),
                    None => state.preheats.gone(&peer),
                }
            }
        }
        let report = state.preheats.report(&job, since);
        Ok(wire::PreheatReport { incarnation: self.incarnation.clone(), settling, ..report })
    }

    pub fn end_preheat(&self, job: &str) {
        let mut state = self.state.lock();
        let peers = state.preheats.end(job);
        state.tell_end(job, peers);
    }

    /// Everybody who is connected, unless nobody came or went since `crowd`; and what to ask with next time.
    pub fn peers(&self, crowd: Option<u64>) -> Option<(Vec<PeerInfo>, u64)> {
        let state = self.state.lock();
        (crowd != Some(state.crowd)).then(|| (state.core.peers().cloned().collect(), state.crowd))
    }

    fn carry_out(&self, state: &mut State, event: Event) {
        for action in state.core.apply(event, self.started.elapsed()) {
            let (to, message) = match action {
                Action::Assign { to, assignment } => (to, Outgoing::Assignment(assignment)),
                Action::SendTrace { to, image, body } => (to, Outgoing::Trace { image, body }),
                Action::Refuse { to, reason } => {
                    state.refuse(&to, reason);
                    self.metrics.refusals.inc();
                    continue;
                }
            };
            if let Some(session) = state.sessions.get(&to) {
                self.metrics.count(&message);
                session.outbox.push(message);
            }
        }
    }
}

impl State {
    fn tell_end(&self, job: &str, peers: Vec<PeerId>) {
        for session in peers.iter().filter_map(|peer| self.sessions.get(peer)) {
            session.outbox.push(Outgoing::EndPreheat { job: job.to_owned() });
        }
    }

    /// To those who are at the job, and to the seeds, who read origins for them.
    fn tell_grant(&self, grant: &Arc<Grant>, peers: Vec<PeerId>) {
        let seeds = self.core.peers().filter(|peer| peer.role == Role::Seed).map(|peer| peer.id.clone());
        let told: BTreeSet<PeerId> = seeds.chain(peers).collect();
        for session in told.iter().filter_map(|peer| self.sessions.get(peer)) {
            session.outbox.push(Outgoing::Grant(grant.clone()));
        }
    }

    fn is_current(&self, member: &Member) -> bool {
        self.sessions.get(&member.peer).is_some_and(|session| session.number == member.number)
    }

    /// A peer that says what no peer may say is faulty and its session ends. One that meets a limit on tasks still
    /// works: it is recommended for less, or finds parents for what is refused as it does without a scheduler.
    fn refuse(&self, to: &PeerId, reason: Refusal) {
        tracing::warn!(peer = %to, "refused: {reason}");
        let Some(session) = self.sessions.get(to) else { return };
        match reason {
            Refusal::Peers | Refusal::TraceSize => session.outbox.close(reason.into()),
            Refusal::Tasks | Refusal::TasksOfPeer | Refusal::OpenTasks => {}
        }
    }
}
