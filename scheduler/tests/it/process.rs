use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Output, Stdio};

const PRIVATE: [&str; 4] = ["--set", "server.listen=127.0.0.1:0", "--set", "metrics.listen=127.0.0.1:0"];

fn scheduler(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_d7y-scheduler"));
    command.args(arguments).env_clear();
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[test]
fn faults_are_told_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("server.listen={}", taken.local_addr().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("scheduler.yaml");
    std::fs::write(&file, "server:\n  listn: 127.0.0.1:1\n").unwrap();
    let file = file.to_str().unwrap();
    let table: [(&[&str], i32, &[&str]); 7] = [
        (&["--check-config"], 0, &["ok"]),
        (&["--check-config", "--config", file], 78, &["line 2", "listn", "listen"]),
        (&["--config", "/nonexistent.yaml"], 78, &["/nonexistent.yaml", "there is no configuration file"]),
        (
            &["--check-config", "--set", "heartbeat.interval=0s", "--set", "settle=5h"],
            78,
            &["2 fault(s)", "heartbeat.interval", "settle"],
        ),
        (&["--log-level", "loud=="], 78, &["log.level"]),
        (&["--set", &taken, PRIVATE[2], PRIVATE[3]], 69, &["server.listen", "taken"]),
        (&["--print-config"], 0, &["interval: 5s", "listen: 0.0.0.0:8002"]),
    ];
    for (arguments, code, parts) in table {
        let output = scheduler(arguments).output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        for part in parts {
            assert!(told.contains(part), "{arguments:?}: {told:?} lacks {part:?}");
        }
    }
}

#[test]
fn the_environment_counts() {
    let output = scheduler(&["--print-config"]).env("D7Y_SCHEDULER__SETTLE", "7s").output().unwrap();
    assert!(text(&output).contains("settle: 7s"), "{}", text(&output));
    let no_text = std::ffi::OsStr::from_bytes(b"\xff");
    let output = scheduler(&["--check-config"]).env("D7Y_SCHEDULER__SETTLE", no_text).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output).contains("D7Y_SCHEDULER__SETTLE: is not UTF-8"), "{}", text(&output));
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn sigterm_ends_it_in_order() {
    let mut child = scheduler(&PRIVATE).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("is ready")));
    signal(&child, "-TERM");
    let rest: Vec<_> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("SIGTERM")), "{rest:?}");
    assert!(rest.last().unwrap().contains("has stopped"), "{rest:?}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut child = scheduler(&PRIVATE)
        .args(["--set", "shutdown.stopTimeout=1h"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let listening = lines.find(|line| line.contains("listening")).unwrap();
    let address = listening.split("server=").nth(1).unwrap().split(' ').next().unwrap();
    // A client that says nothing keeps the acceptor from ending.
    let mut client = TcpStream::connect(address).unwrap();
    client.read_exact(&mut [0]).unwrap();
    signal(&child, "-TERM");
    assert!(lines.any(|line| line.contains("draining")));
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
