//! What keeps a daemon from starting.

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::daemon::Daemon;
use crate::running::{Running, check_refusal};
use crate::{signals, unreachable};

/// sysexits.h, as docs/operations.md explains them.
pub const CODES: [i32; 5] = [NEWER, UNAVAILABLE, DIRECTORY, TWICE, CONFIGURATION];
const NEWER: i32 = 65;
const UNAVAILABLE: i32 = 69;
const DIRECTORY: i32 = 73;
const TWICE: i32 = 75;
const CONFIGURATION: i32 = 78;

type Obstacle = (&'static str, fn(&Daemon));

/// Each with a directory of its own.
pub const OBSTACLES: [Obstacle; 10] = [
    ("started twice", twice),
    ("killed, and what it left is still there", killed),
    ("a port is taken", port_taken),
    ("a directory is missing", directory_missing),
    ("no directory", no_directory),
    ("data of a newer layout", newer_layout),
    ("another thing where the socket is to be", no_socket),
    ("the configuration's file", configuration),
    ("unreachable daemons", unreachable::all),
    ("signals", signals::all),
];

/// A port that stays the same.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn twice(daemon: &Daemon) {
    let place = tempfile::tempdir().unwrap();
    let at = |address: &str| -> Vec<String> {
        daemon.listens[..1]
            .iter()
            .map(|(key, value)| format!("{key}={}", value.replace("ADDRESS", address)))
            .collect()
    };
    let same = at(&free_address());
    let same: Vec<_> = same.iter().map(String::as_str).collect();
    let first = Running::start(daemon.command(place.path(), &same));
    let (code, key) = daemon.twice;
    let said = if code == TWICE { "runs already" } else { "taken" };
    check_refusal(daemon.command(place.path(), &same), code, &[key, said, "stop"]);
    if let Some(key) = daemon.shared_directory {
        let elsewhere = daemon.socket.map(|(key, _)| format!("{key}=@/other.sock"));
        let elsewhere: Vec<_> = elsewhere.iter().map(String::as_str).collect();
        check_refusal(daemon.command(place.path(), &elsewhere), TWICE, &[key, "runs already", "stop"]);
    }
    drop(first);
}

/// The file of the socket, the lock, the database: nothing of it stands in the way.
fn killed(daemon: &Daemon) {
    let place = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut running = Running::start(daemon.command(place.path(), &[]));
        if let Some((_, path)) = daemon.socket {
            assert!(place.path().join(path).exists());
        }
        running.signal(Signal::SIGKILL);
        assert_eq!(running.code(), None);
    }
}

fn port_taken(daemon: &Daemon) {
    let place = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (key, value) in daemon.listens {
        let setting = format!("{key}={}", value.replace("ADDRESS", &address));
        let parts = [*key, &address, "is taken", "set another"];
        check_refusal(daemon.command(place.path(), &[&setting]), UNAVAILABLE, &parts);
        // TEST-NET-1: no host has it.
        let setting = format!("{key}={}", value.replace("ADDRESS", "192.0.2.1:1"));
        let parts = [*key, "192.0.2.1:1", "no such address", "set one it has"];
        check_refusal(daemon.command(place.path(), &[&setting]), UNAVAILABLE, &parts);
    }
}

fn directory_missing(daemon: &Daemon) {
    for key in daemon.directories {
        let place = tempfile::tempdir().unwrap();
        let missing = place.path().join("not/yet");
        let setting = format!("{key}={}", missing.display());
        drop(Running::start(daemon.command(place.path(), &[&setting])));
        assert!(missing.is_dir(), "{key}");
    }
}

fn no_directory(daemon: &Daemon) {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "precious").unwrap();
    let cases = [
        (file.clone(), "is a file", "move it away"),
        (file.join("below"), "no directory", "set another path"),
        ("/proc/d7y".into(), "cannot be made", "set another path"),
    ];
    for (path, what, remedy) in cases {
        let path = path.to_str().unwrap();
        for key in daemon.directories {
            let parts = [*key, path, what, remedy];
            check_refusal(daemon.command(place.path(), &[&format!("{key}={path}")]), DIRECTORY, &parts);
        }
    }
    assert_eq!(fs::read(file).unwrap(), b"precious");
}

/// In a mount namespace of the daemon's own.
pub fn read_only(daemon: &Daemon) {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("read-only");
    fs::create_dir(&directory).unwrap();
    let path = directory.to_str().unwrap();
    let sockets = daemon.socket.map(|(key, _)| (key, format!("{path}/d7y.sock")));
    let directories = daemon.directories.iter().map(|key| (*key, path.to_owned()));
    for (key, value) in directories.chain(sockets) {
        let command = daemon.command_without(&directory, place.path(), &[&format!("{key}={value}")]);
        check_refusal(command, DIRECTORY, &[key, &value, "its file system is read-only", "set another path"]);
    }
}

fn newer_layout(daemon: &Daemon) {
    let Some(make_newer) = daemon.make_newer else { return };
    let place = tempfile::tempdir().unwrap();
    make_newer(place.path());
    let before = files(place.path());
    check_refusal(
        daemon.command(place.path(), &[]),
        NEWER,
        &["77", "this program writes version", "start the version that wrote it", "move it away"],
    );
    let after = files(place.path());
    for (name, content) in before {
        assert!(after.get(&name) == Some(&content), "{} was changed", name.display());
    }
}

/// Every file with its content.
fn files(directory: &Path) -> HashMap<PathBuf, Vec<u8>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            found.insert(path, content);
        }
    }
    found
}

fn no_socket(daemon: &Daemon) {
    let Some((key, path)) = daemon.socket else { return };
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join(path);
    fs::create_dir(path.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    drop(Running::start(daemon.command(place.path(), &[])));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let parts = [key, path.to_str().unwrap(), "no socket", "remove it"];
    check_refusal(daemon.command(place.path(), &[]), UNAVAILABLE, &parts);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let long = format!("{key}=@/{}", "x".repeat(200));
    check_refusal(daemon.command(place.path(), &[&long]), DIRECTORY, &[key, "too long", "set a shorter one"]);
}

fn configuration(daemon: &Daemon) {
    let place = tempfile::tempdir().unwrap();
    let with = |path: &Path| {
        let mut command = daemon.command(place.path(), &[]);
        command.arg("--config").arg(path);
        command
    };
    let missing = place.path().join("d7y.yaml");
    let name = missing.to_str().unwrap().to_owned();
    check_refusal(with(&missing), CONFIGURATION, &[&name, "there is no configuration file", "is enough"]);
    let parts = [place.path().to_str().unwrap(), "cannot read", "a directory", "name a file"];
    check_refusal(with(place.path()), CONFIGURATION, &parts);
    fs::write(&missing, "{}").unwrap();
    fs::set_permissions(&missing, fs::Permissions::from_mode(0o000)).unwrap();
    let parts = [&name, "cannot read", "let the daemon's user read it"];
    check_refusal(without_override(with(&missing)), CONFIGURATION, &parts);
    fs::set_permissions(&missing, fs::Permissions::from_mode(0o600)).unwrap();
    drop(Running::start(with(&missing)));
}

/// Root reads every file unless it is kept from it.
fn without_override(command: Command) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return command;
    }
    let mut kept = Command::new("setpriv");
    kept.args(["--bounding-set", "-dac_override,-dac_read_search"]);
    kept.arg(command.get_program()).args(command.get_args());
    kept.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    kept
}
