//! The built `d7y-peer` as a process: how it starts, is told, and ends. What is shown here comes from the chassis and
//! holds for every daemon.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far above what any of these tests needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A place for one peer's files.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A peer that needs nothing but this place.
    fn peer(&self, settings: &[&str]) -> Command {
        let config = self.path("peer.yaml");
        if !config.exists() {
            let at = self.0.path().display();
            let text = format!(
                "peerId: test\nstandalone: true\nstore:\n  directory: {at}/store\nlocal:\n  socket: {at}/run/peer.sock\n\
                 transfer:\n  listen: 127.0.0.1:0\nobservability:\n  listen: []\n"
            );
            fs::write(&config, text).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_d7y-peer"));
        command.arg("--config").arg(config);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// A running peer; killed with the test.
struct Running {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self { child, log };
        running.wait_for("is ready");
        running
    }

    fn wait_for(&mut self, words: &str) -> String {
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            if line.contains(words) {
                return line;
            }
            line.clear();
        }
        panic!("the peer ended without saying {words:?}");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit code and what was said, in one line.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

fn check_refusal(command: Command, code: i32, parts: &[&str]) {
    let (found, said) = refused(command);
    assert_eq!(found, Some(code), "{said}");
    let last = said.lines().last().unwrap_or_default();
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in {last:?}");
    }
}

#[test]
fn every_obstacle_has_a_sentence_and_a_code() {
    let place = Place::new();
    let first = Running::start(place.peer(&[]));
    check_refusal(place.peer(&[]), 75, &["local.socket", "runs already"]);
    let other_socket = format!("local.socket={}", place.path("other.sock").display());
    check_refusal(place.peer(&[&other_socket]), 75, &["store.directory", "runs already"]);
    drop(first);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("transfer.listen={}", taken.local_addr().unwrap());
    check_refusal(place.peer(&[&listen]), 69, &["transfer.listen", "taken"]);

    check_refusal(
        place.peer(&["store.directory=/proc/d7y"]),
        73,
        &["/proc/d7y", "store.directory", "cannot be made"],
    );
    check_refusal(place.peer(&["local.socket=/proc/d7y/s"]), 73, &["/proc/d7y/s", "local.socket"]);
    let below_a_file = format!("store.directory={}/below", place.path("peer.yaml").display());
    check_refusal(place.peer(&[&below_a_file]), 73, &["no directory"]);

    fs::write(place.path("store/format"), "77\n").unwrap();
    check_refusal(place.peer(&[]), 65, &["\"77\"", "version 1", "move it away"]);
    check_refusal(place.peer(&["store.limit=7"]), 78, &["store.limit", "1MiB"]);
    check_refusal(place.peer(&["store.scrub.interval=0s"]), 78, &["store.scrub.interval", "1s"]);
    check_refusal(
        place.peer(&["log.level=verbose"]),
        78,
        &["log.level", "\"verbose\" is not a level", "debug"],
    );
    for wildcard in ["0.0.0.0:4000", "[::]:4000"] {
        let advertise = format!("transfer.advertise={wildcard}");
        check_refusal(place.peer(&[&advertise]), 78, &["transfer.advertise", wildcard, "cannot connect"]);
    }
    let registries =
        r#"origin.registries=[{host: "https://reg.example", mirrors: ["http://m:5000"], caFile: /nonexist}]"#;
    let faults =
        ["--set origin.registries", "https://reg.example", "http://m:5000", "/nonexist cannot be read"];
    for arguments in [&[][..], &["--check-config"]] {
        let mut peer = place.peer(&[registries]);
        peer.args(arguments);
        let (code, said) = refused(peer);
        assert_eq!(code, Some(78), "{said}");
        for part in faults {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
    }
}

#[test]
fn the_socket_of_a_dead_peer_is_replaced_and_a_file_is_not() {
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    drop(UnixListener::bind(place.path("run/peer.sock")).unwrap());
    drop(Running::start(place.peer(&[])));
    fs::remove_file(place.path("run/peer.sock")).unwrap();
    fs::write(place.path("run/peer.sock"), "precious").unwrap();
    check_refusal(place.peer(&[]), 69, &["no socket"]);
    assert_eq!(fs::read(place.path("run/peer.sock")).unwrap(), b"precious");
}

#[test]
fn a_signal_stops_it_in_order() {
    let place = Place::new();
    let mut orderly = Running::start(place.peer(&[]));
    orderly.signal(Signal::SIGTERM);
    assert_eq!(orderly.code(), Some(0));
}

/// The limit of the store, as the peer itself says it.
fn store_limit(place: &Place) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = d7y_peer_client::LocalClient::new(place.path("run/peer.sock"));
        client.status(PATIENCE).await.unwrap().store_limit_bytes
    })
}

#[test]
fn a_reload_takes_over_what_it_can_and_names_the_rest() {
    let place = Place::new();
    let mut running = Running::start(place.peer(&[]));
    let config = place.path("peer.yaml");
    let before = fs::read_to_string(&config).unwrap();
    assert_eq!(store_limit(&place), 100 << 30);

    let changed = before
        .replace("store:\n", "store:\n  limit: 5GiB\n  scrub:\n    rate: 1MiB\n")
        .replace("peerId: test", "peerId: other");
    fs::write(&config, format!("{changed}log:\n  level: d7y_chassis=info\n")).unwrap();
    running.signal(Signal::SIGHUP);
    let said = running.wait_for("was read again");
    assert!(["log.level", "store.limit", "store.scrub.rate"].iter().all(|key| said.contains(key)), "{said}");
    let said = running.wait_for("next start");
    assert!(said.contains("peerId") && !said.contains("store.limit"), "{said}");
    // The reload's receiver is told before the log is written, and acts on its own thread.
    let deadline = std::time::Instant::now() + PATIENCE;
    while store_limit(&place) != 5 << 30 {
        assert!(std::time::Instant::now() < deadline, "the limit is still {}", store_limit(&place));
        std::thread::yield_now();
    }

    fs::write(&config, "store:\n  limit: lots\n").unwrap();
    running.signal(Signal::SIGHUP);
    let said = running.wait_for("stays as it was");
    assert!(said.contains("fault"), "{said}");
    assert_eq!(store_limit(&place), 5 << 30);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.code(), Some(0));
}

#[test]
fn a_store_that_is_taken_away_is_an_alarm_until_it_can_be_made_again() {
    let place = Place::new();
    let mut running = Running::start(place.peer(&[]));
    fs::remove_dir_all(place.path("store")).unwrap();
    fs::write(place.path("store"), "in the way").unwrap();
    let said = running.wait_for("cannot be written");
    assert!(said.contains("ERROR") && said.contains("store/layers"), "{said}");
    fs::remove_file(place.path("store")).unwrap();
    running.wait_for("can be written again");
}

#[test]
fn systemd_is_told() {
    let place = Place::new();
    let path = place.path("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = place.peer(&[]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000");
    let mut running = Running::start(command);
    let hear = |wanted: &str| {
        let mut buffer = [0; 512];
        while let Ok(length) = supervisor.recv(&mut buffer) {
            if buffer[..length].starts_with(wanted.as_bytes()) {
                return;
            }
        }
        panic!("systemd never heard {wanted}");
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    running.signal(Signal::SIGHUP);
    hear("RELOADING=1");
    hear("READY=1");
    running.signal(Signal::SIGTERM);
    hear("STOPPING=1");
    assert_eq!(running.code(), Some(0));
}

/// Hands the descriptor on standard input over as systemd does: under number 3, to the process of this very id.
const HAND_OVER: &str = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\"";

#[test]
fn systemd_keeps_what_is_parked_while_no_snapshotter_runs() {
    let place = Place::new();
    let path = place.path("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = place.peer(&[]);
    command.env("NOTIFY_SOCKET", &path);
    let first = Running::start(command);
    let precious = fs::File::open(place.path("peer.yaml")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = || d7y_peer_client::LocalClient::new(place.path("run/peer.sock"));
    let park = async |name| client().put_descriptor(name, precious.as_fd(), PATIENCE).await;
    runtime.block_on(async {
        park("fuse").await.unwrap();
        // Anything else would be another line of the message.
        park("fuse\nSTOPPING=1").await.unwrap_err();
    });
    for wanted in ["FDSTOREREMOVE=1\nFDNAME=fuse", "FDSTORE=1\nFDNAME=fuse\nFDPOLL=0"] {
        let mut buffer = [0; 512];
        while !buffer.starts_with(wanted.as_bytes()) {
            buffer.fill(0);
            supervisor.recv(&mut buffer).unwrap_or_else(|error| panic!("never heard {wanted}: {error}"));
        }
    }
    drop(first);

    let peer = place.peer(&[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", HAND_OVER]).arg(peer.get_program()).args(peer.get_args());
    shell.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "fuse").env_remove("NOTIFY_SOCKET");
    shell.stdin(precious.try_clone().unwrap()).stderr(Stdio::piped());
    let _second = Running::start(shell);
    let taken = runtime.block_on(async { client().take_descriptor("fuse", PATIENCE).await.unwrap() });
    let taken = fs::File::from(taken.expect("nothing is parked"));
    assert_eq!(taken.metadata().unwrap().ino(), precious.metadata().unwrap().ino());
}

#[test]
fn a_configuration_is_checked_and_shown_without_starting() {
    let place = Place::new();
    fs::write(
        place.path("peer.yaml"),
        "store:\n  limit: lots\nseeds: [here]\nfetch:\n  zstdLevel: 77\n  originFallbackAfter: 0s\n",
    )
    .unwrap();
    let mut command = place.peer(&[]);
    command.arg("--check-config");
    let (code, said) = refused(command);
    assert_eq!(code, Some(78));
    for part in [
        "line 2, column 3: store.limit",
        "line 3, column 1: seeds",
        "line 5, column 3: fetch.zstdLevel",
        "line 6, column 3: fetch.originFallbackAfter",
        "at least 1s",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let key = "ab".repeat(32);
    let secret = format!("indexTrust:\n  signingKey: \"{key}\"\nstore:\n  limit: 5GiB\n");
    fs::write(place.path("peer.yaml"), secret).unwrap();
    let output = place.peer(&["role=seed"]).arg("--print-config").output().unwrap();
    let yaml = String::from_utf8(output.stdout).unwrap();
    assert!(!yaml.contains(&key), "{yaml}");
    for part in [
        "role: seed  # flag --set role",
        "  limit: 5GiB  # ",
        "line 4, column 3",
        "socket: /run/d7y/peer.sock  # default",
    ] {
        assert!(yaml.contains(part), "{part:?} is not in {yaml}");
    }
    assert!(!Path::new(&place.path("store")).exists());
}
