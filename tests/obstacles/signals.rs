//! How a daemon ends.

use std::any::Any;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use d7y_peer_client::LocalClient;
use d7y_types::{Compression, LayerRef, Sha256Digest};
use nix::sys::signal::Signal;

use crate::daemon::{Daemon, HeldUp};
use crate::running::{PATIENCE, Running};

/// 128 and the signal.
pub const CODES: [i32; 2] = [INTERRUPTED, TERMINATED];
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

pub fn all(daemon: &Daemon) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        ends_in_order(daemon, signal);
    }
    for (second, code) in [(Signal::SIGTERM, TERMINATED), (Signal::SIGINT, INTERRUPTED)] {
        a_second_one_ends_it_at_once(daemon, second, code);
    }
    what_does_not_finish_is_cut_off_in_time(daemon);
}

fn ends_in_order(daemon: &Daemon, signal: Signal) {
    let place = tempfile::tempdir().unwrap();
    let mut running = Running::start(daemon.command(place.path(), &[]));
    running.signal(signal);
    assert_eq!(running.code(), Some(0), "{:#?}", running.said);
    assert!(running.said.iter().any(|line| line.contains(signal.as_str())), "{:#?}", running.said);
    assert!(running.said.last().unwrap().contains("has stopped"), "{:#?}", running.said);
    // What it leaves is sound.
    drop(Running::start(daemon.command(place.path(), &[])));
}

fn a_second_one_ends_it_at_once(daemon: &Daemon, second: Signal, code: i32) {
    let place = tempfile::tempdir().unwrap();
    let settings = ["shutdown.drainTimeout=1h", "shutdown.stopTimeout=1h"];
    let mut running = Running::start(daemon.command(place.path(), &settings));
    let _held = hold_up(daemon, &running, place.path());
    running.signal(Signal::SIGTERM);
    running.wait_for("draining");
    running.signal(second);
    assert_eq!(running.code(), Some(code), "{:#?}", running.said);
}

/// `shutdown.drainTimeout` is what it says for every daemon: so long, and no longer.
fn what_does_not_finish_is_cut_off_in_time(daemon: &Daemon) {
    let place = tempfile::tempdir().unwrap();
    let settings = ["shutdown.drainTimeout=2s", "shutdown.stopTimeout=500ms"];
    let mut running = Running::start(daemon.command(place.path(), &settings));
    let _held = hold_up(daemon, &running, place.path());
    let began = Instant::now();
    running.signal(Signal::SIGTERM);
    running.wait_for("did not finish within the drain timeout");
    assert!(began.elapsed() >= Duration::from_secs(2), "{:#?}", running.said);
    assert_eq!(running.code(), Some(0), "{:#?}", running.said);
    assert!(began.elapsed() < Duration::from_secs(20), "{:#?}", running.said);
}

fn hold_up(daemon: &Daemon, running: &Running, place: &Path) -> Box<dyn Any> {
    match daemon.held_up {
        HeldUp::ClientAt(field) => {
            let listening = running.said.iter().find(|line| line.contains("listening")).unwrap();
            let address = listening.split(field).nth(1).unwrap().split(' ').next().unwrap();
            Box::new(silent(TcpStream::connect(address).unwrap()))
        }
        HeldUp::ClientOfSocket => {
            Box::new(silent(UnixStream::connect(place.join(daemon.socket.unwrap().1)).unwrap()))
        }
        HeldUp::Registry => Box::new(waiting(&place.join(daemon.socket.unwrap().1))),
    }
}

/// A client that has been accepted: it has the server's first byte.
fn silent<T: Read>(mut stream: T) -> T {
    stream.read_exact(&mut [0]).unwrap();
    stream
}

/// A snapshotter that waits for a layer whose registry has been asked and says nothing.
fn waiting(socket: &Path) -> impl Any {
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let layer = LayerRef {
        registry: registry.local_addr().unwrap().to_string(),
        repository: "app".to_owned(),
        digest: Sha256Digest([1; 32]),
        diff_id: Sha256Digest([2; 32]),
        size: 1000,
        compression: Compression::Gzip,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(async { LocalClient::new(socket) });
    runtime.spawn(async move { client.open_layer(&layer, PATIENCE).await });
    let asked = registry.accept().unwrap();
    (runtime, registry, asked)
}
