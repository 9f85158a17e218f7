//! The peer's way to the origins of content: OCI registries (distribution specification 1.1) and their mirrors.
//!
//! [`Origin`] opens a blob as a [`BlobStream`]. Behind it, one file per stage of a request: `registry` says whom to ask,
//! `fetch` sends the request with the redirects, `challenge` and `token` answer a 401, `credentials` and `helper` find
//! the password for that, `transport` is HTTP and TLS with limits and counters, `refusal` explains an error status,
//! `blob` resumes what broke off, and `patience` says when to stop trying. `grant` is what is
//! passed on to others instead of a credential. [`image`] lists the layers of an image.
//!
//! Credentials go to the registry that they belong to and to the token service that it names, never to where it
//! redirects. Bytes are given out unverified: their digest is for the reader to check.

mod blob;
mod challenge;
mod config;
mod credentials;
mod error;
mod fetch;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod grant;
mod helper;
pub mod image;
mod origin;
mod patience;
mod ping;
mod refusal;
mod registry;
mod route;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod token;
mod transport;

pub use blob::BlobStream;
pub use config::{ConfigError, ConfigFault, OriginConfig, RegistryConfig, RetryConfig, Scheme, Timeouts};
pub use credentials::CredentialError;
pub use error::{Cause, Detail, OriginError, ProtocolFault, RedirectFault, Wait};
pub use grant::{PullAccess, PullToken};
pub use helper::HelperError;
pub use origin::{Login, Origin};
pub use ping::{Pong, PongAnswer};
pub use stats::{HostStats, OriginStats};
pub use tls::CaFileError;
