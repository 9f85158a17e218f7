use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use d7y_chassis::TracingConfig;
use d7y_chassis::config::{ByteSize, Fault, HumanDuration, Secret, Validate};
use d7y_chassis::daemon::DaemonConfig;
use d7y_chassis::shutdown::ShutdownConfig;
use d7y_chassis::telemetry::LogConfig;
use d7y_image::{IndexSigner, TrustedKeys};
use d7y_manager_client::ManagerConfig;
use d7y_origin::OriginConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a peer is to its cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves the containers of its own node, and passes on what it has.
    #[default]
    Node,
    /// Reads layers from their origin on behalf of the cluster.
    Seed,
}

#[derive(Debug, Clone, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    pub log: LogConfig,
    pub tracing: TracingConfig,
    pub shutdown: ShutdownConfig,
    /// Unique in the cluster and stable over restarts; the host's name when empty.
    pub peer_id: String,
    pub role: Role,
    pub store: StoreConfig,
    pub local: LocalConfig,
    pub transfer: TransferConfig,
    pub observability: ObservabilityConfig,
    pub scheduler: SchedulerConfig,
    /// The manager that knows where the cluster's scheduler and seed peers are; what is set under `scheduler` and `seeds`
    /// comes first.
    pub manager: ManagerConfig,
    /// Work without a scheduler, with the peers listed under `seeds`.
    pub standalone: bool,
    /// Seed peers, as host:port of their piece protocol: asked when no scheduler answers.
    pub seeds: Vec<String>,
    pub origin: OriginConfig,
    pub index_trust: IndexTrustConfig,
    pub fetch: FetchConfig,
}

#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StoreConfig {
    /// The chunks and indexes; on a local file system that has sparse files. Belongs to one peer.
    pub directory: PathBuf,
    /// Most bytes to keep on disk, indexes and access traces included; the layers used longest ago go first.
    pub limit: ByteSize,
    pub scrub: ScrubConfig,
}

/// Reading what is on disk again, to find what the disk has changed, and to mend it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScrubConfig {
    /// Bytes that are read in a second; 0 switches it off.
    pub rate: ByteSize,
    /// From the beginning of one pass over the store to that of the next.
    pub interval: HumanDuration,
}

#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LocalConfig {
    /// Where the snapshotter and tools of this node reach the peer.
    pub socket: PathBuf,
}

#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TransferConfig {
    /// Where other peers fetch from this one.
    pub listen: SocketAddr,
    /// host:port under which other peers reach `listen`; needed when that is a wildcard address.
    pub advertise: String,
}

#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ObservabilityConfig {
    /// Each address answers /metrics and /healthy.
    pub listen: Vec<SocketAddr>,
}

#[derive(Debug, Clone, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SchedulerConfig {
    /// host:port of the scheduler.
    pub address: String,
}

#[derive(Debug, Clone, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IndexTrustConfig {
    /// 32-byte Ed25519 seed in hex that signs the indexes built here; made at the first start when empty.
    pub signing_key: Secret,
    /// Ed25519 public keys in hex whose indexes this node mounts. Its own is always among them.
    pub public_keys: Vec<String>,
}

#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FetchConfig {
    /// Fetch the rest of a layer once nothing urgent is left to fetch. Seeds always do.
    pub background: bool,
    /// A node whose cluster shows no sign of giving what it needs for this long reads the origin itself. Where a scheduler
    /// says who reads, and that is somebody else, it waits four times as long; what peers had and lost, the node that is to
    /// read it reads after a quarter of this. At least 1 s.
    pub origin_fallback_after: HumanDuration,
    /// zstd level of the packs built here, 1 to 19.
    pub zstd_level: i32,
}

/// For as long the scheduler's word is waited for, and a reader waits before another peer is asked (`directory`, `rescue`):
/// with less the whole cluster would read the registry itself, and all waits that are a multiple of it would be none.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            directory: "/var/lib/d7y/peer".into(),
            limit: ByteSize::gib(100),
            scrub: ScrubConfig::default(),
        }
    }
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { rate: ByteSize::mib(8), interval: HumanDuration::from_secs(24 * 3600) }
    }
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self { socket: "/run/d7y/peer.sock".into() }
    }
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::UNSPECIFIED, 4000).into(), advertise: String::new() }
    }
}

impl Default for ObservabilityConfig {
    fn default() -> Self {
        Self { listen: vec![(Ipv4Addr::UNSPECIFIED, 4002).into(), (Ipv4Addr::UNSPECIFIED, 4003).into()] }
    }
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self { background: true, origin_fallback_after: HumanDuration::from_secs(10), zstd_level: 3 }
    }
}

impl DaemonConfig for Config {
    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn shutdown(&self) -> &ShutdownConfig {
        &self.shutdown
    }

    fn reloadable() -> Vec<&'static str> {
        vec!["log.level", "store.limit", "store.scrub.rate", "store.scrub.interval"]
    }

    fn kept_settings(&self) -> Option<PathBuf> {
        self.manager.is_set().then(|| self.discovered_file())
    }
}

impl Config {
    /// Holds the manager's last answer.
    pub fn discovered_file(&self) -> PathBuf {
        self.store.directory.join("discovered.json")
    }
}

impl Validate for Config {
    fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.standalone && !self.scheduler.address.is_empty() {
            faults.push(Fault::new(
                "standalone",
                "a standalone peer has no scheduler; remove scheduler.address",
            ));
        }
        if self.standalone && self.manager.is_set() {
            faults.push(Fault::new("standalone", "a standalone peer has no manager; remove manager.address"));
        }
        faults.extend(self.log.validate().into_iter().map(|fault| fault.within("log")));
        faults.extend(self.tracing.validate().into_iter().map(|fault| fault.within("tracing")));
        faults.extend(origin_faults(&self.origin.faults()));
        faults.extend(self.manager.validate().into_iter().map(|fault| fault.within("manager")));
        let addresses = [
            ("scheduler.address", &self.scheduler.address),
            ("transfer.advertise", &self.transfer.advertise),
        ];
        let seeds = self.seeds.iter().map(|seed| ("seeds", seed));
        for (key, address) in addresses.into_iter().filter(|(_, a)| !a.is_empty()).chain(seeds) {
            if !is_host_and_port(address) {
                faults.push(Fault::new(key, format!("{address:?} is not of the form host:port")));
            }
        }
        if is_wildcard(&self.transfer.advertise) {
            let problem = format!(
                "other peers cannot connect to {:?}; write this host's own address or name, or leave it empty",
                self.transfer.advertise
            );
            faults.push(Fault::new("transfer.advertise", problem));
        }
        let key = self.index_trust.signing_key.expose();
        if !key.is_empty() && IndexSigner::from_hex(key).is_err() {
            faults.push(Fault::new(
                "indexTrust.signingKey",
                "must be 64 hex digits; `openssl rand -hex 32` makes one",
            ));
        }
        if TrustedKeys::from_hex(self.index_trust.public_keys.iter().map(String::as_str)).is_err() {
            faults.push(Fault::new("indexTrust.publicKeys", "each must be 64 hex digits"));
        }
        if !(1..=19).contains(&self.fetch.zstd_level) {
            faults.push(Fault::new("fetch.zstdLevel", "must be between 1 and 19"));
        }
        if self.fetch.origin_fallback_after.get() < LEAST_PATIENCE {
            let problem = format!(
                "must be at least {LEAST_PATIENCE:?}: in less nobody else can be asked; without scheduler, manager and seeds a node \
                 reads the origin at once anyhow"
            );
            faults.push(Fault::new("fetch.originFallbackAfter", problem));
        }
        if self.store.limit.as_u64() < 1 << 20 {
            faults.push(Fault::new("store.limit", "must be at least 1MiB"));
        }
        if self.store.scrub.interval.get() < Duration::from_secs(1) {
            faults
                .push(Fault::new("store.scrub.interval", "must be at least 1s; store.scrub.rate: 0 is off"));
        }
        faults
    }
}

/// With their keys as the configuration has them.
pub(crate) fn origin_faults(faults: &[d7y_origin::ConfigFault]) -> Vec<Fault> {
    faults.iter().map(|fault| Fault::new(fault.key(), fault.problem()).within("origin")).collect()
}

/// An address to listen on, not one to connect to.
fn is_wildcard(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>().is_ok_and(|host| host.is_unspecified()) || host == "*"
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
