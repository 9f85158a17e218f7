use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use d7y_chassis::{
    DaemonConfig, Fault, HumanDuration, LogConfig, Secret, ShutdownConfig, TracingConfig, Validate,
};
use d7y_manager_db::Vault;
use d7y_origin::OriginConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shorter, and staying alive is the load; longer, and the dead are recommended for minutes.
const INTERVAL_LIMITS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(60));
pub(crate) const MIN_PASSWORD_CHARS: usize = 8;

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Where people, the CLI and Harbor reach the manager (HTTP).
    pub rest: ListenConfig,
    /// Where schedulers, seed peers and peers reach it (gRPC).
    pub grpc: ListenConfig,
    /// Where `/metrics` and `/healthy` are served.
    pub metrics: ListenConfig,
    /// Holds the database `manager.db` and, unless `secrets` says otherwise, the key of stored secrets.
    pub directory: PathBuf,
    pub secrets: SecretsConfig,
    /// Password of the user `root` that is made at the first start; a random one is made, and printed once, when empty.
    pub initial_root_password: Secret,
    pub keep_alive: KeepAliveConfig,
    pub discovery: DiscoveryConfig,
    pub jobs: JobsConfig,
    /// How registries are reached to find out what an image's name means.
    pub origin: OriginConfig,
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

#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretsConfig {
    /// 32 bytes in hex that seal stored registry credentials.
    pub key: Secret,
    /// File with the key; `secrets.key` in `directory`, made at the first start, when neither is set.
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct KeepAliveConfig {
    /// How often schedulers and seed peers say something; three times this without a word, and they are in no view.
    pub interval: HumanDuration,
}

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct DiscoveryConfig {
    /// How often peers ask again for their scheduler and seed peers.
    pub refresh: HumanDuration,
}

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct JobsConfig {
    /// How long a job that has ended can be looked at.
    pub keep_for: HumanDuration,
    /// Most ended jobs to keep; the oldest go first.
    pub keep_most: NonZeroU32,
}

impl Default for JobsConfig {
    fn default() -> Self {
        let keep_for = HumanDuration::from_secs(30 * 24 * 3600);
        Self { keep_for, keep_most: NonZeroU32::new(10_000).expect("not zero") }
    }
}

impl Default for Config {
    fn default() -> Self {
        let everywhere = |port| ListenConfig { listen: (Ipv4Addr::UNSPECIFIED, port).into() };
        Self {
            rest: everywhere(8080),
            grpc: everywhere(65003),
            metrics: everywhere(8001),
            directory: "/var/lib/d7y/manager".into(),
            secrets: SecretsConfig::default(),
            initial_root_password: Secret::default(),
            keep_alive: KeepAliveConfig::default(),
            discovery: DiscoveryConfig::default(),
            jobs: JobsConfig::default(),
            origin: OriginConfig::default(),
            log: LogConfig::default(),
            tracing: TracingConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

impl Default for KeepAliveConfig {
    fn default() -> Self {
        Self { interval: HumanDuration::from_secs(5) }
    }
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self { refresh: HumanDuration::from_secs(30) }
    }
}

impl Validate for Config {
    fn validate(&self) -> Vec<Fault> {
        let mut faults: Vec<_> = self.log.validate().into_iter().map(|fault| fault.within("log")).collect();
        faults.extend(self.tracing.validate().into_iter().map(|fault| fault.within("tracing")));
        faults.extend(origin_faults(&self.origin.faults()));
        let (least, most) = INTERVAL_LIMITS;
        let intervals =
            [("keepAlive.interval", self.keep_alive.interval), ("discovery.refresh", self.discovery.refresh)];
        for (key, interval) in intervals {
            if !(least..=most).contains(&interval.get()) {
                faults.push(Fault::new(key, format!("must be from {least:?} to {most:?}")));
            }
        }
        let listens = [("grpc.listen", &self.grpc), ("metrics.listen", &self.metrics)];
        for (key, other) in listens {
            if other.listen == self.rest.listen && other.listen.port() != 0 {
                faults.push(Fault::new(key, format!("{} is rest.listen too", other.listen)));
            }
        }
        if self.grpc.listen == self.metrics.listen && self.grpc.listen.port() != 0 {
            faults.push(Fault::new("metrics.listen", format!("{} is grpc.listen too", self.grpc.listen)));
        }
        let key = self.secrets.key.expose();
        if !key.is_empty() && Vault::new(key).is_err() {
            let problem = "must be 64 hex digits; `openssl rand -hex 32` makes them";
            faults.push(Fault::new("secrets.key", problem));
        }
        if !key.is_empty() && self.secrets.key_file.is_some() {
            faults.push(Fault::new("secrets.keyFile", "is set beside secrets.key; remove one of them"));
        }
        let password = self.initial_root_password.expose();
        if !password.is_empty() && password.chars().count() < MIN_PASSWORD_CHARS {
            let problem = format!("must have at least {MIN_PASSWORD_CHARS} characters");
            faults.push(Fault::new("initialRootPassword", problem));
        }
        faults
    }
}

/// With their keys as the configuration has them.
pub(crate) fn origin_faults(faults: &[d7y_origin::ConfigFault]) -> Vec<Fault> {
    faults.iter().map(|fault| Fault::new(fault.key(), fault.problem()).within("origin")).collect()
}

impl DaemonConfig for Config {
    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn shutdown(&self) -> &ShutdownConfig {
        &self.shutdown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_are_reported() {
        assert_eq!(Config::default().validate(), []);
        let mut config = Config { metrics: Config::default().rest, ..Config::default() };
        config.keep_alive.interval = HumanDuration::from_secs(0);
        config.secrets = SecretsConfig { key: Secret::new("short"), key_file: Some("key".into()) };
        config.initial_root_password = Secret::new("1234567");
        let places: Vec<_> = config.validate().into_iter().map(|fault| fault.place).collect();
        let expected =
            ["keepAlive.interval", "metrics.listen", "secrets.key", "secrets.keyFile", "initialRootPassword"];
        assert_eq!(places, expected);
    }
}
