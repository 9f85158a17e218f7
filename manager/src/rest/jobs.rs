//! Jobs: asked for, listed, followed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::{Extension, Json};
use d7y_manager_db::entity::{job, placement};
use d7y_manager_db::{JobState, Kind, NewJob, PlacementState, RegistryLogin, Timestamp};
use d7y_origin::image::{ImageName, Platform};
use d7y_types::LayerRef;
use http::Uri;
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Caller;
use super::clusters::time;
use super::error::ApiError;
use super::pages::PageQuery;
use super::routes::App;
use crate::preheat::{OUT_OF_TIME, PreheatArgs, Scope};

/// As Dragonfly has it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
const MAX_BIO_CHARS: usize = 1024;

/// What Harbor and others send has more keys than are known here.
#[derive(Deserialize)]
pub(super) struct JobRequest {
    #[serde(default)]
    bio: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    args: ArgsRequest,
    #[serde(default)]
    scheduler_cluster_ids: Option<Vec<i64>>,
    /// The same by name.
    #[serde(default)]
    clusters: Vec<String>,
}

#[derive(Deserialize)]
struct ArgsRequest {
    #[serde(rename = "type", default)]
    kind: String,
    /// An image's name, or the URL of its manifest.
    url: String,
    #[serde(default)]
    platform: Option<String>,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    percentage: Option<u32>,
    /// Nanoseconds; 0 for the default.
    #[serde(default)]
    timeout: u64,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    headers: Option<HashMap<String, String>>,
}

pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Option<Caller>>,
    Json(request): Json<JobRequest>,
) -> Result<Json<Value>, ApiError> {
    let caller = caller.ok_or_else(|| ApiError::unauthorized("log in first"))?;
    if request.kind != "preheat" || !matches!(request.args.kind.as_str(), "image" | "") {
        return Err(ApiError::bad("only jobs of type preheat with args of type image can be asked for"));
    }
    let image: ImageName = request.args.url.parse().map_err(|error| ApiError::bad(format!("{error}")))?;
    let platform = match request.args.platform.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map_err(|error| ApiError::bad(format!("{error}")))?,
        None => Platform::own(),
    };
    let scope = Scope::parse(&request.args.scope, request.args.percentage).map_err(ApiError::bad)?;
    let bio = request.bio.clone().unwrap_or_default();
    if bio.chars().count() > MAX_BIO_CHARS {
        return Err(ApiError::bad("bio has at most 1024 characters"));
    }
    let timeout = match Duration::from_nanos(request.args.timeout) {
        Duration::ZERO => DEFAULT_TIMEOUT,
        given => given.min(MAX_TIMEOUT),
    };
    let clusters = clusters(&app, &request).await?;
    let login = login(&request.args)?.map(|login| (image.registry.to_ascii_lowercase(), login));
    let args = PreheatArgs::new(&image, &platform, scope);
    let now = Timestamp::now();
    let new = NewJob {
        kind: request.kind,
        bio,
        args: serde_json::to_string(&args).map_err(|_| ApiError::bad("args cannot be kept"))?,
        clusters,
        deadline: now.plus(timeout),
        user_id: caller.user_id,
        login,
    };
    let job = app.db.add_job(&app.vault, new, now).await?;
    app.new_job.notify_one();
    Ok(Json(view(&job, &[])))
}

pub(super) async fn list(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (jobs, total) = app.db.jobs(page.number(), page.size()).await?;
    let views: Vec<_> = jobs.iter().map(|job| view(job, &[])).collect();
    Ok(page.answer(&uri, &views, total))
}

pub(super) async fn get(State(app): State<App>, Path(id): Path<i64>) -> Result<Json<Value>, ApiError> {
    let job = app.db.job(id).await?;
    let job = job.ok_or_else(|| ApiError::not_found(format!("there is no job {id}")))?;
    let (layers, placements) = (app.db.layers(id).await?, app.db.placements(id).await?);
    let mut view = view(&job, &placements);
    view["progress"] = progress(&layers, &placements);
    Ok(Json(view))
}

/// Those that are named; else all that have a scheduler now; else the default one, which may still get one.
async fn clusters(app: &App, request: &JobRequest) -> Result<Vec<i64>, ApiError> {
    let mut ids = request.scheduler_cluster_ids.clone().unwrap_or_default();
    for name in &request.clusters {
        let found = app.db.cluster_named(name).await?;
        let name: String = name.chars().take(64).collect();
        let Some(found) = found else {
            let known = app.db.known_clusters().await?;
            return Err(ApiError::bad(format!("there is no cluster {name:?}, {known}")));
        };
        ids.push(found.id);
    }
    for id in &ids {
        if app.db.cluster(*id).await?.is_none() {
            let known = app.db.known_clusters().await?;
            return Err(ApiError::bad(format!("there is no cluster {id}, {known}")));
        }
    }
    if ids.is_empty() {
        ids = app.alive(Kind::Scheduler).await?.into_iter().map(|row| row.cluster_id).collect();
    }
    if ids.is_empty() {
        ids.push(app.db.default_cluster(Timestamp::now()).await?.id);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn login(args: &ArgsRequest) -> Result<Option<RegistryLogin>, ApiError> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    match (given(&args.username), given(&args.password)) {
        (Some(username), Some(password)) => return Ok(Some(RegistryLogin::password(username, password))),
        (None, None) => {}
        _ => return Err(ApiError::bad("username and password go together")),
    }
    let headers = args.headers.iter().flatten();
    let header = headers.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    Ok(header.filter(|(_, value)| !value.is_empty()).map(|(_, value)| RegistryLogin::authorization(value)))
}

fn view(job: &job::Model, placements: &[placement::Model]) -> Value {
    let clusters: Vec<i64> = serde_json::from_str(&job.clusters).unwrap_or_default();
    let args: Value = serde_json::from_str(&job.args).unwrap_or_default();
    let state = match job.state {
        JobState::Pending => "PENDING",
        JobState::Success => "SUCCESS",
        JobState::Failure => "FAILURE",
    };
    json!({
        "id": job.id,
        "created_at": time(job.created_at),
        "updated_at": time(job.updated_at),
        "is_del": 0,
        "task_id": format!("preheat-{}", job.id),
        "bio": job.bio,
        "type": job.kind,
        "state": state,
        "args": args,
        "user_id": job.user_id,
        "scheduler_clusters": clusters.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>(),
        "seed_peer_clusters": clusters.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>(),
        "note": job.note,
        // Ended because its time was over; Dragonfly has no word for it.
        "overdue": job.state == JobState::Failure && job.note.starts_with(OUT_OF_TIME),
        "manifest": job.manifest,
        "result": result(job, state, &args, &clusters, placements),
    })
}

/// As Dragonfly's, with one result for each cluster; a task is the image on one peer.
fn result(
    job: &job::Model,
    state: &str,
    args: &Value,
    clusters: &[i64],
    placements: &[placement::Model],
) -> Value {
    let url = &args["url"];
    let results = clusters.iter().map(|cluster| {
        let mut peers: BTreeMap<&str, (bool, Option<&str>)> = BTreeMap::new();
        for row in placements.iter().filter(|row| row.cluster_id == *cluster) {
            let peer = peers.entry(&row.peer).or_insert((true, None));
            peer.0 &= row.state == PlacementState::Done;
            if row.state == PlacementState::Failed {
                peer.1 = Some(&row.error);
            }
        }
        let done = peers.iter().filter(|(_, (done, _))| *done);
        let done: Vec<_> = done.map(|(peer, _)| json!({ "url": url, "hostname": peer, "ip": "" })).collect();
        let failed = peers.iter().filter_map(|(peer, (_, error))| Some((peer, (*error)?)));
        let failed: Vec<_> = failed
            .map(|(peer, error)| json!({ "url": url, "hostname": peer, "ip": "", "description": error }))
            .collect();
        json!({ "success_tasks": done, "failure_tasks": failed, "scheduler_cluster_id": cluster })
    });
    let group = format!("preheat-{}", job.id);
    let (created_at, updated_at) = (time(job.created_at), time(job.updated_at));
    json!({
        "group_uuid": group,
        "state": state,
        "created_at": created_at,
        "updated_at": updated_at,
        "job_states": [{
            "task_uuid": group,
            "task_name": "preheat",
            "state": state,
            "results": results.collect::<Vec<_>>(),
            "error": if job.state == JobState::Failure { job.note.as_str() } else { "" },
            "created_at": created_at,
            "ttl": 0,
        }],
    })
}

/// How far each layer is on each peer.
fn progress(layers: &[LayerRef], placements: &[placement::Model]) -> Value {
    let layers = layers.iter().map(|layer| json!({ "digest": layer.digest, "size": layer.size }));
    let placements = placements.iter().map(|row| {
        json!({
            "scheduler_cluster_id": row.cluster_id,
            "peer": row.peer,
            "layer": row.layer,
            "state": match row.state {
                PlacementState::Waiting => "waiting",
                PlacementState::Fetching => "fetching",
                PlacementState::Done => "done",
                PlacementState::Failed => "failed",
            },
            "bytes_done": row.bytes_done,
            "bytes_total": row.bytes_total,
            "error": row.error,
        })
    });
    json!({ "layers": layers.collect::<Vec<_>>(), "placements": placements.collect::<Vec<_>>() })
}
