//! containerd's API as its CRI plugin uses it: pull with the CRI's snapshot labels, then a task.

mod fetch;
mod pull;
mod session;
mod task;

use std::fs::File;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{Client, Started, Wanted, lines};
use crate::rig::node::Node;
use session::Session;
pub(super) use session::connect;

/// The driver that needs no program of its own.
pub struct Api;

impl Api {
    /// Mounts a container's root without running its command, as long as the result lives: for
    /// looking at images whose own command ends at once.
    ///
    /// # Errors
    /// As [`Client::start`].
    pub fn hold(&self, node: &Node, image: &Wanted, container: &str) -> Result<Started> {
        launch(node, image, container, Then::Hold)
    }
}

impl Client for Api {
    fn name(&self) -> &'static str {
        "containerd API"
    }

    fn pull(&self, node: &Node, image: &Wanted) -> Result<()> {
        inside(node, async {
            let session = Arc::new(Session::open(node, image).await?);
            pull::pull(&session).await?;
            session.release().await
        })
    }

    fn start(&self, node: &Node, image: &Wanted, container: &str) -> Result<Started> {
        launch(node, image, container, Then::Start)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Start,
    Hold,
}

fn launch(node: &Node, image: &Wanted, container: &str, then: Then) -> Result<Started> {
    let began = Instant::now();
    let fifo = node.host.dir.join(format!("{container}.stdout"));
    let stderr = node.host.dir.join(format!("{container}.log"));
    let _ = std::fs::remove_file(&fifo);
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).context("cannot make a fifo")?;
    File::create(&stderr)?;
    // Opened for writing, too, so that neither end waits for the other; given up once the
    // shim has opened it, so that the reader sees the end.
    let hold = File::options().read(true).write(true).open(&fifo)?;
    let lines = lines(File::open(&fifo)?);
    let log = stderr.clone();
    let output = task::Output { stdout: fifo, stderr };
    inside(node, async {
        let session = Arc::new(Session::open(node, image).await?);
        let pulled = match pull::present(&session).await? {
            Some(pulled) => pulled,
            None => pull::pull(&session).await?,
        };
        task::create(&session, &pulled, container, &output).await?;
        if then == Then::Start {
            task::start(&session, container).await?;
        }
        session.release().await
    })?;
    drop(hold);
    let (socket, namespace) = (node.socket().to_path_buf(), node.namespace.clone());
    let (id, name) = (container.to_owned(), image.snapshotter.name());
    let end = move || {
        // Whatever refuses to go is ended with the lab.
        let _ = block_on(async { task::end(&socket, &namespace, name, &id).await });
    };
    let rootfs = node.rootfs(container);
    Ok(Started { id: container.to_owned(), rootfs, began, lines, log, end: Some(Box::new(end)) })
}

/// Runs to the end on a thread in the node's network.
fn inside<T: Send>(node: &Node, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    node.host.inside(|| runtime()?.block_on(work))
}

/// Runs to the end on a thread of its own: the caller may be inside a runtime already.
pub(super) fn block_on<T: Send>(work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| runtime()?.block_on(work));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}
