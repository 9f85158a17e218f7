//! One run's share of the machine, and its end.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::command::{command, output, shown};
use super::daemon::Daemon;
use super::host::{Host, Link, ip};
use super::places::{Places, make_dir};
use super::{interrupt, leftovers};

/// How long a daemon may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// The bridge has .1; a /24 has no more addresses than these.
const FIRST_HOST: u8 = 2;
const LAST_HOST: u8 = 254;

/// Random subnets are tried until one is free.
const SUBNET_TRIES: u32 = 64;

/// Namespaces on a bridge, processes in them, and a directory for what they store.
pub struct Lab {
    inner: Arc<Inner>,
    pub places: Places,
}

impl Lab {
    /// Opens a lab with an empty bridge, after removing what killed runs have left.
    ///
    /// # Errors
    /// Not root, or the kernel has no bridges, veths or namespaces.
    pub fn open(places: Places) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab makes network namespaces and mounts: run this as root");
        }
        make_dir(&places.labs)?;
        leftovers::sweep(&places.labs);
        let id = leftovers::claim(&places.labs)?;
        let inner = Arc::new(Inner {
            dir: places.labs.join(&id),
            id,
            closing: AtomicBool::new(false),
            subnet: free_subnet()?,
            state: Mutex::default(),
        });
        interrupt::watch(Arc::downgrade(&inner));
        let lab = Self { inner, places };
        let (bridge, address) = (lab.id(), lab.address());
        ip(&format!("link add {bridge} type bridge")).context("cannot make a network bridge")?;
        ip(&format!("addr add {address}/24 dev {bridge}"))?;
        ip(&format!("link set {bridge} up"))?;
        Ok(lab)
    }

    /// Unique among running labs; also the name of its bridge, of its containerd namespace, and
    /// the beginning of the names of its network namespaces.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Where this process's own servers listen for the lab's hosts.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.subnet.host(1)
    }

    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Passes a result on; when it is an error, keeps every log and configuration for a look after
    /// the lab is gone, and says where.
    ///
    /// # Errors
    /// The one it was given.
    pub fn keep_logs<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("logs are kept in {}", self.save_logs().display()))
    }

    fn save_logs(&self) -> PathBuf {
        let to = self.places.results.join(format!("failed-{}", self.id()));
        let hosts = fs::read_dir(self.dir()).into_iter().flatten().flatten().map(|entry| entry.path());
        for dir in hosts.filter(|path| path.is_dir()).chain([self.dir().to_path_buf()]) {
            let place = to.join(dir.strip_prefix(self.dir()).unwrap_or(&dir));
            for file in fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let is_text =
                    file.extension().is_some_and(|extension| extension == "log" || extension == "yaml");
                if is_text && fs::create_dir_all(&place).is_ok() {
                    let _ = fs::copy(&file, place.join(file.file_name().unwrap_or_default()));
                }
            }
        }
        to
    }

    /// Adds a machine.
    ///
    /// # Errors
    /// The subnet is full, the lab is closing, or the kernel refused.
    pub fn host(&self, name: &str, link: Link) -> Result<Host> {
        let mut state = self.inner.open_state()?;
        let number = FIRST_HOST.saturating_add(state.hosts);
        if number > LAST_HOST {
            bail!("a lab holds at most {} hosts", LAST_HOST - FIRST_HOST + 1);
        }
        state.hosts += 1;
        let host = Host {
            name: name.to_owned(),
            address: self.inner.subnet.host(number),
            link,
            dir: self.dir().join(name),
            namespace: format!("{}-{name}", self.id()),
            port: format!("{}p{number}", self.id()),
        };
        make_dir(&host.dir)?;
        host.plug(self.id())?;
        Ok(host)
    }

    /// Starts a process that ends with the lab. Its log is `NAME.log` in the lab's directory.
    ///
    /// # Errors
    /// It cannot be started, or the lab is closing.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Daemon> {
        let mut state = self.inner.open_state()?;
        let daemon = Daemon::start(name, command, &self.dir().join(format!("{name}.log")))?;
        state.daemons.push(daemon.clone());
        Ok(daemon)
    }

    /// Runs a command with its output on the terminal, to its end or the lab's.
    ///
    /// # Errors
    /// It cannot be started, fails, or runs for longer than `limit`.
    pub fn show(&self, name: &str, command: &mut Command, limit: Duration) -> Result<()> {
        let daemon = {
            let mut state = self.inner.open_state()?;
            let daemon = Daemon::on_terminal(name, command)?;
            state.daemons.push(daemon.clone());
            daemon
        };
        let status = daemon.wait(limit)?;
        if !status.success() {
            bail!("{} ended with {status}", shown(command));
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.inner.close();
    }
}

pub(super) struct Inner {
    id: String,
    dir: PathBuf,
    subnet: Subnet,
    closing: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    daemons: Vec<Daemon>,
    hosts: u8,
    closed: bool,
}

impl Inner {
    /// Ends everything, once; later callers wait for the first.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        leftovers::end_containers(&self.id, &self.dir);
        for daemon in state.daemons.drain(..).rev() {
            if let Err(error) = daemon.stop(GRACE) {
                eprintln!("warning: {error:#}");
            }
        }
        leftovers::remove(&self.id, &self.dir);
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.closing.load(Ordering::SeqCst) {
            bail!("the lab is closing");
        }
        Ok(state)
    }
}

/// 10.X.Y.0/24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet([u8; 2]);

impl Subnet {
    fn host(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.0[0], self.0[1], number)
    }

    /// Whether `ip route`'s or `ip addr`'s output names something that could overlap.
    fn is_free(self, taken: &str) -> bool {
        let [x, y] = self.0;
        !taken.contains(&format!("10.{x}.{y}.")) && !taken.contains(&format!("10.{x}.0.0/"))
    }
}

fn free_subnet() -> Result<Subnet> {
    let mut taken = output(&mut command("ip", ["-4", "-o", "addr", "show"]))?;
    taken += &output(&mut command("ip", ["-4", "route", "show", "table", "all"]))?;
    for _ in 0..SUBNET_TRIES {
        let subnet = Subnet(random_bytes()?);
        if subnet.is_free(&taken) {
            return Ok(subnet);
        }
    }
    bail!("no free subnet below 10.0.0.0/8")
}

pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    use std::io::Read;
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_free_when_nobody_names_it() {
        let taken = "2: eth0 inet 10.7.3.9/24\nlocal 10.9.0.0/16 dev x\ndefault via 192.168.0.1";
        for (subnet, free) in [([7, 3], false), ([9, 200], false), ([7, 4], true), ([70, 3], true)] {
            assert_eq!(Subnet(subnet).is_free(taken), free, "{subnet:?}");
        }
    }
}
