//! Personal access tokens. One is shown once, to whoever made it.

use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::{Extension, Json};
use d7y_manager_db::entity::token;
use d7y_manager_db::{NewToken, Timestamp, UserRole};
use http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Caller;
use super::clusters::time;
use super::error::ApiError;
use super::pages::PageQuery;
use super::permission::Resource;
use super::routes::App;
use crate::identity;

const MAX_NAME_CHARS: usize = 64;

#[derive(Debug, Deserialize)]
pub(super) struct TokenRequest {
    name: String,
    /// Names of resources; none for everything that the user may do.
    #[serde(default)]
    scopes: Vec<String>,
    /// RFC 3339; none for a token that does not expire.
    expired_at: Option<String>,
}

pub(super) async fn list(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Ok(page.cut(&uri, app.db.tokens().await?.iter().map(view).collect()))
}

pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Option<Caller>>,
    Json(request): Json<TokenRequest>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let caller = caller.ok_or_else(|| ApiError::unauthorized("log in first"))?;
    if request.name.is_empty() || request.name.chars().count() > MAX_NAME_CHARS {
        return Err(ApiError::bad("a token's name has 1 to 64 characters"));
    }
    let scopes: Vec<Resource> = request
        .scopes
        .iter()
        .map(|scope| scope.parse())
        .collect::<Result<_, String>>()
        .map_err(ApiError::bad)?;
    let beyond = |scope: &Resource| !caller.scopes.is_empty() && !caller.scopes.contains(scope);
    if scopes.iter().any(beyond) || (scopes.is_empty() && !caller.scopes.is_empty()) {
        let problem = "a token can only make tokens for what it is good for itself; name the scopes";
        return Err(ApiError::new(StatusCode::FORBIDDEN, problem));
    }
    let expires_at = request.expired_at.as_deref().map(expiry).transpose()?;
    let token = identity::new_token();
    let new = NewToken {
        user_id: caller.user_id,
        name: request.name,
        hash: identity::token_hash(token.expose()),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        expires_at,
    };
    let kept = app.db.add_token(new, Timestamp::now()).await?;
    let mut view = view(&kept);
    view["token"] = json!(token.expose());
    Ok((StatusCode::OK, Json(view)))
}

/// Of somebody else only for who may do everything.
pub(super) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Option<Caller>>,
    Path(id): Path<i64>,
) -> Result<StatusCode, ApiError> {
    let caller = caller.ok_or_else(|| ApiError::unauthorized("log in first"))?;
    let of = match caller.role {
        UserRole::Root => None,
        UserRole::Guest => Some(caller.user_id),
    };
    match app.db.remove_token(id, of).await? {
        true => Ok(StatusCode::OK),
        false => Err(ApiError::not_found(format!("there is no personal access token {id}"))),
    }
}

fn expiry(text: &str) -> Result<Timestamp, ApiError> {
    let bad = || ApiError::bad("expired_at is no time such as 2027-01-31T12:00:00Z");
    let at = humantime::parse_rfc3339_weak(text).map_err(|_| bad())?;
    let since = at.duration_since(std::time::UNIX_EPOCH).map_err(|_| bad())?;
    Ok(Timestamp(i64::try_from(since.as_millis()).map_err(|_| bad())?))
}

fn view(row: &token::Model) -> Value {
    let scopes: Value = serde_json::from_str(&row.scopes).unwrap_or_default();
    json!({
        "id": row.id,
        "name": row.name,
        "scopes": scopes,
        "state": "active",
        "user_id": row.user_id,
        "expired_at": row.expires_at.map(time),
        "created_at": time(row.created_at),
    })
}
