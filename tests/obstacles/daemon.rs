//! Each daemon as the table sees it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A daemon, and where obstacles can lie in its way. `@` stands for the directory of the test.
pub struct Daemon {
    pub program: &'static str,
    /// All that it needs to start and serve here.
    settings: &'static [&'static str],
    /// Keys of addresses, with the value that sets one to `ADDRESS`.
    pub listens: &'static [(&'static str, &'static str)],
    /// Keys of directories.
    pub directories: &'static [&'static str],
    /// The key of its Unix socket, and where that is.
    pub socket: Option<(&'static str, &'static str)>,
    /// What says that it runs already when it is started with the same configuration: exit code and key.
    pub twice: (i32, &'static str),
    /// The same when only this directory is the same.
    pub shared_directory: Option<&'static str>,
    /// How what lies on disk is made to look newer.
    pub make_newer: Option<fn(&Path)>,
    pub held_up: HeldUp,
    /// It mounts, in a namespace of its own that ends with it.
    mounts: bool,
}

/// What the daemon has under way and does not finish: a client that says nothing, unless it says something else.
pub enum HeldUp {
    /// On the address that this field of the line `listening` has.
    ClientAt(&'static str),
    ClientOfSocket,
    /// The node's snapshotter waits for a layer, and the registry does not answer.
    Registry,
}

pub const PEER: Daemon = Daemon {
    program: "d7y-peer",
    settings: &[
        "peerId=test",
        "store.directory=@/store",
        "local.socket=@/socket/peer.sock",
        "transfer.listen=127.0.0.1:0",
        "observability.listen=[\"127.0.0.1:0\"]",
    ],
    listens: &[("transfer.listen", "ADDRESS"), ("observability.listen", "[\"ADDRESS\"]")],
    directories: &["store.directory"],
    socket: Some(("local.socket", "socket/peer.sock")),
    twice: (75, "local.socket"),
    shared_directory: Some("store.directory"),
    make_newer: Some(|place| newer_format(&place.join("store"))),
    held_up: HeldUp::Registry,
    mounts: false,
};

pub const SNAPSHOTTER: Daemon = Daemon {
    program: "d7y-snapshotter",
    settings: &[
        "socket=@/socket/s.sock",
        "rootDirectory=@/root",
        "runDirectory=@/run",
        "containerd.socket=null",
        "peer.socket=@/no-peer.sock",
        "metrics.listen=127.0.0.1:0",
    ],
    listens: &[("metrics.listen", "ADDRESS")],
    directories: &["rootDirectory", "runDirectory"],
    socket: Some(("socket", "socket/s.sock")),
    twice: (75, "socket"),
    shared_directory: Some("rootDirectory"),
    make_newer: Some(|place| newer_format(&place.join("root"))),
    held_up: HeldUp::ClientOfSocket,
    mounts: true,
};

pub const SCHEDULER: Daemon = Daemon {
    program: "d7y-scheduler",
    settings: &["name=test", "server.listen=127.0.0.1:0", "metrics.listen=127.0.0.1:0"],
    listens: &[("server.listen", "ADDRESS"), ("metrics.listen", "ADDRESS")],
    directories: &[],
    socket: None,
    // It has nothing on disk, and nothing else that another one could not have too.
    twice: (69, "server.listen"),
    shared_directory: None,
    make_newer: None,
    held_up: HeldUp::ClientAt("server="),
    mounts: false,
};

pub const MANAGER: Daemon = Daemon {
    program: "d7y-manager",
    settings: &[
        "directory=@/manager",
        "rest.listen=127.0.0.1:0",
        "grpc.listen=127.0.0.1:0",
        "metrics.listen=127.0.0.1:0",
    ],
    listens: &[("rest.listen", "ADDRESS"), ("grpc.listen", "ADDRESS"), ("metrics.listen", "ADDRESS")],
    directories: &["directory"],
    socket: None,
    twice: (75, "directory"),
    shared_directory: Some("directory"),
    make_newer: Some(newer_tables),
    held_up: HeldUp::ClientAt("grpc="),
    mounts: false,
};

fn newer_format(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("format"), "77\n").unwrap();
}

fn newer_tables(place: &Path) {
    let directory = place.join("manager");
    std::fs::create_dir_all(&directory).unwrap();
    let url = format!("sqlite:{}/manager.db?mode=rwc", directory.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let database = sea_orm::Database::connect(url).await.unwrap();
        let steps = "PRAGMA journal_mode = WAL;
                     CREATE TABLE seaql_migrations (version TEXT PRIMARY KEY, applied_at BIGINT NOT NULL);
                     INSERT INTO seaql_migrations VALUES ('0077_later', 0)";
        sea_orm::ConnectionTrait::execute_unprepared(&database, steps).await.unwrap();
        database.close().await.unwrap();
    });
}

impl Daemon {
    /// Ready to be started in `place`, with these settings after its own.
    pub fn command(&self, place: &Path, settings: &[&str]) -> Command {
        let script: &[&str] = if self.mounts { &[PRIVATE_MOUNTS, "exec \"$@\""] } else { &[] };
        self.through(script, place, settings)
    }

    /// As [`Daemon::command`], where `directory` cannot be written.
    pub fn command_without(&self, directory: &Path, place: &Path, settings: &[&str]) -> Command {
        let directory = directory.display();
        let script = format!(
            "mount --bind {directory} {directory} && mount -o remount,bind,ro {directory} && exec \"$@\""
        );
        self.through(&[PRIVATE_MOUNTS, &script], place, settings)
    }

    fn through(&self, script: &[&str], place: &Path, settings: &[&str]) -> Command {
        let program = program(self.program);
        let mut command = match script {
            [wrapper, script] => {
                let mut command = Command::new("unshare");
                command.args(wrapper.split(' ')).args(["sh", "-c", script, "sh"]).arg(program);
                command
            }
            _ => Command::new(program),
        };
        let at = place.display().to_string();
        for setting in self.settings.iter().chain(settings) {
            command.arg("--set").arg(setting.replace('@', &at));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        command
    }
}

const PRIVATE_MOUNTS: &str = "--mount --propagation private";

fn program(name: &str) -> PathBuf {
    d7y_tests::built().daemon(name).unwrap()
}
