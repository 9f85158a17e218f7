//! What the manager remembers, and the only SQL of d7y.
//!
//! [`Database`] is one embedded SQLite file. Everything that must survive the manager is a row: clusters and who
//! keeps alive in them, users and their tokens, jobs with their layers and placements. A job is carried on by whoever
//! holds its lease ([`Database::claim`]), so that a restart, or another replica, goes on where the last one was killed.
//! Secrets are sealed with a key that does not lie in the database ([`Vault`]); tokens and passwords are kept as hashes.
//!
//! No clock of its own: callers say what time it is.

mod clusters;
mod credentials;
mod database;
pub mod entity;
mod jobs;
mod members;
mod migration;
mod users;
mod vault;

pub use clusters::{ClusterChange, DEFAULT_CLUSTER};
pub use credentials::{AnyJob, CredentialName};
pub use database::{Database, DbError, Timestamp};
pub use entity::{job::State as JobState, member::Kind, placement::State as PlacementState};
pub use entity::{peer::Role as PeerRole, user::Role as UserRole};
pub use jobs::{Lease, NewJob, Placement};
pub use members::{NewMember, SeenPeer};
pub use users::NewToken;
pub use vault::{RegistryLogin, Vault, VaultError};
