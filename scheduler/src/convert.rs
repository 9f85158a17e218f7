//! Between the wire and the core: parsed once, here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use d7y_proto::scheduler as wire;
use d7y_scheduler_core::{
    Assignment, Event, HoldState, IndexState, Lease, Parent, PeerId, PeerIdError, PeerInfo, Role,
};
use d7y_types::Sha256Digest;

/// A DNS name and a port.
const MAX_ADDRESS_BYTES: usize = PeerId::MAX_LENGTH + 6;

/// A message that breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{field} has {length} bytes; a SHA-256 digest has 32")]
    Digest { field: &'static str, length: usize },
    #[error("Announce.peer_id is refused")]
    PeerId(#[from] PeerIdError),
    #[error("Announce.role is neither node nor seed")]
    Role,
    #[error("Announce.address {0:?} is not host:port")]
    Address(String),
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
    Ok(PeerInfo { id, role, address: address(announce.address, remote)? })
}

fn address(text: String, remote: Option<IpAddr>) -> Result<String, WireError> {
    let refuse = |text: &str| WireError::Address(text.chars().take(MAX_ADDRESS_BYTES).collect());
    if let Ok(mut socket) = text.parse::<SocketAddr>() {
        match remote {
            _ if socket.port() == 0 => return Err(refuse(&text)),
            Some(ip) if socket.ip().is_unspecified() => socket.set_ip(ip.to_canonical()),
            None if socket.ip().is_unspecified() => return Err(refuse(&text)),
            _ => {}
        }
        return Ok(socket.to_string());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse(&text))?;
    let name = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    let port = port.parse::<u16>().is_ok_and(|port| port != 0);
    if name && port && text.len() <= MAX_ADDRESS_BYTES { Ok(text) } else { Err(refuse(&text)) }
}

/// The event that a message after the announcement stands for; none for messages of a newer contract.
pub(crate) fn event(peer: &PeerId, message: wire::PeerMessage) -> Result<Option<Event>, WireError> {
    use wire::peer_message::Message;
    let peer = peer.clone();
    Ok(Some(match message.message {
        None => return Ok(None),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let seen: Option<IpAddr> = Some("10.1.2.3".parse().unwrap());
        for (given, expected) in [
            ("192.0.2.1:4000", Some("192.0.2.1:4000")),
            ("0.0.0.0:4000", Some("10.1.2.3:4000")),
            ("[::]:4000", Some("10.1.2.3:4000")),
            ("[2001:db8::1]:4000", Some("[2001:db8::1]:4000")),
            ("node-1.example:4000", Some("node-1.example:4000")),
            ("192.0.2.1:0", None),
            ("192.0.2.1", None),
            ("node-1:", None),
            (":4000", None),
            ("a b:4000", None),
            ("node-1:70000", None),
            ("", None),
        ] {
            assert_eq!(address(given.to_owned(), seen).ok().as_deref(), expected, "{given:?}");
        }
        assert!(address("0.0.0.0:4000".to_owned(), None).is_err());
        assert!(address(format!("{}:1", "a".repeat(300)), seen).is_err());
    }
}
