use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};

use crate::database::{Database, DbError, Timestamp};
use crate::entity::credential::{ActiveModel, Column, Entity};
use crate::vault::{RegistryLogin, Vault};

/// The place of credentials that every job may use.
const ANY_JOB: i64 = 0;

/// Whose credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnyJob {
    Yes,
    /// This one's only.
    Only(i64),
}

/// What can be seen of a stored credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialName {
    pub id: i64,
    pub registry: String,
    pub updated_at: Timestamp,
}

impl Database {
    /// Keeps a credential, in the place of an older one for the same registry.
    pub async fn keep_credential(
        &self,
        vault: &Vault,
        (registry, owner): (&str, AnyJob),
        login: &RegistryLogin,
        now: Timestamp,
    ) -> Result<(), DbError> {
        let row = ActiveModel {
            registry: Set(registry.to_owned()),
            job_id: Set(owner.id()),
            sealed: Set(vault.seal(registry, login)?),
            created_at: Set(now.0),
            updated_at: Set(now.0),
            ..Default::default()
        };
        let same = OnConflict::columns([Column::Registry, Column::JobId])
            .update_columns([Column::Sealed, Column::UpdatedAt])
            .to_owned();
        Entity::insert(row).on_conflict(same).exec_without_returning(&self.connection).await?;
        Ok(())
    }

    /// What a job logs in to a registry with: what it brought itself, else what all may use.
    pub async fn credential(
        &self,
        vault: &Vault,
        registry: &str,
        job: i64,
    ) -> Result<Option<RegistryLogin>, DbError> {
        let rows = Entity::find()
            .filter(Column::Registry.eq(registry))
            .filter(Column::JobId.is_in([job, ANY_JOB]))
            .order_by_desc(Column::JobId);
        let Some(row) = rows.one(&self.connection).await? else { return Ok(None) };
        Ok(Some(vault.open(registry, &row.sealed)?))
    }

    /// The credentials that all jobs may use.
    pub async fn credentials(&self) -> Result<Vec<CredentialName>, DbError> {
        let rows = Entity::find().filter(Column::JobId.eq(ANY_JOB)).order_by_asc(Column::Id);
        let name = |row: crate::entity::credential::Model| CredentialName {
            id: row.id,
            registry: row.registry,
            updated_at: Timestamp(row.updated_at),
        };
        Ok(rows.all(&self.connection).await?.into_iter().map(name).collect())
    }

    /// Whether there was one.
    pub async fn remove_credential(&self, id: i64) -> Result<bool, DbError> {
        Ok(Entity::delete_by_id(id).exec(&self.connection).await?.rows_affected > 0)
    }

    /// A job that has ended needs none any more.
    pub(crate) async fn remove_credentials_of(&self, job: i64) -> Result<(), DbError> {
        Entity::delete_many().filter(Column::JobId.eq(job)).exec(&self.connection).await?;
        Ok(())
    }
}

impl AnyJob {
    fn id(self) -> i64 {
        match self {
            Self::Yes => ANY_JOB,
            Self::Only(job) => job,
        }
    }
}
