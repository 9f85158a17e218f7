//! Between the wire and the core: parsed once, here.

use std::net::IpAddr;
use std::sync::Arc;

use d7y_proto::scheduler as wire;
use d7y_scheduler_core::{
    Assignment, Event, HoldState, IndexState, Lease, Parent, PeerId, PeerIdError, PeerInfo, Role,
};
use d7y_types::{AddressError, Sha256Digest, advertised};

use crate::grant::Grant;

/// A message that breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{field} has {length} bytes; a SHA-256 digest has 32")]
    Digest { field: &'static str, length: usize },
    #[error("Announce.peer_id is refused")]
    PeerId(#[from] PeerIdError),
    #[error("Announce.role is neither node nor seed")]
    Role,
    #[error("Announce.address is refused")]
    Address(#[from] AddressError),
    #[error("Inventory.state {0} is unknown")]
    State(i32),
    #[error("Announce came a second time in one session")]
    SecondAnnounce,
}

pub(crate) fn announce(announce: wire::Announce, remote: Option<IpAddr>) -> Result<PeerInfo, WireError> {
    let role = match announce.role() {
        wire::Role::Node => Role::Node,
        wire::Role::Seed => Role::Seed,
        wire::Role::Unspecified => return Err(WireError::Role),
    };
    let id = PeerId::new(&announce.peer_id)?;
    Ok(PeerInfo { id, role, address: advertised(&announce.address, remote)? })
}

/// The event that a message after the announcement stands for; none for messages of a newer contract.
pub(crate) fn event(peer: &PeerId, message: wire::PeerMessage) -> Result<Option<Event>, WireError> {
    use wire::peer_message::Message;
    let peer = peer.clone();
    Ok(Some(match message.message {
        // What peers say of preheats is not the core's.
        None | Some(Message::PreheatProgress(_)) => return Ok(None),
        Some(Message::Announce(_)) => return Err(WireError::SecondAnnounce),
        Some(Message::Open(open)) => Event::TaskOpened { peer, task: digest("OpenTask.task", &open.task)? },
        Some(Message::Close(close)) => {
            Event::TaskClosed { peer, task: digest("CloseTask.task", &close.task)? }
        }
        Some(Message::Inventory(inventory)) => {
            let task = digest("Inventory.task", &inventory.task)?;
            Event::Inventory { peer, task, state: hold_state(inventory.state)? }
        }
        Some(Message::PublishTrace(trace)) => {
            let image = digest("PublishTrace.image", &trace.image)?;
            Event::TracePublished { peer, image, body: trace.body.into() }
        }
        Some(Message::GetTrace(wanted)) => {
            Event::TraceWanted { peer, image: digest("GetTrace.image", &wanted.image)? }
        }
        Some(Message::Heartbeat(heartbeat)) => {
            Event::Load { peer, upload_bytes_in_flight: heartbeat.upload_bytes_in_flight }
        }
    }))
}

fn digest(field: &'static str, raw: &[u8]) -> Result<Sha256Digest, WireError> {
    raw.try_into().map(Sha256Digest).map_err(|_| WireError::Digest { field, length: raw.len() })
}

fn hold_state(state: i32) -> Result<HoldState, WireError> {
    use wire::inventory::State;
    match State::try_from(state) {
        Ok(State::None) => Ok(HoldState::None),
        Ok(State::Partial) => Ok(HoldState::Partial),
        Ok(State::Complete) => Ok(HoldState::Complete),
        Ok(State::Ingesting) => Ok(HoldState::Ingesting),
        Ok(State::Failed) => Ok(HoldState::Failed),
        Ok(State::Unspecified) | Err(_) => Err(WireError::State(state)),
    }
}

pub(crate) fn welcome(heartbeat_interval_ms: u32) -> wire::SchedulerMessage {
    outgoing(wire::scheduler_message::Message::Welcome(wire::Welcome { heartbeat_interval_ms }))
}

pub(crate) fn assignment(assignment: &Assignment) -> wire::SchedulerMessage {
    let holder = match &assignment.lease {
        Lease::Yourself(peer) | Lease::Peer(peer) => Some(weighted(peer, 1)),
        Lease::Unneeded | Lease::Nobody => None,
    };
    let (ingester, fallback) = match assignment.index {
        IndexState::Absent => (holder, None),
        IndexState::Known => (None, holder),
    };
    let ingest_yourself = ingester.is_some() && matches!(assignment.lease, Lease::Yourself(_));
    outgoing(wire::scheduler_message::Message::Assignment(wire::Assignment {
        task: assignment.task.0.to_vec(),
        parents: assignment.parents.iter().map(parent).collect(),
        ingester,
        ingest_yourself,
        fallback,
    }))
}

pub(crate) fn trace(image: &Sha256Digest, body: &Arc<[u8]>) -> wire::SchedulerMessage {
    let trace = wire::Trace { image: image.0.to_vec(), body: body.to_vec() };
    outgoing(wire::scheduler_message::Message::Trace(trace))
}

pub(crate) fn grant(grant: &Grant) -> wire::SchedulerMessage {
    outgoing(wire::scheduler_message::Message::Grant(grant.to_wire()))
}

pub(crate) fn preheat(order: &wire::Preheat) -> wire::SchedulerMessage {
    outgoing(wire::scheduler_message::Message::Preheat(order.clone()))
}

pub(crate) fn end_preheat(job: &str) -> wire::SchedulerMessage {
    outgoing(wire::scheduler_message::Message::EndPreheat(wire::EndPreheat { job: job.to_owned() }))
}

fn parent(parent: &Parent) -> wire::Parent {
    weighted(&parent.peer, parent.weight)
}

fn weighted(peer: &PeerInfo, weight: u32) -> wire::Parent {
    let role = match peer.role {
        Role::Node => wire::Role::Node,
        Role::Seed => wire::Role::Seed,
    };
    wire::Parent { peer_id: peer.id.to_string(), address: peer.address.clone(), role: role.into(), weight }
}

fn outgoing(message: wire::scheduler_message::Message) -> wire::SchedulerMessage {
    wire::SchedulerMessage { message: Some(message) }
}
