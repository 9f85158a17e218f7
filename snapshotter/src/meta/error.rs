use crate::meta::FilterError;

/// Why an operation on the metadata failed; the kinds are containerd's (`errdefs`).
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    #[error("parent snapshot {0:?} is not committed")]
    ParentNotCommitted(String),
    #[error("snapshot {0:?} is not active")]
    NotActive(String),
    #[error("snapshot {0:?} is committed and has no mounts")]
    Committed(String),
    #[error("cannot remove snapshot {0:?}: it has children")]
    HasChildren(String),
    #[error("snapshot {key:?} has parent {has:?}, not {given:?}")]
    OtherParent { key: String, has: String, given: String },
    #[error("field {0:?} of a snapshot cannot be updated")]
    Immutable(String),
    #[error("a snapshot needs a name")]
    NoName,
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("all numbers for mounts are used up; remove the snapshotter's root directory")]
    NumbersExhausted,
    #[error("the snapshot database failed")]
    Database(#[source] redb::Error),
    #[error("a row of the snapshot database does not decode")]
    Row(#[source] serde_json::Error),
}

macro_rules! database_errors {
    ($($kind:ident),*) => {$(
        impl From<redb::$kind> for MetaError {
            fn from(error: redb::$kind) -> Self {
                Self::Database(error.into())
            }
        }
    )*};
}

database_errors!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

impl From<serde_json::Error> for MetaError {
    fn from(error: serde_json::Error) -> Self {
        Self::Row(error)
    }
}
