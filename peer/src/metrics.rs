use std::sync::atomic::{AtomicU64, Ordering};

use d7y_chassis::metrics::{Described, Labels, Registry, registry};
use d7y_chassis::spans::SpanCounts;
use d7y_origin::{HostStats, OriginStats};
use d7y_store::Usage;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::ledger::Ledger;
use crate::start::DAEMON;

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Source {
    #[expect(non_camel_case_types, reason = "label values are lower case")]
    origin,
    #[expect(non_camel_case_types, reason = "label values are lower case")]
    seed,
    #[expect(non_camel_case_types, reason = "label values are lower case")]
    node,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BySource {
    pub source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByHost {
    pub host: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    pub outcome: &'static str,
}

impl Labels for BySource {
    fn sets() -> Vec<Self> {
        [Source::origin, Source::seed, Source::node].map(|source| Self { source }).into()
    }
}

impl Labels for ByHost {
    const ARE_ALL: bool = false;

    fn sets() -> Vec<Self> {
        vec![Self { host: "registry.example".to_owned() }]
    }
}

/// How the index of a layer became known, or did not.
pub mod opened {
    pub const FAILED: &str = "failed";
    pub const INGESTED: &str = "ingested";
    pub const RECEIVED: &str = "received";
}

impl Labels for ByOutcome {
    fn sets() -> Vec<Self> {
        [opened::FAILED, opened::INGESTED, opened::RECEIVED].map(|outcome| Self { outcome }).into()
    }
}

#[derive(Debug, Default)]
pub struct Metrics {
    pub received_bytes: Family<BySource, Counter>,
    pub received_chunks: Family<BySource, Counter>,
    pub uploaded_bytes: Counter,
    pub rejected_chunks: Family<BySource, Counter>,
    pub reused_bytes: Counter,
    pub damaged_chunks: Counter,
    pub scrubbed_bytes: Counter,
    pub scrub_finished: Gauge<u64, AtomicU64>,
    pub layers_opened: Family<ByOutcome, Counter>,
    pub store_full: Counter,
    pub evicted_layers: Counter,
    pub origin_refills: Counter,
    pub origin_requests: Family<ByHost, Counter>,
    pub origin_bytes: Family<ByHost, Counter>,
    pub waiting_reads: Gauge,
    pub store_limit_bytes: Gauge<u64, AtomicU64>,
    pub connected_parents: Gauge,
    pub scheduler_connected: Gauge,
    pub parked_descriptors: Gauge,
    pub store_bytes: Gauge<u64, AtomicU64>,
    /// The same by layer, for `d7y status`.
    pub ledger: Ledger,
    demand_wait: Option<Histogram>,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        // 0.5 ms to about 16 s.
        let demand_wait = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let metrics = Self { demand_wait: Some(demand_wait.clone()), ..Self::default() };
        let m = &metrics;
        registry.register_family(
            "received_bytes",
            "Bytes as transferred, by where they came from",
            &m.received_bytes,
        );
        registry.register_family(
            "received_chunks",
            "Verified chunks, by where they came from",
            &m.received_chunks,
        );
        registry.register("uploaded_bytes", "Bytes of frames sent to other peers", m.uploaded_bytes.clone());
        registry.register_family("rejected_chunks", "Chunks that failed their digest", &m.rejected_chunks);
        m.register_disk(registry);
        registry.register_family(
            "layers_opened",
            "Layers whose index became known, by how",
            &m.layers_opened,
        );
        registry.register(
            "store_full",
            "Chunks served without being kept: the disk is full",
            m.store_full.clone(),
        );
        registry.register(
            "origin_refills",
            "Layers read again from the origin for want of parents",
            m.origin_refills.clone(),
        );
        registry.register_family(
            "origin_requests",
            "Requests sent to registries, those for tokens included",
            &m.origin_requests,
        );
        registry.register_family(
            "origin_bytes",
            "Bytes received from registries, whatever became of them",
            &m.origin_bytes,
        );
        registry.register(
            "waiting_reads",
            "Reads that wait for chunks now: the queue's depth",
            m.waiting_reads.clone(),
        );
        registry.register(
            "store_limit_bytes",
            "What the store may take (store.limit)",
            m.store_limit_bytes.clone(),
        );
        registry.register(
            "connected_parents",
            "Parents with an open connection",
            m.connected_parents.clone(),
        );
        registry.register(
            "scheduler_connected",
            "1 while the scheduler session is up",
            m.scheduler_connected.clone(),
        );
        registry.register(
            "parked_descriptors",
            "FUSE descriptors kept for snapshotters that may die",
            m.parked_descriptors.clone(),
        );
        registry.register("store_bytes", "Bytes that count towards store.limit", m.store_bytes.clone());
        registry.register("demand_wait_seconds", "How long reads of missing data waited", demand_wait);
        metrics
    }

    fn register_disk(&self, registry: &mut Registry) {
        registry.register(
            "evicted_layers",
            "Layers removed from the store to make room for others",
            self.evicted_layers.clone(),
        );
        registry.register(
            "reused_bytes",
            "Bytes of frames that were not fetched: another layer of this node has the same chunks",
            self.reused_bytes.clone(),
        );
        registry.register(
            "damaged_chunks",
            "Chunks, frames and files of layers on this node's disk that were found damaged; mended or not served",
            self.damaged_chunks.clone(),
        );
        registry.register(
            "scrubbed_bytes",
            "Bytes that were read from this node's disk again to find damage",
            self.scrubbed_bytes.clone(),
        );
        registry.register(
            "scrub_finished_timestamp_seconds",
            "When all layers on this node's disk had been read again last, as Unix time; 0 before the first time",
            self.scrub_finished.clone(),
        );
    }

    pub fn kept(&self, usage: &Usage) {
        self.store_bytes.set(usage.kept_bytes);
        self.store_limit_bytes.set(usage.limit_bytes);
        self.evicted_layers.inner().store(usage.evicted_layers, Ordering::Relaxed);
        self.reused_bytes.inner().store(usage.reused_bytes, Ordering::Relaxed);
        self.damaged_chunks.inner().store(usage.damaged_chunks, Ordering::Relaxed);
    }

    pub fn asked_of_origins(&self, stats: &OriginStats) {
        for HostStats { host, requests, bytes } in &stats.hosts {
            let by = ByHost { host: host.clone() };
            self.origin_requests.get_or_create(&by).inner().store(*requests, Ordering::Relaxed);
            self.origin_bytes.get_or_create(&by).inner().store(*bytes, Ordering::Relaxed);
        }
    }

    pub fn received(&self, source: Source, bytes: u64) {
        self.received_bytes.get_or_create(&BySource { source }).inc_by(bytes);
    }

    pub fn received_chunk(&self, source: Source, bytes: u64) {
        self.received(source, bytes);
        self.received_chunks.get_or_create(&BySource { source }).inc();
    }

    pub fn rejected(&self, source: Source) {
        self.rejected_chunks.get_or_create(&BySource { source }).inc();
    }

    pub fn opened(&self, outcome: &'static str) {
        self.layers_opened.get_or_create(&ByOutcome { outcome }).inc();
    }

    pub fn waited(&self, seconds: f64) {
        if let Some(histogram) = &self.demand_wait {
            histogram.observe(seconds);
        }
    }
}

/// All metrics of the daemon.
pub fn described() -> Vec<Described> {
    let mut registry = registry(DAEMON.name, DAEMON.version);
    Metrics::register(&mut registry);
    SpanCounts::register(&mut registry);
    registry.described().to_vec()
}
