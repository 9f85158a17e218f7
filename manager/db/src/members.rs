//! Who keeps alive, and the peers that schedulers speak of.

use std::collections::HashMap;

use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder, TransactionTrait};

use crate::database::{Database, DbError, Timestamp};
use crate::entity::member::{ActiveModel, Column, Entity, Kind, Model};
use crate::entity::peer;

/// Rows in one INSERT: SQLite allows 32,766 variables.
const ROWS_PER_INSERT: usize = 1000;

/// A member as it announces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMember {
    pub kind: Kind,
    pub cluster_id: i64,
    pub name: String,
    pub address: String,
    pub version: String,
}

/// A peer as its scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPeer {
    pub name: String,
    pub role: peer::Role,
    pub address: String,
}

impl Database {
    /// Takes in a member that announces itself, for the first time or again.
    pub async fn register(&self, member: NewMember, now: Timestamp) -> Result<Model, DbError> {
        let row = ActiveModel {
            kind: Set(member.kind),
            cluster_id: Set(member.cluster_id),
            name: Set(member.name),
            address: Set(member.address),
            version: Set(member.version),
            last_keep_alive_at: Set(now.0),
            created_at: Set(now.0),
            updated_at: Set(now.0),
            ..Default::default()
        };
        let same = OnConflict::columns([Column::ClusterId, Column::Kind, Column::Name])
            .update_columns([Column::Address, Column::Version, Column::LastKeepAliveAt, Column::UpdatedAt])
            .to_owned();
        Ok(Entity::insert(row).on_conflict(same).exec_with_returning(&self.connection).await?)
    }

    pub async fn keep_alive(&self, member: i64, now: Timestamp) -> Result<(), DbError> {
        self.set_keep_alive(member, now.0).await
    }

    /// A member that went is in no view from now on.
    pub async fn silence(&self, member: i64) -> Result<(), DbError> {
        self.set_keep_alive(member, 0).await
    }

    async fn set_keep_alive(&self, member: i64, at: i64) -> Result<(), DbError> {
        let update = Entity::update_many().col_expr(Column::LastKeepAliveAt, Expr::value(at));
        update.filter(Column::Id.eq(member)).exec(&self.connection).await?;
        Ok(())
    }

    /// Members of a kind that said something since then.
    pub async fn alive(&self, kind: Kind, since: Timestamp) -> Result<Vec<Model>, DbError> {
        let alive = Entity::find().filter(Column::Kind.eq(kind)).filter(Column::LastKeepAliveAt.gte(since.0));
        Ok(alive.order_by_asc(Column::Id).all(&self.connection).await?)
    }

    /// Replaces what this scheduler said about its peers before. A peer that stays keeps its id.
    pub async fn replace_peers(
        &self,
        scheduler: &Model,
        seen: Vec<SeenPeer>,
        now: Timestamp,
    ) -> Result<(), DbError> {
        let transaction = self.connection.begin().await?;
        let known =
            peer::Entity::find().filter(peer::Column::SchedulerId.eq(scheduler.id)).all(&transaction).await?;
        let mut known: HashMap<String, peer::Model> =
            known.into_iter().map(|row| (row.name.clone(), row)).collect();
        let mut fresh = Vec::new();
        for seen in seen {
            match known.get(&seen.name) {
                Some(row) if row.role == seen.role && row.address == seen.address => {
                    known.remove(&seen.name);
                }
                _ => fresh.push(peer::ActiveModel {
                    cluster_id: Set(scheduler.cluster_id),
                    scheduler_id: Set(scheduler.id),
                    name: Set(seen.name),
                    role: Set(seen.role),
                    address: Set(seen.address),
                    created_at: Set(now.0),
                    ..Default::default()
                }),
            }
        }
        let gone: Vec<i64> = known.into_values().map(|row| row.id).collect();
        for gone in gone.chunks(ROWS_PER_INSERT) {
            let rows = peer::Entity::delete_many().filter(peer::Column::Id.is_in(gone.iter().copied()));
            rows.exec(&transaction).await?;
        }
        for fresh in fresh.chunks(ROWS_PER_INSERT) {
            peer::Entity::insert_many(fresh.iter().cloned()).exec_without_returning(&transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// The peers of schedulers that said something since then.
    pub async fn peers(&self, since: Timestamp) -> Result<Vec<peer::Model>, DbError> {
        let schedulers = self.alive(Kind::Scheduler, since).await?;
        let of_those = peer::Column::SchedulerId.is_in(schedulers.into_iter().map(|row| row.id));
        let peers = peer::Entity::find().filter(of_those).order_by_asc(peer::Column::Id);
        Ok(peers.all(&self.connection).await?)
    }
}
