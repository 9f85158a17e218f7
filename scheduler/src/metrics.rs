use std::sync::atomic::Ordering;

use d7y_chassis::metrics::{Described, Labels, Registry, registry};
use d7y_chassis::spans::SpanCounts;
use d7y_scheduler_core::Stats;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::DAEMON;
use crate::outbox::Outgoing;
use crate::status::SessionEnd;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl Labels for RoleLabel {
    fn sets() -> Vec<Self> {
        ["node", "seed"].map(|role| Self { role }).into()
    }
}

impl Labels for ReasonLabel {
    fn sets() -> Vec<Self> {
        SessionEnd::REASONS.map(|reason| Self { reason }).into()
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    peers: Family<RoleLabel, Gauge>,
    tasks: Gauge,
    open_tasks: Gauge,
    traces: Gauge,
    trace_bytes: Gauge,
    decisions: Counter,
    assignments: Counter,
    traces_sent: Counter,
    sessions_ended: Family<ReasonLabel, Counter>,
    pub refusals: Counter,
    pub messages: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_family("peers", "Connected peers", &metrics.peers);
        registry.register("tasks", "Tasks that are held or open", metrics.tasks.clone());
        registry.register("open_tasks", "Tasks that at least one peer has open", metrics.open_tasks.clone());
        registry.register("traces", "Access traces kept", metrics.traces.clone());
        registry.register("trace_bytes", "Size of all access traces kept", metrics.trace_bytes.clone());
        registry.register("decisions", "Sets of parents chosen", metrics.decisions.clone());
        registry.register("assignments_sent", "Assignments queued for peers", metrics.assignments.clone());
        registry.register("traces_sent", "Answers to GetTrace", metrics.traces_sent.clone());
        registry.register_family("sessions_ended", "Sessions that ended", &metrics.sessions_ended);
        registry.register("refusals", "Events refused for a limit", metrics.refusals.clone());
        registry.register("messages_received", "Messages from peers", metrics.messages.clone());
        metrics
    }

    pub fn show(&self, stats: &Stats) {
        let level = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.peers.get_or_create(&RoleLabel { role: "node" }).set(level(stats.nodes));
        self.peers.get_or_create(&RoleLabel { role: "seed" }).set(level(stats.seeds));
        self.tasks.set(level(stats.tasks));
        self.open_tasks.set(level(stats.open_tasks));
        self.traces.set(level(stats.traces));
        self.trace_bytes.set(level(stats.trace_bytes));
        self.decisions.inner().store(stats.decisions, Ordering::Relaxed);
    }

    pub fn count(&self, message: &Outgoing) {
        match message {
            Outgoing::Assignment(_) => self.assignments.inc(),
            Outgoing::Trace { .. } => self.traces_sent.inc(),
            Outgoing::Welcome { .. }
            | Outgoing::Grant(_)
            | Outgoing::Preheat(_)
            | Outgoing::EndPreheat { .. } => 0,
        };
    }

    pub fn session_ended(&self, end: &SessionEnd) {
        self.sessions_ended.get_or_create(&ReasonLabel { reason: end.reason() }).inc();
    }
}

/// All metrics of the daemon.
pub fn described() -> Vec<Described> {
    let mut registry = registry(DAEMON.name, DAEMON.version);
    Metrics::register(&mut registry);
    SpanCounts::register(&mut registry);
    registry.described().to_vec()
}
