use d7y_chassis::metrics::{Described, Registry, registry};
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
        registry.register("members", "Schedulers and seed peers that keep alive", metrics.members.clone());
        registry.register("jobs", "Jobs by how far they are", metrics.jobs.clone());
        registry.register("discoveries", "Peers' questions for their cluster", metrics.discoveries.clone());
        registry.register("rest_answers", "Answers over REST by status", metrics.answers.clone());
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
