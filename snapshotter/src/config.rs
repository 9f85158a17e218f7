use std::net::SocketAddr;
use std::path::PathBuf;

use d7y_chassis::{DaemonConfig, Fault, HumanDuration, LogConfig, ShutdownConfig, TracingConfig, Validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// overlayfs takes the paths of all layers in one page of mount options: a long directory would cost layers.
const MAX_RUN_DIRECTORY_BYTES: usize = 64;

#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The socket on which containerd finds the snapshotter (`proxy_plugins.d7y.address`).
    pub socket: PathBuf,
    /// Snapshots and their metadata; on a file system that overlayfs takes as an upper directory. Survives reboots.
    pub root_directory: PathBuf,
    /// Mount points; must be short and on this machine only. Need not survive a reboot.
    pub run_directory: PathBuf,
    pub driver: DriverChoice,
    pub containerd: ContainerdConfig,
    pub peer: PeerConfig,
    /// How long the first Prepare of an image may wait for its layers' indexes, all layers together, and how long that of
    /// a container may wait for them once more: containerd holds a lock meanwhile.
    pub prepare_wait: HumanDuration,
    /// How long the start of a container may wait until its layers can be mounted.
    pub start_deadline: HumanDuration,
    /// How long a read of missing data may take before it fails with EIO.
    pub read_deadline: HumanDuration,
    /// How long the layers of an image that is on the node stay mounted after its last container went: the next start
    /// finds them, and the kernel's caches of them. Meanwhile the peer does not evict them, unless nothing else can make
    /// room for what is wanted. 0s unmounts at once.
    pub idle_mounts: HumanDuration,
    pub trace: TraceConfig,
    pub metrics: MetricsConfig,
    pub log: LogConfig,
    pub tracing: TracingConfig,
    pub shutdown: ShutdownConfig,
}

/// What serves a layer's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DriverChoice {
    /// EROFS where the kernel mounts it from plain files, else FUSE.
    #[default]
    Auto,
    Erofs,
    Fuse,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerdConfig {
    /// containerd's own socket, whose content store tells which image a layer belongs to. Without it every layer is
    /// an ordinary one.
    pub socket: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerConfig {
    /// The local socket of this node's d7y-peer.
    pub socket: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct TraceConfig {
    /// For how long after its first container's start an image's accesses are recorded; 0s records nothing.
    pub window: HumanDuration,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where `/metrics` and `/healthy` are served; null serves neither.
    pub listen: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/d7y/snapshotter.sock".into(),
            root_directory: "/var/lib/d7y/snapshotter".into(),
            run_directory: "/run/d7y".into(),
            driver: DriverChoice::default(),
            containerd: ContainerdConfig::default(),
            peer: PeerConfig::default(),
            prepare_wait: HumanDuration::from_secs(2),
            start_deadline: HumanDuration::from_secs(600),
            read_deadline: HumanDuration::from_secs(60),
            idle_mounts: HumanDuration::from_secs(60),
            trace: TraceConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
            tracing: TracingConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self { socket: Some("/run/containerd/containerd.sock".into()) }
    }
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self { socket: "/run/d7y/peer.sock".into() }
    }
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { window: HumanDuration::from_secs(20) }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 4004))) }
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

impl Validate for Config {
    fn validate(&self) -> Vec<Fault> {
        let mut faults: Vec<_> = self.log.validate().into_iter().map(|fault| fault.within("log")).collect();
        faults.extend(self.tracing.validate().into_iter().map(|fault| fault.within("tracing")));
        let directories = [("rootDirectory", &self.root_directory), ("runDirectory", &self.run_directory)];
        for (key, path) in directories {
            let text = path.as_os_str().as_encoded_bytes();
            if !path.is_absolute() {
                faults.push(Fault::new(key, "must be an absolute path"));
            }
            if text.iter().any(|byte| matches!(byte, b',' | b':' | b'\\')) {
                faults.push(Fault::new(
                    key,
                    "must not contain a comma, colon or backslash: mount options cannot",
                ));
            }
        }
        let run_bytes = self.run_directory.as_os_str().len();
        if run_bytes > MAX_RUN_DIRECTORY_BYTES {
            let problem = format!("has {run_bytes} bytes; take a path of at most {MAX_RUN_DIRECTORY_BYTES}");
            faults.push(Fault::new("runDirectory", problem));
        }
        for (key, value) in [("startDeadline", self.start_deadline), ("readDeadline", self.read_deadline)] {
            if value.get().is_zero() {
                faults.push(Fault::new(key, "must be longer than 0s"));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_their_key() {
        assert_eq!(Config::default().validate(), []);
        let table = [
            (Config { run_directory: "relative".into(), ..Config::default() }, "runDirectory"),
            (Config { root_directory: "/a:b".into(), ..Config::default() }, "rootDirectory"),
            (
                Config { run_directory: format!("/{}", "x".repeat(64)).into(), ..Config::default() },
                "runDirectory",
            ),
            (Config { read_deadline: HumanDuration::default(), ..Config::default() }, "readDeadline"),
        ];
        for (config, place) in table {
            let faults = config.validate();
            assert_eq!(faults.iter().map(|fault| fault.place.as_str()).collect::<Vec<_>>(), [place]);
        }
    }
}
