//! A machine of the lab: a network namespace with one rate-limited link to the lab's bridge.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::command::{command, run};

/// Megabits per second, each way; `None` is as fast as the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(pub Option<u32>);

/// A network namespace on the bridge.
#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub address: Ipv4Addr,
    pub link: Link,
    /// Everything this machine stores.
    pub dir: PathBuf,
    pub(super) namespace: String,
    /// The bridge's end of the link.
    pub(super) port: String,
}

/// The name of the link's end inside the namespace.
const INSIDE: &str = "eth0";

impl Host {
    /// Makes the namespace and plugs it into the bridge.
    pub(super) fn plug(&self, bridge: &str) -> Result<()> {
        let Self { namespace, port, address, .. } = self;
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("link add {port} type veth peer name {INSIDE} netns {namespace}"))?;
        ip(&format!("link set {port} master {bridge} up"))?;
        ip(&format!("-n {namespace} addr add {address}/24 dev {INSIDE}"))?;
        ip(&format!("-n {namespace} link set {INSIDE} up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        self.limit(self.link)
    }

    /// Limits both directions: each end's queue holds what that end sends.
    ///
    /// # Errors
    /// tc refused.
    pub fn limit(&self, link: Link) -> Result<()> {
        let outside: [&str; 0] = [];
        let inside = ["-n", self.namespace.as_str()];
        for (prefix, device) in [(&outside[..], self.port.as_str()), (&inside[..], INSIDE)] {
            let mut tc = command("tc", prefix);
            match link.0 {
                Some(mbit) => tc.args(["qdisc", "replace", "dev", device, "root", "tbf", "rate"]).args([
                    format!("{mbit}mbit").as_str(),
                    "burst",
                    "512kb",
                    "latency",
                    "50ms",
                ]),
                None => tc.args(["qdisc", "replace", "dev", device, "root", "pfifo_fast"]),
            };
            run(&mut tc)?;
        }
        Ok(())
    }

    /// What has come over its link since the machine was made.
    ///
    /// # Errors
    /// The link is gone.
    pub fn received_bytes(&self) -> Result<u64> {
        // What the bridge's end has sent.
        let file = format!("/sys/class/net/{}/statistics/tx_bytes", self.port);
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        text.trim().parse().with_context(|| format!("{file} holds {text:?}"))
    }

    /// A command whose network is this machine's. It shares mounts with us: `ip netns exec` would
    /// give it a mount namespace of its own and hide what it mounts.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.namespace_path().display())).arg("--").arg(program);
        nsenter
    }

    /// Runs a closure on a thread whose new sockets are this machine's.
    ///
    /// # Errors
    /// The namespace is gone, or what the closure returns.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.namespace_path();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let namespace =
                    File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
                setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn namespace_path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.namespace)
    }
}

/// `ip` with its words in one string; none of ours holds a space.
pub(super) fn ip(words: &str) -> Result<()> {
    run(&mut command("ip", words.split(' ')))
}
