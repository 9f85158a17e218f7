use std::path::{Path, PathBuf};

use d7y_chassis::config::{self, DaemonArgs};
use d7y_chassis::{DaemonConfig, DaemonName};
use d7y_peer::Role;

use super::check::{Check, Mend};

/// What the daemons of this node are told, and in which files.
pub struct Settings {
    pub peer: d7y_peer::Config,
    pub peer_file: PathBuf,
    pub snapshotter: d7y_snapshotter::Config,
    pub snapshotter_file: PathBuf,
}

impl Settings {
    /// Faulty configurations are replaced by the defaults, so that the other checks still say something.
    pub fn load(peer: &Path, snapshotter: &Path) -> (Self, Vec<Check>) {
        let mut checks = Vec::new();
        let mut settings = Self {
            peer: load("config.peer", d7y_peer::DAEMON.name, peer, &mut checks),
            peer_file: peer.to_owned(),
            snapshotter: d7y_snapshotter::Config::default(),
            snapshotter_file: snapshotter.to_owned(),
        };
        if settings.mounts() {
            let name = d7y_snapshotter::DAEMON.name;
            settings.snapshotter = load("config.snapshotter", name, snapshotter, &mut checks);
        }
        (settings, checks)
    }

    /// Whether containers are to start here: a seed has neither snapshotter nor containerd.
    pub fn mounts(&self) -> bool {
        self.peer.role == Role::Node
    }

    /// A key of the peer's that takes a restart.
    pub fn set_peer(&self, line: impl Into<String>) -> Mend {
        Mend::set(line, &self.peer_file, "systemctl restart d7y-peer")
    }

    pub fn set_snapshotter(&self, line: impl Into<String>) -> Mend {
        Mend::set(line, &self.snapshotter_file, "systemctl restart d7y-snapshotter")
    }
}

fn load<C: DaemonConfig>(check: &'static str, name: DaemonName, path: &Path, checks: &mut Vec<Check>) -> C {
    let shown = path.display();
    let there = path.exists();
    let args = DaemonArgs { config: there.then(|| path.to_owned()), ..DaemonArgs::default() };
    match config::load::<C>(name, &args) {
        Ok(loaded) => {
            let detail =
                if there { format!("{shown} is sound") } else { format!("no {shown}: defaults hold") };
            checks.push(Check::ok(check, detail));
            loaded.config
        }
        Err(error) => {
            let name = name.as_str();
            let mend = Mend::run(format!("sudoedit {shown} && {name} --config {shown} --check-config"));
            checks.push(Check::failed(check, format!("{error:#}"), mend));
            C::default()
        }
    }
}
