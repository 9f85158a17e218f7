//! How a daemon ends.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;

use crate::daemon::{Daemon, HeldUp};
use crate::running::Running;

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
    let mut running = Running::start(daemon.command(place.path(), &["shutdown.stopTimeout=1h"]));
    let _client = match daemon.held_up {
        HeldUp::ClientAt(field) => {
            let listening = running.said.iter().find(|line| line.contains("listening")).unwrap();
            let address = listening.split(field).nth(1).unwrap().split(' ').next().unwrap();
            silent(TcpStream::connect(address).unwrap())
        }
        HeldUp::ClientOfSocket => {
            silent(UnixStream::connect(place.path().join(daemon.socket.unwrap().1)).unwrap())
        }
        HeldUp::Nobody => return both_at_once(&mut running),
    };
    running.signal(Signal::SIGTERM);
    running.wait_for("draining");
    running.signal(second);
    assert_eq!(running.code(), Some(code), "{:#?}", running.said);
}

/// A client that has been accepted: it has the server's first byte.
fn silent(mut stream: impl Read + 'static) -> Box<dyn Read> {
    stream.read_exact(&mut [0]).unwrap();
    Box::new(stream)
}

/// The stop is over too soon for a signal during it: both wait when the process goes on.
fn both_at_once(running: &mut Running) {
    for signal in [Signal::SIGSTOP, Signal::SIGTERM, Signal::SIGINT, Signal::SIGCONT] {
        running.signal(signal);
    }
    let code = running.code();
    assert!(code.is_some_and(|code| CODES.contains(&code)), "{code:?}: {:#?}", running.said);
}
