use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))")]
pub enum State {
    #[sea_orm(string_value = "PENDING")]
    Pending,
    #[sea_orm(string_value = "SUCCESS")]
    Success,
    #[sea_orm(string_value = "FAILURE")]
    Failure,
}

/// Work that the manager carries on until it has ended, whichever replica and however often it is restarted.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub kind: String,
    pub bio: String,
    /// What was asked for, in JSON. Never holds a credential.
    pub args: String,
    /// Ids of the clusters, in JSON.
    pub clusters: String,
    pub state: State,
    /// One sentence: why it failed, or what it waits for.
    pub note: String,
    /// The manifest that the image's name meant when the job began, once that is known.
    pub manifest: Option<String>,
    pub lease_holder: String,
    pub lease_until: i64,
    pub deadline_at: i64,
    pub user_id: i64,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
