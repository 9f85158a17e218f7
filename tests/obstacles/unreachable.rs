//! Daemons that are not there: one warning, and everything works once they are.

use std::net::TcpListener;

use crate::daemon::{Daemon, MANAGER, PEER};
use crate::running::Running;

/// What a daemon asks of another one, and how it says that it has it.
struct Need {
    program: &'static str,
    settings: &'static [&'static str],
    /// The words of its only warning.
    away: &'static [&'static str],
    there: &'static str,
}

const MANAGER_AWAY: [&str; 4] = ["manager", "going on", "start d7y-manager", "correct manager.address"];

const PEER_AWAY: [&str; 4] =
    ["the peer does not answer", "waits for it", "start d7y-peer", "correct peer.socket"];

const OF_MANAGER: [Need; 3] = [
    Need { program: "d7y-peer", settings: &[], away: &MANAGER_AWAY, there: "the manager answers again" },
    Need { program: "d7y-peer", settings: &["role=seed"], away: &MANAGER_AWAY, there: "with the manager" },
    Need { program: "d7y-scheduler", settings: &[], away: &MANAGER_AWAY, there: "with the manager" },
];

pub fn all(daemon: &Daemon) {
    for need in OF_MANAGER.iter().filter(|need| need.program == daemon.program) {
        without_manager(daemon, need);
    }
    if daemon.program == "d7y-snapshotter" {
        without_peer(daemon);
    }
}

fn without_manager(daemon: &Daemon, need: &Need) {
    let place = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let named = format!("manager.address={address}");
    let settings: Vec<_> = need.settings.iter().copied().chain([named.as_str()]).collect();
    let mut running = Running::start(daemon.command(place.path(), &settings));
    warned(&mut running, need.away[0]);
    let listen = format!("grpc.listen={address}");
    let _manager = Running::start(MANAGER.command(place.path(), &[&listen]));
    running.wait_for(need.there);
    one_warning(&running, need.away);
}

fn without_peer(daemon: &Daemon) {
    let place = tempfile::tempdir().unwrap();
    let mut running = Running::start(daemon.command(place.path(), &[]));
    warned(&mut running, PEER_AWAY[0]);
    let _peer = Running::start(PEER.command(place.path(), &["local.socket=@/no-peer.sock"]));
    running.wait_for("the peer answers");
    one_warning(&running, &PEER_AWAY);
}

fn warned(running: &mut Running, words: &str) {
    let is_warning = |line: &String| line.contains(" WARN ") && line.contains(words);
    while !running.said.iter().any(is_warning) {
        running.wait_for(words);
    }
}

fn one_warning(running: &Running, parts: &[&str]) {
    let about = |line: &&String| line.contains(" WARN ") && line.contains(parts[0]);
    let warnings: Vec<_> = running.said.iter().filter(about).collect();
    let [warning] = warnings.as_slice() else { panic!("one warning was wanted: {:#?}", running.said) };
    for part in parts {
        assert!(warning.contains(part), "{part:?} is not in {warning:?}");
    }
}
