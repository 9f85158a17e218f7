use sea_orm::entity::prelude::*;

/// How to log in to a registry, sealed: see `vault`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "registry_credential")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    /// `host` or `host:port` as image names have it.
    pub registry: String,
    /// The job that brought it and that it goes with; 0 for one that all jobs may use.
    pub job_id: i64,
    pub sealed: Vec<u8>,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
