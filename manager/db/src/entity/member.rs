use sea_orm::entity::prelude::*;

/// Who keeps alive with the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))")]
pub enum Kind {
    #[sea_orm(string_value = "scheduler")]
    Scheduler,
    #[sea_orm(string_value = "seed")]
    Seed,
}

/// A scheduler or a seed peer.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "member")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub kind: Kind,
    pub cluster_id: i64,
    /// Unique among the members of its kind in the cluster, and stable over restarts.
    pub name: String,
    /// `host:port` under which others reach it.
    pub address: String,
    pub version: String,
    /// When it last said something; 0 once it has said goodbye.
    pub last_keep_alive_at: i64,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
