//! `d7y status --watch` beside a peer that comes, goes and comes again.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use d7y_chassis::metrics::{self, Health, Views};
use d7y_chassis::{DaemonName, Shutdown, Tasks};
use d7y_snapshotter::images::ImageView;
use rustix::process::{Pid, Signal, kill_process};

/// Far above what some looks take.
const PATIENCE: Duration = Duration::from_secs(60);
/// As `d7y status` has it.
const CLEAR: &str = "\x1b[2J\x1b[H";
const AWAY: &str = "not reachable: d7y-peer does not answer at http://";
const HERE: &str = "watched  scheduler not connected";

/// A node whose snapshotter has no images, and whose peer can be stopped.
struct Node {
    directory: tempfile::TempDir,
    peer: SocketAddr,
    _snapshotter: tokio::runtime::Runtime,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let runtime = runtime();
        let images = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let registry = Arc::new(metrics::registry(DaemonName::new("d7y-snapshotter"), "test"));
            let views = Views::default().with("/images", Vec::<ImageView>::new);
            let tasks = Tasks::new(Shutdown::default());
            metrics::serve_views(&tasks, vec![listener], registry, Health::new(), views);
            address
        });
        let configure = |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
        configure("peer.yaml", format!("observability:\n  listen: [\"{free}\"]\n"));
        configure("snapshotter.yaml", format!("metrics:\n  listen: {images}\n"));
        Self { directory, peer: free, _snapshotter: runtime }
    }

    /// Runs until the runtime is dropped.
    fn start_peer(&self) -> tokio::runtime::Runtime {
        let mut config =
            d7y_peer::Config { peer_id: "watched".into(), standalone: true, ..d7y_peer::Config::default() };
        config.store.directory = self.path("store");
        config.local.socket = self.path("peer.sock");
        config.transfer.listen = ([127, 0, 0, 1], 0).into();
        config.observability.listen = vec![self.peer];
        let runtime = runtime();
        runtime.block_on(d7y_peer::start(config, Tasks::new(Shutdown::default()))).unwrap();
        runtime
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn watch(&self, output: &str) -> Vec<String> {
        let of = |name: &str| self.path(name).display().to_string();
        let words = ["status", "--watch", "-o", output, "--peer", &of("peer.yaml"), "--snapshotter"];
        words.into_iter().map(str::to_owned).chain([of("snapshotter.yaml")]).collect()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A started `d7y`; killed with the test.
struct Watching {
    child: Child,
    stdin: ChildStdin,
    stdout: Receiver<String>,
    shown: String,
}

impl Watching {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, mut pipe) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (show, stdout) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                if show.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, stdout, shown: String::new() }
    }

    /// All that it shows from the last such call on, until these words are in it.
    fn until(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown.contains(words) {
            let more = self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            self.shown += &more.unwrap_or_else(|_| panic!("{words:?} is not in\n{}", self.shown));
        }
        std::mem::take(&mut self.shown)
    }

    /// Its exit code, once it has closed its output.
    fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        assert!(Instant::now() < deadline, "it does not end");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The peer is away, comes, goes, and comes again.
fn follows(node: &Node, watching: &mut Watching) -> [String; 4] {
    let away = watching.until(AWAY);
    let peer = node.start_peer();
    let here = watching.until(HERE);
    peer.shutdown_timeout(PATIENCE);
    let gone = watching.until(AWAY);
    let peer = node.start_peer();
    let again = watching.until(HERE);
    peer.shutdown_background();
    [away, here, gone, again]
}

#[test]
fn a_pipe_gets_one_look_after_the_other() {
    let node = Node::new();
    let mut watching = Watching::start(Command::new(env!("CARGO_BIN_EXE_d7y")).args(node.watch("text")));
    let looks = follows(&node, &mut watching);
    assert!(looks.iter().all(|look| !look.contains('\x1b')), "{looks:?}");
    // Each look begins with its time.
    assert!(looks[0].split_once('\n').is_some_and(|(first, _)| first.ends_with('Z')), "{looks:?}");
    kill_process(Pid::from_child(&watching.child), Signal::INT).unwrap();
    assert_eq!(watching.code(), Some(0));
}

#[test]
fn json_is_one_line_a_look() {
    let node = Node::new();
    let mut watching = Watching::start(Command::new(env!("CARGO_BIN_EXE_d7y")).args(node.watch("json")));
    let first = watching.until("\n");
    let first: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert!(
        first["peer"].is_null() && first["faults"][0].as_str().unwrap().contains("does not answer"),
        "{first}"
    );
    let _peer = node.start_peer();
    let look = watching.until("\"peerId\":\"watched\"") + &watching.until("\n");
    let look = look.lines().find(|line| line.contains("watched")).unwrap();
    let look: serde_json::Value = serde_json::from_str(look).unwrap();
    assert_eq!(look["faults"], serde_json::json!([]));
    // Whoever reads has gone: nothing is left to do, and nothing to complain of.
    let mut reader = Watching::start(
        Command::new("bash")
            .args(["-c", "set -o pipefail; \"$@\" | head -n 1", "bash", env!("CARGO_BIN_EXE_d7y")])
            .args(node.watch("json")),
    );
    assert_eq!(reader.code(), Some(0));
}

#[test]
fn a_terminal_is_drawn_anew_and_ctrl_c_ends_it() {
    let node = Node::new();
    // script(1) gives it a terminal, and passes on what is typed. Without exec the shell that script starts
    // may stay (dash does), and its exit code is that of the interrupt.
    let d7y = ["exec".to_owned(), env!("CARGO_BIN_EXE_d7y").to_owned()];
    let words = [d7y.to_vec(), node.watch("text")].concat().join(" ");
    let mut watching = Watching::start(Command::new("script").args(["-qefc", &words, "/dev/null"]));
    let looks = follows(&node, &mut watching);
    for look in &looks {
        assert!(look.contains(CLEAR), "{look:?}");
    }
    assert!(looks[0].starts_with(CLEAR), "{looks:?}");
    watching.stdin.write_all(b"\x03").unwrap();
    assert_eq!(watching.code(), Some(0));
}
