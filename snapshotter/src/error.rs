use std::io;
use std::path::PathBuf;

use crate::layers::LayerError;
use crate::meta::MetaError;

/// Why an operation of the snapshotter failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("the image's layers cannot be mounted")]
    Layer(#[from] LayerError),
    #[error("layer {layer} is not what its digest says: {message}")]
    Corrupt { layer: d7y_types::Sha256Digest, message: String },
    #[error("{} failed", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the operation was interrupted")]
    Interrupted,
}

impl SnapshotError {
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
