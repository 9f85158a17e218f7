//! Why a layer could not be opened, and how each side hears of it.

use d7y_image::BuildError;
use d7y_origin::OriginError;
use d7y_proto::local::Reason;
use d7y_transfer::FailureCode;

/// Shared by all who wait for the same layer, hence text instead of sources.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct OpenFailure {
    pub code: FailureCode,
    pub message: String,
}

impl OpenFailure {
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(FailureCode::Internal, chain(error))
    }

    pub fn reason(&self) -> Reason {
        match self.code {
            FailureCode::Internal => Reason::Internal,
            FailureCode::Unauthorized => Reason::Unauthorized,
            FailureCode::NotFound => Reason::NotFound,
            FailureCode::Corrupt => Reason::Corrupt,
            FailureCode::Unavailable => Reason::Unavailable,
            FailureCode::Untrusted => Reason::Internal,
        }
    }

    pub fn from_origin(error: &OriginError) -> Self {
        let code = match error {
            OriginError::Unauthorized { .. } | OriginError::Credentials { .. } => FailureCode::Unauthorized,
            // A name that is none here says nothing about the layer.
            OriginError::NotFound { .. } | OriginError::Name(_) => FailureCode::NotFound,
            OriginError::TooLong { .. } => FailureCode::Corrupt,
            _ => FailureCode::Unavailable,
        };
        Self::new(code, chain(error))
    }

    pub fn from_build(error: &BuildError) -> Self {
        let code = match error {
            // A refill that does not yield the chunks of the index: asking again will not help, but the layer is sound.
            BuildError::Sink(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Self::new(FailureCode::Internal, error.to_string());
            }
            // This peer's disk, not the layer.
            BuildError::Sink(_) | BuildError::Read(_) => FailureCode::Unavailable,
            BuildError::Compress(_) | BuildError::Options(_) => FailureCode::Internal,
            _ => FailureCode::Corrupt,
        };
        Self::new(code, chain(error))
    }
}

/// An error and all its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
