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

/// Programs that Debian does not have, built with Go from a module whose go.sum pins all that they need.
struct GoTool {
    name: &'static str,
    version: &'static str,
    module: &'static str,
    /// Of `cmd` in the module. Each says its version.
    programs: &'static [&'static str],
    without: &'static str,
}

/// Builds nerdctl where Go is present. Without Go, or without its modules, the rig drives
/// containerd through its own API: said here, and again in what the demo prints.
pub fn nerdctl() {
    GoTool {
        name: "nerdctl",
        version: NERDCTL,
        module: "github.com/containerd/nerdctl/v2",
        programs: &["nerdctl"],
        without: "containerd is driven through its API instead",
    }
    .ensure();
}

/// Builds containerd 2.x with its shim and its ctr where Go is present; Debian 12 has 1.6.
pub fn containerd() {
    GoTool {
        name: "containerd",
        version: CONTAINERD,
        module: "github.com/containerd/containerd/v2",
        programs: &["containerd", "containerd-shim-runc-v2", "ctr"],
        without: "nothing is tried with containerd 2.x",
    }
    .ensure();
}

impl GoTool {
    fn ensure(&self) {
        let Self { name, version, without, programs, .. } = self;
        let place = run::tools_dir();
        if programs.iter().all(|program| says_version(&place.join(program), version)) {
            return;
        }
        if !run::in_path("go") {
            eprintln!("Go is not here, so there will be no {name} {version}: {without}.");
            return;
        }
        eprintln!("This builds {name} {version} with Go, into {} (about a minute).", place.display());
        if run::step(&format!("go build {name}"), || run::to_end(&mut self.build(&place))).is_err() {
            eprintln!("{name} could not be built: {without}.");
        }
    }

    fn build(&self, place: &Path) -> Command {
        let mut go = Command::new("go");
        // A path that ends with a slash is a directory, whatever the number of programs.
        go.args(["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o"])
            .arg(place.join(""))
            .args(self.programs.iter().map(|program| format!("{}/cmd/{program}", self.module)))
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
