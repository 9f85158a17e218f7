//! One small request, for health, metrics and the manager's REST.

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
    send(address, &format!("GET {path}"), "", "")
}

/// As [`get`], with a value of the Authorization header.
///
/// # Errors
/// As [`get`].
pub fn get_as(address: SocketAddr, path: &str, authorization: &str) -> Result<String> {
    send(address, &format!("GET {path}"), &format!("Authorization: {authorization}\r\n"), "")
}

/// Posts JSON.
///
/// # Errors
/// As [`get`].
pub fn post(address: SocketAddr, path: &str, authorization: &str, json: &str) -> Result<String> {
    let length = json.len();
    let headers = format!(
        "Authorization: {authorization}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    );
    send(address, &format!("POST {path}"), &headers, json)
}

fn send(address: SocketAddr, what: &str, headers: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the body ends with the connection, no chunks.
    write!(stream, "{what} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n{body}")?;
    let mut answer = Vec::new();
    stream.take(LIMIT).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without end of headers")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{what} at {address}: {}: {body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
