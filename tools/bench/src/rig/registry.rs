//! Debian's docker-registry on loopback, reachable by the lab's hosts only through the counter.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::command::{command, run};
use super::counter::Counter;
use super::daemon::Daemon;
use super::host::Link;
use super::lab::Lab;
use super::places::make_dir;

/// HTTP's own: containerd drops the port from `containerd.io/distribution.source.HOST`, so that a
/// snapshotter that is told nothing else cannot know another one.
const PORT: u16 = 80;

const READY: Duration = Duration::from_secs(20);

/// A registry that starts empty and ends with the lab.
pub struct Registry {
    pub counter: Counter,
    pub daemon: Daemon,
    host: String,
    port: u16,
    behind: SocketAddr,
    config: PathBuf,
}

impl Registry {
    /// # Errors
    /// docker-registry cannot be started.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_at(lab, PORT)
    }

    /// At another port than HTTP's own.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_at(lab: &Lab, port: u16) -> Result<Self> {
        let behind = free_port()?;
        let storage = lab.dir().join("registry");
        make_dir(&storage)?;
        let config = storage.join("config.yml");
        // JSON is YAML; Debian's own configuration switches basic authentication on.
        let text = serde_json::json!({
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": storage.join("data")}, "delete": {"enabled": true}},
            "http": {"addr": behind.to_string()},
        });
        std::fs::write(&config, text.to_string()).context("cannot write the registry's configuration")?;
        let daemon = launch(lab, &config, behind)?;
        let host = lab.host("registry", Link(None))?;
        let address = (host.address, port);
        let listener = host.inside(|| TcpListener::bind(address).context("cannot listen as the registry"))?;
        let counter = Counter::start(listener, behind)?;
        Ok(Self { counter, daemon, host: host.address.to_string(), port, behind, config })
    }

    /// Starts docker-registry again, with all that it stored, after it has ended. The counter stays: while nothing is
    /// behind it, it answers with 502, and bodies that were under way break off.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn restart(&mut self, lab: &Lab) -> Result<()> {
        self.daemon = launch(lab, &self.config, self.behind)?;
        Ok(())
    }

    /// Its host, as containerd notes it: without the port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its host and port, as image references have them.
    pub fn name(&self) -> String {
        match self.port {
            PORT => self.host.clone(),
            port => format!("{}:{port}", self.host),
        }
    }

    /// Copies an image from an OCI layout, past the counter. Returns the reference for the lab's hosts.
    ///
    /// # Errors
    /// skopeo's.
    pub fn push(&self, layout: &Path, tag: &str, repository: &str) -> Result<String> {
        let from = format!("oci:{}:{tag}", layout.display());
        let to = format!("docker://{}/{repository}:{tag}", self.behind);
        run(&mut command("skopeo", ["copy", "--quiet", "--dest-tls-verify=false", &from, &to]))?;
        Ok(format!("{}/{repository}:{tag}", self.name()))
    }
}

fn launch(lab: &Lab, config: &Path, behind: SocketAddr) -> Result<Daemon> {
    let daemon = lab.start("registry", command("docker-registry", ["serve"]).arg(config))?;
    daemon.wait_ready(READY, || TcpStream::connect(behind).is_ok())?;
    Ok(daemon)
}

/// A port on loopback that nobody has at this moment.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback")?;
    Ok(listener.local_addr()?)
}
