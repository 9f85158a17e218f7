//! Metrics and health over HTTP: `GET /metrics` (OpenMetrics text), `GET /healthy`, and what a daemon has to tell
//! people as JSON documents.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Metric;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::daemon::DaemonName;
use crate::shutdown::Shutdown;
use crate::tasks::{OnEnd, Tasks};
use crate::telemetry;

/// Connections served at once per listener: a few scrapers and probes; the rest wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may live; a scrape takes milliseconds.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after accept failed, which is for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the daemon can do its work, by part. Clones are the same state.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Health {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn recover(&self, part: &'static str) {
        self.0.lock().remove(part);
    }

    /// From now on `/healthy` answers 503 with the reason, until [`Health::recover`] of the same part.
    pub fn fail(&self, part: &'static str, reason: impl Into<String>) {
        self.0.lock().insert(part, reason.into());
    }

    /// The reasons why the daemon is not healthy.
    pub fn check(&self) -> Result<(), String> {
        let failed = self.0.lock();
        if failed.is_empty() {
            return Ok(());
        }
        Err(failed.iter().map(|(part, reason)| format!("{part}: {reason}")).collect::<Vec<_>>().join("\n"))
    }
}

/// A daemon's metrics, and what they are.
#[derive(Debug)]
pub struct Registry {
    prefix: String,
    metrics: prometheus_client::registry::Registry,
    described: Vec<Described>,
}

/// A metric for the reference and for the check of dashboards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Described {
    /// As Prometheus stores it; of a histogram without `_bucket`, `_sum` and `_count`.
    pub name: String,
    pub kind: String,
    pub labels: Vec<DescribedLabel>,
    pub help: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DescribedLabel {
    pub name: String,
    /// All that there may be, or some of very many.
    pub values: Vec<String>,
    pub are_all: bool,
}

/// A set of labels whose values are known beforehand, or of which there are examples.
pub trait Labels: EncodeLabelSet + Clone + Eq + Hash + Send + Sync + Debug + 'static {
    /// Whether there are no values but those of [`Labels::sets`].
    const ARE_ALL: bool = true;

    fn sets() -> Vec<Self>;
}

impl Registry {
    /// `name` without the daemon's prefix and without the `_total` of counters.
    pub fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        let kind = metric.metric_type().as_str().to_owned();
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let name_there = format!("{}_{name}{suffix}", self.prefix);
        self.described.push(Described { name: name_there, kind, labels: Vec::new(), help });
        self.metrics.register(name, help, metric);
    }

    /// As [`Registry::register`], of a metric with labels.
    pub fn register_family<S: Labels, M, C>(
        &mut self,
        name: &'static str,
        help: &'static str,
        family: &Family<S, M, C>,
    ) where
        Family<S, M, C>: Metric + Clone,
    {
        self.register(name, help, family.clone());
        if let Some(described) = self.described.last_mut() {
            described.labels = labels::<S>();
        }
    }

    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// All samples, as `/metrics` shows them.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.metrics)?;
        Ok(text)
    }
}

/// As they are encoded.
fn labels<S: Labels>() -> Vec<DescribedLabel> {
    let family = Family::<S, Gauge>::default();
    S::sets().iter().for_each(|set| drop(family.get_or_create(set)));
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register("m", "", family);
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes all that is written to it");
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let sets = text.lines().filter_map(|line| line.strip_prefix("m{")?.split_once('}'));
    for pair in sets.flat_map(|(set, _)| set.split(',')) {
        let (name, value) = pair.split_once('=').expect("a label is a name and a value");
        values.entry(name.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
    }
    let described = |(name, values): (_, BTreeSet<_>)| DescribedLabel {
        name,
        values: values.into_iter().collect(),
        are_all: S::ARE_ALL,
    };
    values.into_iter().map(described).collect()
}

/// A registry whose names start with the daemon's (`d7y_peer_`), with the `build` info metric in it.
pub fn registry(name: DaemonName, version: &'static str) -> Registry {
    let prefix = name.as_str().replace('-', "_");
    let metrics = prometheus_client::registry::Registry::with_prefix(prefix.clone());
    let mut registry = Registry { prefix, metrics, described: Vec::new() };
    registry.register("build", "What is running", Info::new(vec![("version", version)]));
    if let Some(build) = registry.described.last_mut() {
        let values = vec!["1.2.3".to_owned()];
        build.labels.push(DescribedLabel { name: "version".to_owned(), values, are_all: false });
    }
    registry
}

/// JSON documents served beside the metrics, each made anew for every request, on a thread that may block.
#[derive(Clone, Default)]
pub struct Views(BTreeMap<&'static str, View>);

type View = Arc<dyn Fn() -> serde_json::Result<Vec<u8>> + Send + Sync>;

impl Views {
    pub fn with<T: Serialize>(
        mut self,
        path: &'static str,
        view: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        self.0.insert(path, Arc::new(move || serde_json::to_vec(&view())));
        self
    }
}

struct Server {
    registry: Arc<Registry>,
    health: Health,
    views: Views,
    shutdown: Shutdown,
    tasks: Tasks,
}

/// Serves metrics and health on every listener until tasks are told to stop, the drain included.
pub fn serve(tasks: &Tasks, listeners: Vec<TcpListener>, registry: Arc<Registry>, health: Health) {
    serve_views(tasks, listeners, registry, health, Views::default());
}

/// As [`serve`], with documents of the daemon's own.
pub fn serve_views(
    tasks: &Tasks,
    listeners: Vec<TcpListener>,
    registry: Arc<Registry>,
    health: Health,
    views: Views,
) {
    let views = views.with("/events", || telemetry::recent().all());
    let (shutdown, tasks) = (tasks.shutdown().clone(), tasks.clone());
    let server = Arc::new(Server { registry, health, views, shutdown, tasks: tasks.clone() });
    for listener in listeners {
        let server = server.clone();
        let stopping = tasks.shutdown().stopping();
        tasks.spawn("metrics listener", OnEnd::Fatal, async move {
            stopping.run_until_cancelled(server.accept(listener)).await;
            Ok::<_, Infallible>(())
        });
    }
}

impl Server {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!("metrics accept: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let (server, stopping) = (self.clone(), self.shutdown.stopping());
            self.tasks.spawn("metrics connection", OnEnd::Expected, async move {
                let serving = tokio::time::timeout(CONNECTION_TIMEOUT, server.connection(stream));
                stopping.run_until_cancelled(serving).await;
                drop(slot);
                Ok::<_, Infallible>(())
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(|request| async {
            let request = request;
            Ok::<_, Infallible>(self.answer(&request).await)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!("metrics connection: {error}");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        match (request.method(), path, self.views.0.get(path)) {
            (&Method::GET, "/metrics", _) => self.metrics(),
            (&Method::GET, "/healthy", _) => self.healthy(),
            (&Method::GET, _, Some(view)) => document(view.clone()).await,
            (_, "/metrics" | "/healthy", _) | (_, _, Some(_)) => {
                text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n")
            }
            _ => text(StatusCode::NOT_FOUND, self.not_here()),
        }
    }

    fn not_here(&self) -> String {
        let paths: Vec<_> =
            ["/metrics", "/healthy"].into_iter().chain(self.views.0.keys().copied()).collect();
        format!("only these are served here: {}\n", paths.join(", "))
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let Ok(body) = self.registry.text() else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "a metric could not be encoded\n");
        };
        let mut response = text(StatusCode::OK, body);
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(OPENMETRICS));
        response
    }

    fn healthy(&self) -> Response<Full<Bytes>> {
        let state = match self.shutdown.has_begun() {
            true => Err("draining".to_owned()),
            false => self.health.check(),
        };
        match state {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

async fn document(view: View) -> Response<Full<Bytes>> {
    match tokio::task::spawn_blocking(move || view()).await {
        Ok(Ok(body)) => {
            let mut response = text(StatusCode::OK, body);
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            response
        }
        _ => text(StatusCode::INTERNAL_SERVER_ERROR, "the document could not be made\n"),
    }
}
