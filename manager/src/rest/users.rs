//! Users: what they may do, whether they still may, and their passwords.

use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::{Extension, Json};
use d7y_chassis::Secret;
use d7y_manager_db::entity::user;
use d7y_manager_db::{Timestamp, UserRole};
use http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Caller;
use super::clusters::time;
use super::error::ApiError;
use super::pages::PageQuery;
use super::routes::App;
use crate::config::MIN_PASSWORD_CHARS;
use crate::identity;

const MAX_NAME_CHARS: usize = 64;
/// Hashing takes as long as the password is.
const MAX_PASSWORD_CHARS: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    name: String,
    /// One is made up, and shown once, when there is none.
    #[serde(default)]
    password: Option<Secret>,
    role: Role,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserPatch {
    state: Option<UserState>,
    role: Option<Role>,
}

/// Dragonfly's roles.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Root,
    Guest,
}

/// Dragonfly's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum UserState {
    Enable,
    Disable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordReset {
    old_password: Secret,
    new_password: Secret,
}

pub(super) async fn list(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Ok(page.cut(&uri, app.db.users().await?.iter().map(view).collect()))
}

pub(super) async fn get(State(app): State<App>, Path(id): Path<i64>) -> Result<Json<Value>, ApiError> {
    let user = app.db.user(id).await?;
    Ok(Json(view(&user.ok_or_else(|| missing(id))?)))
}

pub(super) async fn create(
    State(app): State<App>,
    Json(new): Json<NewUser>,
) -> Result<Json<Value>, ApiError> {
    let word = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if new.name.is_empty() || new.name.len() > MAX_NAME_CHARS || !new.name.chars().all(word) {
        return Err(ApiError::bad("a user's name has 1 to 64 letters, digits, '.', '_', '-' and '@'"));
    }
    let made_up = new.password.is_none().then(|| Secret::new(identity::random_password()));
    let password = new.password.or_else(|| made_up.clone()).unwrap_or_default();
    check_password(&password)?;
    let hash = identity::hash_password(password).await?;
    let user = app.db.add_user(&new.name, &hash, new.role.into(), Timestamp::now()).await?;
    tracing::info!(user = user.name, role = ?user.role, "a user was made");
    let mut view = view(&user);
    if let Some(password) = made_up {
        view["password"] = json!(password.expose());
    }
    Ok(Json(view))
}

pub(super) async fn change(
    State(app): State<App>,
    Path(id): Path<i64>,
    Json(wanted): Json<UserPatch>,
) -> Result<Json<Value>, ApiError> {
    let disabled = wanted.state.map(|state| state == UserState::Disable);
    let changed = app.db.change_user(id, wanted.role.map(UserRole::from), disabled).await?;
    let user = changed.ok_or_else(|| missing(id))?;
    tracing::info!(user = user.name, role = ?user.role, disabled = user.disabled, "a user was changed");
    Ok(Json(view(&user)))
}

/// One's own, knowing the old one. Tokens stay good.
pub(super) async fn reset_password(
    State(app): State<App>,
    Extension(caller): Extension<Option<Caller>>,
    Path(id): Path<i64>,
    Json(wanted): Json<PasswordReset>,
) -> Result<StatusCode, ApiError> {
    let user = match caller.filter(|caller| caller.user_id == id) {
        Some(_) => app.db.user(id).await?,
        None => None,
    };
    let foreign = || ApiError::new(StatusCode::FORBIDDEN, "everybody changes the own password only");
    let user = user.ok_or_else(foreign)?;
    if !identity::password_fits(wanted.old_password, Some(user.password_hash)).await? {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "the old password is wrong"));
    }
    check_password(&wanted.new_password)?;
    let hash = identity::hash_password(wanted.new_password).await?;
    app.db.set_password(id, &hash).await?;
    tracing::info!(user = user.name, "a user changed the password");
    Ok(StatusCode::OK)
}

fn check_password(password: &Secret) -> Result<(), ApiError> {
    match (MIN_PASSWORD_CHARS..=MAX_PASSWORD_CHARS).contains(&password.expose().chars().count()) {
        true => Ok(()),
        false => Err(ApiError::bad(format!(
            "a password has {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters"
        ))),
    }
}

fn missing(id: i64) -> ApiError {
    ApiError::not_found(format!("there is no user {id}"))
}

fn view(user: &user::Model) -> Value {
    let role = match user.role {
        UserRole::Root => "root",
        UserRole::Guest => "guest",
    };
    let state = if user.disabled { "disable" } else { "enable" };
    json!({
        "id": user.id,
        "name": user.name,
        "role": role,
        "state": state,
        "created_at": time(user.created_at),
    })
}

impl From<Role> for UserRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Root => Self::Root,
            Role::Guest => Self::Guest,
        }
    }
}
