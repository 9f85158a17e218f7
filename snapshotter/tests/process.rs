//! The built `d7y-snapshotter` where it does not serve.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::process::Command;

/// Without CAP_SYS_RESOURCE, so that protection from reclaim is refused; who is not root lacks it anyway.
#[test]
fn help_and_checks_do_not_speak_of_privileges() {
    for flag in ["--help", "--version", "--check-config"] {
        let snapshotter = env!("CARGO_BIN_EXE_d7y-snapshotter");
        let is_root = nix::unistd::geteuid().is_root();
        let command: &[&str] = match is_root {
            true => &["setpriv", "--bounding-set", "-sys_resource", snapshotter],
            false => &[snapshotter],
        };
        let ended = Command::new(command[0]).args(&command[1..]).arg(flag).output().unwrap();
        assert!(ended.status.success() && !ended.stdout.is_empty(), "{flag}: {ended:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{flag}");
    }
}
