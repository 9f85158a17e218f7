//! What both ends of a connection do: socket options and the exchange of hellos.

use std::time::Duration;

use bytes::Bytes;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::codec::{Header, Kind, MAX_REQUEST_BYTES, PROTOCOL_VERSION, WireError, frame, read_frame};

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
    let hello = frame(Header::new(Kind::Hello, 0, PROTOCOL_VERSION, me.len()), me.as_bytes());
    Ok(output.write_all(&hello).await?)
}

/// The other side's id and the version that it speaks.
pub(crate) async fn read_hello(input: &mut (impl AsyncRead + Unpin)) -> Result<(Bytes, u32), WireError> {
    let (header, payload) = read_frame(input, MAX_REQUEST_BYTES).await?;
    match header.kind {
        Kind::Hello => Ok((payload, header.number)),
        _ => Err(WireError::Protocol("not a hello")),
    }
}

pub(crate) fn check_version(theirs: u32) -> Result<(), WireError> {
    if theirs == PROTOCOL_VERSION { Ok(()) } else { Err(WireError::Version(theirs)) }
}
