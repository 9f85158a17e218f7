//! The decision core, and the outboxes of those who are connected.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use d7y_scheduler_core::{Action, Event, PeerId, PeerInfo, Refusal, Scheduler, Settings};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::outbox::{Outbox, Outgoing};
use crate::status::SessionEnd;

#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    started: Instant,
    pub metrics: Metrics,
}

#[derive(Debug)]
struct State {
    core: Scheduler,
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
        let state = State { core, sessions: HashMap::new(), next_session: 0 };
        Self { state: Mutex::new(state), started: Instant::now(), metrics }
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
        self.carry_out(&mut state, Event::PeerAnnounced(info));
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
        }
    }

    pub fn tick(&self) {
        let mut state = self.state.lock();
        self.carry_out(&mut state, Event::Tick);
        self.metrics.show(&state.core.stats());
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
