//! An orderly stop, in phases with deadlines.
//!
//! [`Shutdown::begin`] (first SIGTERM or SIGINT, or a fatal task) cancels [`Shutdown::closing`]: listeners stop
//! accepting. Work that holds a [`DrainGuard`] may finish until `drainTimeout`; then [`Shutdown::stopping`] is
//! cancelled and every task ends, or is dropped after `stopTimeout`. [`crate::Tasks::finish`] drives the phases.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::config::HumanDuration;

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long work in flight may take to finish after the first signal.
    pub drain_timeout: HumanDuration,
    /// How long tasks may take to end once the drain is over, and each flush after that.
    pub stop_timeout: HumanDuration,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        // Nodes wait for a seed that restarts: a quarter of `fetch.originFallbackAfter`, which is 2.5 s.
        Self { drain_timeout: HumanDuration::from_secs(2), stop_timeout: HumanDuration::from_secs(5) }
    }
}

/// The handle that all parts of a daemon share; clones are the same handle.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<State>);

#[derive(Debug)]
struct State {
    config: ShutdownConfig,
    closing: CancellationToken,
    stopping: CancellationToken,
    in_flight: TaskTracker,
    reason: OnceLock<String>,
}

/// Work that the drain waits for; dropping it says that the work is done.
#[derive(Debug)]
pub struct DrainGuard {
    _token: TaskTrackerToken,
}

impl Shutdown {
    pub fn new(config: ShutdownConfig) -> Self {
        Self(Arc::new(State {
            config,
            closing: CancellationToken::new(),
            stopping: CancellationToken::new(),
            in_flight: TaskTracker::new(),
            reason: OnceLock::new(),
        }))
    }

    /// Starts the stop; only the first reason counts.
    pub fn begin(&self, reason: impl Into<String>) {
        let _ = self.0.reason.set(reason.into());
        self.0.closing.cancel();
    }

    pub fn reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }

    pub fn has_begun(&self) -> bool {
        self.0.closing.is_cancelled()
    }

    /// Cancelled first: accept nothing new.
    pub fn closing(&self) -> CancellationToken {
        self.0.closing.clone()
    }

    /// Cancelled when the drain is over: end now.
    pub fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// Holds the drain up until the guard is dropped or `drainTimeout` has passed.
    pub fn drain_guard(&self) -> DrainGuard {
        DrainGuard { _token: self.0.in_flight.token() }
    }

    /// Holds the drain up until a server that was told to close has answered what it had taken, and has ended.
    pub fn under_way<F: Future>(&self, serving: F) -> impl Future<Output = F::Output> + use<F> {
        let guard = self.drain_guard();
        async move {
            let ended = serving.await;
            drop(guard);
            ended
        }
    }

    pub fn stop_timeout(&self) -> Duration {
        self.0.config.stop_timeout.get()
    }

    /// Waits for the begin, then for the work in flight, then tells tasks to end.
    pub(crate) async fn drain(&self) {
        self.0.closing.cancelled().await;
        self.0.in_flight.close();
        let limit = self.0.config.drain_timeout.get();
        tracing::info!(reason = self.reason(), in_flight = self.0.in_flight.len(), "draining");
        if tokio::time::timeout(limit, self.0.in_flight.wait()).await.is_err() {
            let left = self.0.in_flight.len();
            tracing::warn!(left, "work in flight did not finish within the drain timeout and is cut off");
        }
        self.0.stopping.cancel();
    }

    /// Begins on the first SIGTERM or SIGINT and leaves the process at the second (exit code 143 or 130).
    /// Installs the handlers at once; the future waits for the signals.
    pub fn on_signals(&self) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        Ok(async move {
            loop {
                let (name, code) = tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", 143),
                    _ = interrupt.recv() => ("SIGINT", 130),
                };
                if shutdown.has_begun() {
                    tracing::warn!("{name} during the drain: leaving at once");
                    std::process::exit(code);
                }
                shutdown.begin(name);
            }
        })
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new(ShutdownConfig::default())
    }
}
