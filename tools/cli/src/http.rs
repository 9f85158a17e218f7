//! One small request to a daemon's port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);
/// Larger answers are cut: a daemon's status is some kilobytes.
const MAX_ANSWER_BYTES: u64 = 8 << 20;

pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// What is asked of a daemon.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Value of the Authorization header.
    pub authorization: Option<&'a str>,
    /// A body in JSON.
    pub json: Option<&'a str>,
}

pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    send(address, &Request { method: "GET", path, authorization: None, json: None }).await
}

pub async fn send(address: SocketAddr, request: &Request<'_>) -> Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(text(address, request).as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(PATIENCE, exchange).await.context("no answer within 5s")??;
    parse(&String::from_utf8_lossy(&answer)).context("what answers there does not speak HTTP")
}

/// HTTP/1.0: the answer's body ends with the connection, no chunks.
fn text(address: SocketAddr, request: &Request<'_>) -> String {
    let Request { method, path, authorization, json } = request;
    let authorization = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let body = json.unwrap_or_default();
    let content = match json {
        Some(body) => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
        None => String::new(),
    };
    format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n{authorization}{content}\r\n{body}")
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

/// A wildcard is an address to listen on, not to ask.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip().is_unspecified() {
        true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        false => address,
    }
}
