//! The registry client against registries: a misbehaving one in this process, Debian's docker-registry, and TLS.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, also in its helpers")]

mod access;
mod blobs;
mod grant;
mod image;
mod real;
mod redirects;
mod tls;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use d7y_origin::{Origin, OriginConfig, OriginError, RetryConfig, Timeouts};
use d7y_types::LayerRef;

/// Tries again at once, and sees no credentials but those of the test.
fn config() -> OriginConfig {
    let ms = Duration::from_millis;
    OriginConfig {
        docker_config: Some(PathBuf::from("/nonexistent/config.json")),
        retry: RetryConfig {
            attempts: 3.try_into().unwrap(),
            initial_delay: ms(2),
            max_delay: ms(5),
            max_retry_after: ms(30),
        },
        ..OriginConfig::default()
    }
}

fn origin() -> Origin {
    Origin::new(config()).unwrap()
}

/// For registries that stall; a busy machine must still be faster than this.
fn impatient() -> OriginConfig {
    let limit = Duration::from_millis(700);
    let timeouts = Timeouts { response: limit, idle: limit, ..Timeouts::default() };
    OriginConfig { timeouts, ..config() }
}

/// Bytes that differ at every place where a mistake could shift them.
fn content(bytes: usize) -> Bytes {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// All that comes from `offset` on, and how it ended.
async fn read(origin: &Origin, layer: &LayerRef, offset: u64) -> (Vec<u8>, Result<(), OriginError>) {
    let mut received = Vec::new();
    let mut stream = match origin.open_blob(layer, offset).await {
        Ok(stream) => stream,
        Err(error) => return (received, Err(error)),
    };
    while let Some(next) = stream.next().await {
        match next {
            Ok(bytes) => received.extend_from_slice(&bytes),
            Err(error) => {
                assert!(stream.next().await.is_none(), "a stream went on after {error}");
                return (received, Err(error));
            }
        }
    }
    assert!(stream.next().await.is_none(), "a stream went on after its end");
    (received, Ok(()))
}

/// The kind of an outcome, for tables.
fn kind(outcome: &Result<(), OriginError>) -> String {
    let Err(error) = outcome else { return "ok".to_owned() };
    let kind = error.code().trim_start_matches("origin-");
    match error {
        OriginError::Unauthorized { status, .. } => format!("{kind} {}", status.as_u16()),
        OriginError::Refused { status, .. } => format!("{kind} {}", status.as_u16()),
        OriginError::Timeout { wait, .. } => format!("{kind} {wait:?}"),
        OriginError::Redirect { fault, .. } => format!("{kind} {fault:?}"),
        OriginError::Protocol { fault, .. } => format!("{kind} {fault:?}"),
        _ => kind.to_owned(),
    }
}

/// Everything that a log could show of an error.
fn everything(error: &OriginError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(" {error}");
        cause = error.source();
    }
    text
}
