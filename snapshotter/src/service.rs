//! containerd's side: `containerd.services.snapshots.v1.Snapshots`.

use std::pin::Pin;
use std::sync::Arc;

use d7y_chassis::spans::About;
use d7y_proto::snapshots::snapshots_server::Snapshots;
use d7y_proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest,
    ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use futures_util::{Stream, stream};
use tonic::{Code, Request, Response, Status};

use crate::meta::{Committing, Kind, NewSnapshot, Snapshot, Timestamp, Updating, Usage};
use crate::snapshotter::Snapshotter;

/// Snapshots per message of a listing, as containerd's own server sends them.
const LIST_BATCH: usize = 100;

pub struct SnapshotsService(pub Arc<Snapshotter>);

type Listing = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let new = NewSnapshot { name: key, parent, labels: labels.into_iter().collect() };
        let (span, key) = (self.0.spans.own_root(), new.name.clone());
        let prepared = self.0.prepare(new).await.map_err(Status::from);
        self.0.spans.end(span, || about("Prepare", &key, &prepared));
        Ok(Response::new(PrepareSnapshotResponse { mounts: prepared? }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let new = NewSnapshot { name: key, parent, labels: labels.into_iter().collect() };
        let mounts = self.0.create(Kind::View, new).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let (span, key) = (self.0.spans.own_root(), request.into_inner().key);
        let mounts = self.0.mounts(&key).await.map_err(Status::from);
        self.0.spans.end(span, || about("Mounts", &key, &mounts));
        Ok(Response::new(MountsResponse { mounts: mounts? }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest { key, name, labels, parent, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let committing = Committing { key, name, labels, parent, usage: Usage::default() };
        self.0.commit(committing).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        self.0.remove(request.into_inner().key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let row = self.0.stat(&request.into_inner().key)?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(&row)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest { info: given, update_mask, .. } = request.into_inner();
        let given = given.ok_or_else(|| Status::invalid_argument("an update needs an info"))?;
        let updating = Updating {
            name: given.name,
            labels: given.labels.into_iter().collect(),
            paths: update_mask.unwrap_or_default().paths,
        };
        let row = self.0.update(updating).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(&row)) }))
    }

    type ListStream = Listing;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Result<Response<Listing>, Status> {
        let rows = self.0.list(&request.into_inner().filters)?;
        let batches: Vec<_> = rows
            .chunks(LIST_BATCH)
            .map(|batch| Ok(ListSnapshotsResponse { info: batch.iter().map(|row| info(row)).collect() }))
            .collect();
        Ok(Response::new(Box::pin(stream::iter(batches))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let Usage { bytes, inodes } = self.0.usage(&request.into_inner().key).await?;
        let wire = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: wire(bytes), inodes: wire(inodes) }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.0.clean_up().await?;
        Ok(Response::new(()))
    }
}

fn about<T>(call: &'static str, key: &str, outcome: &Result<T, Status>) -> About {
    let about = About::new(call).text("d7y.snapshot", key);
    match outcome {
        // How a layer that the peer supplies is answered.
        Err(status) if status.code() == Code::AlreadyExists => about.text("d7y.outcome", "already exists"),
        Err(status) => about.error(Some(status.message())),
        Ok(_) => about.text("d7y.outcome", "mounts"),
    }
}

fn info(row: &Snapshot) -> Info {
    let kind = match row.kind {
        Kind::View => WireKind::View,
        Kind::Active => WireKind::Active,
        Kind::Committed => WireKind::Committed,
    };
    Info {
        name: row.name.clone(),
        parent: row.parent.clone(),
        kind: kind.into(),
        created_at: Some(timestamp(row.created)),
        updated_at: Some(timestamp(row.updated)),
        labels: row.labels.clone().into_iter().collect(),
    }
}

fn timestamp(Timestamp(seconds, nanoseconds): Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos: i32::try_from(nanoseconds).unwrap_or(0) }
}
