use sea_orm::entity::prelude::*;

/// A layer that a job is about.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job_layer")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job_id: i64,
    /// From the bottom up, from 0.
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i32,
    /// `d7y_types::LayerRef` in JSON.
    pub reference: String,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
