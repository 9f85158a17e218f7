//! The units in deploy/systemd, as systemd reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The highest exposure that `systemd-analyze security` may find, in tenths. The snapshotter mounts for containerd and so
/// has no mount namespace of its own, which is most of what the others are sealed with.
const EXPOSURE: [(&str, u32); 4] =
    [("d7y-peer", 22), ("d7y-scheduler", 13), ("d7y-manager", 13), ("d7y-snapshotter", 50)];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd")
}

fn unit(name: &str) -> String {
    fs::read_to_string(deploy().join(format!("{name}.service"))).unwrap()
}

/// Nothing where systemd is not installed, which is said.
fn systemd_analyze(arguments: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            d7y_skip::test(format_args!("systemd-analyze: {error}"));
            None
        }
    }
}

#[test]
fn systemd_takes_every_unit_and_finds_them_as_sealed_as_they_can_be() {
    let directory = tempfile::tempdir().unwrap();
    for (name, exposure) in EXPOSURE {
        // The program is not installed here; any that exists will do.
        let program = format!("/usr/local/bin/{name}");
        let text = unit(name);
        assert!(
            text.contains(&format!("ExecStart={program} --config /etc/d7y/")),
            "{name} starts something else"
        );
        let copy = directory.path().join(format!("{name}.service"));
        fs::write(&copy, text.replace(&program, env!("CARGO_BIN_EXE_d7y"))).unwrap();
        let copy = copy.to_str().unwrap();
        let Some(verified) = systemd_analyze(&["verify", "--man=no", copy]) else { return };
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && said.is_empty(), "{name}: {said}");
        let threshold = format!("--threshold={exposure}");
        let Some(judged) = systemd_analyze(&["security", "--offline=yes", "--no-pager", &threshold, copy])
        else {
            return;
        };
        let said = String::from_utf8_lossy(&judged.stdout);
        assert!(judged.status.success(), "{name} is more exposed than {exposure} tenths:\n{said}");
    }
}

#[test]
fn nothing_hides_the_snapshotters_mounts() {
    // systemd.exec(5): each of these gives the service a mount namespace, whose mounts do not come out.
    let namespaced = [
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "ProcSubset",
        "ProtectClock",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "BindPaths",
        "TemporaryFileSystem",
        "RootDirectory",
        "DynamicUser",
        "MountFlags",
        "NoExecPaths",
        "PrivateIPC",
        "RuntimeDirectory=",
    ];
    let text = unit("d7y-snapshotter");
    let settings = text.lines().filter(|line| !line.starts_with('#'));
    let found: Vec<_> =
        settings.filter(|line| namespaced.iter().any(|name| line.starts_with(name))).collect();
    assert!(found.is_empty(), "{found:?} would hide mounts from containerd");
}

#[test]
fn no_unit_removes_the_directory_of_the_mounts() {
    for (name, _) in EXPOSURE {
        assert!(
            !unit(name).contains("\nRuntimeDirectory="),
            "{name}: systemd would remove /run/d7y at its stop"
        );
    }
    assert!(fs::read_to_string(deploy().join("d7y.tmpfiles.conf")).unwrap().contains("d /run/d7y 0700"));
}

#[test]
fn both_units_of_a_node_keep_the_fuse_session() {
    for name in ["d7y-peer", "d7y-snapshotter"] {
        assert!(unit(name).contains("\nFileDescriptorStoreMax=8\n"), "{name} keeps no descriptor");
    }
}
