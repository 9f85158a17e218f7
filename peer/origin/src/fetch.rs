use std::sync::Arc;

use bytes::Bytes;
use d7y_types::Sha256Digest;
use http::header::{AUTHORIZATION, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::Url;

use crate::challenge::Challenge;
use crate::error::{OriginError, RedirectFault};
use crate::patience::Patience;
use crate::refusal::{Speaker, refusal};
use crate::token::{Authorization, Target, Tokens};
use crate::transport::{Ask, Lane, Reply, Transport, host_and_port};

/// A registry redirects once, to its storage; a storage perhaps once more, to a region.
const MAX_REDIRECTS: usize = 5;
/// A body of at most this many bytes is read to its end, so that the connection can be used again.
const MAX_DRAINED_BYTES: usize = 4096;

/// What is asked of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Whether it is there for us.
    Head,
    /// Its bytes from this one on.
    From(u64),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BlobAsk {
    pub digest: Sha256Digest,
    pub want: Want,
}

/// One complete request for a blob: the token dance and the redirects, no retries.
#[derive(Debug)]
pub(crate) struct Fetcher {
    pub transport: Arc<Transport>,
    pub tokens: Tokens,
}

impl Fetcher {
    /// A reply with status 200 or 206, and for [`Want::Head`] any redirect.
    pub async fn blob(
        &self,
        target: Target<'_>,
        blob: BlobAsk,
        patience: &mut Patience,
    ) -> Result<Reply, OriginError> {
        let known = self.tokens.current(target);
        let first = self.follow(target, blob, known.as_ref(), patience).await?;
        let challenge = match first {
            (ref reply, Speaker::Registry) if reply.status == StatusCode::UNAUTHORIZED => {
                Challenge::choose(&reply.headers)
            }
            _ => None,
        };
        let Some(challenge) = challenge else { return accept(target, first, blob.want, patience).await };
        first.0.body.read_whole(MAX_DRAINED_BYTES, patience).await;
        let renewed = self.tokens.renew(target, &challenge, known.as_ref(), patience).await?;
        let second = self.follow(target, blob, Some(&renewed), patience).await?;
        let outcome = accept(target, second, blob.want, patience).await;
        if let Err(error @ OriginError::Unauthorized { .. }) = &outcome {
            self.tokens.refuse(target, &renewed, error);
        }
        outcome
    }

    /// Sends the request to the registry and to wherever it leads. Once it has led away from the registry no further request
    /// has an Authorization, not even one that leads back.
    async fn follow(
        &self,
        target: Target<'_>,
        blob: BlobAsk,
        authorization: Option<&Authorization>,
        patience: &mut Patience,
    ) -> Result<(Reply, Speaker), OriginError> {
        let want = blob.want;
        let mut url = target.endpoint.blob_url(target.repository, &blob.digest);
        let mut speaker = Speaker::Registry;
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = want.headers();
            if let (Some(authorization), Speaker::Registry) = (authorization, speaker) {
                headers.insert(AUTHORIZATION, authorization.header.clone());
            }
            let ask = Ask {
                lane: want.lane(),
                client: &target.endpoint.client,
                method: want.method(),
                url: &url,
                headers,
                body: Bytes::new(),
            };
            let reply = self.transport.send(ask, patience).await?;
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

impl Want {
    fn method(self) -> Method {
        match self {
            Self::Head => Method::HEAD,
            Self::From(_) => Method::GET,
        }
    }

    fn lane(self) -> Lane {
        match self {
            Self::Head => Lane::Quick,
            Self::From(_) => Lane::Bulk,
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
    want: Want,
    patience: &mut Patience,
) -> Result<Reply, OriginError> {
    let fits = match want {
        Want::Head => reply.status == StatusCode::OK || is_redirect(reply.status),
        Want::From(0) => reply.status == StatusCode::OK,
        Want::From(_) => matches!(reply.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT),
    };
    if fits { Ok(reply) } else { Err(refusal(target, speaker, reply, patience).await) }
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
