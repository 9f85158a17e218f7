//! A registry in this process that speaks the real protocol (distribution specification: blobs, token and basic
//! authentication, ranges, redirects) and fails in the ways that real ones do, in the order that a test says.
//!
//! It listens on a free loopback port until it is dropped. Panics where a test cannot go on.

mod access;
mod body;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use d7y_types::{Compression, LayerRef, Sha256Digest};
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use access::Gate;
pub use access::{Access, Login};
use body::{Answer, cut, endless, stall, whole};

/// How the registry answers one GET of a blob that passed the access check.
#[derive(Debug, Clone)]
pub enum Turn {
    /// As it should.
    Serve,
    /// With this status and these headers, and no blob.
    Status(u16, Vec<(&'static str, String)>, String),
    /// With a redirect to this URL.
    Redirect(String),
    /// With a redirect to this very URL.
    RedirectToSelf,
    /// With the right head, then this many bytes, then the end of the connection.
    Cut(usize),
    /// With the right head, then this many bytes, then nothing for ever.
    Stall(usize),
    /// Not at all, on an open connection.
    StallHead,
    /// With a body that claims to have, and has, this many bytes, whatever the blob has.
    Length(usize),
    /// With the blob, and then without end, in a body of unknown length.
    Endless,
    /// With the blob in a body of unknown length that never says that it is over.
    Unfinished,
    /// With the head of the whole blob although a range was asked for, and its first bytes, at most this many.
    IgnoreRange(usize),
    /// With a range that begins this many bytes later than asked for.
    Shifted(usize),
    /// With at most this many bytes of the range that was asked for.
    Part(usize),
    /// With a Content-Range of this text.
    ContentRange(String),
    /// With a body that claims to be compressed.
    Encoded,
}

impl Turn {
    pub fn status(code: u16) -> Self {
        Self::Status(code, Vec::new(), String::new())
    }
}

/// What happens to connections that the registry ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// FIN.
    Orderly,
    /// RST; bytes on their way may be lost.
    Reset,
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

impl Seen {
    pub fn is_blob(&self) -> bool {
        self.target.starts_with("/v2/")
    }
}

pub struct FakeRegistry {
    address: SocketAddr,
    state: Arc<State>,
    server: JoinHandle<()>,
}

struct State {
    host: String,
    blobs: Mutex<HashMap<String, Bytes>>,
    manifests: Mutex<HashMap<String, Bytes>>,
    turns: Mutex<(VecDeque<Turn>, Turn)>,
    gate: Mutex<Gate>,
    seen: Mutex<Vec<Seen>>,
}

impl FakeRegistry {
    /// Open to everybody, and well-behaved.
    pub async fn start() -> Self {
        Self::start_with(Access::Open, Ending::Orderly).await
    }

    pub async fn start_with(access: Access, ending: Ending) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let host = address.to_string();
        let state = Arc::new(State {
            gate: Mutex::new(Gate::new(access, &host)),
            host,
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            turns: Mutex::new((VecDeque::new(), Turn::Serve)),
            seen: Mutex::default(),
        });
        let server = tokio::spawn(accept(listener, state.clone(), ending));
        Self { address, state, server }
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Stores a blob; the layer that is returned names it. It is not a tar: its diff id is its digest.
    pub fn add_blob(&self, repository: &str, content: impl Into<Bytes>) -> LayerRef {
        let content = content.into();
        let digest = Sha256Digest(Sha256::digest(&content).into());
        let size = content.len() as u64;
        self.state.blobs.lock().insert(format!("/v2/{repository}/blobs/{digest}"), content);
        LayerRef {
            registry: self.host(),
            repository: repository.to_owned(),
            digest,
            diff_id: digest,
            size,
            compression: Compression::None,
        }
    }

    /// From now on the registry has other bytes under the layer's digest.
    pub fn change_blob(&self, layer: &LayerRef, content: impl Into<Bytes>) {
        let target = format!("/v2/{}/blobs/{}", layer.repository, layer.digest);
        self.state.blobs.lock().insert(target, content.into());
    }

    /// Stores an index or manifest under a tag and under its digest.
    pub fn add_manifest(&self, repository: &str, tag: &str, content: impl Into<Bytes>) -> Sha256Digest {
        let content = content.into();
        let digest = Sha256Digest(Sha256::digest(&content).into());
        let mut manifests = self.state.manifests.lock();
        manifests.insert(format!("/v2/{repository}/manifests/{digest}"), content.clone());
        manifests.insert(format!("/v2/{repository}/manifests/{tag}"), content);
        digest
    }

    /// Stores config and manifest of an image for one platform, of layers that are gzipped tars in `repository`.
    pub fn add_image(&self, repository: &str, tag: &str, layers: &[LayerRef]) -> Sha256Digest {
        let ids: Vec<_> = layers.iter().map(|layer| format!("\"{}\"", layer.diff_id)).collect();
        let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#, ids.join(","));
        let config = self.add_blob(repository, config);
        let descriptor = |media_type: &str, blob: &LayerRef| {
            let (digest, size) = (blob.digest, blob.size);
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.{media_type}","digest":"{digest}","size":{size}}}"#
            )
        };
        let layers: Vec<_> = layers.iter().map(|layer| descriptor("layer.v1.tar+gzip", layer)).collect();
        let (config, layers) = (descriptor("config.v1+json", &config), layers.join(","));
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#);
        self.add_manifest(repository, tag, manifest)
    }

    /// The answers to the next GETs of blobs, one each; after them it is [`Turn::Serve`], or what [`Self::always`] set.
    pub fn then(&self, turns: impl IntoIterator<Item = Turn>) {
        self.state.turns.lock().0.extend(turns);
    }

    pub fn always(&self, turn: Turn) {
        self.state.turns.lock().1 = turn;
    }

    /// No token that was issued so far is good any more.
    pub fn end_tokens(&self) {
        self.state.gate.lock().end_tokens();
    }

    /// How long tokens claim to live from now on.
    pub fn set_token_life(&self, seconds: u64) {
        self.state.gate.lock().set_life(seconds);
    }

    /// Everything that has been asked so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().clone()
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, ending: Ending) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => drop(connections.spawn(serve(stream, state.clone(), ending))),
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>, ending: Ending) {
    if ending == Ending::Reset {
        stream.set_zero_linger().expect("a connected socket takes SO_LINGER");
    }
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(state.answer(request).await) }
    });
    // Tests break connections on purpose.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        let header = |name: HeaderName| {
            request.headers().get(name).map(|value| value.to_str().expect("ASCII").to_owned())
        };
        let seen = Seen {
            method: request.method().clone(),
            target: request.uri().to_string(),
            authorization: header(AUTHORIZATION),
            range: header(RANGE),
        };
        self.seen.lock().push(seen.clone());
        if let Some(refusal) = self.gate.lock().check(&seen) {
            return refusal;
        }
        if seen.target.starts_with("/token") {
            let form = body::collect(request.into_body()).await;
            return self.gate.lock().issue(&seen, &form);
        }
        let path = seen.target.split('?').next().unwrap_or_default();
        if path == "/v2/" {
            return reply(StatusCode::OK, [], whole("{}"));
        }
        if let Some(manifest) = self.manifests.lock().get(path).cloned() {
            let length = (CONTENT_LENGTH, manifest.len().to_string());
            return reply(StatusCode::OK, [length], whole(manifest));
        }
        let Some(blob) = self.blobs.lock().get(path).cloned() else { return missing() };
        if seen.method == Method::HEAD {
            return reply(StatusCode::OK, [(CONTENT_LENGTH, blob.len().to_string())], whole(""));
        }
        let turn = {
            let (next, default) = &mut *self.turns.lock();
            next.pop_front().unwrap_or_else(|| default.clone())
        };
        self.take_turn(turn, &seen, blob).await
    }

    async fn take_turn(&self, turn: Turn, seen: &Seen, blob: Bytes) -> Response<Answer> {
        let from = seen.range.as_deref().map_or(0, first_byte);
        let rest = blob.slice(from.min(blob.len())..);
        let redirect = |to: String| reply(StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to)], whole(""));
        match turn {
            Turn::Serve => part(&blob, from, whole(rest)),
            Turn::Status(code, headers, text) => {
                let status = StatusCode::from_u16(code).expect("a status");
                let headers = headers.into_iter().map(|(name, value)| (HeaderName::from_static(name), value));
                reply(status, headers, whole(text))
            }
            Turn::Redirect(to) => redirect(to),
            Turn::RedirectToSelf => redirect(format!("http://{}{}", self.host, seen.target)),
            Turn::Cut(bytes) => part(&blob, from, cut(rest.slice(..bytes.min(rest.len())))),
            Turn::Stall(bytes) => part(&blob, from, stall(rest.slice(..bytes.min(rest.len())))),
            Turn::StallHead => std::future::pending().await,
            Turn::Length(bytes) => {
                let body = blob.iter().copied().cycle().take(bytes).collect::<Vec<_>>();
                reply(StatusCode::OK, [(CONTENT_LENGTH, bytes.to_string())], whole(body))
            }
            Turn::Endless => reply(StatusCode::OK, [], endless(blob)),
            Turn::Unfinished => reply(StatusCode::OK, [], stall(blob)),
            Turn::IgnoreRange(bytes) if bytes < blob.len() => part(&blob, 0, cut(blob.slice(..bytes))),
            Turn::IgnoreRange(_) => part(&blob, 0, whole(blob.clone())),
            Turn::Shifted(by) => part(&blob, from + by, whole(blob.slice((from + by).min(blob.len())..))),
            Turn::Part(bytes) => {
                let bytes = bytes.min(rest.len());
                let range = format!("bytes {from}-{}/{}", from + bytes - 1, blob.len());
                reply(StatusCode::PARTIAL_CONTENT, [(CONTENT_RANGE, range)], whole(rest.slice(..bytes)))
            }
            Turn::ContentRange(text) => {
                reply(StatusCode::PARTIAL_CONTENT, [(CONTENT_RANGE, text)], whole(rest))
            }
            Turn::Encoded => {
                let mut response = part(&blob, from, whole(rest));
                response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                response
            }
        }
    }
}

/// The head for the bytes of `blob` from `from` on.
fn part(blob: &Bytes, from: usize, body: Answer) -> Response<Answer> {
    let size = blob.len();
    let length = (CONTENT_LENGTH, size.saturating_sub(from).to_string());
    if from == 0 {
        return reply(StatusCode::OK, [length], body);
    }
    let range = (CONTENT_RANGE, format!("bytes {from}-{}/{size}", size - 1));
    reply(StatusCode::PARTIAL_CONTENT, [length, range], body)
}

fn missing() -> Response<Answer> {
    let text = r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
    reply(StatusCode::NOT_FOUND, [], whole(text))
}

fn reply(
    status: StatusCode,
    headers: impl IntoIterator<Item = (HeaderName, String)>,
    body: Answer,
) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().expect("a header value"));
    }
    response
}

fn first_byte(range: &str) -> usize {
    let first = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
    first.and_then(|first| first.parse().ok()).expect("an open range")
}
