//! Every containerd on this machine starts with what `d7y containerd config --write` made of its file.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::d7y;

/// Far above what a start takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's, and the one that `cargo xtask test` builds where Go is.
fn containerds() -> Vec<PathBuf> {
    let target = std::env::var_os("D7Y_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_BIN_EXE_d7y")).ancestors().nth(2).unwrap().to_path_buf(),
        PathBuf::from,
    );
    let candidates = [PathBuf::from("containerd"), target.join("tools/containerd")];
    let (found, missing): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|program| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    });
    for program in missing {
        d7y_skip::part(program.display());
    }
    found
}

/// A containerd with places of its own.
struct Running(Child);

impl Running {
    fn start(program: &Path, config: &Path, log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        let child = Command::new(program)
            .arg("--config")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plugins(socket: &Path) -> Option<String> {
    let output = Command::new("ctr").arg("--address").arg(socket).args(["plugins", "ls"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn started_with(program: &Path) -> String {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let (config, socket, log) = (place("config.toml"), place("c.sock"), place("log"));
    let root = directory.path().display();
    let text = format!(
        "imports = []\nroot = \"{root}/root\"\nstate = \"{root}/state\"\n[grpc]\naddress = \"{root}/c.sock\"\n\
         [ttrpc]\naddress = \"{root}/t.sock\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let installed = d7y([
        "containerd".as_ref(),
        "config".as_ref(),
        "--write".as_ref(),
        "--config".as_ref(),
        config.as_os_str(),
        "--containerd".as_ref(),
        program.as_os_str(),
    ]);
    assert_eq!(installed.code, Some(0), "{installed:?}");
    let mut running = Running::start(program, &config, &log);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(plugins) = plugins(&socket) {
            return plugins;
        }
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(running.0.try_wait().unwrap().is_none(), "{} ended:\n{}", program.display(), said());
        assert!(Instant::now() < deadline, "{} does not answer:\n{}", program.display(), said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

mod privileged {
    use super::*;

    #[test]
    fn containerd_starts_and_has_the_snapshotter() {
        for program in containerds() {
            let plugins = started_with(&program);
            let has = |words: &[&str]| {
                plugins.lines().any(|line| {
                    let found: Vec<_> = line.split_whitespace().collect();
                    words.iter().all(|word| found.contains(word)) && found.last() == Some(&"ok")
                })
            };
            assert!(has(&["io.containerd.snapshotter.v1", "d7y"]), "{}:\n{plugins}", program.display());
            assert!(has(&["io.containerd.grpc.v1", "cri"]), "{}:\n{plugins}", program.display());
            if plugins.contains("io.containerd.transfer.v1") {
                assert!(has(&["io.containerd.transfer.v1", "local"]), "{}:\n{plugins}", program.display());
            }
        }
    }
}
