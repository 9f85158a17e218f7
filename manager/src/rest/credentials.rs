//! Registry credentials: written, replaced, removed, used; never shown.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use d7y_manager_db::{AnyJob, RegistryLogin, Timestamp};
use d7y_origin::image::ImageName;
use http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::json;

use super::clusters::time;
use super::error::ApiError;
use super::pages::PageQuery;
use super::routes::App;

#[derive(Deserialize)]
pub(super) struct NewCredential {
    /// `host` or `host:port` as image names have it.
    registry: String,
    username: String,
    password: String,
}

pub(super) async fn list(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let view = |name: d7y_manager_db::CredentialName| json!({ "id": name.id, "registry": name.registry, "updated_at": time(name.updated_at.0) });
    Ok(page.cut(&uri, app.db.credentials().await?.into_iter().map(view).collect()))
}

pub(super) async fn keep(
    State(app): State<App>,
    Json(new): Json<NewCredential>,
) -> Result<StatusCode, ApiError> {
    // A host that can stand in an image's name.
    let host: Result<ImageName, _> = format!("{}/x", new.registry).parse();
    let registry = host.ok().map(|name| name.registry).filter(|host| *host == new.registry);
    let registry = registry.ok_or_else(|| ApiError::bad("registry is no host or host:port"))?;
    if new.username.is_empty() || new.password.is_empty() {
        return Err(ApiError::bad("username and password are needed"));
    }
    let login = RegistryLogin::password(new.username, new.password);
    let place = (registry.to_ascii_lowercase(), AnyJob::Yes);
    app.db.keep_credential(&app.vault, (&place.0, place.1), &login, Timestamp::now()).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn delete(State(app): State<App>, Path(id): Path<i64>) -> Result<StatusCode, ApiError> {
    match app.db.remove_credential(id).await? {
        true => Ok(StatusCode::OK),
        false => Err(ApiError::not_found(format!("there is no registry credential {id}"))),
    }
}
