use std::error::Error;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::registry::registry_faults;
use crate::tls::CaFileError;

/// Where layers come from and how patiently they are asked for. All keys are optional: without any of them d7y pulls
/// like `docker` does, with the credentials of the user that it runs as.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OriginConfig {
    /// Registries that need more than the defaults. Others are reached over HTTPS, loopback ones over HTTP. List those
    /// whose names have a port other than 5000, on nodes and on seeds: containerd keeps names without their ports.
    pub registries: Vec<RegistryConfig>,
    /// File with registry credentials in the format of `docker login`. Default: `$DOCKER_CONFIG/config.json`, else
    /// `~/.docker/config.json`. Read again each time that credentials are needed; a missing file means none.
    pub docker_config: Option<PathBuf>,
    /// Environment variables that credential helpers may see besides `PATH`, `HOME` and `DOCKER_CONFIG`.
    pub credential_helper_env: Vec<String>,
    pub timeouts: Timeouts,
    pub retry: RetryConfig,
    /// Blobs read from one host at a time, each over a connection of its own; further ones wait for `timeouts.queue`.
    /// Short requests have 4 connections more. Default: 16.
    pub max_connections_per_host: NonZeroU32,
}

impl Default for OriginConfig {
    fn default() -> Self {
        Self {
            registries: Vec::new(),
            docker_config: None,
            credential_helper_env: Vec::new(),
            timeouts: Timeouts::default(),
            retry: RetryConfig::default(),
            max_connections_per_host: NonZeroU32::new(16).expect("16 is not zero"),
        }
    }
}

/// What differs for one registry.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryConfig {
    /// The host as image names have it, with the port where one is given: `registry.example:5000`.
    pub host: String,
    /// Default: `http` for loopback hosts, `https` for all others.
    #[serde(default)]
    pub scheme: Option<Scheme>,
    /// PEM file of certificate authorities, or of the registry's own certificate, trusted besides the system's, for the registry, for its token service and
    /// for the storage that it redirects to.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Hosts to ask first, in this order. Each may have an entry of its own in `registries`, and uses its own
    /// credentials, never those of the registry that it mirrors.
    #[serde(default)]
    pub mirrors: Vec<String>,
}

impl RegistryConfig {
    /// A registry with nothing but defaults.
    pub fn new(host: impl Into<String>) -> Self {
        Self { host: host.into(), scheme: None, ca_file: None, mirrors: Vec::new() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    Https,
    Http,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

/// How long to wait for what. Written as `30s`, `2m`.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// A TCP connection. Default: 10s.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub connect: Duration,
    /// The head of a response, with connecting and TLS. Default: 30s.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub response: Duration,
    /// The next bytes of a body. Default: 30s.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub idle: Duration,
    /// All the waiting for the network, retries included, until a read has advanced. Default: 2m.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub no_progress: Duration,
    /// One of the `maxConnectionsPerHost` to become free. Default: 10m.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub queue: Duration,
    /// A credential helper. Default: 15s.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub credential_helper: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            response: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            no_progress: Duration::from_secs(120),
            queue: Duration::from_secs(600),
            credential_helper: Duration::from_secs(15),
        }
    }
}

/// How often to ask again. The delay doubles from `initialDelay` to `maxDelay`, with jitter.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Failed attempts in a row, without progress, after which a read fails. Default: 6.
    pub attempts: NonZeroU32,
    /// Default: 200ms.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub initial_delay: Duration,
    /// Default: 10s.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub max_delay: Duration,
    /// The longest `Retry-After` that is waited for in full; a longer one is cut to this. Default: 30s.
    #[serde(with = "human")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub max_retry_after: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::new(6).expect("6 is not zero"),
            initial_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(10),
            max_retry_after: Duration::from_secs(30),
        }
    }
}

/// Everything that is wrong with an [`OriginConfig`].
#[derive(Debug)]
pub struct ConfigError(pub Vec<ConfigFault>);

#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    #[error("{0:?} is not a registry host; write host or host:port, without a scheme or a path")]
    Host(String),
    #[error("{0} has two entries; merge them")]
    Duplicate(String),
    #[error("the caFile of {host} cannot be used")]
    CaFile { host: String, source: CaFileError },
    #[error("is zero; leave it out for the default")]
    ZeroTimeout(&'static str),
    #[error("the TLS library cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl ConfigFault {
    /// The key at fault, below the one that holds the [`OriginConfig`].
    pub fn key(&self) -> &'static str {
        match self {
            Self::Host(_) | Self::Duplicate(_) | Self::CaFile { .. } | Self::Tls(_) => "registries",
            Self::ZeroTimeout(key) => key,
        }
    }

    /// What is wrong, with its causes.
    pub fn problem(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", fault.key(), fault.problem())?;
        }
        Ok(())
    }
}

impl Error for ConfigError {}

impl OriginConfig {
    /// What is wrong with it, the files that it names included.
    pub fn faults(&self) -> Vec<ConfigFault> {
        let mut faults: Vec<_> = self.timeouts.faults().collect();
        faults.extend(registry_faults(&self.registries));
        faults
    }
}

impl Timeouts {
    fn faults(&self) -> impl Iterator<Item = ConfigFault> {
        [
            ("timeouts.connect", self.connect),
            ("timeouts.response", self.response),
            ("timeouts.idle", self.idle),
            ("timeouts.noProgress", self.no_progress),
            ("timeouts.queue", self.queue),
            ("timeouts.credentialHelper", self.credential_helper),
        ]
        .into_iter()
        .filter(|(_, value)| value.is_zero())
        .map(|(key, _)| ConfigFault::ZeroTimeout(key))
    }
}

mod human {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_str(DurationVisitor)
    }

    struct DurationVisitor;

    impl Visitor<'_> for DurationVisitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration with its unit, such as 10s")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text).map_err(E::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;

    #[test]
    fn keys_defaults_and_unknown_keys() {
        let parse = |text: &str| serde_json::from_str::<OriginConfig>(text);
        assert_eq!(parse("{}").unwrap(), OriginConfig::default());
        let text = r#"{"registries":[{"host":"a:5000","scheme":"http","mirrors":["b"]}],"dockerConfig":"c",
            "credentialHelperEnv":["D"],"timeouts":{"noProgress":"3m"},"retry":{"maxRetryAfter":"1s"},
            "maxConnectionsPerHost":3}"#;
        let config = parse(text).unwrap();
        assert_eq!(config.timeouts.no_progress, Duration::from_secs(180));
        assert_eq!(config.timeouts.idle, Timeouts::default().idle);
        assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
        let bad = [
            r#"{"registry":[]}"#,
            r#"{"registries":[{}]}"#,
            r#"{"registries":[{"host":"a","insecure":true}]}"#,
            r#"{"registries":[{"host":"a","scheme":"ftp"}]}"#,
            r#"{"timeouts":{"idle":5}}"#,
            r#"{"timeouts":{"idle":"soon"}}"#,
            r#"{"retry":{"attempts":0}}"#,
            r#"{"maxConnectionsPerHost":0}"#,
        ];
        for text in bad {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_faults_are_reported_together() {
        let entry = |host: &str| RegistryConfig::new(host);
        let config = OriginConfig {
            registries: vec![
                entry("https://a/v2"),
                entry("b"),
                entry("B"),
                RegistryConfig { ca_file: Some("/nonexistent/ca.pem".into()), ..entry("c") },
                RegistryConfig { ca_file: Some("/dev/null".into()), ..entry("d") },
                RegistryConfig { mirrors: vec!["e f".into()], ..entry("g") },
            ],
            timeouts: Timeouts { idle: Duration::ZERO, ..Timeouts::default() },
            ..OriginConfig::default()
        };
        let text = Origin::new(config).unwrap_err().to_string();
        for part in
            ["https://a/v2", "B has two", "/nonexistent/ca.pem", "/dev/null", "\"e f\"", "timeouts.idle"]
        {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}
