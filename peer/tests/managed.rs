//! The built `d7y-peer` with a manager that sets some of its keys.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use d7y_manager_client::testing::FakeManager;
use d7y_proto::manager::Kind;

fn peer(place: &Path, manager: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_d7y-peer"));
    let at = place.display();
    let settings = [
        format!("manager.address={manager}"),
        format!("store.directory={at}/store"),
        format!("local.socket={at}/peer.sock"),
        "transfer.listen=127.0.0.1:0".to_owned(),
        "observability.listen=[]".to_owned(),
        "peerId=test".to_owned(),
    ];
    for setting in settings.iter().map(String::as_str).chain(more.iter().copied()) {
        command.args(["--set", setting]);
    }
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

/// Killed with the test.
struct Running(Child, BufReader<ChildStderr>);

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self(child, log)
    }

    fn wait_for(&mut self, words: &[&str]) {
        let mut line = String::new();
        while self.1.read_line(&mut line).unwrap() > 0 {
            if words.iter().all(|word| line.contains(word)) {
                return;
            }
            line.clear();
        }
        panic!("the peer ended without saying {words:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn printed(place: &Path, manager: &str, more: &[&str]) -> String {
    let output = peer(place, manager, more).arg("--print-config").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_manager_sets_holds_at_once_and_after_a_restart_under_what_the_host_sets() {
    let place = tempfile::tempdir().unwrap();
    let manager = FakeManager::default();
    manager.set(
        Kind::Unspecified,
        &[("log.level", "debug"), ("store.limit", "7GiB"), ("store.directory", "/nowhere")],
    );
    let address = manager.serve().await.unwrap().to_string();
    let taken = "the configuration was read again";
    let mut running = Running::start(peer(place.path(), &address, &[]));
    running.wait_for(&[taken, "log.level", "store.limit"]);
    manager.set(Kind::Unspecified, &[("store.limit", "7KiB")]);
    running.wait_for(&["does not fit and is left out"]);
    running.wait_for(&["store.limit (manager)", "1MiB"]);
    running.wait_for(&[taken, "store.limit"]);
    manager.set(Kind::Unspecified, &[("store.limit", "8GiB")]);
    running.wait_for(&[taken, "store.limit"]);
    drop(running);

    // Nobody answers any more: what was kept holds.
    let nobody = "127.0.0.1:1";
    let text = printed(place.path(), nobody, &[]);
    for line in ["limit: 8GiB  # manager", "level: info  # default"] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(!text.contains("/nowhere"), "only what can be taken over while it runs\n{text}");
    let text = printed(place.path(), nobody, &["store.limit=5GiB"]);
    assert!(text.contains("limit: 5GiB  # flag --set store.limit"), "{text}");
}
