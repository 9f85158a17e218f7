use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};

use crate::database::{Database, DbError, Timestamp, taken};
use crate::entity::cluster::{ActiveModel, Column, Entity, Model};

/// What the first cluster is called, and who names no cluster belongs to.
pub const DEFAULT_CLUSTER: &str = "default";

impl Database {
    pub async fn clusters(&self) -> Result<Vec<Model>, DbError> {
        Ok(Entity::find().order_by_asc(Column::Id).all(&self.connection).await?)
    }

    pub async fn cluster(&self, id: i64) -> Result<Option<Model>, DbError> {
        Ok(Entity::find_by_id(id).one(&self.connection).await?)
    }

    pub async fn cluster_named(&self, name: &str) -> Result<Option<Model>, DbError> {
        Ok(Entity::find().filter(Column::Name.eq(name)).one(&self.connection).await?)
    }

    /// The cluster of those who name none; made when there is none.
    pub async fn default_cluster(&self, now: Timestamp) -> Result<Model, DbError> {
        if let Some(known) = Entity::find().filter(Column::IsDefault.eq(true)).one(&self.connection).await? {
            return Ok(known);
        }
        self.insert_cluster(DEFAULT_CLUSTER, "", true, now).await
    }

    /// # Errors
    /// [`DbError::Taken`] when there is one of this name.
    pub async fn add_cluster(&self, name: &str, bio: &str, now: Timestamp) -> Result<Model, DbError> {
        self.insert_cluster(name, bio, false, now).await
    }

    async fn insert_cluster(
        &self,
        name: &str,
        bio: &str,
        is_default: bool,
        now: Timestamp,
    ) -> Result<Model, DbError> {
        let row = ActiveModel {
            name: Set(name.to_owned()),
            bio: Set(bio.to_owned()),
            is_default: Set(is_default),
            created_at: Set(now.0),
            updated_at: Set(now.0),
            ..Default::default()
        };
        Entity::insert(row).exec_with_returning(&self.connection).await.map_err(taken)
    }
}
