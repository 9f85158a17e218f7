//! One small GET, for health and metrics.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const PATIENCE: Duration = Duration::from_secs(5);

/// Larger answers are cut: metrics of one daemon are some ten kilobytes.
const LIMIT: u64 = 8 << 20;

/// The body of an answer with status 200.
///
/// # Errors
/// Any other status; nobody listens; no answer within five seconds.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the body ends with the connection, no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LIMIT).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without end of headers")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("http://{address}{path}: {}: {body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
