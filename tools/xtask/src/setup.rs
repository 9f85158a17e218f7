//! Everything between a fresh Debian and a running demo.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{packages, run};

/// The last nerdctl whose module and dependencies a module proxy is known to answer for.
const NERDCTL: &str = "2.1.2";
/// As a build without linker flags says it.
const CONTAINERD: &str = "2.4.2+unknown";

/// Installs and builds all that demo, bench and test need, except d7y itself.
///
/// # Errors
/// Not root, or an installation failed.
pub fn everything() -> Result<()> {
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::RIG)?;
    nerdctl();
    Ok(())
}

/// Sets up, builds the daemons and becomes `d7y-bench`.
pub fn then_bench(command: &str, args: &[String]) -> Result<ExitCode> {
    let wants_help = args.iter().any(|arg| arg == "--help" || arg == "-h");
    if !wants_help && !run::is_root() {
        bail!("cargo xtask {command} makes network namespaces and mounts: run it as root");
    }
    if !wants_help {
        everything()?;
    }
    run::step("build the daemons and the rig (release)", || build(Profile::Release))?;
    let mut bench = Command::new(run::target_dir().join("release/d7y-bench"));
    if command != "bench" {
        bench.arg(command);
    }
    bench.args(args).env("D7Y_TARGET_DIR", run::target_dir());
    let error = bench.exec();
    Err(error).context("cannot start d7y-bench")
}

/// What the daemons are built for.
#[derive(Clone, Copy)]
pub enum Profile {
    Dev,
    Release,
}

/// Builds every daemon, and the rig that starts them.
pub fn build(profile: Profile) -> Result<()> {
    let mut build = run::cargo();
    build.args(["build", "--locked", "--bins"]);
    for package in ["d7y-manager", "d7y-peer", "d7y-scheduler", "d7y-snapshotter", "d7y-bench", "d7y-cli"] {
        build.args(["-p", package]);
    }
    if let Profile::Release = profile {
        build.arg("--release");
    }
    run::to_end(&mut build)
}

/// A program that Debian does not have, built with Go from a module whose go.sum pins all that it needs.
struct GoTool {
    name: &'static str,
    version: &'static str,
    package: &'static str,
    without: &'static str,
}

/// Builds nerdctl where Go is present. Without Go, or without its modules, the rig drives
/// containerd through its own API: said here, and again in what the demo prints.
pub fn nerdctl() {
    GoTool {
        name: "nerdctl",
        version: NERDCTL,
        package: "github.com/containerd/nerdctl/v2/cmd/nerdctl",
        without: "containerd is driven through its API instead",
    }
    .ensure();
}

/// Builds containerd 2.x where Go is present; Debian 12 has 1.6.
pub fn containerd() {
    GoTool {
        name: "containerd",
        version: CONTAINERD,
        package: "github.com/containerd/containerd/v2/cmd/containerd",
        without: "what d7y writes for containerd 2.x is not tried with one",
    }
    .ensure();
}

impl GoTool {
    fn ensure(&self) {
        let Self { name, version, without, .. } = self;
        let binary = run::tools_dir().join(name);
        if says_version(&binary, version) {
            return;
        }
        if !run::in_path("go") {
            eprintln!("Go is not here, so there will be no {name} {version}: {without}.");
            return;
        }
        let place = run::tools_dir();
        eprintln!("This builds {name} {version} with Go, into {} (about a minute).", place.display());
        if run::step(&format!("go build {name}"), || run::to_end(&mut self.build(&binary))).is_err() {
            eprintln!("{name} could not be built: {without}.");
        }
    }

    fn build(&self, binary: &Path) -> Command {
        let mut go = Command::new("go");
        go.args(["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o"])
            .arg(binary)
            .arg(self.package)
            .current_dir(run::workspace().join("tools/bench/go").join(self.name))
            .env("CGO_ENABLED", "0");
        go
    }
}

/// Whether the tool is there and is of this version.
pub fn says_version(binary: &Path, version: &str) -> bool {
    Command::new(binary).arg("--version").output().is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == version)
    })
}
