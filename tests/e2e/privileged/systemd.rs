//! The units of deploy/systemd under a real systemd, in namespaces of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::stage::in_lab;

/// Far above what a boot of five services takes, in seconds.
const PATIENCE: &str = "120";
/// Goes into control groups with the lab's name, which its end removes: systemd makes its own where it starts.
const ENTER: &str = r#"for root in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    [ -e $root/cgroup.procs ] && mkdir $root/$1 && echo $$ > $root/$1/cgroup.procs
done
shift
exec "$@""#;

#[test]
fn the_units_start_survive_kills_and_let_the_mounts_be_seen() -> Result<()> {
    if !Path::new("/lib/systemd/systemd").exists() {
        d7y_skip::test("systemd");
        return Ok(());
    }
    let had_scope = scope_at_root();
    in_lab(|lab| {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let scratch = lab.dir().join("systemd");
        let status = Command::new("bash")
            .args(["-c", ENTER, "enter", lab.id(), "timeout"])
            .args(["--signal=KILL", PATIENCE, "unshare", "--kill-child"])
            .args(["--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--cgroup", "bash"])
            .arg(tests.join("e2e/systemd.sh"))
            .args([&scratch, &lab.places.binaries, &tests.join("../deploy/systemd").canonicalize()?])
            .stdout(Stdio::null())
            .status()
            .context("cannot start unshare")?;
        let read = |name: &str| std::fs::read_to_string(scratch.join("out").join(name)).unwrap_or_default();
        let (seen, errors) = (read("seen"), read("errors"));
        if !seen.contains("control ok") {
            let said = format!("{seen}{errors}");
            d7y_skip::test(format_args!("a systemd that boots in a namespace ({status}): {}", said.trim()));
            return Ok(());
        }
        ensure!(seen.matches("started active").count() == 4, "not all units started:\n{seen}{errors}");
        let facts = [
            "mounted yes",
            "the key is the manager's own",
            "the manager is active again",
            "reloaded",
            "the mount is the same",
            "the mount answers",
            "the mount outlives the peer\n",
            "the mount outlives the peer while no snapshotter runs",
            "the snapshotter is failed",
            "the mount outlives a snapshotter that is refused and the peer",
            "a deleted cache can be made again",
        ];
        for fact in facts {
            ensure!(seen.contains(fact), "{fact:?} was not seen:\n{seen}{errors}");
        }
        Ok(())
    })?;
    ensure!(scope_at_root() == had_scope, "control groups are left at the root");
    Ok(())
}

/// Whether a systemd has its groups at the root of the hierarchy.
fn scope_at_root() -> bool {
    ["systemd/init.scope", "unified/init.scope", "init.scope"]
        .iter()
        .any(|group| Path::new("/sys/fs/cgroup").join(group).exists())
}
