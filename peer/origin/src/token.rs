use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use crate::challenge::{Bearer, Challenge};
use crate::credentials::{CredentialStore, Credentials};
use crate::error::{Detail, OriginError, ProtocolFault, Wait};
use crate::grant::{PullAccess, PullToken};
use crate::patience::Patience;
use crate::refusal::{Speaker, refusal};
use crate::registry::Endpoint;
use crate::transport::{Ask, Lane, Transport, host_and_port};

/// Repositories whose tokens are kept.
const MAX_TOKENS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// The longest token in use (a cloud's, with claims) has some 10 KiB.
const MAX_TOKEN_ANSWER_BYTES: usize = 64 << 10;
/// What a token lives when the answer does not say so (distribution specification, token authentication).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Tokens that claim more, and passwords, are renewed after this, so that a withdrawn credential is noticed.
pub(crate) const MAX_LIFE: Duration = Duration::from_secs(300);
/// Renewed this long before the end, at most a tenth of the life.
const MAX_MARGIN: Duration = Duration::from_secs(10);
/// For how long credentials that were refused are not tried again: the layers of one image must not lock an account.
const REFUSAL_LIFE: Duration = Duration::from_secs(10);
const CLIENT_ID: &str = "d7y";

/// The value of an Authorization header for one repository of one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authorization {
    pub header: HeaderValue,
    pub expires: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    endpoint: String,
    repository: String,
}

#[derive(Debug)]
struct Slot {
    /// One dance per repository at a time; the others wait and take its result.
    turn: Semaphore,
    latest: Mutex<Option<Latest>>,
}

/// What the last dance brought, and the credentials that it took.
#[derive(Debug)]
struct Latest {
    credentials: Option<Credentials>,
    outcome: Result<Authorization, Refusal>,
}

#[derive(Debug)]
struct Refusal {
    error: OriginError,
    until: Instant,
}

/// Exchanges credentials for tokens and keeps them while they live. All requests are pulls, so host and repository
/// determine the scope.
#[derive(Debug)]
pub(crate) struct Tokens {
    transport: Arc<Transport>,
    store: CredentialStore,
    slots: Mutex<LruCache<Key, Arc<Slot>>>,
    /// What others obtained for us.
    granted: Mutex<LruCache<Key, PullToken>>,
}

/// Whom a token is for.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub endpoint: &'a Endpoint,
    pub repository: &'a str,
}

impl Tokens {
    pub fn new(transport: Arc<Transport>, store: CredentialStore) -> Self {
        let (slots, granted) = (Mutex::new(LruCache::new(MAX_TOKENS)), Mutex::new(LruCache::new(MAX_TOKENS)));
        Self { transport, store, slots, granted }
    }

    /// Tokens of their own, for a login that comes before those that are known.
    pub fn with(&self, registry: &str, credentials: Credentials) -> Self {
        Self::new(self.transport.clone(), self.store.with(registry, credentials))
    }

    /// What the last dance for this repository brought, while it lives.
    pub fn current(&self, target: Target<'_>) -> Option<Authorization> {
        self.slot(target).authorization()
    }

    /// A better header than `rejected`, after a 401 with `challenge`.
    pub async fn renew(
        &self,
        target: Target<'_>,
        challenge: &Challenge,
        rejected: Option<&Authorization>,
        patience: &mut Patience,
    ) -> Result<Authorization, OriginError> {
        let slot = self.slot(target);
        let limit = self.transport.timeouts.response;
        let turn = patience.run(&target.endpoint.name, Wait::Token, limit, slot.turn.acquire()).await?;
        let _turn = turn.expect("the turns of a slot are never closed");
        if let Some(latest) = slot.authorization().filter(|latest| Some(latest) != rejected) {
            return Ok(latest);
        }
        if let Some(granted) = self.granted(target).filter(|granted| Some(granted) != rejected) {
            slot.keep(None, &Ok(granted.clone()));
            return Ok(granted);
        }
        let credentials = self.credentials(target).await?;
        slot.check(&credentials)?;
        let outcome = self.dance(target, challenge, credentials.clone(), patience).await;
        slot.keep(credentials, &outcome);
        outcome
    }

    /// What [`Self::renew`] brought was refused with `error`: the same credentials are not tried again for a while.
    pub fn refuse(&self, target: Target<'_>, rejected: &Authorization, error: &OriginError) {
        let slot = self.slot(target);
        let mut latest = slot.latest.lock();
        if let Some(latest) = latest.as_mut().filter(|latest| latest.outcome.as_ref().ok() == Some(rejected))
        {
            latest.outcome = Err(Refusal { error: error.clone(), until: Instant::now() + REFUSAL_LIFE });
        }
    }

    /// Takes a token for a repository of the registry that image names call `registry`. It comes before what this
    /// node's own credentials bring, until the registry refuses it.
    pub fn grant(&self, registry: &str, repository: &str, token: PullToken) {
        let key = Key { endpoint: registry.to_ascii_lowercase(), repository: repository.to_owned() };
        self.granted.lock().put(key, token);
    }

    fn granted(&self, target: Target<'_>) -> Option<Authorization> {
        let mut granted = self.granted.lock();
        let authorization = granted.get(&Key::of(target))?.authorization();
        (Instant::now() < authorization.expires).then(|| authorization.clone())
    }

    /// Whether `rejected` was granted; it is not tried again then.
    pub fn withdraw(&self, target: Target<'_>, rejected: &Authorization) -> bool {
        let mut granted = self.granted.lock();
        let known = granted.peek(&Key::of(target)).is_some_and(|token| token.authorization() == rejected);
        if known {
            granted.pop(&Key::of(target));
        }
        known
    }

    /// Whether anybody is logged in to the registry here.
    pub async fn has_login(&self, target: Target<'_>) -> Result<bool, OriginError> {
        Ok(self.credentials(target).await?.is_some())
    }

    /// A token of its own for reading this repository and nothing else, whatever the challenge asks for.
    pub async fn exchange(
        &self,
        target: Target<'_>,
        challenge: &Challenge,
        patience: &mut Patience,
    ) -> Result<PullAccess, OriginError> {
        let token = match (challenge, self.credentials(target).await?) {
            (_, None) => return Ok(PullAccess::Own),
            (_, Some(Credentials::Header(header))) => PullToken::new(&header.0, MAX_LIFE),
            (Challenge::Basic, Some(_)) => None,
            (Challenge::Bearer(bearer), credentials) => {
                let bearer = Bearer { scope: None, ..bearer.clone() };
                let request = token_request(target, &bearer, credentials)?;
                PullToken::of(fetch_token(&self.transport, target, request, patience).await?)
            }
        };
        Ok(token.map_or(PullAccess::Password, PullAccess::Token))
    }

    async fn credentials(&self, target: Target<'_>) -> Result<Option<Credentials>, OriginError> {
        let registry = &target.endpoint.name;
        let found = self.store.find(registry).await;
        found.map_err(|source| OriginError::Credentials { registry: registry.clone(), source })
    }

    async fn dance(
        &self,
        target: Target<'_>,
        challenge: &Challenge,
        credentials: Option<Credentials>,
        patience: &mut Patience,
    ) -> Result<Authorization, OriginError> {
        match (challenge, credentials) {
            (_, Some(Credentials::Header(header))) => {
                let header = sensitive(&header.0).ok_or_else(|| refused(target))?;
                Ok(Authorization { header, expires: Instant::now() + MAX_LIFE })
            }
            (Challenge::Basic, Some(Credentials::Password { user, password })) => {
                Ok(Authorization { header: basic(&user, &password.0), expires: Instant::now() + MAX_LIFE })
            }
            (Challenge::Basic, _) => Err(refused(target)),
            (Challenge::Bearer(bearer), credentials) => {
                let request = token_request(target, bearer, credentials)?;
                fetch_token(&self.transport, target, request, patience).await
            }
        }
    }

    fn slot(&self, target: Target<'_>) -> Arc<Slot> {
        let new = || Arc::new(Slot { turn: Semaphore::new(1), latest: Mutex::default() });
        self.slots.lock().get_or_insert(Key::of(target), new).clone()
    }
}

impl Key {
    fn of(target: Target<'_>) -> Self {
        Self { endpoint: target.endpoint.name.clone(), repository: target.repository.to_owned() }
    }
}

impl Slot {
    fn authorization(&self) -> Option<Authorization> {
        let latest = self.latest.lock();
        let authorization = latest.as_ref()?.outcome.as_ref().ok()?;
        (Instant::now() < authorization.expires).then(|| authorization.clone())
    }

    /// The error that these credentials met with a moment ago; others, say after a `docker login`, are tried at once.
    fn check(&self, credentials: &Option<Credentials>) -> Result<(), OriginError> {
        match &*self.latest.lock() {
            Some(Latest { credentials: refused, outcome: Err(refusal) })
                if refused == credentials && Instant::now() < refusal.until =>
            {
                Err(refusal.error.clone())
            }
            _ => Ok(()),
        }
    }

    fn keep(&self, credentials: Option<Credentials>, outcome: &Result<Authorization, OriginError>) {
        let outcome = match outcome {
            Err(error) if error.is_transient() => return,
            Err(error) => Err(Refusal { error: error.clone(), until: Instant::now() + REFUSAL_LIFE }),
            Ok(authorization) => Ok(authorization.clone()),
        };
        *self.latest.lock() = Some(Latest { credentials, outcome });
    }
}

fn refused(target: Target<'_>) -> OriginError {
    OriginError::Unauthorized {
        registry: target.endpoint.name.clone(),
        repository: target.repository.to_owned(),
        status: StatusCode::UNAUTHORIZED,
        detail: Detail::default(),
    }
}

struct TokenRequest {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
}

/// GET with the scope and, where there are any, user and password (distribution specification, token authentication),
/// or POST with an identity token (the same, OAuth2).
fn token_request(
    target: Target<'_>,
    bearer: &Bearer,
    credentials: Option<Credentials>,
) -> Result<TokenRequest, OriginError> {
    let mut url = realm(target.endpoint, &bearer.realm)?;
    let own_scope = format!("repository:{}:pull", target.repository);
    let scope = bearer.scope.as_deref().unwrap_or(&own_scope);
    let service = bearer.service.as_deref();
    let mut headers = HeaderMap::new();
    if let Some(Credentials::IdentityToken(token)) = credentials {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", &token.0);
        form.append_pair("client_id", CLIENT_ID).append_pair("scope", scope);
        form.append_pair("service", service.unwrap_or_default());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        return Ok(TokenRequest { method: Method::POST, url, headers, body: form.finish().into() });
    }
    let mut query = url.query_pairs_mut();
    query.extend_pairs(service.map(|service| ("service", service)));
    query.extend_pairs(scope.split(' ').map(|scope| ("scope", scope)));
    drop(query);
    if let Some(Credentials::Password { user, password }) = credentials {
        headers.insert(AUTHORIZATION, basic(&user, &password.0));
    }
    Ok(TokenRequest { method: Method::GET, url, headers, body: Bytes::new() })
}

/// The token service sees the user's password: over HTTPS whenever the registry is.
fn realm(endpoint: &Endpoint, realm: &str) -> Result<Url, OriginError> {
    let safe = |url: &Url| {
        let scheme = url.scheme() == "https" || (url.scheme() == "http" && endpoint.base.scheme() == "http");
        scheme && url.has_host() && url.username().is_empty() && url.password().is_none()
    };
    Url::parse(realm)
        .ok()
        .filter(safe)
        .ok_or_else(|| OriginError::Protocol { host: endpoint.name.clone(), fault: ProtocolFault::Realm })
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<i64>,
}

async fn fetch_token(
    transport: &Transport,
    target: Target<'_>,
    request: TokenRequest,
    patience: &mut Patience,
) -> Result<Authorization, OriginError> {
    let unusable =
        || OriginError::Protocol { host: host_and_port(&request.url), fault: ProtocolFault::Token };
    let ask = Ask {
        lane: Lane::Quick,
        client: &target.endpoint.client,
        method: request.method,
        url: &request.url,
        headers: request.headers,
        body: request.body,
    };
    let reply = transport.send(ask, patience).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(target, Speaker::TokenService, reply, patience).await);
    }
    let body = reply.body.read_whole(MAX_TOKEN_ANSWER_BYTES, patience).await.ok_or_else(unusable)?;
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| unusable())?;
    let token =
        answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(unusable)?;
    let header = sensitive(&format!("Bearer {token}")).ok_or_else(unusable)?;
    Ok(Authorization { header, expires: Instant::now() + life(answer.expires_in) })
}

fn life(expires_in: Option<i64>) -> Duration {
    let claimed = expires_in.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let life = claimed.unwrap_or(DEFAULT_LIFE).min(MAX_LIFE);
    life - (life / 10).min(MAX_MARGIN)
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {encoded}")).expect("base64 fits in a header")
}

pub(crate) fn sensitive(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}
