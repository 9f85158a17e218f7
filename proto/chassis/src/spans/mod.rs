//! Spans for an OpenTelemetry collector. Off unless `tracing.otlp.endpoint` is set; then nothing but a comparison is paid
//! for what is not traced.
//!
//! The trace of a request is its id: the trace id of OpenTelemetry ends with it, so that a line of the log leads to the
//! trace. Whoever begins the trace decides whether there is one; the others go on with it when the caller's span came
//! along (`d7y_types::Caller`).
//!
//! A span is written once, when it has ended, into a queue of [`QUEUE`]; what does not fit is dropped and counted. One
//! task sends batches, each once: a collector that is away costs the spans, never a wait or more memory. At shutdown
//! what is queued is sent after all tasks have ended, for as long as [`FLUSH`].

mod export;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use d7y_types::{Caller, Ids, RequestId, SpanId};
use http::Uri;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::config::{Fault, Validate};
use crate::daemon::Daemon;
use crate::metrics::{Labels, Registry};
use crate::tasks::Tasks;

/// Spans that wait to be sent: some 2 MiB, and a second of ten thousand missed reads.
const QUEUE: usize = 8192;
/// How long what is queued at shutdown may take to be sent.
pub const FLUSH: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct TracingConfig {
    pub otlp: OtlpConfig,
}

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct OtlpConfig {
    /// Where an OpenTelemetry collector takes OTLP over gRPC, such as `http://127.0.0.1:4317`; nothing is traced when empty.
    pub endpoint: String,
    /// Which part of what begins here is traced, from 0 to 1. What another daemon began is traced when that one traces it.
    pub sample_ratio: f64,
}

impl Default for OtlpConfig {
    fn default() -> Self {
        Self { endpoint: String::new(), sample_ratio: 1.0 }
    }
}

impl Validate for TracingConfig {
    fn validate(&self) -> Vec<Fault> {
        let OtlpConfig { endpoint, sample_ratio } = &self.otlp;
        let mut faults = Vec::new();
        if !endpoint.is_empty() && !is_plain_http(endpoint) {
            let problem =
                format!("{endpoint:?} is not of the form http://host:port; OTLP goes over plain gRPC");
            faults.push(Fault::new("otlp.endpoint", problem));
        }
        if !(0.0..=1.0).contains(sample_ratio) {
            faults.push(Fault::new("otlp.sampleRatio", "must be from 0 to 1"));
        }
        faults
    }
}

fn is_plain_http(endpoint: &str) -> bool {
    let parsed = endpoint.parse::<Uri>();
    parsed.is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.authority().is_some() && uri.path() == "/")
}

/// What becomes of spans; all of it 0 while nothing is traced.
#[derive(Debug, Clone, Default)]
pub struct SpanCounts {
    sent: Counter,
    dropped: Family<ByReason, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

const QUEUE_FULL: &str = "queue";
const NOT_TAKEN: &str = "collector";

impl Labels for ByReason {
    fn sets() -> Vec<Self> {
        [QUEUE_FULL, NOT_TAKEN].map(|reason| Self { reason }).into()
    }
}

impl SpanCounts {
    pub fn register(registry: &mut Registry) -> Self {
        let counts = Self::default();
        registry.register("spans_sent", "Spans that the OpenTelemetry collector took", counts.sent.clone());
        registry.register_family(
            "spans_dropped",
            "Spans that were lost: the queue was full, or the collector did not take them",
            &counts.dropped,
        );
        counts
    }

    fn dropped(&self, reason: &'static str, spans: usize) {
        self.dropped.get_or_create(&ByReason { reason }).inc_by(spans as u64);
    }
}

/// Where a daemon's spans go; clones go the same way. The default goes nowhere.
#[derive(Debug, Clone, Default)]
pub struct Spans(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    ids: Ids,
    /// Requests up to this id are traced: ids are as good as random.
    sampled_up_to: u64,
    queue: mpsc::Sender<Span>,
    counts: SpanCounts,
}

/// A span that has begun.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    request: RequestId,
    id: SpanId,
    parent: Option<SpanId>,
    at: Instant,
}

/// What a span is about. Names are few; what differs is in the attributes.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    name: &'static str,
    attributes: Vec<(&'static str, Value)>,
    error: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(u64),
}

/// A span that has ended.
#[derive(Debug)]
struct Span {
    begun: Begun,
    began: SystemTime,
    took: Duration,
    about: About,
}

impl Spans {
    /// Starts the task that sends spans, if they are to be sent. `instance` tells daemons of one kind apart.
    pub fn start(
        config: &TracingConfig,
        daemon: &Daemon,
        instance: &str,
        counts: SpanCounts,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let OtlpConfig { endpoint, sample_ratio } = &config.otlp;
        if endpoint.is_empty() {
            return Ok(Self(None));
        }
        let (queue, spans) = mpsc::channel(QUEUE);
        export::start(endpoint, export::resource(daemon, instance), (spans, counts.clone()), tasks)?;
        let seed = RandomState::new().build_hasher().finish();
        // Saturates: a ratio of 1 is all of them, 0 is none.
        let sampled_up_to = (sample_ratio * u64::MAX as f64) as u64;
        Ok(Self(Some(Arc::new(Inner { ids: Ids::new(seed), sampled_up_to, queue, counts }))))
    }

    /// Begins the trace of a request, if it is one of those that are traced.
    pub fn root(&self, request: impl FnOnce() -> RequestId) -> Option<Begun> {
        let inner = self.0.as_ref()?;
        let request = request();
        let sampled = request.raw() <= inner.sampled_up_to;
        sampled.then(|| Begun { request, id: inner.ids.span(), parent: None, at: Instant::now() })
    }

    /// As [`Spans::root`], of a request that has no id yet.
    pub fn own_root(&self) -> Option<Begun> {
        let inner = self.0.as_ref()?;
        self.root(|| inner.ids.request())
    }

    /// Goes on with the trace of whoever asks, if it is traced.
    pub fn child(&self, caller: Option<Caller>) -> Option<Begun> {
        let (inner, caller) = (self.0.as_ref()?, caller?);
        let parent = Some(caller.span?);
        Some(Begun { request: caller.request, id: inner.ids.span(), parent, at: Instant::now() })
    }

    /// The span has ended now. Never waits.
    pub fn end(&self, begun: Option<Begun>, about: impl FnOnce() -> About) {
        if let Some(begun) = begun {
            self.write(begun, begun.at.elapsed(), about);
        }
    }

    /// The span took so long. Never waits.
    pub fn write(&self, begun: Begun, took: Duration, about: impl FnOnce() -> About) {
        let Some(inner) = &self.0 else { return };
        let began = SystemTime::now() - begun.at.elapsed();
        if inner.queue.try_send(Span { begun, began, took, about: about() }).is_err() {
            inner.counts.dropped(QUEUE_FULL, 1);
        }
    }
}

impl Begun {
    /// In whose name the span's owner asks others.
    pub fn caller(&self) -> Caller {
        Caller { request: self.request, span: Some(self.id) }
    }

    /// The same span, begun at another time.
    #[must_use]
    pub fn at(self, at: Instant) -> Self {
        Self { at, ..self }
    }
}

impl About {
    pub fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), error: None }
    }

    #[must_use]
    pub fn text(mut self, key: &'static str, value: impl ToString) -> Self {
        self.attributes.push((key, Value::Text(value.to_string())));
        self
    }

    #[must_use]
    pub fn number(mut self, key: &'static str, value: u64) -> Self {
        self.attributes.push((key, Value::Number(value)));
        self
    }

    /// The span's operation failed, if there is an error.
    #[must_use]
    pub fn error(mut self, error: Option<impl ToString>) -> Self {
        self.error = error.map(|error| error.to_string());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_their_key() {
        assert_eq!(TracingConfig::default().validate(), []);
        let table = [
            ("http://collector:4317", 0.1, None),
            ("https://collector:4317", 0.1, Some("otlp.endpoint")),
            ("collector:4317", 0.1, Some("otlp.endpoint")),
            ("http://collector:4318/v1/traces", 0.1, Some("otlp.endpoint")),
            ("", 1.1, Some("otlp.sampleRatio")),
            ("", -0.1, Some("otlp.sampleRatio")),
            ("", f64::NAN, Some("otlp.sampleRatio")),
        ];
        for (endpoint, sample_ratio, place) in table {
            let config = TracingConfig { otlp: OtlpConfig { endpoint: endpoint.into(), sample_ratio } };
            let places: Vec<_> = config.validate().into_iter().map(|fault| fault.place).collect();
            assert_eq!(places, place.into_iter().collect::<Vec<_>>(), "{endpoint} {sample_ratio}");
        }
    }

    #[test]
    fn who_asks_decides_and_the_ratio_is_kept() {
        let (queue, _spans) = mpsc::channel(1);
        let spans = |sampled_up_to| {
            let (queue, counts) = (queue.clone(), SpanCounts::default());
            Spans(Some(Arc::new(Inner { ids: Ids::new(1), sampled_up_to, queue, counts })))
        };
        let ids = Ids::new(2);
        let traced = |spans: &Spans| (0..1000).filter(|_| spans.root(|| ids.request()).is_some()).count();
        assert_eq!((traced(&spans(0)), traced(&spans(u64::MAX))), (0, 1000));
        assert!((150..350).contains(&traced(&spans(u64::MAX / 4))));
        let untraced = Caller::new(ids.request());
        let none = spans(0);
        assert!(none.child(None).is_none() && none.child(Some(untraced)).is_none());
        let caller = Caller { span: SpanId::from_raw(5), ..untraced };
        let child = none.child(Some(caller)).expect("the caller is traced");
        assert_eq!((child.request, child.parent), (caller.request, caller.span));
    }
}
