//! Clusters and who is in them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use d7y_manager_db::entity::{cluster, member, peer};
use d7y_manager_db::{ClusterChange, Kind, PeerRole, Timestamp};
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::ApiError;
use super::pages::PageQuery;
use super::routes::App;
use crate::settings::{self, Of};

const MAX_NAME_CHARS: usize = 64;
const MAX_BIO_CHARS: usize = 1024;

#[derive(Debug, Serialize)]
struct ClusterView {
    id: i64,
    name: String,
    bio: String,
    is_default: bool,
    scheduler_cluster_id: i64,
    seed_peer_cluster_id: i64,
    scopes: Value,
    scheduler_cluster_config: Value,
    seed_peer_cluster_config: Value,
    peer_cluster_config: Value,
    created_at: String,
    updated_at: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct NewCluster {
    name: String,
    #[serde(default)]
    bio: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterPatch {
    bio: Option<String>,
    /// Values by key: see `settings`.
    #[serde(default)]
    peer_cluster_config: BTreeMap<String, Value>,
    #[serde(default)]
    scheduler_cluster_config: BTreeMap<String, Value>,
}

pub(super) async fn list(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let clusters = app.db.clusters().await?;
    Ok(page.cut(&uri, clusters.into_iter().map(ClusterView::from).collect()))
}

pub(super) async fn get(
    State(app): State<App>,
    Path(id): Path<i64>,
) -> Result<Json<impl Serialize>, ApiError> {
    let cluster = app.db.cluster(id).await?;
    let missing = || ApiError::not_found(format!("there is no cluster {id}"));
    Ok(Json(cluster.map(ClusterView::from).ok_or_else(missing)?))
}

pub(super) async fn create(
    State(app): State<App>,
    Json(new): Json<NewCluster>,
) -> Result<(StatusCode, Json<impl Serialize>), ApiError> {
    let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if new.name.is_empty() || new.name.len() > MAX_NAME_CHARS || !new.name.chars().all(word) {
        return Err(ApiError::bad("a cluster's name has 1 to 64 letters, digits, '.', '_' and '-'"));
    }
    check_bio(&new.bio)?;
    let cluster = app.db.add_cluster(&new.name, &new.bio, Timestamp::now()).await?;
    Ok((StatusCode::OK, Json(ClusterView::from(cluster))))
}

/// Sets what the cluster's daemons take over while they run. Keys that are not named stay as they are.
pub(super) async fn change(
    State(app): State<App>,
    Path(id): Path<i64>,
    Json(wanted): Json<ClusterPatch>,
) -> Result<Json<impl Serialize>, ApiError> {
    wanted.bio.as_deref().map_or(Ok(()), check_bio)?;
    let parse = |of, config: &BTreeMap<String, Value>| settings::parse(of, config).map_err(ApiError::bad);
    let change = ClusterChange {
        peer_config: parse(Of::Peer, &wanted.peer_cluster_config)?,
        scheduler_config: parse(Of::Scheduler, &wanted.scheduler_cluster_config)?,
        bio: wanted.bio,
    };
    let changed = app.db.change_cluster(id, change, Timestamp::now()).await?;
    let changed = changed.ok_or_else(|| ApiError::not_found(format!("there is no cluster {id}")))?;
    tracing::info!(
        cluster = changed.name,
        peers = changed.peer_config,
        schedulers = changed.scheduler_config,
        "a cluster is set otherwise"
    );
    Ok(Json(ClusterView::from(changed)))
}

fn check_bio(bio: &str) -> Result<(), ApiError> {
    match bio.chars().count() > MAX_BIO_CHARS {
        true => Err(ApiError::bad("bio has at most 1024 characters")),
        false => Ok(()),
    }
}

pub(super) async fn schedulers(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let alive = app.alive(Kind::Scheduler).await?;
    let view = |row: member::Model| {
        let mut view = member_view(&row);
        view["scheduler_cluster_id"] = json!(row.cluster_id);
        view["features"] = json!(["schedule", "preheat"]);
        view
    };
    Ok(page.cut(&uri, alive.into_iter().map(view).collect()))
}

pub(super) async fn seed_peers(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let alive = app.alive(Kind::Seed).await?;
    let view = |row: member::Model| {
        let mut view = member_view(&row);
        view["seed_peer_cluster_id"] = json!(row.cluster_id);
        view["type"] = json!("super");
        view
    };
    Ok(page.cut(&uri, alive.into_iter().map(view).collect()))
}

pub(super) async fn peers(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let view = |row: peer::Model| {
        let (ip, port) = host_and_port(&row.address);
        json!({
            "id": row.id,
            "host_name": row.name,
            "ip": ip,
            "port": port,
            "type": match row.role { PeerRole::Node => "normal", PeerRole::Seed => "super" },
            "state": "active",
            "scheduler_cluster_id": row.cluster_id,
            "created_at": time(row.created_at),
        })
    };
    Ok(page.cut(&uri, app.peers().await?.into_iter().map(view).collect()))
}

/// Only those who are active are ever shown.
fn member_view(row: &member::Model) -> Value {
    let (ip, port) = host_and_port(&row.address);
    json!({
        "id": row.id,
        "host_name": row.name,
        "ip": ip,
        "port": port,
        "idc": "",
        "location": "",
        "state": "active",
        "version": row.version,
        "last_keep_alive_at": time(row.last_keep_alive_at),
        "created_at": time(row.created_at),
        "updated_at": time(row.updated_at),
    })
}

impl From<cluster::Model> for ClusterView {
    fn from(row: cluster::Model) -> Self {
        Self {
            id: row.id,
            is_default: row.is_default,
            scheduler_cluster_id: row.id,
            seed_peer_cluster_id: row.id,
            scopes: json!({}),
            scheduler_cluster_config: json!(row.scheduler_settings()),
            seed_peer_cluster_config: json!({}),
            peer_cluster_config: json!(row.peer_settings()),
            created_at: time(row.created_at),
            updated_at: time(row.updated_at),
            name: row.name,
            bio: row.bio,
        }
    }
}

fn host_and_port(address: &str) -> (&str, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (host.trim_matches(['[', ']']), port.parse().unwrap_or(0))
}

/// RFC 3339, UTC, milliseconds.
pub(super) fn time(millis: i64) -> String {
    let since = std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + since).to_string()
}
