//! One row per state that a node should not be in: which lines say so, what mends it, and the exit code.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use d7y_chassis::{HumanDuration, Shutdown, Tasks};
use d7y_fuse::mounts::FileBackedErofs;
use d7y_manager_client::ManagerConfig;
use d7y_origin::testing::FakeRegistry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::check::Check;
use super::check::State::{self, Failed, Warning};
use super::kernel::Scratch;
use super::machine::{Machine, PluginState, Space};
use super::{Args, Report, examine};
use crate::containerd::{Stanza, Version};
use crate::output::Output;

const NOBODY: &str = "127.0.0.1:1";
const GIB: u64 = 1 << 30;

/// A machine on which everything is well until a row says otherwise.
struct FakeMachine {
    is_root: bool,
    erofs: FileBackedErofs,
    has_fuse: bool,
    overlay_errno: Option<i32>,
    space: Space,
    clock_ahead: Duration,
    /// None: nobody answers.
    plugin: Option<PluginState>,
}

impl FakeMachine {
    fn well() -> Self {
        Self {
            is_root: true,
            erofs: FileBackedErofs::Mounts,
            has_fuse: true,
            overlay_errno: None,
            space: Space {
                size_bytes: 200 * GIB,
                free_bytes: 100 * GIB,
                inodes: 1 << 20,
                inodes_free: 1 << 19,
            },
            clock_ahead: Duration::ZERO,
            plugin: Some(PluginState::Loaded),
        }
    }
}

impl Machine for FakeMachine {
    fn is_root(&self) -> bool {
        self.is_root
    }

    fn erofs(&self, _: &Scratch) -> io::Result<FileBackedErofs> {
        Ok(self.erofs.clone())
    }

    fn fuse(&self, _: &Scratch) -> Result<()> {
        if self.has_fuse { Ok(()) } else { bail!("cannot open /dev/fuse") }
    }

    fn overlay(&self, _: &Scratch) -> Result<()> {
        let tried = self.overlay_errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
        tried.context("cannot mount overlay")
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(self.space)
    }

    fn now(&self) -> SystemTime {
        SystemTime::now() + self.clock_ahead
    }

    async fn plugin(&self, _: &Path) -> Result<PluginState> {
        self.plugin.clone().context("connection refused")
    }
}

/// What a node needs around it, once for all rows.
struct Site {
    manager: SocketAddr,
    scheduler: SocketAddr,
    seed: TcpListener,
    registry: FakeRegistry,
    /// Answers /healthy with 200, and with 503.
    well: SocketAddr,
    ill: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let directory = tempfile::tempdir().unwrap();
        let listen = d7y_manager::ListenConfig { listen: any };
        let config = d7y_manager::Config {
            rest: listen.clone(),
            grpc: listen.clone(),
            metrics: listen,
            directory: directory.path().join("manager"),
            ..d7y_manager::Config::default()
        };
        let tasks = || Tasks::new(Shutdown::default());
        let manager = d7y_manager::start(config, &tasks()).await.unwrap().grpc;
        let at = ManagerConfig { address: manager.to_string(), cluster: String::new() };
        let mut config = d7y_scheduler::Config { manager: at.clone(), ..d7y_scheduler::Config::default() };
        (config.server.listen, config.metrics.listen) = (any, any);
        config.settle = HumanDuration::from_millis(0);
        d7y_scheduler::run(config, &tasks()).await.unwrap();
        let scheduler = joined(&at).await;
        let seed = TcpListener::bind(any).await.unwrap();
        let registry = FakeRegistry::start().await;
        let (well, ill) = (health("200 OK").await, health("503 Service Unavailable").await);
        Self { manager, scheduler, seed, registry, well, ill, _directory: directory }
    }
}

/// Waits until the manager knows the scheduler.
async fn joined(manager: &ManagerConfig) -> SocketAddr {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let found = d7y_manager_client::look(manager, "test", "0").await.unwrap().schedulers;
        if let Some(scheduler) = found.first() {
            return scheduler.parse().unwrap();
        }
        assert!(tokio::time::Instant::now() < deadline, "the scheduler has not joined the manager");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn health(status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let answer = format!("HTTP/1.0 {status}\r\n\r\nstore: the disk is gone\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

/// A node on which all is well until a row breaks something of it.
struct Node {
    directory: tempfile::TempDir,
    machine: FakeMachine,
    peer: Value,
    snapshotter: Value,
    /// What containerd says of its version; without a text there is none.
    banner: Option<&'static str>,
    containerd_config: String,
    sockets: BTreeMap<&'static str, UnixListener>,
}

impl Node {
    fn well(site: &Site) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("root")).unwrap();
        let registry = json!({"host": site.registry.host()});
        let peer = json!({
            "store": {"directory": at("store"), "limit": "100GiB"},
            "local": {"socket": at("peer.sock")},
            "observability": {"listen": [site.well]},
            "manager": {"address": site.manager},
            "seeds": [site.seed.local_addr().unwrap()],
            "indexTrust": {"publicKeys": ["d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"]},
            "origin": {"registries": [registry]},
        });
        let snapshotter = json!({
            "socket": at("snapshotter.sock"),
            "rootDirectory": at("root"),
            "peer": {"socket": at("peer.sock")},
            "containerd": {"socket": at("containerd.sock")},
            "metrics": {"listen": site.well},
        });
        let sockets = ["peer.sock", "snapshotter.sock"];
        let sockets = sockets.map(|name| (name, UnixListener::bind(at(name)).unwrap())).into();
        let containerd_config = stanza(2, &at("snapshotter.sock"), &at("root"));
        let machine = FakeMachine::well();
        let banner = Some("v2.2.0");
        Self { directory, machine, peer, snapshotter, banner, containerd_config, sockets }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// containerd 1.7 and the stanza for it.
    fn older_containerd(&mut self) {
        self.banner = Some("1.7.27");
        let stanza = stanza(1, &self.at("snapshotter.sock"), &self.at("root"));
        self.containerd_config = format!("root = \"{}\"\n{stanza}", self.at("containerd").display());
    }

    async fn examine(&self) -> Report {
        fs::write(self.at("peer.yaml"), self.peer.to_string()).unwrap();
        fs::write(self.at("snapshotter.yaml"), self.snapshotter.to_string()).unwrap();
        fs::write(self.at("config.toml"), &self.containerd_config).unwrap();
        if let Some(version) = self.banner {
            let says = format!("echo containerd containerd.io {version} abc");
            let script = format!("#!/bin/sh\nif [ \"$1\" = --version ]; then {says}; else cat \"$2\"; fi\n");
            fs::write(self.at("containerd.sh"), script).unwrap();
            fs::set_permissions(self.at("containerd.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let args = Args {
            output: Output::Text,
            peer: self.at("peer.yaml"),
            snapshotter: self.at("snapshotter.yaml"),
            containerd_config: self.at("config.toml"),
            containerd: self.at("containerd.sh"),
            registry: Vec::new(),
        };
        Report::new(examine(&args, &self.machine).await)
    }
}

fn stanza(major: u32, socket: &Path, root: &Path) -> String {
    let version: Version = if major == 1 { "1.7" } else { "2.2" }.parse().unwrap();
    Stanza::new(version, socket, root).unwrap().alone()
}

/// A state, the lines that are then not ok, and what mends each. `DIR` stands for the node's directory.
struct Row {
    what: &'static str,
    broken: fn(&mut Node, &Site),
    bad: &'static [(&'static str, State, &'static str)],
}

const ELSEWHERE: &str = "set `rootDirectory: DIRECTORY ON EXT4, XFS OR BTRFS` in DIR/snapshotter.yaml; \
     systemctl restart d7y-snapshotter";
const KERNEL: &str = "apt-get install linux-image-$(dpkg --print-architecture)  \
     # 6.12 or newer, with CONFIG_EROFS_FS_BACKED_BY_FILE";
const INSTALL: &str = "d7y containerd config --write --config DIR/config.toml --containerd DIR/containerd.sh \
     --socket DIR/snapshotter.sock --root DIR/root && systemctl restart containerd";
const START_PEER: &str = "systemctl start d7y-peer || journalctl -u d7y-peer -n 20";
const START_SNAPSHOTTER: &str = "systemctl start d7y-snapshotter || journalctl -u d7y-snapshotter -n 20";
const LOWER: &str = "set `store.limit: 50GiB` in DIR/peer.yaml; systemctl reload d7y-peer";
const PRUNE: &str = "crictl rmi --prune";
const NTP: &str = "timedatectl set-ntp true; timedatectl timesync-status";

fn old_kernel() -> FileBackedErofs {
    FileBackedErofs::KernelRefuses("this kernel does not".into())
}

const CONFIGURATIONS: &[Row] = &[
    Row {
        what: "a key of the peer that there is not",
        broken: |node, _| node.peer["store"]["limits"] = json!("5GiB"),
        bad: &[(
            "config.peer",
            Failed,
            "sudoedit DIR/peer.yaml && d7y-peer --config DIR/peer.yaml --check-config",
        )],
    },
    Row {
        what: "a key of the snapshotter that there is not",
        broken: |node, _| node.snapshotter["drivers"] = json!("auto"),
        bad: &[(
            "config.snapshotter",
            Failed,
            "sudoedit DIR/snapshotter.yaml && d7y-snapshotter --config DIR/snapshotter.yaml --check-config",
        )],
    },
];

const KERNELS: &[Row] = &[
    Row {
        what: "nobody may mount",
        broken: |node, _| node.machine.is_root = false,
        bad: &[("kernel", Warning, "sudo d7y doctor")],
    },
    Row {
        what: "no EROFS from files, FUSE instead",
        broken: |node, _| node.machine.erofs = old_kernel(),
        bad: &[("kernel.erofs", Warning, KERNEL)],
    },
    Row {
        what: "no EROFS from files, and nothing else allowed",
        broken: |node, _| {
            node.machine.erofs = old_kernel();
            node.snapshotter["driver"] = json!("erofs");
        },
        bad: &[("kernel.erofs", Failed, KERNEL)],
    },
    Row {
        what: "no EROFS from files, and none wanted",
        broken: |node, _| {
            node.machine.erofs = old_kernel();
            node.snapshotter["driver"] = json!("fuse");
        },
        bad: &[],
    },
    Row {
        what: "EROFS from files, but not of an overlay's",
        broken: |node, _| node.machine.erofs = FileBackedErofs::FileSystemRefuses("on overlay".into()),
        bad: &[("kernel.erofs", Warning, ELSEWHERE)],
    },
    Row {
        what: "no FUSE",
        broken: |node, _| node.machine.has_fuse = false,
        bad: &[("kernel.fuse", Failed, "modprobe fuse")],
    },
    Row {
        what: "no overlayfs (ENODEV)",
        broken: |node, _| node.machine.overlay_errno = Some(19),
        bad: &[("kernel.overlayfs", Failed, "modprobe overlay")],
    },
    Row {
        what: "overlayfs, but not on this file system (EINVAL)",
        broken: |node, _| node.machine.overlay_errno = Some(22),
        bad: &[("kernel.overlayfs", Failed, ELSEWHERE)],
    },
    Row {
        what: "the snapshotter's directory cannot be made",
        broken: |node, _| {
            fs::write(node.at("file"), "").unwrap();
            node.snapshotter["rootDirectory"] = json!(node.at("file/root"));
            node.containerd_config = stanza(2, &node.at("snapshotter.sock"), &node.at("file/root"));
        },
        bad: &[(
            "kernel",
            Failed,
            "set `rootDirectory: DIRECTORY THAT ROOT CAN WRITE IN` in DIR/snapshotter.yaml; \
             systemctl restart d7y-snapshotter",
        )],
    },
];

const CONTAINERDS: &[Row] = &[
    Row {
        what: "no containerd is installed",
        broken: |node, _| node.banner = None,
        bad: &[("containerd.version", Failed, "apt-get install containerd")],
    },
    Row {
        what: "containerd is too old",
        broken: |node, _| node.banner = Some("1.5.11"),
        bad: &[(
            "containerd.version",
            Failed,
            "apt-get install --only-upgrade containerd && systemctl restart containerd",
        )],
    },
    Row {
        what: "containerd was never told of d7y",
        broken: |node, _| node.containerd_config = "version = 2\n".into(),
        bad: &[("containerd.config", Failed, INSTALL)],
    },
    Row {
        what: "containerd is told of another socket",
        broken: |node, _| {
            node.containerd_config = stanza(2, Path::new("/run/other.sock"), &node.at("root"));
        },
        bad: &[("containerd.config", Failed, INSTALL)],
    },
    Row {
        what: "containerd's file cannot be read",
        broken: |node, _| node.containerd_config = "version = \n".into(),
        bad: &[(
            "containerd.config",
            Failed,
            "sudoedit DIR/config.toml && DIR/containerd.sh --config DIR/config.toml config dump",
        )],
    },
    Row {
        what: "the CRI plugin is switched off, and another one",
        broken: |node, _| {
            let list = "disabled_plugins = [\"io.containerd.cri.v1.images\", \"io.containerd.nri.v1.nri\"]";
            node.containerd_config = format!("{list}\n{}", node.containerd_config);
        },
        bad: &[(
            "containerd.config",
            Warning,
            "set `disabled_plugins = [\"io.containerd.nri.v1.nri\"]` in DIR/config.toml; \
             systemctl restart containerd",
        )],
    },
    Row {
        what: "containerd 1.7 measures a directory that there is not",
        broken: |node, _| node.older_containerd(),
        bad: &[("containerd.config", Warning, "mkdir -p DIR/containerd/io.containerd.snapshotter.v1.d7y")],
    },
    Row {
        what: "containerd 1.7 with that directory",
        broken: |node, _| {
            node.older_containerd();
            fs::create_dir_all(node.at("containerd/io.containerd.snapshotter.v1.d7y")).unwrap();
        },
        bad: &[],
    },
    Row {
        what: "the snapshotter is not told of containerd",
        broken: |node, _| node.snapshotter["containerd"]["socket"] = json!(null),
        bad: &[(
            "containerd.running",
            Warning,
            "set `containerd.socket: /run/containerd/containerd.sock` in DIR/snapshotter.yaml; \
             systemctl restart d7y-snapshotter",
        )],
    },
    Row {
        what: "containerd is down",
        broken: |node, _| node.machine.plugin = None,
        bad: &[(
            "containerd.running",
            Failed,
            "systemctl start containerd || journalctl -u containerd -n 20",
        )],
    },
    Row {
        what: "containerd has not read its file again",
        broken: |node, _| node.machine.plugin = Some(PluginState::Missing),
        bad: &[("containerd.running", Failed, "systemctl restart containerd")],
    },
    Row {
        what: "containerd's plugin did not come up",
        broken: |node, _| node.machine.plugin = Some(PluginState::Broken("no socket".into())),
        bad: &[("containerd.running", Failed, "systemctl restart d7y-snapshotter containerd")],
    },
];

const DISKS: &[Row] = &[
    Row {
        what: "a store of another layout",
        broken: |node, _| {
            fs::create_dir(node.at("store")).unwrap();
            fs::write(node.at("store/format"), "99\n").unwrap();
        },
        bad: &[(
            "store.layout",
            Failed,
            "systemctl stop d7y-peer; mv DIR/store DIR/store.old; systemctl start d7y-peer",
        )],
    },
    Row {
        what: "a store that cannot be made",
        broken: |node, _| {
            fs::write(node.at("file"), "").unwrap();
            node.peer["store"]["directory"] = json!(node.at("file"));
        },
        bad: &[
            (
                "store.layout",
                Failed,
                "systemctl stop d7y-peer; mv DIR/file DIR/file.old; systemctl start d7y-peer",
            ),
            (
                "store.writable",
                Failed,
                "set `store.directory: DIRECTORY THAT THE PEER CAN WRITE IN` in DIR/peer.yaml; \
                 systemctl restart d7y-peer",
            ),
        ],
    },
    Row {
        what: "a disk that is nearly full",
        broken: |node, _| node.machine.space.free_bytes = d7y_store::RESERVE_BYTES + 1,
        bad: &[("disk.store", Warning, LOWER), ("disk.snapshots", Warning, PRUNE)],
    },
    Row {
        what: "a disk that is full",
        broken: |node, _| node.machine.space.free_bytes = d7y_store::RESERVE_BYTES - 1,
        bad: &[("disk.store", Failed, LOWER), ("disk.snapshots", Failed, PRUNE)],
    },
    Row {
        what: "a disk with few inodes",
        broken: |node, _| node.machine.space.inodes_free = 100,
        bad: &[("disk.store", Warning, PRUNE), ("disk.snapshots", Warning, PRUNE)],
    },
    Row {
        what: "a file system that makes inodes as it goes",
        broken: |node, _| (node.machine.space.inodes, node.machine.space.inodes_free) = (0, 0),
        bad: &[],
    },
    Row {
        what: "a limit that is larger than the disk",
        broken: |node, _| node.peer["store"]["limit"] = json!("201GiB"),
        bad: &[(
            "store.limit",
            Warning,
            "set `store.limit: 100GiB` in DIR/peer.yaml; systemctl reload d7y-peer",
        )],
    },
];

const DAEMONS: &[Row] = &[
    Row {
        what: "no socket of the peer",
        broken: |node, _| {
            node.sockets.remove("peer.sock");
            fs::remove_file(node.at("peer.sock")).unwrap();
        },
        bad: &[("peer.socket", Failed, START_PEER)],
    },
    Row {
        what: "a socket that a dead snapshotter has left",
        broken: |node, _| drop(node.sockets.remove("snapshotter.sock")),
        bad: &[("snapshotter.socket", Failed, START_SNAPSHOTTER)],
    },
    Row {
        what: "the snapshotter looks for the peer elsewhere",
        broken: |node, _| node.snapshotter["peer"]["socket"] = json!("/run/other.sock"),
        bad: &[(
            "peer.socket",
            Failed,
            "set `peer.socket: DIR/peer.sock` in DIR/snapshotter.yaml; systemctl restart d7y-snapshotter",
        )],
    },
    Row {
        what: "the peer is not well",
        broken: |node, site| node.peer["observability"]["listen"] = json!([site.ill]),
        bad: &[(
            "peer.health",
            Failed,
            "journalctl -u d7y-peer -n 50  # docs/operations.md says what each alarm means",
        )],
    },
    Row {
        what: "the snapshotter does not say how it is",
        broken: |node, _| node.snapshotter["metrics"]["listen"] = json!(NOBODY),
        bad: &[("snapshotter.health", Failed, START_SNAPSHOTTER)],
    },
];

const CLUSTERS: &[Row] = &[
    Row {
        what: "the manager is away, and was never there",
        broken: |node, _| node.peer["manager"]["address"] = json!(NOBODY),
        bad: &[
            ("manager", Warning, "on 127.0.0.1: systemctl start d7y-manager"),
            (
                "scheduler",
                Warning,
                "set `scheduler.address: HOST:8002` in DIR/peer.yaml; systemctl restart d7y-peer",
            ),
        ],
    },
    Row {
        what: "a cluster that the manager does not know",
        broken: |node, site| {
            node.peer["manager"]["cluster"] = json!("moon");
            node.peer["scheduler"] = json!({"address": site.scheduler});
        },
        bad: &[(
            "manager",
            Warning,
            "set `manager.cluster: NAME OF ONE OF ITS CLUSTERS` in DIR/peer.yaml; systemctl restart d7y-peer",
        )],
    },
    Row {
        what: "the scheduler is away",
        broken: |node, _| node.peer["scheduler"] = json!({"address": NOBODY}),
        bad: &[("scheduler", Warning, "on 127.0.0.1: systemctl start d7y-scheduler")],
    },
    Row {
        what: "a seed is away",
        broken: |node, _| node.peer["seeds"] = json!([NOBODY]),
        bad: &[("seed", Warning, "on 127.0.0.1: systemctl start d7y-peer")],
    },
    Row {
        what: "no key of a seed is trusted",
        broken: |node, _| node.peer["indexTrust"] = json!({}),
        bad: &[(
            "index.trust",
            Warning,
            "set `indexTrust.publicKeys: [KEY OF EACH SEED]` in DIR/peer.yaml; systemctl restart d7y-peer",
        )],
    },
    Row {
        what: "the registry is away, and with it the time",
        broken: |node, _| node.peer["origin"]["registries"] = json!([{"host": NOBODY}]),
        bad: &[("registry", Warning, "curl -v http://127.0.0.1:1/v2/"), ("clock", Warning, NTP)],
    },
    Row {
        what: "no registry to ask",
        broken: |node, _| node.peer["origin"] = json!({}),
        bad: &[("registry", Warning, "d7y doctor --registry HOST"), ("clock", Warning, NTP)],
    },
    Row {
        what: "a clock that is half a minute off",
        broken: |node, _| node.machine.clock_ahead = Duration::from_secs(30),
        bad: &[("clock", Warning, NTP)],
    },
    Row {
        what: "a clock that is two minutes off",
        broken: |node, _| node.machine.clock_ahead = Duration::from_secs(120),
        bad: &[("clock", Failed, NTP)],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_state_is_named_with_what_mends_it() {
    let site = Site::start().await;
    let well = Row { what: "nothing", broken: |_, _| {}, bad: &[] };
    let tables = [&[well], KERNELS, CONTAINERDS, DISKS, DAEMONS, CLUSTERS];
    for row in tables.into_iter().flatten() {
        let (report, found, expected) = row.look(&site).await;
        assert_eq!(found, expected, "{}: {:#?}", row.what, report.checks);
        let fails = row.bad.iter().any(|(_, state, _)| *state == Failed);
        assert_eq!(report.exit_code(), u8::from(fails), "{}", row.what);
    }
    // Defaults stand in for what a faulty file says: what they lead to differs from machine to machine.
    for row in CONFIGURATIONS {
        let (report, found, expected) = row.look(&site).await;
        assert!(found.contains(&expected[0]), "{}: {:#?}", row.what, report.checks);
        assert_eq!(report.exit_code(), 1, "{}", row.what);
    }
}

/// Name, state and remedy of each line that is not ok.
type Lines = Vec<(&'static str, State, String)>;

impl Row {
    /// The report, what it has that is not ok, and what it should have.
    async fn look(&self, site: &Site) -> (Report, Lines, Lines) {
        let mut node = Node::well(site);
        (self.broken)(&mut node, site);
        let report = node.examine().await;
        let bad = report.checks.iter().filter(|check| check.state != State::Ok);
        let remedy = |check: &Check| check.mend.as_ref().map(ToString::to_string).unwrap_or_default();
        let found = bad.map(|check| (check.name, check.state, remedy(check))).collect();
        let directory = format!("{}/", node.directory.path().display());
        let expected = self.bad.iter();
        let expected =
            expected.map(|(name, state, mend)| (*name, *state, mend.replace("DIR/", &directory))).collect();
        (report, found, expected)
    }
}
