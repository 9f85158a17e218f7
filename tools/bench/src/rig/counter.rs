//! A reverse proxy in front of the registry that counts what leaves it, per client and per blob,
//! and misbehaves on request.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{HOST, RANGE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// What left the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: u64,
    /// Bytes of response bodies.
    pub body_bytes: u64,
    /// Keyed by `sha256:...`; blobs alone, no manifests.
    pub blobs: BTreeMap<String, BlobTraffic>,
}

/// What left the registry of one blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobTraffic {
    pub requests: u64,
    pub body_bytes: u64,
}

impl Traffic {
    /// What was added since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let blobs = self.blobs.iter().map(|(digest, now)| {
            let before = earlier.blobs.get(digest).copied().unwrap_or_default();
            let requests = now.requests.saturating_sub(before.requests);
            let body_bytes = now.body_bytes.saturating_sub(before.body_bytes);
            (digest.clone(), BlobTraffic { requests, body_bytes })
        });
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            body_bytes: self.body_bytes.saturating_sub(earlier.body_bytes),
            blobs: blobs.collect(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.body_bytes += other.body_bytes;
        for (digest, blob) in &other.blobs {
            let sum = self.blobs.entry(digest.clone()).or_default();
            sum.requests += blob.requests;
            sum.body_bytes += blob.body_bytes;
        }
    }
}

/// What a rule sees of a request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub client: IpAddr,
    pub method: Method,
    pub path: String,
    /// The digest, where the path is a blob's.
    pub blob: Option<String>,
    pub headers: http::HeaderMap,
}

/// How a request is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// As the registry does.
    Pass,
    /// As the registry does, this much later.
    Late(Duration),
    /// With a status and headers, without asking the registry.
    Refuse(StatusCode, Vec<(HeaderName, HeaderValue)>),
    /// As the registry does, but the connection breaks after so many bytes of the body.
    Break(u64),
    /// As the registry does, but the byte at this offset of the body is another.
    Flip(u64),
    /// The whole blob with status 200, whatever range was asked for.
    IgnoreRange,
}

/// Decides how a request is answered.
pub type Rule = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// The running proxy; ends when dropped.
pub struct Counter {
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
    pub address: SocketAddr,
}

struct Shared {
    clients: Mutex<BTreeMap<IpAddr, Traffic>>,
    rule: Mutex<Option<Rule>>,
    upstream: SocketAddr,
    http: Client<HttpConnector, Incoming>,
}

impl Counter {
    /// Answers on a listener, which may be of another network namespace, and forwards to `upstream`
    /// in this one.
    ///
    /// # Errors
    /// The listener or a runtime cannot be used.
    pub fn start(listener: std::net::TcpListener, upstream: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("registry-counter")
            .enable_all()
            .build()
            .context("cannot start the counter's runtime")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            clients: Mutex::default(),
            rule: Mutex::default(),
            upstream,
            http: Client::builder(TokioExecutor::new()).build_http(),
        });
        let serving = shared.clone();
        runtime.spawn(async move { serve(listener, serving).await });
        Ok(Self { shared, runtime: Some(runtime), address })
    }

    /// What one client has caused so far.
    pub fn of(&self, client: impl Into<IpAddr>) -> Traffic {
        lock(&self.shared.clients).get(&client.into()).cloned().unwrap_or_default()
    }

    /// What all clients have caused so far.
    pub fn total(&self) -> Traffic {
        let mut total = Traffic::default();
        lock(&self.shared.clients).values().for_each(|traffic| total.add(traffic));
        total
    }

    /// Replaces the rule for new requests; `None` passes everything.
    pub fn set_rule(&self, rule: Option<Rule>) {
        *lock(&self.shared.rule) = rule;
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener =
        TcpListener::from_std(listener).expect("the listener does not block and a runtime is here");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(connection(stream, peer.ip(), shared.clone()))),
            // Out of descriptors: let connections end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(stream: TcpStream, client: IpAddr, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(request, client, shared).await) }
    });
    // Clients hang up as they like; there is nobody to tell.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Reply = Response<BoxBody<Bytes, BoxedError>>;
type BoxedError = Box<dyn std::error::Error + Send + Sync>;

async fn answer(mut request: Request<Incoming>, client: IpAddr, shared: Arc<Shared>) -> Reply {
    let asked = Asked {
        client,
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        blob: blob_of(request.uri().path()),
        headers: request.headers().clone(),
    };
    shared.count(&asked, |requests, _| *requests += 1);
    let rule = lock(&shared.rule).clone();
    let answer = rule.map_or(Answer::Pass, |rule| rule(&asked));
    match &answer {
        Answer::Refuse(status, headers) => return refuse(*status, headers),
        Answer::Late(delay) => tokio::time::sleep(*delay).await,
        Answer::IgnoreRange => drop(request.headers_mut().remove(RANGE)),
        Answer::Pass | Answer::Break(_) | Answer::Flip(_) => {}
    }
    match shared.forward(request).await {
        Ok(response) => response.map(|body| counted(body, asked, &answer, shared).boxed()),
        Err(error) => {
            let mut response = refuse(StatusCode::BAD_GATEWAY, &[]);
            *response.body_mut() = full(Bytes::from(error.to_string()));
            response
        }
    }
}

impl Shared {
    /// The Host header stays the client's, so that the registry's Location headers lead back here.
    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.upstream.to_string())
            .path_and_query(path)
            .build()?;
        let host = request.headers().get(HOST).cloned();
        *request.uri_mut() = uri;
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host);
        }
        Ok(self.http.request(request).await?)
    }

    fn count(&self, asked: &Asked, add: impl Fn(&mut u64, &mut u64)) {
        let mut clients = lock(&self.clients);
        let traffic = clients.entry(asked.client).or_default();
        add(&mut traffic.requests, &mut traffic.body_bytes);
        if let Some(digest) = &asked.blob {
            let blob = traffic.blobs.entry(digest.clone()).or_default();
            add(&mut blob.requests, &mut blob.body_bytes);
        }
    }
}

/// `/v2/NAME/blobs/DIGEST`.
fn blob_of(path: &str) -> Option<String> {
    let (_, digest) = path.strip_prefix("/v2/")?.rsplit_once("/blobs/")?;
    digest.starts_with("sha256:").then(|| digest.to_owned())
}

fn refuse(status: StatusCode, headers: &[(HeaderName, HeaderValue)]) -> Reply {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response.headers_mut().extend(headers.iter().cloned());
    response
}

fn full(bytes: Bytes) -> BoxBody<Bytes, BoxedError> {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn counted(body: Incoming, asked: Asked, answer: &Answer, shared: Arc<Shared>) -> Counted {
    let (breaks_at, flips_at) = match answer {
        Answer::Break(offset) => (Some(*offset), None),
        Answer::Flip(offset) => (None, Some(*offset)),
        _ => (None, None),
    };
    Counted { body, asked, shared, sent: 0, breaks_at, flips_at, breaking: Breaking::No }
}

/// A response body on its way to the client.
struct Counted {
    body: Incoming,
    asked: Asked,
    shared: Arc<Shared>,
    sent: u64,
    breaks_at: Option<u64>,
    flips_at: Option<u64>,
    breaking: Breaking,
}

/// How far a break on request has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaking {
    No,
    Flush,
    Now,
}

impl Counted {
    fn pass(&mut self, data: Bytes) -> Result<Bytes, BoxedError> {
        let data = match self.breaks_at.and_then(|offset| offset.checked_sub(self.sent)) {
            Some(left) if left < data.len() as u64 => {
                self.breaking = Breaking::Flush;
                data.slice(..usize::try_from(left)?)
            }
            _ => data,
        };
        let length = data.len() as u64;
        let end = self.sent + length;
        let data = match self.flips_at.and_then(|offset| offset.checked_sub(self.sent)) {
            Some(offset) if offset < length => {
                let mut changed = data.to_vec();
                changed[usize::try_from(offset)?] ^= 1;
                changed.into()
            }
            _ => data,
        };
        self.sent = end;
        self.shared.count(&self.asked, |_, bytes| *bytes += length);
        Ok(data)
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BoxedError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxedError>>> {
        match self.breaking {
            Breaking::No => {}
            // What came before the break goes out first: hyper flushes while a body is pending.
            Breaking::Flush => {
                self.breaking = Breaking::Now;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Breaking::Now => return Poll::Ready(Some(Err("broken on request".into()))),
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| match frame?.into_data() {
            Ok(data) => self.pass(data).map(Frame::data),
            Err(other) => Ok(other),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.breaking == Breaking::No && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_told_from_manifests() {
        for (path, blob) in [
            ("/v2/app/blobs/sha256:ab", Some("sha256:ab")),
            ("/v2/a/blobs/b/blobs/sha256:ab", Some("sha256:ab")),
            ("/v2/app/blobs/uploads/", None),
            ("/v2/app/manifests/sha256:ab", None),
            ("/v2/", None),
        ] {
            assert_eq!(blob_of(path).as_deref(), blob, "{path}");
        }
    }

    #[test]
    fn traffic_since_is_what_was_added() {
        let one = BlobTraffic { requests: 1, body_bytes: 10 };
        let earlier = Traffic { requests: 2, body_bytes: 15, blobs: [("a".into(), one)].into() };
        let mut now = earlier.clone();
        now.add(&Traffic { requests: 1, body_bytes: 10, blobs: [("b".into(), one)].into() });
        let added = now.since(&earlier);
        assert_eq!((added.requests, added.body_bytes), (1, 10));
        assert_eq!(added.blobs.get("b"), Some(&one));
        assert_eq!(added.blobs.get("a"), Some(&BlobTraffic::default()));
    }

    const BODY: &str = "0123456789";

    /// Answers every connection with ten bytes, or with a part when the request has a Range.
    fn upstream() -> Result<SocketAddr> {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let ranged = head.iter().any(|line| line.to_lowercase().starts_with("range:"));
                let (status, body) =
                    if ranged { ("206 Partial Content", &BODY[..3]) } else { ("200 OK", BODY) };
                let length = body.len();
                let _ = write!(
                    &stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
            }
        });
        Ok(address)
    }

    /// Status and body, as far as they came.
    fn ask(address: SocketAddr) -> Result<(String, String)> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address)?;
        let request = "GET /v2/app/blobs/sha256:ab HTTP/1.1\r\nHost: x\r\nRange: bytes=0-2\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        // A broken connection ends the answer; what came before it counts.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        Ok((head.split(' ').nth(1).unwrap_or_default().to_owned(), body.to_owned()))
    }

    #[test]
    fn requests_are_counted_and_answered_by_rule() -> Result<()> {
        let counter = Counter::start(std::net::TcpListener::bind("127.0.0.1:0")?, upstream()?)?;
        let client = IpAddr::from([127, 0, 0, 1]);
        let refusal = Answer::Refuse(StatusCode::TOO_MANY_REQUESTS, vec![]);
        let cases = [
            (Answer::Pass, "206", "012", 3),
            (Answer::Late(Duration::from_millis(1)), "206", "012", 3),
            (refusal, "429", "", 0),
            (Answer::Flip(1), "206", "002", 3),
            (Answer::Break(2), "206", "01", 2),
            (Answer::IgnoreRange, "200", BODY, 10),
        ];
        for (answer, status, body, counted) in cases {
            let before = counter.of(client);
            let rule = answer.clone();
            counter.set_rule(Some(Arc::new(move |_| rule.clone())));
            let got = ask(counter.address)?;
            assert_eq!(got, (status.to_owned(), body.to_owned()), "{answer:?}");
            let added = counter.of(client).since(&before);
            assert_eq!((added.requests, added.body_bytes), (1, counted), "{answer:?}");
            assert_eq!(added.blobs["sha256:ab"].body_bytes, counted, "{answer:?}");
        }
        assert_eq!(counter.total().requests, 6);
        Ok(())
    }
}
