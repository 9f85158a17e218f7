//! What both ends of a connection do: socket options and the exchange of hellos.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::codec::{
    Header, Kind, MAX_REQUEST_BYTES, PROTOCOL_VERSION, UNDERSTANDS_FOLLOWING, UNDERSTANDS_GET_FOR, WireError,
    frame, read_frame,
};

/// A server's send buffer: what a demand has to wait behind. 256 KiB carry 1 Gbit/s at 2 ms.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// A host that vanished without a word is noticed after this long and [`PROBES`] probes.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// Requests are small and servers read them at once: one that is not acknowledged for this long never will be.
const UNACKNOWLEDGED_MS: u32 = 20_000;

/// Chunks go out as they are ready, and silence is told from death.
pub(crate) fn prepare(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(socket, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    Ok(())
}

pub(crate) fn prepare_server(socket: &TcpStream) -> std::io::Result<()> {
    prepare(socket)?;
    Ok(sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER_BYTES)?)
}

pub(crate) fn prepare_client(socket: &TcpStream) -> std::io::Result<()> {
    prepare(socket)?;
    Ok(sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MS)?)
}

pub(crate) async fn send_hello(output: &mut (impl AsyncWrite + Unpin), me: &str) -> Result<(), WireError> {
    let understands = UNDERSTANDS_GET_FOR | UNDERSTANDS_FOLLOWING;
    let header = Header::new(Kind::Hello, understands, PROTOCOL_VERSION, me.len());
    let hello = frame(header, me.as_bytes());
    Ok(output.write_all(&hello).await?)
}

/// What the other side says of itself.
pub(crate) struct Hello {
    peer_id: Bytes,
    version: u32,
    understands: u32,
}

pub(crate) async fn read_hello(input: &mut (impl AsyncRead + Unpin)) -> Result<Hello, WireError> {
    let (header, peer_id) = read_frame(input, MAX_REQUEST_BYTES).await?;
    match header.kind {
        Kind::Hello => Ok(Hello { peer_id, version: header.number, understands: header.stream }),
        _ => Err(WireError::Protocol("not a hello")),
    }
}

impl Hello {
    /// The peer's id.
    pub fn name(&self) -> Arc<str> {
        String::from_utf8_lossy(&self.peer_id).into()
    }

    pub fn check_version(&self) -> Result<(), WireError> {
        if self.version == PROTOCOL_VERSION { Ok(()) } else { Err(WireError::Version(self.version)) }
    }

    pub fn understands_get_for(&self) -> bool {
        self.understands & UNDERSTANDS_GET_FOR != 0
    }

    pub fn understands_following(&self) -> bool {
        self.understands & UNDERSTANDS_FOLLOWING != 0
    }
}
