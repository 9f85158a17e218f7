use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, DatabaseConnection, DbErr};
use sea_orm_migration::MigratorTrait;

use crate::migration::Migrator;
use crate::vault::VaultError;

/// SQLite has one writer at a time; with one connection nobody finds the database locked.
const CONNECTIONS: u32 = 1;
/// How long one of our own statements may wait for the others.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis(span)))
    }

    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("cannot open the database {path}; check the directory's owner and free space")]
    Open { path: PathBuf, source: DbErr },
    /// Nothing of it is changed.
    #[error("{path} was written by a newer manager ({found}); start that one, or move the file away")]
    Newer { path: PathBuf, found: String },
    #[error("the tables of the database cannot be brought up to date")]
    Migrate(#[source] DbErr),
    #[error("the database failed")]
    Statement(#[from] DbErr),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("there is already one with this name")]
    Taken,
    #[error("nobody else may do everything; make another root user first")]
    LastRoot,
}

/// The manager's memory; clones are the same database.
#[derive(Debug, Clone)]
pub struct Database {
    pub(crate) connection: DatabaseConnection,
}

impl Database {
    /// Opens the file, which is made when it is missing, and brings its tables up to date.
    pub async fn open(path: &Path) -> Result<Self, DbError> {
        let mut options = ConnectOptions::new("sqlite:");
        let file = path.to_owned();
        options.max_connections(CONNECTIONS).acquire_timeout(ACQUIRE_TIMEOUT).sqlx_logging(false);
        options.map_sqlx_sqlite_opts(move |sqlite| {
            sqlite
                .filename(&file)
                .create_if_missing(true)
                .foreign_keys(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Normal)
        });
        let connection = sea_orm::Database::connect(options).await;
        let connection = connection.map_err(|source| DbError::Open { path: path.to_owned(), source })?;
        if let Some(found) = Migrator::newer(&connection).await.map_err(DbError::Migrate)? {
            connection.close().await?;
            return Err(DbError::Newer { path: path.to_owned(), found });
        }
        Migrator::up(&connection, None).await.map_err(DbError::Migrate)?;
        Ok(Self { connection })
    }

    /// The number of the last step of the tables that this program knows.
    pub fn version() -> u32 {
        u32::try_from(Migrator::migrations().len()).unwrap_or(u32::MAX)
    }

    /// Waits for what is under way and closes the file.
    pub async fn close(self) -> Result<(), DbError> {
        Ok(self.connection.close().await?)
    }
}

/// A name that is taken is not the database's fault.
pub(crate) fn taken(error: DbErr) -> DbError {
    match error.sql_err() {
        Some(sea_orm::SqlErr::UniqueConstraintViolation(_)) => DbError::Taken,
        _ => error.into(),
    }
}
