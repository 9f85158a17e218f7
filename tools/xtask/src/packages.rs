//! What d7y's builds, demo and tests need from Debian.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run;

/// Needed to compile.
pub const BUILD: &[&str] = &["g++", "gcc", "libc6-dev", "protobuf-compiler"];

/// Needed to run the demo, the benches and the privileged tests.
pub const RIG: &[&str] = &[
    "attr",
    "busybox-static",
    "ca-certificates",
    "containerd",
    "docker-registry",
    "erofs-utils",
    "iproute2",
    "libcap2-bin",
    "mmdebstrap",
    "procps",
    "runc",
    "skopeo",
    "tar",
    "umoci",
    "util-linux",
    "xfsprogs",
];

/// Installs those that are missing, after naming them.
///
/// # Errors
/// Not root, no apt-get, or apt-get failed.
pub fn ensure(packages: &[&str]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !run::in_path("apt-get") {
        bail!("please install these (this machine has no apt-get): {list}");
    }
    if !run::is_root() {
        bail!("please install these first, or run this as root: apt-get install {list}");
    }
    eprintln!("This installs from Debian: {list}");
    eprintln!(
        "(containerd and docker-registry start as services where systemd runs; the demo uses its own instances.)"
    );
    run::step("apt-get install", || {
        if !all_known(&missing) {
            run::to_end(&mut apt_get(&["update", "-qq"]))?;
        }
        // A list that is too old names files that the mirror no longer has: once more with a fresh one.
        install(&missing).or_else(|_| {
            run::to_end(&mut apt_get(&["update", "-qq"]))?;
            install(&missing)
        })
    })
}

fn install(packages: &[&str]) -> Result<()> {
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(packages);
    run::to_end(&mut apt_get(&args))
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    command
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages.iter().copied().filter(|package| !installed(package)).collect()
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// Whether apt's lists, possibly empty on a fresh machine, have all of these.
fn all_known(packages: &[&str]) -> bool {
    packages.iter().all(|package| {
        Command::new("apt-cache")
            .args(["show", "--no-all-versions", package])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}
