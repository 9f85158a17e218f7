use std::io;
use std::path::PathBuf;

use d7y_image::TrustError;
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store is full: no layer can be evicted; raise store.limit or free space")]
    Full,
    #[error("cannot use {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds a store of version {found:?}, this d7y writes version {expected}; move it away")]
    Version { path: PathBuf, found: String, expected: u32 },
    #[error("another process uses the store {0}; two peers need two directories")]
    Locked(PathBuf),
    #[error("the layer's index on disk is damaged")]
    Index(#[from] TrustError),
    #[error("{path} is damaged: {problem}")]
    Damaged { path: PathBuf, problem: &'static str },
}

impl StoreError {
    /// Whether a layer that does not open for this reason is lost. Of any other failure its files know nothing.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Index(_) | Self::Damaged { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether it is this process that lacks something, so that the next layer would fare no better.
    pub(crate) fn is_shortage(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        let errno = source.raw_os_error().map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
    }

    /// A full disk and a full quota are the same to the caller: serve without keeping.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::Full
            }
            _ => Self::Io { path, source },
        }
    }
}
