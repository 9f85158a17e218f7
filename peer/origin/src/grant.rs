use std::fmt;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::token::{Authorization, MAX_LIFE, sensitive};

/// The longest token in use (a cloud's, with claims) has some 10 KiB; with what is around it, it fits in a header.
const MAX_BYTES: usize = 16 << 10;
const SCHEME: &str = "Bearer ";

/// The right to read one repository for some minutes: what a token service made of a credential, and all that others need
/// of it. Can be used and passed on, not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PullToken(Authorization);

/// What others need to read a repository that this origin can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullAccess {
    /// Nobody is logged in here: others can do as much by themselves.
    Own,
    Token(PullToken),
    /// The registry takes nothing but the password itself, which is not passed on.
    Password,
}

impl PullToken {
    /// None unless `header` is a bearer token. A password never is one.
    pub fn new(header: &str, life: Duration) -> Option<Self> {
        let token = header.strip_prefix(SCHEME)?;
        if token.is_empty() || header.len() > MAX_BYTES {
            return None;
        }
        Some(Self(Authorization { header: sensitive(header)?, expires: Instant::now() + life.min(MAX_LIFE) }))
    }

    pub(crate) fn of(authorization: Authorization) -> Option<Self> {
        is_bearer(&authorization.header).then_some(Self(authorization))
    }

    pub(crate) fn authorization(&self) -> &Authorization {
        &self.0
    }

    /// The value of an Authorization header, for the registry and those who are to read it.
    pub fn expose(&self) -> &str {
        self.0.header.to_str().unwrap_or_default()
    }

    /// How long it lives from now on.
    pub fn life(&self) -> Duration {
        self.0.expires.saturating_duration_since(Instant::now())
    }
}

fn is_bearer(header: &HeaderValue) -> bool {
    header.as_bytes().starts_with(SCHEME.as_bytes()) && header.len() <= MAX_BYTES
}

impl fmt::Debug for PullToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
