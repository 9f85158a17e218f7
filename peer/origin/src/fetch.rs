use std::sync::Arc;

use bytes::Bytes;
use d7y_types::Sha256Digest;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::Url;

use crate::challenge::Challenge;
use crate::error::{OriginError, RedirectFault};
use crate::grant::PullAccess;
use crate::patience::Patience;
use crate::refusal::{Speaker, refusal};
use crate::token::{Authorization, Target, Tokens};
use crate::transport::{Ask, Lane, Reply, Transport, host_and_port};

/// A registry redirects once, to its storage; a storage perhaps once more, to a region.
const MAX_REDIRECTS: usize = 5;
/// A body of at most this many bytes is read to its end, so that the connection can be used again.
const MAX_DRAINED_BYTES: usize = 4096;

/// Indexes and manifests that are understood (OCI image specification 1.1; Docker image manifest v2, schema 2).
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// What is asked of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Whether it is there for us.
    Head,
    /// Its bytes from this one on.
    From(u64),
}

/// What a repository holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Object<'a> {
    Blob(Sha256Digest),
    /// By its tag or digest.
    Manifest(&'a str),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ObjectAsk<'a> {
    pub object: Object<'a>,
    pub want: Want,
}

/// One complete request for a blob or a manifest: the token dance and the redirects, no retries.
#[derive(Debug)]
pub(crate) struct Fetcher {
    pub transport: Arc<Transport>,
    pub tokens: Tokens,
}

impl Fetcher {
    /// A reply with status 200 or 206, and for [`Want::Head`] any redirect.
    pub async fn get(
        &self,
        target: Target<'_>,
        object: ObjectAsk<'_>,
        patience: &mut Patience,
    ) -> Result<Reply, OriginError> {
        let known = self.tokens.current(target);
        let first = self.follow(target, object, known.as_ref(), patience).await?;
        let challenge = match first {
            (ref reply, Speaker::Registry) if reply.status == StatusCode::UNAUTHORIZED => {
                Challenge::choose(&reply.headers)
            }
            _ => None,
        };
        let Some(challenge) = challenge else { return accept(target, first, object, patience).await };
        first.0.body.read_whole(MAX_DRAINED_BYTES, patience).await;
        let mut rejected = known;
        loop {
            let renewed = self.tokens.renew(target, &challenge, rejected.as_ref(), patience).await?;
            let second = self.follow(target, object, Some(&renewed), patience).await?;
            let outcome = accept(target, second, object, patience).await;
            match &outcome {
                // What others gave us does not open it; what is ours may.
                Err(OriginError::Unauthorized { .. }) if self.tokens.withdraw(target, &renewed) => {
                    rejected = Some(renewed);
                }
                Err(error @ OriginError::Unauthorized { .. }) => {
                    self.tokens.refuse(target, &renewed, error);
                    return outcome;
                }
                _ => return outcome,
            }
        }
    }

    /// What others need to read this repository, tried on its `manifest`.
    pub async fn pull_access(
        &self,
        target: Target<'_>,
        manifest: &str,
        patience: &mut Patience,
    ) -> Result<PullAccess, OriginError> {
        if !self.tokens.has_login(target).await? {
            return Ok(PullAccess::Own);
        }
        let ask = ObjectAsk { object: Object::Manifest(manifest), want: Want::Head };
        let first = self.follow(target, ask, None, patience).await?;
        let challenge = match first {
            (ref reply, Speaker::Registry) if reply.status == StatusCode::UNAUTHORIZED => {
                Challenge::choose(&reply.headers)
            }
            _ => None,
        };
        let Some(challenge) = challenge else {
            accept(target, first, ask, patience).await?;
            return Ok(PullAccess::Own);
        };
        let access = self.tokens.exchange(target, &challenge, patience).await?;
        if let PullAccess::Token(token) = &access {
            let second = self.follow(target, ask, Some(token.authorization()), patience).await?;
            accept(target, second, ask, patience).await?;
        }
        Ok(access)
    }

    /// Sends the request to the registry and to wherever it leads. Once it has led away from the registry no further request
    /// has an Authorization, not even one that leads back.
    async fn follow(
        &self,
        target: Target<'_>,
        ask: ObjectAsk<'_>,
        authorization: Option<&Authorization>,
        patience: &mut Patience,
    ) -> Result<(Reply, Speaker), OriginError> {
        let want = ask.want;
        let mut url = target.endpoint.url(target.repository, ask.object);
        let mut speaker = Speaker::Registry;
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = want.headers();
            if let Object::Manifest(_) = ask.object {
                headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
            }
            if let (Some(authorization), Speaker::Registry) = (authorization, speaker) {
                headers.insert(AUTHORIZATION, authorization.header.clone());
            }
            let sent = Ask {
                lane: ask.lane(),
                client: &target.endpoint.client,
                method: want.method(),
                url: &url,
                headers,
                body: Bytes::new(),
            };
            let reply = self.transport.send(sent, patience).await?;
            if !is_redirect(reply.status) || want == Want::Head {
                return Ok((reply, speaker));
            }
            let next = location(&url, &reply)?;
            reply.body.read_whole(MAX_DRAINED_BYTES, patience).await;
            if !target.endpoint.owns(&next) {
                speaker = Speaker::Storage;
            }
            url = next;
        }
        Err(OriginError::Redirect { host: host_and_port(&url), fault: RedirectFault::TooMany })
    }
}

impl ObjectAsk<'_> {
    fn lane(self) -> Lane {
        match (self.object, self.want) {
            (Object::Blob(_), Want::From(_)) => Lane::Bulk,
            (Object::Blob(_), Want::Head) | (Object::Manifest(_), _) => Lane::Quick,
        }
    }
}

impl Want {
    fn method(self) -> Method {
        match self {
            Self::Head => Method::HEAD,
            Self::From(_) => Method::GET,
        }
    }

    fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Self::From(offset @ 1..) = self {
            let range = HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits fit in a header");
            headers.insert(RANGE, range);
        }
        headers
    }
}

async fn accept(
    target: Target<'_>,
    (reply, speaker): (Reply, Speaker),
    ask: ObjectAsk<'_>,
    patience: &mut Patience,
) -> Result<Reply, OriginError> {
    let fits = match ask.want {
        Want::Head => reply.status == StatusCode::OK || is_redirect(reply.status),
        Want::From(0) => reply.status == StatusCode::OK,
        Want::From(_) => matches!(reply.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT),
    };
    if fits {
        return Ok(reply);
    }
    Err(match (refusal(target, speaker, reply, patience).await, ask.object) {
        (OriginError::NotFound { registry, repository, detail }, Object::Manifest(name)) => {
            OriginError::NoImage { registry, repository, name: name.to_owned(), detail }
        }
        (other, _) => other,
    })
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn location(from: &Url, reply: &Reply) -> Result<Url, OriginError> {
    let fault = |fault| OriginError::Redirect { host: reply.host.clone(), fault };
    let location = reply.headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let to = location.and_then(|text| from.join(text).ok()).ok_or_else(|| fault(RedirectFault::Location))?;
    if !to.username().is_empty() || to.password().is_some() || !to.has_host() {
        return Err(fault(RedirectFault::Location));
    }
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        ("https", "http") => Err(fault(RedirectFault::Downgrade)),
        _ => Err(fault(RedirectFault::Location)),
    }
}
