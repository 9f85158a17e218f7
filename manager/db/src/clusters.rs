use std::collections::BTreeMap;

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
    QuerySelect, TransactionTrait,
};

use crate::database::{Database, DbError, Timestamp, taken};
use crate::entity::cluster::{ActiveModel, Column, Entity, Model};

/// What the first cluster is called, and who names no cluster belongs to.
pub const DEFAULT_CLUSTER: &str = "default";

/// Clusters that one sentence names.
const NAMED: u64 = 32;

/// What is to be other than it is.
#[derive(Debug, Clone, Default)]
pub struct ClusterChange {
    pub bio: Option<String>,
    /// Keys to set, or with None to leave to each peer again.
    pub peer_config: Settings,
    pub scheduler_config: Settings,
}

type Settings = BTreeMap<String, Option<String>>;

impl Model {
    /// What its peers are set to.
    pub fn peer_settings(&self) -> BTreeMap<String, String> {
        serde_json::from_str(&self.peer_config).unwrap_or_default()
    }

    /// What its schedulers are set to.
    pub fn scheduler_settings(&self) -> BTreeMap<String, String> {
        serde_json::from_str(&self.scheduler_config).unwrap_or_default()
    }
}

fn merged(kept: &str, changes: Settings) -> Result<String, DbError> {
    let broken = |error: serde_json::Error| DbError::Statement(sea_orm::DbErr::Json(error.to_string()));
    let mut kept: BTreeMap<String, String> = serde_json::from_str(kept).map_err(broken)?;
    for (key, value) in changes {
        match value {
            Some(value) => drop(kept.insert(key, value)),
            None => drop(kept.remove(&key)),
        }
    }
    serde_json::to_string(&kept).map_err(broken)
}

impl Database {
    pub async fn clusters(&self) -> Result<Vec<Model>, DbError> {
        Ok(Entity::find().order_by_asc(Column::Id).all(&self.connection).await?)
    }

    /// For whoever named one that there is not: `there are "default", "prod"`.
    pub async fn known_clusters(&self) -> Result<String, DbError> {
        let clusters = Entity::find().order_by_asc(Column::Id).limit(NAMED).all(&self.connection).await?;
        let names: Vec<_> = clusters.iter().map(|cluster| format!("{:?}", cluster.name)).collect();
        Ok(if names.is_empty() {
            "there is none yet".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        })
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

    /// Changes what is not the cluster's name; None when there is no such cluster.
    pub async fn change_cluster(
        &self,
        id: i64,
        change: ClusterChange,
        now: Timestamp,
    ) -> Result<Option<Model>, DbError> {
        let transaction = self.connection.begin().await?;
        let Some(row) = Entity::find_by_id(id).one(&transaction).await? else { return Ok(None) };
        let peer_config = merged(&row.peer_config, change.peer_config)?;
        let scheduler_config = merged(&row.scheduler_config, change.scheduler_config)?;
        let mut row = row.into_active_model();
        row.peer_config = Set(peer_config);
        row.scheduler_config = Set(scheduler_config);
        if let Some(bio) = change.bio {
            row.bio = Set(bio);
        }
        row.updated_at = Set(now.0);
        let row = row.update(&transaction).await?;
        transaction.commit().await?;
        Ok(Some(row))
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
            peer_config: Set("{}".to_owned()),
            scheduler_config: Set("{}".to_owned()),
            created_at: Set(now.0),
            updated_at: Set(now.0),
            ..Default::default()
        };
        Entity::insert(row).exec_with_returning(&self.connection).await.map_err(taken)
    }
}
