//! The way to the collector.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{self as wire, ResourceSpans, ScopeSpans, Status, status};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{About, Begun, FLUSH, Span, SpanCounts, Value};
use crate::daemon::Daemon;
use crate::tasks::{OnEnd, Tasks};

/// Spans in one message: well below the 4 MiB that receivers take.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take for one batch.
const SEND: Duration = Duration::from_secs(5);
/// W3C trace context: the trace is recorded.
const SAMPLED: u32 = 1;

/// Spawns the task that sends, and sees to what is queued at the end.
pub fn start(
    endpoint: &str,
    resource: Resource,
    (spans, counts): (mpsc::Receiver<Span>, SpanCounts),
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).context("tracing.otlp.endpoint")?;
    let client = TraceServiceClient::new(endpoint.connect_timeout(SEND).timeout(SEND).connect_lazy());
    let (batch, stopping) = (Vec::new(), tasks.shutdown().stopping());
    let exporter = Exporter { spans, batch, client, resource, counts, failing: false, stopping };
    let exporter = Arc::new(Mutex::new(exporter));
    let last = exporter.clone();
    tasks.spawn("span export", OnEnd::Fatal, async move {
        exporter.lock().await.run().await;
        Ok::<_, Infallible>(())
    });
    tasks.on_flush("spans", async move {
        last.lock().await.flush().await;
        Ok(())
    });
    Ok(())
}

pub fn resource(daemon: &Daemon, instance: &str) -> Resource {
    let attributes = [
        ("service.name", daemon.name.as_str()),
        ("service.version", daemon.version),
        ("service.instance.id", instance),
    ];
    let attributes = attributes.map(|(key, value)| key_value(key, &Value::Text(value.to_owned())));
    Resource { attributes: attributes.into(), ..Resource::default() }
}

struct Exporter {
    spans: mpsc::Receiver<Span>,
    /// What is to be sent next; survives that the task is stopped.
    batch: Vec<Span>,
    client: TraceServiceClient<Channel>,
    resource: Resource,
    counts: SpanCounts,
    /// Whether the last batch was lost: only the first loss is news.
    failing: bool,
    stopping: CancellationToken,
}

impl Exporter {
    /// A batch that is on its way when the daemon stops is not cut off: it would be sent twice.
    async fn run(&mut self) {
        let stopping = self.stopping.clone();
        while stopping.run_until_cancelled(self.gather()).await.is_some() {
            self.send().await;
        }
    }

    async fn gather(&mut self) {
        while self.batch.is_empty() {
            if self.spans.recv_many(&mut self.batch, BATCH).await == 0 {
                // Nobody writes spans any more.
                return std::future::pending().await;
            }
        }
        let _ = tokio::time::timeout(LINGER, self.fill()).await;
    }

    async fn fill(&mut self) {
        while self.batch.len() < BATCH {
            let room = BATCH - self.batch.len();
            if self.spans.recv_many(&mut self.batch, room).await == 0 {
                return;
            }
        }
    }

    /// Sends what is queued, or counts it as lost.
    async fn flush(&mut self) {
        self.spans.close();
        let sending = async {
            loop {
                self.fill().await;
                if self.batch.is_empty() {
                    return;
                }
                self.send().await;
                if self.failing {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(FLUSH, sending).await;
        self.counts.dropped(super::NOT_TAKEN, self.batch.len() + self.spans.len());
    }

    async fn send(&mut self) {
        let spans = self.batch.iter().map(span).collect();
        let scope = InstrumentationScope { name: "d7y".to_owned(), ..InstrumentationScope::default() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
        let resource = Some(self.resource.clone());
        let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
        let sending = self.client.export(ExportTraceServiceRequest { resource_spans });
        let stopping = async {
            self.stopping.cancelled().await;
            tokio::time::sleep(FLUSH).await;
        };
        let sent = tokio::select! {
            sent = tokio::time::timeout(SEND, sending) => sent.ok(),
            () = stopping => None,
        };
        let count = self.batch.len();
        self.batch.clear();
        let (rejected, error) = match sent {
            Some(Ok(answer)) => {
                let partial = answer.into_inner().partial_success.unwrap_or_default();
                let rejected = usize::try_from(partial.rejected_spans).unwrap_or(0).min(count);
                (rejected, partial.error_message)
            }
            Some(Err(status)) => (count, format!("{}: {}", status.code(), status.message())),
            None => (count, format!("no answer within {SEND:?}")),
        };
        self.counts.sent.inc_by((count - rejected) as u64);
        if rejected > 0 {
            self.counts.dropped(super::NOT_TAKEN, rejected);
        }
        let failed = rejected > 0;
        if failed && !self.failing {
            tracing::warn!(
                spans = rejected,
                error,
                "the OpenTelemetry collector does not take spans; they are dropped"
            );
        }
        self.failing = failed;
    }
}

fn span(Span { begun, began, took, about }: &Span) -> wire::Span {
    let Begun { request, id, parent, .. } = begun;
    let About { name, attributes, error } = about;
    wire::Span {
        trace_id: u128::from(request.raw()).to_be_bytes().to_vec(),
        span_id: id.raw().to_be_bytes().to_vec(),
        parent_span_id: parent.map(|parent| parent.raw().to_be_bytes().to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: (*name).to_owned(),
        kind: wire::span::SpanKind::Internal.into(),
        start_time_unix_nano: nanoseconds(*began),
        end_time_unix_nano: nanoseconds(*began + *took),
        attributes: attributes.iter().map(|(key, value)| key_value(key, value)).collect(),
        status: error
            .as_ref()
            .map(|message| Status { message: message.clone(), code: status::StatusCode::Error.into() }),
        ..wire::Span::default()
    }
}

fn key_value(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.clone()),
        Value::Number(number) => any_value::Value::IntValue(i64::try_from(*number).unwrap_or(i64::MAX)),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
