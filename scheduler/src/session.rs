//! One peer's session, from its announcement to its end.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use d7y_chassis::{DrainGuard, OnEnd, Tasks};
use d7y_proto::scheduler::peer_message::Message;
use d7y_proto::scheduler::{PeerMessage, SchedulerMessage, scheduler_server};
use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::convert;
use crate::hub::{Hub, Member};
use crate::outbox::{Next, Outbox, Outgoing};
use crate::status::SessionEnd;

/// Heartbeat intervals without a word, or without a message taken, after which a peer is gone.
const MISSED_HEARTBEATS: u32 = 3;
/// How long a new session may take to announce itself.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Sessions that have not announced themselves yet; a whole cluster reconnecting comes in waves of this size.
const MAX_UNANNOUNCED: usize = 4096;

/// The session service.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    hub: Arc<Hub>,
    tasks: Tasks,
    heartbeat: Duration,
    unannounced: Arc<Semaphore>,
}

type Outbound = Pin<Box<dyn Stream<Item = Result<SchedulerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl scheduler_server::Scheduler for Sessions {
    type SessionStream = Outbound;

    async fn session(&self, request: Request<Streaming<PeerMessage>>) -> Result<Response<Outbound>, Status> {
        if self.tasks.shutdown().has_begun() {
            return Err(Status::unavailable(SessionEnd::Draining.to_string()));
        }
        let newcomer = self.unannounced.clone().try_acquire_owned();
        let newcomer =
            newcomer.map_err(|_| Status::unavailable("too many sessions are opening; try again"))?;
        let remote = request.remote_addr().map(|address| address.ip());
        let outbox = Arc::new(Outbox::default());
        let arrival = Arrival { inbound: request.into_inner(), remote, newcomer, outbox: outbox.clone() };
        let sessions = self.clone();
        self.tasks.spawn("session", OnEnd::Expected, async move {
            sessions.attend(arrival).await;
            Ok::<_, Infallible>(())
        });
        Ok(Response::new(outbound(outbox, self.tasks.shutdown().drain_guard())))
    }
}

struct Arrival {
    inbound: Streaming<PeerMessage>,
    remote: Option<IpAddr>,
    newcomer: OwnedSemaphorePermit,
    outbox: Arc<Outbox>,
}

impl Sessions {
    pub fn new(hub: Arc<Hub>, tasks: Tasks, heartbeat: Duration) -> Self {
        Self { hub, tasks, heartbeat, unannounced: Arc::new(Semaphore::new(MAX_UNANNOUNCED)) }
    }

    async fn attend(self, mut arrival: Arrival) {
        let outbox = arrival.outbox.clone();
        let announced = tokio::select! {
            announced = self.welcome(&mut arrival) => announced,
            () = self.tasks.shutdown().closing().cancelled_owned() => Err(SessionEnd::Draining),
        };
        let end = match announced {
            Ok(member) => {
                drop(arrival.newcomer);
                let end = self.listen(&member, arrival.inbound, &outbox).await;
                tracing::info!(peer = %member.peer, "session ended: {end}");
                // The cluster is not smaller because the scheduler goes.
                if !matches!(end, SessionEnd::Draining) {
                    self.hub.leave(&member);
                }
                end
            }
            Err(end) => {
                tracing::info!(remote = ?arrival.remote, "session refused: {end}");
                end
            }
        };
        self.hub.metrics.session_ended(&end);
        outbox.close(end);
    }

    async fn welcome(&self, arrival: &mut Arrival) -> Result<Member, SessionEnd> {
        let first = tokio::time::timeout(ANNOUNCE_TIMEOUT, arrival.inbound.message()).await;
        let message = match first {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) | Err(_) => return Err(SessionEnd::NoAnnounce(ANNOUNCE_TIMEOUT)),
            Ok(Err(status)) => return Err(SessionEnd::Broken(status.message().to_owned())),
        };
        let Some(Message::Announce(announce)) = message.message else {
            return Err(SessionEnd::NoAnnounce(ANNOUNCE_TIMEOUT));
        };
        let (version, incarnation) = (announce.version.clone(), announce.incarnation.clone());
        let info = convert::announce(announce, arrival.remote)?;
        let (id, role, address) = (info.id.clone(), info.role, info.address.clone());
        let heartbeat_interval_ms = u32::try_from(self.heartbeat.as_millis()).unwrap_or(u32::MAX);
        let member = self.hub.join(info, incarnation.clone(), &arrival.outbox)?;
        // It has opened nothing yet: nothing was queued before this.
        arrival.outbox.push(Outgoing::Welcome { heartbeat_interval_ms });
        tracing::info!(peer = %id, ?role, address, version, incarnation, "joined");
        Ok(member)
    }

    async fn listen(
        &self,
        member: &Member,
        mut inbound: Streaming<PeerMessage>,
        outbox: &Outbox,
    ) -> SessionEnd {
        let patience = self.heartbeat * MISSED_HEARTBEATS;
        let closing = self.tasks.shutdown().closing();
        loop {
            let message = tokio::select! {
                biased;
                () = closing.cancelled() => return SessionEnd::Draining,
                end = outbox.closed() => return end,
                message = tokio::time::timeout(patience, inbound.message()) => message,
            };
            let message = match message {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return SessionEnd::Closed,
                Ok(Err(status)) => return SessionEnd::Broken(status.message().to_owned()),
                Err(_) => return SessionEnd::Silent(patience),
            };
            self.hub.metrics.messages.inc();
            match message.message {
                Some(Message::PreheatProgress(said)) => self.hub.preheat_progress(member, said),
                message => match convert::event(&member.peer, PeerMessage { message }) {
                    Ok(Some(event)) => self.hub.apply(member, event),
                    Ok(None) => {}
                    Err(error) => return error.into(),
                },
            }
            if outbox.stalled_for(Instant::now()) > patience {
                return SessionEnd::NotReading;
            }
        }
    }
}

/// The outbox as the response's body; the drain waits until it has been sent.
fn outbound(outbox: Arc<Outbox>, guard: DrainGuard) -> Outbound {
    Box::pin(stream::unfold(Some((outbox, guard)), async |open| {
        let (outbox, guard) = open?;
        match outbox.next().await {
            Next::Message(message) => Some((Ok(message), Some((outbox, guard)))),
            Next::End(end) => end.status().map(|status| (Err(status), None)),
        }
    }))
}
