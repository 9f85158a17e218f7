use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use url::Url;

use crate::config::Timeouts;
use crate::error::{Cause, OriginError, Wait};
use crate::patience::{Patience, Stopwatch};
use crate::stats::{Host, Hosts};

/// Load balancers drop idle connections after a minute or more.
const IDLE_CONNECTION: Duration = Duration::from_secs(50);
/// Enough for the layers of the next image to start on warm connections.
const MAX_IDLE_CONNECTIONS_PER_HOST: usize = 8;
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
const AGENT: &str = concat!("d7y-peer/", env!("CARGO_PKG_VERSION"));

pub(crate) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// HTTP/1.1 only: each blob has a TCP connection and a window of its own, dropping it cancels it, and the limit of
/// connections is a limit of requests.
pub(crate) fn http_client(tls: ClientConfig, timeouts: &Timeouts) -> HttpClient {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    tcp.set_connect_timeout(Some(timeouts.connect));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_CONNECTION)
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS_PER_HOST)
        .build(connector)
}

/// Sends single requests: counted, within the connection limit of the host, within the time limits.
#[derive(Debug)]
pub(crate) struct Transport {
    pub hosts: Hosts,
    pub timeouts: Timeouts,
}

/// Which of a host's connection slots a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Bulk,
    Quick,
}

pub(crate) struct Ask<'a> {
    pub lane: Lane,
    pub client: &'a HttpClient,
    pub method: Method,
    pub url: &'a Url,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub(crate) struct Reply {
    /// Who answered, with the port where it is not the scheme's own.
    pub host: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Transport {
    pub async fn send(&self, ask: Ask<'_>, patience: &mut Patience) -> Result<Reply, OriginError> {
        let name = host_and_port(ask.url);
        let host = self.hosts.get(&name);
        let slots = match ask.lane {
            Lane::Bulk => host.bulk.clone(),
            Lane::Quick => host.quick.clone(),
        };
        let slot = timeout(self.timeouts.queue, slots.acquire_owned())
            .await
            .map_err(|_| OriginError::Timeout { host: name.clone(), wait: Wait::Queue })?
            .expect("the slots of a host are never closed");
        host.requests.fetch_add(1, Ordering::Relaxed);
        let sent = ask.client.request(request(&ask)?);
        let response = patience
            .run(&name, Wait::Response, self.timeouts.response, sent)
            .await?
            .map_err(|error| unreachable_host(&name, error))?;
        let (head, incoming) = response.into_parts();
        let body = Body { incoming, host, idle: self.timeouts.idle, waited: Duration::ZERO, _slot: slot };
        Ok(Reply { host: name, status: head.status, headers: head.headers, body })
    }
}

/// The body of a response; holds a connection slot until it is dropped.
pub(crate) struct Body {
    incoming: Incoming,
    pub host: Arc<Host>,
    idle: Duration,
    /// For the next bytes, so far.
    waited: Duration,
    _slot: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(crate) enum BodyFault {
    Stalled(OriginError),
    Lost(Cause),
}

impl Body {
    /// The next bytes, never empty; none at the end.
    pub async fn chunk(&mut self, patience: &mut Patience) -> Result<Option<Bytes>, BodyFault> {
        loop {
            let left = self.idle.saturating_sub(self.waited);
            let watch = Stopwatch::start(&mut self.waited);
            let frame = patience.run(&self.host.name, Wait::Body, left, self.incoming.frame()).await;
            drop(watch);
            let frame = frame.map_err(BodyFault::Stalled)?;
            self.waited = Duration::ZERO;
            let frame = match frame {
                None => return Ok(None),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Err(BodyFault::Lost(Arc::new(error))),
            };
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                self.host.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                return Ok(Some(data));
            }
        }
    }

    /// Waits for no single chunk longer than `limit` from now on.
    pub fn shorten_idle(&mut self, limit: Duration) {
        self.idle = self.idle.min(limit);
    }

    /// All of a body that must not be longer than `limit`; none when it is, or when it breaks off.
    pub async fn read_whole(mut self, limit: usize, patience: &mut Patience) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(data) = self.chunk(patience).await.ok()? {
            if whole.len() + data.len() > limit {
                return None;
            }
            whole.extend_from_slice(&data);
        }
        Some(whole)
    }
}

fn request(ask: &Ask<'_>) -> Result<Request<Full<Bytes>>, OriginError> {
    let bad_name = || OriginError::Name(host_and_port(ask.url));
    let uri: Uri = ask.url.as_str().parse().map_err(|_| bad_name())?;
    let mut request = Request::new(Full::new(ask.body.clone()));
    *request.method_mut() = ask.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = ask.headers.clone();
    let host = HeaderValue::from_str(&host_and_port(ask.url)).map_err(|_| bad_name())?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Ok(request)
}

/// The host of an http(s) URL, with the port where it is not the scheme's own.
pub(crate) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn unreachable_host(host: &str, error: hyper_util::client::legacy::Error) -> OriginError {
    let host = host.to_owned();
    let tls = is_tls(&error);
    let source: Cause = Arc::new(error);
    if tls { OriginError::Tls { host, source } } else { OriginError::Connect { host, source } }
}

/// `io::Error::source` skips the error that it wraps, hence `get_ref`.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    if error.is::<rustls::Error>() {
        return true;
    }
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.is_some_and(|inner| is_tls(inner)) || error.source().is_some_and(is_tls)
}
