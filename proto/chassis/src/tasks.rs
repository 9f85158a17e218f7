//! Named, supervised, awaited tasks: nothing in a daemon is spawned in any other way.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::shutdown::Shutdown;

/// How long dropped tasks may take to notice; only code that blocks its thread takes longer.
const ABORT_GRACE: Duration = Duration::from_secs(1);

type Name = Cow<'static, str>;
type Flush = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// What the end of a task means before the shutdown has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEnd {
    /// The daemon cannot go on without it: any end stops the daemon with a failure.
    Fatal,
    /// It may end when its work is done; an error or a panic is logged and the daemon goes on.
    Expected,
}

/// The fatal task that stopped the daemon.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    #[error("task {name} ended although it should run for as long as the daemon")]
    Ended { name: Name },
    #[error("task {name} failed")]
    Failed { name: Name, source: anyhow::Error },
    #[error("task {name} panicked")]
    Panicked { name: Name },
}

/// Spawns and awaits a daemon's tasks; clones are the same set.
#[derive(Clone)]
pub struct Tasks(Arc<State>);

struct State {
    shutdown: Shutdown,
    tracker: TaskTracker,
    abort: CancellationToken,
    next_id: AtomicU64,
    running: Mutex<BTreeMap<u64, Name>>,
    failure: Mutex<Option<TaskFailure>>,
    flushes: Mutex<Vec<(Name, Flush)>>,
}

enum End {
    Returned(anyhow::Result<()>),
    Panicked,
    Aborted,
}

tokio::task_local! {
    static NAME: Name;
}

impl Tasks {
    pub fn new(shutdown: Shutdown) -> Self {
        Self(Arc::new(State {
            shutdown,
            tracker: TaskTracker::new(),
            abort: CancellationToken::new(),
            next_id: AtomicU64::new(0),
            running: Mutex::default(),
            failure: Mutex::default(),
            flushes: Mutex::default(),
        }))
    }

    pub fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    /// Runs `future` under a name. It should end soon after [`Shutdown::stopping`]; if it does not, it is
    /// dropped at its next await.
    pub fn spawn<F, E>(&self, name: impl Into<Name>, on_end: OnEnd, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error>,
    {
        let (name, state) = (name.into(), self.0.clone());
        let id = state.next_id.fetch_add(1, Ordering::Relaxed);
        state.running.lock().insert(id, name.clone());
        let work = NAME.scope(name.clone(), async move { future.await.map_err(Into::into) });
        self.0.tracker.spawn(async move {
            let end = tokio::select! {
                result = AssertUnwindSafe(work).catch_unwind() => match result {
                    Ok(result) => End::Returned(result),
                    Err(_) => End::Panicked,
                },
                () = state.abort.cancelled() => End::Aborted,
            };
            state.running.lock().remove(&id);
            state.ended(name, on_end, end);
        });
    }

    /// Runs `future` after every task has ended, in the order of registration: the last phase of the stop.
    pub fn on_flush<F>(&self, name: impl Into<Name>, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.0.flushes.lock().push((name.into(), Box::pin(future)));
    }

    /// Serves until the shutdown begins, then drains, stops, flushes. The error is that of the fatal task
    /// that began it, if one did.
    pub async fn finish(&self) -> Result<(), TaskFailure> {
        let state = &self.0;
        state.shutdown.drain().await;
        state.tracker.close();
        let limit = state.shutdown.stop_timeout();
        if tokio::time::timeout(limit, state.tracker.wait()).await.is_err() {
            let names: Vec<_> = state.running.lock().values().cloned().collect();
            tracing::warn!(tasks = ?names, "tasks did not end within the stop timeout and are dropped");
            state.abort.cancel();
            let _ = tokio::time::timeout(ABORT_GRACE, state.tracker.wait()).await;
        }
        let flushes = std::mem::take(&mut *state.flushes.lock());
        for (name, flush) in flushes {
            match tokio::time::timeout(limit, flush).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("flush {name} failed: {error:#}"),
                Err(_) => tracing::error!("flush {name} did not end within the stop timeout"),
            }
        }
        state.failure.lock().take().map_or(Ok(()), Err)
    }
}

impl State {
    fn ended(&self, name: Name, on_end: OnEnd, end: End) {
        let orderly = on_end == OnEnd::Expected || self.shutdown.has_begun();
        let failure = match end {
            End::Aborted => return,
            End::Returned(Ok(())) if orderly => return,
            End::Returned(Err(error)) if orderly => {
                return tracing::warn!("task {name} failed: {error:#}");
            }
            End::Panicked if orderly => return,
            End::Returned(Ok(())) => TaskFailure::Ended { name: name.clone() },
            End::Returned(Err(source)) => TaskFailure::Failed { name: name.clone(), source },
            End::Panicked => TaskFailure::Panicked { name: name.clone() },
        };
        self.failure.lock().get_or_insert(failure);
        self.shutdown.begin(format!("task {name} ended"));
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tasks").field(&self.0.running.lock().values()).finish()
    }
}

/// The name of the task that is being polled, for the panic log.
pub(crate) fn current_name() -> Option<String> {
    NAME.try_with(ToString::to_string).ok()
}

pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
