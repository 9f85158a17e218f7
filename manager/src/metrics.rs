use d7y_chassis::metrics::{Described, Labels, Registry, registry};
use d7y_chassis::spans::SpanCounts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::DAEMON;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByKind {
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByState {
    pub state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByStatus {
    pub status: u16,
}

impl Labels for ByKind {
    fn sets() -> Vec<Self> {
        ["scheduler", "seed"].map(|kind| Self { kind }).into()
    }
}

impl Labels for ByState {
    fn sets() -> Vec<Self> {
        ["pending", "success", "failure"].map(|state| Self { state }).into()
    }
}

impl Labels for ByStatus {
    const ARE_ALL: bool = false;

    fn sets() -> Vec<Self> {
        [200, 401, 404].map(|status| Self { status }).into()
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub members: Family<ByKind, Gauge>,
    pub jobs: Family<ByState, Gauge>,
    pub discoveries: Counter,
    pub answers: Family<ByStatus, Counter>,
    pub placed_bytes: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_family("members", "Schedulers and seed peers that keep alive", &metrics.members);
        registry.register_family("jobs", "Jobs by how far they are", &metrics.jobs);
        registry.register("discoveries", "Peers' questions for their cluster", metrics.discoveries.clone());
        registry.register_family("rest_answers", "Answers over REST by status", &metrics.answers);
        registry.register(
            "preheated_bytes",
            "Bytes that preheats put on peers",
            metrics.placed_bytes.clone(),
        );
        metrics
    }
}

/// All metrics of the daemon.
pub fn described() -> Vec<Described> {
    let mut registry = registry(DAEMON.name, DAEMON.version);
    Metrics::register(&mut registry);
    SpanCounts::register(&mut registry);
    registry.described().to_vec()
}
