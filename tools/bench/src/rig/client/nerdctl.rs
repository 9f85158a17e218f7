//! nerdctl, as a user types it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Client, Started, Wanted, lines};
use crate::rig::command::{output, shown, tail};
use crate::rig::daemon::LOOK_AGAIN;
use crate::rig::leftovers::CONTAINER_ID;
use crate::rig::node::Node;

/// A pull may take this long before the container has an id.
const STARTED: Duration = Duration::from_secs(600);

/// How long nerdctl may take to end after its container.
const ENDED: Duration = Duration::from_secs(5);

/// The nerdctl binary.
pub struct Nerdctl {
    program: PathBuf,
}

impl Nerdctl {
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// nerdctl for a node, ready for a subcommand. It speaks to the registry itself, so it runs in
    /// the node's network.
    pub fn command(&self, node: &Node) -> Command {
        let dir = node.host.dir.join("nerdctl");
        let mut command = node.host.command(&self.program);
        command
            .arg("--address")
            .arg(node.socket())
            .args(["--namespace", &node.namespace, "--insecure-registry", "--data-root"])
            .arg(&dir)
            .arg("--cni-path")
            .arg(dir.join("cni"))
            .arg("--cni-netconfpath")
            .arg(dir.join("net.d"));
        command
    }

    fn with_snapshotter(&self, node: &Node, image: &Wanted) -> Command {
        let mut command = self.command(node);
        command.args(["--snapshotter", image.snapshotter.name()]);
        command
    }
}

impl Client for Nerdctl {
    fn name(&self) -> &'static str {
        "nerdctl"
    }

    fn pull(&self, node: &Node, image: &Wanted) -> Result<()> {
        let mut command = self.with_snapshotter(node, image);
        output(command.args(["pull", "--quiet", &image.reference.to_string()])).map(|_| ())
    }

    fn start(&self, node: &Node, image: &Wanted, container: &str) -> Result<Started> {
        let (cid, log) = (
            node.host.dir.join(format!("{container}.{CONTAINER_ID}")),
            node.host.dir.join(format!("{container}.log")),
        );
        let _ = fs::remove_file(&cid);
        let mut command = self.with_snapshotter(node, image);
        command
            .args(["run", "--quiet", "--rm", "--net", "host", "--name", container, "--cidfile"])
            .arg(&cid)
            .arg(image.reference.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", shown(&command)))?;
        let lines = lines(child.stdout.take().expect("standard output was asked for above"));
        let Some(id) = container_id(&cid, &mut child) else {
            let _ = (child.kill(), child.wait());
            bail!("nerdctl run failed: {}", tail(&fs::read_to_string(&log).unwrap_or_default()));
        };
        let mut remove = self.with_snapshotter(node, image);
        remove.args(["rm", "--force", &id]);
        let end = move || {
            let _ = output(&mut remove);
            end_child(&mut child);
        };
        Ok(Started { rootfs: node.rootfs(&id), id, began, lines, log, end: Some(Box::new(end)) })
    }
}

/// nerdctl itself ends soon after its container, and removes its fifos then.
fn end_child(child: &mut Child) {
    let deadline = Instant::now() + ENDED;
    while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(LOOK_AGAIN);
    }
    let _ = (child.kill(), child.wait());
}

fn container_id(file: &std::path::Path, child: &mut Child) -> Option<String> {
    let deadline = Instant::now() + STARTED;
    while Instant::now() < deadline {
        let id = fs::read_to_string(file).unwrap_or_default();
        if !id.trim().is_empty() {
            return Some(id.trim().to_owned());
        }
        if child.try_wait().ok()?.is_some_and(|status| !status.success()) {
            return None;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    None
}
