use std::time::Duration;

use d7y_chassis::metrics::{Described, Labels, Registry, registry};
use d7y_chassis::spans::SpanCounts;
use d7y_proto::local::Source;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::start::DAEMON;
use crate::starts::source_name;

/// From a hit on the swarm's next machine to the read deadline, in seconds.
const MISS_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// What the snapshotter counts; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub prepares: Family<PrepareLabels, Counter>,
    pub reads: Family<ReadLabels, Counter>,
    pub miss_seconds: Family<SourceLabels, Histogram>,
    pub mounted_layers: Gauge,
    pub mounts: Family<MountLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PrepareLabels {
    pub outcome: PrepareOutcome,
}

/// How a Prepare with `containerd.io/snapshot.ref` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum PrepareOutcome {
    /// The peer supplies the layer.
    Lazy,
    /// containerd downloads it: no image of the content store has it, or nothing tells its registry.
    UnknownImage,
    /// containerd downloads it: its content store did not answer.
    ContentStore,
    /// containerd downloads it: not a tar layer.
    MediaType,
    /// containerd downloads it: the peer does not answer.
    PeerUnavailable,
    /// containerd downloads it: the peer has no credentials for the registry.
    Unauthorized,
    /// containerd downloads it: neither the registry nor the swarm gave the peer anything of it in time.
    Unsupplied,
    /// containerd downloads it: the peer cannot supply it for another reason.
    PeerRefused,
    /// An error: the layer is not what its digest says.
    Corrupt,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabels {
    pub source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReadLabels {
    pub result: ReadResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ReadResult {
    /// All of it was there.
    Hit,
    /// Some of it had to be fetched.
    Miss,
    /// A miss that ended as EIO.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MountLabels {
    pub kind: MountKind,
}

/// How the mount of a layer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum MountKind {
    /// On a file of the FUSE mount, or, with the FUSE driver, in it.
    Served,
    /// On the complete device in the peer's store.
    Direct,
    /// The kernel refused the complete device, and the layer is served instead.
    Refused,
}

impl Labels for PrepareLabels {
    fn sets() -> Vec<Self> {
        use PrepareOutcome as Outcome;
        let all = [
            Outcome::Lazy,
            Outcome::UnknownImage,
            Outcome::ContentStore,
            Outcome::MediaType,
            Outcome::PeerUnavailable,
            Outcome::Unauthorized,
            Outcome::Unsupplied,
            Outcome::PeerRefused,
            Outcome::Corrupt,
        ];
        all.map(|outcome| Self { outcome }).into()
    }
}

impl Labels for SourceLabels {
    fn sets() -> Vec<Self> {
        let all = (0..=i32::from(u8::MAX)).filter_map(|number| Source::try_from(number).ok());
        all.map(|source| Self { source: source_name(source) }).collect()
    }
}

impl Labels for ReadLabels {
    fn sets() -> Vec<Self> {
        [ReadResult::Hit, ReadResult::Miss, ReadResult::Failed].map(|result| Self { result }).into()
    }
}

impl Labels for MountLabels {
    fn sets() -> Vec<Self> {
        [MountKind::Served, MountKind::Direct, MountKind::Refused].map(|kind| Self { kind }).into()
    }
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            prepares: Family::default(),
            reads: Family::default(),
            miss_seconds: Family::new_with_constructor(|| Histogram::new(MISS_BUCKETS)),
            mounted_layers: Gauge::default(),
            mounts: Family::default(),
        }
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register_family("prepares", "Prepares of image layers by how they ended", &self.prepares);
        registry.register_family("reads", "Reads of layer devices by result", &self.reads);
        registry.register_family(
            "read_miss_seconds",
            "Time to answer a read of missing data, by who gave the last part: origin, seed, node, another layer here, or shared with another read",
            &self.miss_seconds,
        );
        registry.register("mounted_layers", "Layers mounted now", self.mounted_layers.clone());
        registry.register_family("mounts", "Mounts of layers made, by what stands below", &self.mounts);
    }

    pub fn prepared(&self, outcome: PrepareOutcome) {
        self.prepares.get_or_create(&PrepareLabels { outcome }).inc();
    }

    pub fn read(&self, result: ReadResult) {
        self.reads.get_or_create(&ReadLabels { result }).inc();
    }

    pub fn mounted(&self, kind: MountKind) {
        self.mounts.get_or_create(&MountLabels { kind }).inc();
    }

    pub fn missed(&self, source: &'static str, after: Duration) {
        self.miss_seconds.get_or_create(&SourceLabels { source }).observe(after.as_secs_f64());
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// All metrics of the daemon.
pub fn described() -> Vec<Described> {
    let mut registry = registry(DAEMON.name, DAEMON.version);
    Metrics::new().register(&mut registry);
    SpanCounts::register(&mut registry);
    registry.described().to_vec()
}
