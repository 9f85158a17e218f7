//! An OpenTelemetry collector for tests: the real service over a real socket, and what it was sent.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::spans::{OtlpConfig, TracingConfig};

/// Longer than anything that is waited for here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A span as it was sent.
#[derive(Debug, Clone)]
pub struct Received {
    pub service: String,
    pub instance: String,
    pub name: String,
    /// 32 hex digits.
    pub trace: String,
    pub id: u64,
    /// 0 for none.
    pub parent: u64,
    pub start_unix_nano: u64,
    pub end_unix_nano: u64,
    pub attributes: BTreeMap<String, String>,
    /// The message, where the span's operation failed.
    pub error: Option<String>,
}

/// Takes spans for as long as it lives.
#[derive(Debug)]
pub struct Collector {
    pub address: SocketAddr,
    received: watch::Sender<Vec<Received>>,
    task: tokio::task::JoinHandle<()>,
}

impl Collector {
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let received = watch::Sender::new(Vec::new());
        let service = TraceServiceServer::new(Service(received.clone()));
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        let task = tokio::spawn(async move { drop(serving.await) });
        Ok(Self { address, received, task })
    }

    /// What a daemon has to be told so that its spans come here.
    pub fn config(&self) -> TracingConfig {
        to(self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.borrow().clone()
    }

    /// Waits until there are spans enough; what there is when they do not come.
    ///
    /// # Errors
    /// The spans that came instead.
    pub async fn wait_for(
        &self,
        enough: impl Fn(&[Received]) -> bool,
    ) -> Result<Vec<Received>, Vec<Received>> {
        let mut received = self.received.subscribe();
        match tokio::time::timeout(PATIENCE, received.wait_for(|spans| enough(spans))).await {
            Ok(Ok(spans)) => Ok(spans.clone()),
            _ => Err(self.received()),
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The configuration that sends all spans to an address.
pub fn to(address: SocketAddr) -> TracingConfig {
    TracingConfig { otlp: OtlpConfig { endpoint: format!("http://{address}"), sample_ratio: 1.0 } }
}

struct Service(watch::Sender<Vec<Received>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = Vec::new();
        for resource in request.into_inner().resource_spans {
            let of = texts(resource.resource.map(|resource| resource.attributes).unwrap_or_default());
            let of = |key: &str| of.get(key).cloned().unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let failed = span.status.filter(|status| status.code() == StatusCode::Error);
                spans.push(Received {
                    service: of("service.name"),
                    instance: of("service.instance.id"),
                    name: span.name,
                    trace: span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect(),
                    id: number(&span.span_id),
                    parent: number(&span.parent_span_id),
                    start_unix_nano: span.start_time_unix_nano,
                    end_unix_nano: span.end_time_unix_nano,
                    attributes: texts(span.attributes),
                    error: failed.map(|status| status.message),
                });
            }
        }
        self.0.send_modify(|received| received.extend(spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn number(raw: &[u8]) -> u64 {
    raw.try_into().map_or(0, u64::from_be_bytes)
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |one: KeyValue| {
        let text = match one.value.and_then(|value| value.value) {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        (one.key, text)
    };
    attributes.into_iter().map(text).collect()
}
