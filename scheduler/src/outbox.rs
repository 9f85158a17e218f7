//! What waits to be sent to one peer: bounded, and of each task only the newest assignment.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use d7y_proto::scheduler::{Preheat, SchedulerMessage};
use d7y_scheduler_core::{Assignment, MAX_OPEN_PER_PEER};
use d7y_types::Sha256Digest;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::convert;
use crate::grant::Grant;
use crate::status::SessionEnd;

/// Messages waiting for one peer: an assignment for all that it may have open, and some traces.
const MAX_WAITING: usize = MAX_OPEN_PER_PEER + 64;

/// Encoded only when it is sent: a trace waits as a shared body.
#[derive(Debug, Clone)]
pub(crate) enum Outgoing {
    Welcome { heartbeat_interval_ms: u32 },
    Assignment(Assignment),
    Trace { image: Sha256Digest, body: Arc<[u8]> },
    Grant(Arc<Grant>),
    Preheat(Arc<Preheat>),
    EndPreheat { job: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Welcome,
    Task(Sha256Digest),
    Image(Sha256Digest),
    /// Registry and repository.
    Grant(String, String),
    Job(String),
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    ready: Notify,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Key>,
    waiting: HashMap<Key, Outgoing>,
    end: Option<SessionEnd>,
    /// Since when the peer has taken nothing although something waits.
    stalled_since: Option<Instant>,
}

/// What comes next for the peer.
pub(crate) enum Next {
    Message(SchedulerMessage),
    End(SessionEnd),
}

impl Outgoing {
    fn key(&self) -> Key {
        match self {
            Self::Welcome { .. } => Key::Welcome,
            Self::Assignment(assignment) => Key::Task(assignment.task),
            Self::Trace { image, .. } => Key::Image(*image),
            Self::Grant(grant) => {
                let (registry, repository) = grant.place();
                Key::Grant(registry, repository)
            }
            Self::Preheat(order) => Key::Job(order.job.clone()),
            Self::EndPreheat { job } => Key::Job(job.clone()),
        }
    }

    fn encode(&self) -> SchedulerMessage {
        match self {
            Self::Welcome { heartbeat_interval_ms } => convert::welcome(*heartbeat_interval_ms),
            Self::Assignment(assignment) => convert::assignment(assignment),
            Self::Trace { image, body } => convert::trace(image, body),
            Self::Grant(grant) => convert::grant(grant),
            Self::Preheat(order) => convert::preheat(order),
            Self::EndPreheat { job } => convert::end_preheat(job),
        }
    }
}

impl Outbox {
    /// Queues a message, in the place of an older one for the same task or image if there is one.
    pub fn push(&self, message: Outgoing) {
        let mut queue = self.queue.lock();
        if queue.end.is_some() {
            return;
        }
        let key = message.key();
        if queue.waiting.len() >= MAX_WAITING && !queue.waiting.contains_key(&key) {
            drop(queue);
            return self.close(SessionEnd::NotReading);
        }
        if queue.waiting.insert(key.clone(), message).is_none() {
            queue.order.push_back(key);
        }
        queue.stalled_since.get_or_insert_with(Instant::now);
        drop(queue);
        self.ready.notify_one();
    }

    /// Ends the session with the first reason given. What waits is still sent when the scheduler drains, and
    /// dropped otherwise.
    pub fn close(&self, end: SessionEnd) {
        let mut queue = self.queue.lock();
        if queue.end.is_none() {
            if !matches!(end, SessionEnd::Draining) {
                queue.order = VecDeque::new();
                queue.waiting = HashMap::new();
            }
            queue.end = Some(end);
        }
        drop(queue);
        self.closed.cancel();
        self.ready.notify_one();
    }

    /// Resolves once the outbox is closed, with the reason.
    pub async fn closed(&self) -> SessionEnd {
        self.closed.cancelled().await;
        self.queue.lock().end.clone().unwrap_or(SessionEnd::Closed)
    }

    /// For how long the peer has taken nothing although something waits.
    pub fn stalled_for(&self, now: Instant) -> Duration {
        self.queue.lock().stalled_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Waits for the next message; only one reader may.
    pub async fn next(&self) -> Next {
        loop {
            let taken = self.take();
            match taken {
                Some(next) => return next,
                None => self.ready.notified().await,
            }
        }
    }

    fn take(&self) -> Option<Next> {
        let mut queue = self.queue.lock();
        let message = queue.order.pop_front().and_then(|key| queue.waiting.remove(&key));
        queue.stalled_since = (!queue.order.is_empty()).then(Instant::now);
        let end = queue.end.clone();
        drop(queue);
        match message {
            Some(message) => Some(Next::Message(message.encode())),
            None => end.map(Next::End),
        }
    }
}

#[cfg(test)]
mod tests {
    use d7y_scheduler_core::{IndexState, Lease};

    use super::*;

    fn assignment(number: usize, index: IndexState) -> Outgoing {
        let mut task = [0; 32];
        task[..8].copy_from_slice(&number.to_le_bytes());
        let lease = Lease::Nobody;
        Outgoing::Assignment(Assignment { task: Sha256Digest(task), parents: Vec::new(), index, lease })
    }

    #[tokio::test]
    async fn the_newest_assignment_of_a_task_wins_and_keeps_its_place() {
        let outbox = Outbox::default();
        for message in [(1, IndexState::Absent), (2, IndexState::Absent), (1, IndexState::Known)] {
            outbox.push(assignment(message.0, message.1));
        }
        outbox.close(SessionEnd::Draining);
        for expected in [assignment(1, IndexState::Known), assignment(2, IndexState::Absent)] {
            let Next::Message(message) = outbox.next().await else { panic!("the outbox ended early") };
            assert_eq!(message, expected.encode());
        }
        assert!(matches!(outbox.next().await, Next::End(SessionEnd::Draining)));
    }

    #[tokio::test]
    async fn a_full_outbox_closes_and_frees_what_waits() {
        let outbox = Outbox::default();
        for number in 0..=MAX_WAITING {
            outbox.push(assignment(number, IndexState::Absent));
        }
        assert!(matches!(outbox.closed().await, SessionEnd::NotReading));
        assert_eq!(outbox.queue.lock().waiting.capacity(), 0);
        assert!(matches!(outbox.next().await, Next::End(SessionEnd::NotReading)));
    }

    #[tokio::test]
    async fn a_stall_is_counted_from_the_last_message_taken() {
        let outbox = Outbox::default();
        let patience = Duration::from_secs(7);
        assert_eq!(outbox.stalled_for(Instant::now() + patience), Duration::ZERO);
        outbox.push(assignment(1, IndexState::Absent));
        outbox.push(assignment(2, IndexState::Absent));
        let queued = Instant::now();
        assert!(outbox.stalled_for(queued + patience) >= patience);
        outbox.next().await;
        assert!(outbox.stalled_for(queued + patience) <= patience, "counted from the message taken");
        outbox.next().await;
        assert_eq!(outbox.stalled_for(queued + patience), Duration::ZERO, "nothing waits");
    }
}
