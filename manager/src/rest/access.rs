//! Who asks, and whether they may.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use d7y_chassis::Secret;
use d7y_manager_db::entity::user;
use d7y_manager_db::{Timestamp, UserRole};
use http::{HeaderMap, StatusCode, header};

use super::error::ApiError;
use super::permission::{Permission, Resource};
use super::routes::App;
use crate::identity;
use crate::metrics::ByStatus;

/// Whoever sent a request that was let through.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub user_id: i64,
    pub role: UserRole,
    /// What the token is good for; empty for everything that the user may do.
    pub scopes: Vec<Resource>,
}

#[derive(Clone)]
pub(super) struct Guard {
    pub app: App,
    pub permission: Permission,
}

/// Stands before every route.
pub(super) async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let answer = match guard.admit(request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    };
    let status = answer.status().as_u16();
    guard.app.metrics.answers.get_or_create(&ByStatus { status }).inc();
    answer
}

impl Guard {
    async fn admit(&self, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
        if self.permission == Permission::Open {
            return Ok(None);
        }
        let caller = self.caller(headers).await?;
        if self.permission.is_given_to(caller.role) && self.permission.is_in(&caller.scopes) {
            return Ok(Some(caller));
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("this needs the permission to {}; ask a root user for a token with it", self.permission),
        ))
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let missing = || {
            ApiError::unauthorized(
                "log in with a personal access token (Authorization: Bearer) or with user and password",
            )
        };
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (scheme, rest) = value.and_then(|value| value.split_once(' ')).ok_or_else(missing)?;
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" => self.by_token(rest.trim()).await,
            "basic" => self.by_password(rest.trim()).await,
            _ => Err(missing()),
        }
    }

    async fn by_token(&self, token: &str) -> Result<Caller, ApiError> {
        let found = self.app.db.token(&identity::token_hash(token), Timestamp::now()).await?;
        let wrong =
            || ApiError::unauthorized("the token is unknown, taken back or expired, or its user is disabled");
        let (token, user) = found.filter(|(_, user)| !user.disabled).ok_or_else(wrong)?;
        let scopes: Vec<String> = serde_json::from_str(&token.scopes).map_err(|_| wrong())?;
        let scopes = scopes.iter().map(|scope| scope.parse()).collect::<Result<_, String>>();
        let scopes = scopes.map_err(|_| wrong())?;
        Ok(Caller { user_id: user.id, role: user.role, scopes })
    }

    async fn by_password(&self, encoded: &str) -> Result<Caller, ApiError> {
        let wrong = || ApiError::unauthorized("user or password is wrong, or the user is disabled");
        let plain = BASE64_STANDARD.decode(encoded).ok().and_then(|plain| String::from_utf8(plain).ok());
        let plain = plain.ok_or_else(wrong)?;
        let (name, password) = plain.split_once(':').ok_or_else(wrong)?;
        let user: Option<user::Model> = self.app.db.user_named(name).await?;
        let hash = user.as_ref().map(|user| user.password_hash.clone());
        let fits = identity::password_fits(Secret::new(password), hash).await?;
        let user = user.filter(|user| fits && !user.disabled).ok_or_else(wrong)?;
        Ok(Caller { user_id: user.id, role: user.role, scopes: Vec::new() })
    }
}
