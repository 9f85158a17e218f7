//! The built `d7y-scheduler` with a manager that sets its log level.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use d7y_manager_client::testing::FakeManager;
use d7y_proto::manager::Kind;

/// Killed with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_sets_the_log_level_of_a_running_scheduler() {
    let manager = FakeManager::default();
    manager.set(Kind::Scheduler, &[("log.level", "debug")]);
    let manager = format!("manager.address={}", manager.serve().await.unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_d7y-scheduler"));
    for setting in [&manager, "server.listen=127.0.0.1:0", "metrics.listen=127.0.0.1:0", "name=test"] {
        command.args(["--set", setting]);
    }
    let mut child = command.env_clear().stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let _running = Running(child);
    let taken =
        |line: &String| line.contains("the configuration was read again") && line.contains("log.level");
    assert!(log.lines().map(Result::unwrap).any(|line| taken(&line)));
}
