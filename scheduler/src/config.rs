use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use d7y_chassis::{DaemonConfig, Fault, HumanDuration, LogConfig, ShutdownConfig, TracingConfig, Validate};
use d7y_manager_client::ManagerConfig;
use d7y_types::advertised;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shorter, and heartbeats are the load; longer, and a dead parent is recommended for minutes.
const HEARTBEAT_LIMITS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(60));
/// Longer, and a cluster without seeds looks broken after a restart of the scheduler.
const MAX_SETTLE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Where peers open their sessions (gRPC).
    pub server: ListenConfig,
    /// Where `/metrics` and `/healthy` are served.
    pub metrics: ListenConfig,
    pub heartbeat: HeartbeatConfig,
    /// The manager that peers find this scheduler through.
    pub manager: ManagerConfig,
    /// Unique among the cluster's schedulers and stable over restarts; the host's name when empty.
    pub name: String,
    /// host:port under which peers and the manager reach `server.listen`; the manager sees the host when empty.
    pub advertise: String,
    /// How long after the start no node is told to read from an origin itself, so that seeds and holders can
    /// announce themselves again.
    pub settle: HumanDuration,
    pub log: LogConfig,
    pub tracing: TracingConfig,
    pub shutdown: ShutdownConfig,
}

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenConfig {
    /// IP address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct HeartbeatConfig {
    /// How often a peer sends something; three times this without a word, and it is gone.
    pub interval: HumanDuration,
}

impl ListenConfig {
    fn everywhere(port: u16) -> Self {
        Self { listen: (Ipv4Addr::UNSPECIFIED, port).into() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ListenConfig::everywhere(8002),
            metrics: ListenConfig::everywhere(8000),
            heartbeat: HeartbeatConfig::default(),
            manager: ManagerConfig::default(),
            name: String::new(),
            advertise: String::new(),
            settle: HumanDuration::from_secs(3),
            log: LogConfig::default(),
            tracing: TracingConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self { interval: HumanDuration::from_secs(5) }
    }
}

impl Validate for Config {
    fn validate(&self) -> Vec<Fault> {
        let mut faults: Vec<_> = self.log.validate().into_iter().map(|fault| fault.within("log")).collect();
        faults.extend(self.tracing.validate().into_iter().map(|fault| fault.within("tracing")));
        faults.extend(self.manager.validate().into_iter().map(|fault| fault.within("manager")));
        let (least, most) = HEARTBEAT_LIMITS;
        if !(least..=most).contains(&self.heartbeat.interval.get()) {
            faults.push(Fault::new("heartbeat.interval", format!("must be from {least:?} to {most:?}")));
        }
        if self.settle.get() > MAX_SETTLE {
            faults.push(Fault::new("settle", format!("must be at most {MAX_SETTLE:?}")));
        }
        if !self.advertise.is_empty() && advertised(&self.advertise, None).is_err() {
            let problem = format!("{:?} is not of the form host:port", self.advertise);
            faults.push(Fault::new("advertise", problem));
        }
        let (server, metrics) = (self.server.listen, self.metrics.listen);
        if server == metrics && server.port() != 0 {
            faults.push(Fault::new("metrics.listen", format!("{metrics} is server.listen too")));
        }
        faults
    }
}

impl DaemonConfig for Config {
    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn shutdown(&self) -> &ShutdownConfig {
        &self.shutdown
    }
}
