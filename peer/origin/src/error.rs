use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::credentials::CredentialError;

/// What another library reported; shared, so that one failure can be told to all who wait for the same bytes.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why an origin did not give the bytes of a layer. The texts hold host names and statuses, and what a registry said
/// after control characters and long words were taken out; never credentials, tokens or URLs.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OriginError {
    #[error(
        "{registry} refused access to {repository} ({status}{detail}); \
         run `docker login {registry}` on this node, or add credentials for it to the file at dockerConfig"
    )]
    Unauthorized { registry: String, repository: String, status: StatusCode, detail: Detail },
    #[error(
        "the credentials for {registry} cannot be had; mend the file at dockerConfig or its credential helper"
    )]
    Credentials { registry: String, source: CredentialError },
    #[error(
        "{registry} has no such blob in {repository}{detail}; check the image name, or push the image again"
    )]
    NotFound { registry: String, repository: String, detail: Detail },
    #[error("{registry} has no image {name} in {repository}{detail}; check the image's name and tag")]
    NoImage { registry: String, repository: String, name: String, detail: Detail },
    #[error("{host} limits our requests{detail}; log in for a higher limit, add a mirror, or wait{}", after(.retry_after))]
    RateLimited { host: String, retry_after: Option<Duration>, detail: Detail },
    #[error("{host} answered {status}{detail}; see what its operator says about it")]
    Refused { host: String, status: StatusCode, retry_after: Option<Duration>, detail: Detail },
    #[error(
        "{host} ended the blob at byte {received} of {expected}; try again, or check its storage and proxies"
    )]
    Truncated {
        host: String,
        received: u64,
        expected: u64,
        #[source]
        source: Option<Cause>,
    },
    #[error(
        "{host} sends more than the {expected} bytes that the manifest gives for the blob; push the image again"
    )]
    TooLong { host: String, expected: u64 },
    #[error("{host} kept us waiting too long for {wait}; check its load and the network, or raise timeouts.{}", .wait.key())]
    Timeout { host: String, wait: Wait },
    #[error(
        "{host} cannot be reached; check the name, the network and the registry's port (a port other than the scheme's \
         or 5000 has to be told to nodes and seeds: `host: name:port` under origin.registries)"
    )]
    Connect {
        host: String,
        #[source]
        source: Cause,
    },
    #[error(
        "TLS with {host} failed; set registries[].caFile for a private authority, or scheme: http for a plain registry"
    )]
    Tls {
        host: String,
        #[source]
        source: Cause,
    },
    #[error("{host} redirects {fault}; check the registry's storage and proxy settings")]
    Redirect { host: String, fault: RedirectFault },
    #[error("{host} does not keep to the registry protocol: {fault}")]
    Protocol { host: String, fault: ProtocolFault },
    #[error("{0:?} is not the name of a registry and a repository; check the image reference")]
    Name(String),
    #[error("byte {offset} was asked for of a blob of {size} bytes")]
    BeyondEnd { offset: u64, size: u64 },
}

impl OriginError {
    /// Whether the same request may succeed a little later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Truncated { .. }
            | Self::Timeout { .. }
            | Self::Connect { .. } => true,
            Self::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::Unauthorized { .. }
            | Self::Credentials { .. }
            | Self::NotFound { .. }
            | Self::NoImage { .. }
            | Self::TooLong { .. }
            | Self::Tls { .. }
            | Self::Redirect { .. }
            | Self::Protocol { .. }
            | Self::Name(_)
            | Self::BeyondEnd { .. } => false,
        }
    }

    /// A short, lasting name of the kind of failure, for metrics and for the reference of errors.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unauthorized { .. } => "origin-unauthorized",
            Self::Credentials { .. } => "origin-credentials",
            Self::NotFound { .. } => "origin-not-found",
            Self::NoImage { .. } => "origin-no-image",
            Self::RateLimited { .. } => "origin-rate-limited",
            Self::Refused { .. } => "origin-refused",
            Self::Truncated { .. } => "origin-truncated",
            Self::TooLong { .. } => "origin-too-long",
            Self::Timeout { .. } => "origin-timeout",
            Self::Connect { .. } => "origin-connect",
            Self::Tls { .. } => "origin-tls",
            Self::Redirect { .. } => "origin-redirect",
            Self::Protocol { .. } => "origin-protocol",
            Self::Name(_) => "origin-name",
            Self::BeyondEnd { .. } => "origin-beyond-end",
        }
    }

    /// How long the host asked us to stay away.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What was waited for when a time limit passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A free connection slot of our own.
    Queue,
    /// The head of a response.
    Response,
    /// The next bytes of a body.
    Body,
    /// A token that another read of the same repository is fetching.
    Token,
    /// Bytes that advance the read, over all attempts.
    Progress,
}

impl Wait {
    fn key(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Response | Self::Token => "response",
            Self::Body => "idle",
            Self::Progress => "noProgress",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "a free connection",
            Self::Response => "a response",
            Self::Body => "the next bytes",
            Self::Token => "a token",
            Self::Progress => "any progress",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectFault {
    TooMany,
    /// From HTTPS to HTTP: the bytes, and with a signed URL the right to them, would be readable on the way.
    Downgrade,
    /// No Location, or one that is not an http(s) URL without user and password.
    Location,
}

impl fmt::Display for RedirectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMany => "in a circle or too often",
            Self::Downgrade => "from https to http",
            Self::Location => "to nowhere usable",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolFault {
    /// The token service named in a challenge is not an https URL (http for a plain registry) without user and password.
    Realm,
    /// The token service's answer holds no token that fits in a header.
    Token,
    /// A part of the blob that was not asked for.
    ContentRange,
    /// The body is compressed in transit although this was not accepted.
    ContentEncoding,
    /// Ranges are ignored so often that the blob would be read over and over.
    IgnoresRange,
    /// A success status that fits no answer to the request.
    Status(StatusCode),
}

impl fmt::Display for ProtocolFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Realm => "its token service is not a safe URL; it must be https for an https registry",
            Self::Token => "its token service answered without a usable token",
            Self::ContentRange => {
                "it sent another range than was asked for; check proxies and caches before it"
            }
            Self::ContentEncoding => "it compresses blobs in transit; switch this off for blobs",
            Self::IgnoresRange => "it ignores ranges, and connections break before the blob is complete",
            Self::Status(status) => return write!(f, "{status} is no answer to the request"),
        })
    }
}

/// What the registry said about an error, made safe to print; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail(pub(crate) String);

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

fn after(wait: &Option<Duration>) -> String {
    wait.map(|wait| format!(" {} s", wait.as_secs())).unwrap_or_default()
}
