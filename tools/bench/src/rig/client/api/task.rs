//! A container with a minimal runtime specification.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    KillRequest, StartRequest, WaitRequest,
};
use prost_types::Any;
use serde_json::{Value, json};

use super::pull::Pulled;
use super::session::{Session, connect, in_namespace};

const SIGKILL: u32 = 9;

/// A killed process that reads missing data ends only when that read has its answer.
const KILLED: Duration = Duration::from_secs(60);

/// Where the application's output goes.
pub struct Output {
    /// A fifo.
    pub stdout: PathBuf,
    /// A file that exists.
    pub stderr: PathBuf,
}

/// Prepares a writable snapshot on top of the image and mounts it as the root of a task, whose
/// command does not run yet.
pub async fn create(session: &Session, image: &Pulled, id: &str, output: &Output) -> Result<()> {
    let prepare = PrepareSnapshotRequest {
        snapshotter: session.snapshotter(),
        key: id.to_owned(),
        parent: image.chain_id.clone(),
        ..Default::default()
    };
    let prepared = session.client.snapshots().prepare(session.ask(prepare)).await;
    prepared.context("cannot prepare the container's snapshot")?;
    let spec = runtime_spec(&image.config, &session.namespace, id);
    let container = Container {
        id: id.to_owned(),
        image: session.image.reference.to_string(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
            value: spec.to_string().into_bytes(),
        }),
        snapshotter: session.snapshotter(),
        snapshot_key: id.to_owned(),
        ..Default::default()
    };
    let create = CreateContainerRequest { container: Some(container) };
    session.client.containers().create(session.ask(create)).await.context("cannot create the container")?;
    // As containerd's client does: what Prepare answered is not what is mounted.
    let mounts = MountsRequest { snapshotter: session.snapshotter(), key: id.to_owned() };
    let mounts = session.client.snapshots().mounts(session.ask(mounts)).await;
    let rootfs = mounts.context("cannot mount the container's snapshot")?.into_inner().mounts;
    let task = CreateTaskRequest {
        container_id: id.to_owned(),
        rootfs,
        stdout: output.stdout.display().to_string(),
        stderr: output.stderr.display().to_string(),
        ..Default::default()
    };
    session.client.tasks().create(session.ask(task)).await.context("cannot create the task")?;
    Ok(())
}

/// Starts the command of a task that was created.
pub async fn start(session: &Session, id: &str) -> Result<()> {
    let start = StartRequest { container_id: id.to_owned(), ..Default::default() };
    session.client.tasks().start(session.ask(start)).await.context("cannot start the task")?;
    Ok(())
}

/// Kills and removes all of it.
pub async fn end(socket: &Path, namespace: &str, snapshotter: &str, id: &str) -> Result<()> {
    let client = connect(socket).await?;
    let container_id = || id.to_owned();
    let kill = KillRequest { container_id: container_id(), signal: SIGKILL, all: true, ..Default::default() };
    // One that has ended by itself cannot be killed; what matters is that it can be deleted.
    let _ = client.tasks().kill(in_namespace(kill, namespace)).await;
    let wait = WaitRequest { container_id: container_id(), ..Default::default() };
    tokio::time::timeout(KILLED, client.tasks().wait(in_namespace(wait, namespace))).await??;
    let delete = DeleteTaskRequest { container_id: container_id() };
    client.tasks().delete(in_namespace(delete, namespace)).await?;
    let delete = DeleteContainerRequest { id: container_id() };
    client.containers().delete(in_namespace(delete, namespace)).await?;
    let remove = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: container_id() };
    client.snapshots().remove(in_namespace(remove, namespace)).await?;
    Ok(())
}

/// The network is the node's own, as with `--net host`: no CNI plugin is needed.
fn runtime_spec(config: &Value, namespace: &str, id: &str) -> Value {
    let words = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let config = &config["config"];
    let args: Vec<Value> = [words(&config["Entrypoint"]), words(&config["Cmd"])].concat();
    let cwd = config["WorkingDir"].as_str().filter(|dir| !dir.is_empty()).unwrap_or("/");
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": words(&config["Env"]),
            "cwd": cwd,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": id,
        "mounts": mounts(),
        "linux": {
            "cgroupsPath": format!("/{namespace}/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!([
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ])
}
