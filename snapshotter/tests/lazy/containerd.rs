use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{CreateRequest, DeleteRequest, WriteAction, WriteContentRequest};
use d7y_proto::snapshots::snapshots_client::SnapshotsClient;
use d7y_proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, Mount, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
};
use d7y_types::Sha256Digest;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::image::{REGISTRY, REPOSITORY, sha256};
use crate::node::{LogFile, wait_for};

pub const NAMESPACE: &str = "test";
const SNAPSHOTTER: &str = "d7y";

/// A containerd of the test's own that has d7y as a proxy plugin.
pub struct Containerd {
    _child: Guarded,
    channel: Channel,
    _log: LogFile,
}

pub async fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    wait_for("a gRPC socket", || {
        let socket = socket.clone();
        async move {
            let connector = tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            Endpoint::from_static("http://local.invalid").connect_with_connector(connector).await.ok()
        }
    })
    .await
}

fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().unwrap());
    request
}

impl Containerd {
    pub async fn start(directory: &Path, snapshotter: &Path) -> Self {
        let own = directory.join("containerd");
        std::fs::create_dir_all(&own).unwrap();
        let (socket, config) = (own.join("containerd.sock"), own.join("config.toml"));
        let at = |path: &Path| path.display().to_string();
        let text = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{1}\"\n[ttrpc]\naddress = \"{0}/ttrpc.sock\"\n\
             [proxy_plugins.d7y]\ntype = \"snapshot\"\naddress = \"{2}\"\n",
            at(&own),
            at(&socket),
            at(snapshotter),
        );
        std::fs::write(&config, text).unwrap();
        let log = LogFile::new("containerd", own.join("log"));
        let child = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stderr(log.file())
            .stdout(Stdio::null())
            .spawn();
        let child = child.expect("containerd must be installed: cargo xtask setup");
        let child = Guarded(child);
        let channel = channel(&socket).await;
        Self { _child: child, channel, _log: log }
    }

    /// Stores a blob as a pull does; returns its digest.
    pub async fn add_blob(&self, blob: &str, labels: &[(&str, &str)]) -> Sha256Digest {
        let digest = sha256(blob.as_bytes());
        let mut labels: HashMap<String, String> =
            labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        labels.insert("containerd.io/gc.root".into(), "test".into());
        labels.insert(format!("containerd.io/distribution.source.{REGISTRY}"), REPOSITORY.into());
        let write = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: digest.to_string(),
            total: blob.len() as i64,
            expected: digest.to_string(),
            offset: 0,
            data: blob.as_bytes().to_vec(),
            labels,
        };
        let mut content = ContentClient::new(self.channel.clone());
        let request = namespaced(futures_util::stream::iter([write]));
        let mut answers = content.write(request).await.unwrap().into_inner();
        while answers.message().await.unwrap().is_some() {}
        digest
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: &[(&str, String)],
    ) -> Result<Vec<Mount>, Status> {
        let mut labels: HashMap<String, String> =
            labels.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
        labels.insert("containerd.io/gc.root".into(), "test".into());
        let (snapshotter, key, parent) = (SNAPSHOTTER.into(), key.into(), parent.into());
        let request = namespaced(PrepareSnapshotRequest { snapshotter, key, parent, labels });
        Ok(self.snapshots().prepare(request).await?.into_inner().mounts)
    }

    pub async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let labels = [("containerd.io/gc.root".into(), "test".into())].into();
        let (snapshotter, key, parent) = (SNAPSHOTTER.into(), key.into(), parent.into());
        let request = namespaced(ViewSnapshotRequest { snapshotter, key, parent, labels });
        Ok(self.snapshots().view(request).await?.into_inner().mounts)
    }

    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = namespaced(MountsRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() });
        Ok(self.snapshots().mounts(request).await?.into_inner().mounts)
    }

    pub async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = namespaced(StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() });
        Ok(self.snapshots().stat(request).await?.into_inner().info.unwrap())
    }

    pub async fn commit(&self, key: &str, name: &str) -> Result<(), Status> {
        let labels = [("containerd.io/gc.root".into(), "test".into())].into();
        let (snapshotter, key, name) = (SNAPSHOTTER.into(), key.into(), name.into());
        let commit = CommitSnapshotRequest { snapshotter, key, name, labels, parent: String::new() };
        self.snapshots().commit(namespaced(commit)).await.map(drop)
    }

    pub async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = namespaced(RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() });
        self.snapshots().remove(request).await.map(drop)
    }

    /// Has the collector run now, and waits for it: by itself it rests for 49 times as long as its last run took
    /// (`pause_threshold`), which is half a minute after one that waited for the disk.
    pub async fn collect(&self) {
        let (mut leases, id) = (LeasesClient::new(self.channel.clone()), "collect".to_owned());
        let create = CreateRequest { id: id.clone(), labels: HashMap::new() };
        leases.create(namespaced(create)).await.unwrap();
        leases.delete(namespaced(DeleteRequest { id, sync: true })).await.unwrap();
    }

    /// containerd waits up to three seconds before it dials a plugin again that was not there.
    pub async fn reaches_snapshotter(&self) {
        let probe = wait_for("containerd to reach the snapshotter", || async {
            match self.prepare("probe", "", &[]).await {
                Err(status) if status.code() == Code::Unavailable => None,
                prepared => Some(prepared),
            }
        });
        probe.await.unwrap();
        self.remove("probe").await.unwrap();
    }

    /// What a pull does for one layer.
    pub async fn pull_layer(&self, chain_id: Sha256Digest, parent: &str) -> Result<Vec<Mount>, Status> {
        let labels = [("containerd.io/snapshot.ref", chain_id.to_string())];
        self.prepare(&format!("extract-1-abcd {chain_id}"), parent, &labels).await
    }

    /// Pulls lazily; returns the topmost layer's name.
    pub async fn pull(&self, chain_ids: &[Sha256Digest]) -> String {
        let mut parent = String::new();
        for chain_id in chain_ids {
            let status = self.pull_layer(*chain_id, &parent).await.expect_err("the layer was not lazy");
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            let stat = self.stat(&chain_id.to_string()).await.unwrap();
            assert_eq!(stat.parent, parent);
            parent = chain_id.to_string();
        }
        parent
    }
}

/// What the garbage collector of containerd does at its end.
pub async fn clean_up(snapshotter: &Path) {
    let mut snapshots = SnapshotsClient::new(channel(snapshotter).await);
    snapshots.cleanup(CleanupRequest { snapshotter: SNAPSHOTTER.into() }).await.unwrap();
}

/// The names that the snapshotter itself knows.
pub async fn names(snapshotter: &Path) -> Vec<String> {
    let mut snapshots = SnapshotsClient::new(channel(snapshotter).await);
    let request = ListSnapshotsRequest { snapshotter: SNAPSHOTTER.into(), filters: Vec::new() };
    let (mut stream, mut names) = (snapshots.list(request).await.unwrap().into_inner(), Vec::new());
    while let Some(batch) = stream.message().await.unwrap() {
        names.extend(batch.info.into_iter().map(|info| info.name));
    }
    names
}

struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
