use sea_orm::entity::prelude::*;

/// One swarm: its schedulers and its seed peers.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "cluster")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    #[sea_orm(unique)]
    pub name: String,
    pub bio: String,
    pub is_default: bool,
    /// What its peers are set to, in JSON: text by key.
    pub peer_config: String,
    /// The same for its schedulers.
    pub scheduler_config: String,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
