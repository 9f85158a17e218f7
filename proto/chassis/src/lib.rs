//! What every daemon stands on: configuration, logs, metrics, listeners, supervised tasks and an orderly stop.
//!
//! A daemon is a library with `Config: DaemonConfig` and `async fn start(Config, Tasks)`, and a `main.rs` that
//! hands both to [`Daemon::main`]. The order is always the same: parse arguments, load and validate the
//! configuration, start logging, bind every socket, spawn named tasks, serve until a signal or a fatal task,
//! then stop accepting, drain, stop tasks, flush, exit.

pub mod config;
pub mod daemon;
pub mod listen;
pub mod metrics;
pub mod notify;
pub mod obstacle;
pub mod recent;
pub mod reload;
pub mod shutdown;
pub mod spans;
pub mod tasks;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;

pub use config::{ByteSize, ConfigError, Fault, HumanDuration, Secret, Validate};
pub use daemon::{Action, Daemon, DaemonConfig, DaemonName, Shorthand};
pub use listen::BindError;
pub use metrics::Health;
pub use notify::Notifier;
pub use obstacle::Obstacle;
pub use reload::Reloads;
pub use shutdown::{DrainGuard, Shutdown, ShutdownConfig};
pub use spans::{Spans, TracingConfig};
pub use tasks::{OnEnd, TaskFailure, Tasks};
pub use telemetry::LogConfig;
