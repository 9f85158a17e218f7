//! Jobs, the leases on them, and how far they are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use d7y_types::LayerRef;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect, TransactionTrait,
};

use crate::credentials::AnyJob;
use crate::database::{Database, DbError, Timestamp};
use crate::entity::job::{ActiveModel, Column, Entity, Model, State};
use crate::entity::{layer, placement};
use crate::vault::{RegistryLogin, Vault};

/// Jobs removed in one step; the next step takes more.
const PRUNED_AT_ONCE: u64 = 500;
/// Rows in one INSERT: SQLite allows 32,766 variables.
const ROWS_PER_INSERT: usize = 1000;

/// A job to be done.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub kind: String,
    pub bio: String,
    pub args: String,
    pub clusters: Vec<i64>,
    pub deadline: Timestamp,
    pub user_id: i64,
    /// What only this job may log in to a registry with.
    pub login: Option<(String, RegistryLogin)>,
}

/// Who carries on a job, and for how long without a word.
#[derive(Debug, Clone)]
pub struct Lease {
    pub holder: String,
    pub duration: Duration,
}

/// How far one layer is on one peer.
pub type Placement = placement::Model;

impl Database {
    pub async fn add_job(&self, vault: &Vault, new: NewJob, now: Timestamp) -> Result<Model, DbError> {
        let row = ActiveModel {
            kind: Set(new.kind),
            bio: Set(new.bio),
            args: Set(new.args),
            clusters: Set(serde_json::to_string(&new.clusters).expect("numbers are plain data")),
            state: Set(State::Pending),
            note: Set(String::new()),
            manifest: Set(None),
            // Nobody carries it on before its credential is there.
            lease_holder: Set(String::new()),
            lease_until: Set(now.plus(Duration::from_secs(5)).0),
            deadline_at: Set(new.deadline.0),
            user_id: Set(new.user_id),
            created_at: Set(now.0),
            updated_at: Set(now.0),
            ..Default::default()
        };
        let job = Entity::insert(row).exec_with_returning(&self.connection).await?;
        if let Some((registry, login)) = &new.login {
            self.keep_credential(vault, (registry, AnyJob::Only(job.id)), login, now).await?;
        }
        let free = Entity::update_many().col_expr(Column::LeaseUntil, Expr::value(0));
        free.filter(Column::Id.eq(job.id)).exec(&self.connection).await?;
        Ok(job)
    }

    pub async fn job(&self, id: i64) -> Result<Option<Model>, DbError> {
        Ok(Entity::find_by_id(id).one(&self.connection).await?)
    }

    /// A page of jobs, newest first, and how many there are. The first page is 1.
    pub async fn jobs(&self, page: u64, per_page: u64) -> Result<(Vec<Model>, u64), DbError> {
        let pages = Entity::find().order_by_desc(Column::Id).paginate(&self.connection, per_page.max(1));
        Ok((pages.fetch_page(page.saturating_sub(1)).await?, pages.num_items().await?))
    }

    /// Takes or renews the lease on pending jobs that are ours or nobody's. They are the holder's to carry on.
    pub async fn claim(&self, lease: &Lease, most: u64, now: Timestamp) -> Result<Vec<Model>, DbError> {
        let free = || {
            Condition::all().add(Column::State.eq(State::Pending)).add(
                Condition::any().add(Column::LeaseHolder.eq(&lease.holder)).add(Column::LeaseUntil.lt(now.0)),
            )
        };
        let candidates = Entity::find().filter(free()).order_by_asc(Column::Id).limit(most);
        let mut claimed = Vec::new();
        for job in candidates.all(&self.connection).await? {
            // Only one of two replicas that see the same row is told that it changed it.
            let taken = Entity::update_many()
                .col_expr(Column::LeaseHolder, Expr::value(lease.holder.as_str()))
                .col_expr(Column::LeaseUntil, Expr::value(now.plus(lease.duration).0))
                .filter(Column::Id.eq(job.id))
                .filter(free());
            if taken.exec(&self.connection).await?.rows_affected == 1 {
                claimed.push(job);
            }
        }
        Ok(claimed)
    }

    /// Says what a pending job waits for.
    pub async fn note(&self, job: i64, note: &str, now: Timestamp) -> Result<(), DbError> {
        let update = Entity::update_many()
            .col_expr(Column::Note, Expr::value(note))
            .col_expr(Column::UpdatedAt, Expr::value(now.0))
            .filter(Column::Id.eq(job))
            .filter(Column::State.eq(State::Pending));
        update.exec(&self.connection).await?;
        Ok(())
    }

    /// Ends a pending job and forgets the credential that it brought.
    pub async fn end_job(&self, job: i64, state: State, note: &str, now: Timestamp) -> Result<(), DbError> {
        let update = Entity::update_many()
            .col_expr(Column::State, Expr::value(state))
            .col_expr(Column::Note, Expr::value(note))
            .col_expr(Column::UpdatedAt, Expr::value(now.0))
            .filter(Column::Id.eq(job))
            .filter(Column::State.eq(State::Pending));
        update.exec(&self.connection).await?;
        self.remove_credentials_of(job).await
    }

    /// Removes jobs that ended before `horizon`, and the oldest ended ones beyond the newest `most`, with all that
    /// belongs to them. Some at a time; returns how many.
    pub async fn prune_jobs(&self, horizon: Timestamp, most: u64) -> Result<u64, DbError> {
        let ended = || Entity::find().filter(Column::State.ne(State::Pending)).order_by_desc(Column::Id);
        let ids = |rows: Vec<Model>| rows.into_iter().map(|row| row.id);
        let old = ended().filter(Column::UpdatedAt.lt(horizon.0)).limit(PRUNED_AT_ONCE);
        let old = old.all(&self.connection).await?;
        let beyond = ended().offset(most).limit(PRUNED_AT_ONCE).all(&self.connection).await?;
        let gone: BTreeSet<i64> = ids(old).chain(ids(beyond)).collect();
        if gone.is_empty() {
            return Ok(0);
        }
        let removed = Entity::delete_many().filter(Column::Id.is_in(gone)).exec(&self.connection).await?;
        Ok(removed.rows_affected)
    }

    /// Keeps what the image's name means to this job from now on.
    pub async fn keep_layers(
        &self,
        job: i64,
        manifest: &str,
        layers: &[LayerRef],
        now: Timestamp,
    ) -> Result<(), DbError> {
        let transaction = self.connection.begin().await?;
        layer::Entity::delete_many().filter(layer::Column::JobId.eq(job)).exec(&transaction).await?;
        let rows = (0..).zip(layers).map(|(number, reference)| layer::ActiveModel {
            job_id: Set(job),
            number: Set(number),
            reference: Set(serde_json::to_string(reference).expect("a layer reference is plain data")),
        });
        let rows: Vec<_> = rows.collect();
        for rows in rows.chunks(ROWS_PER_INSERT) {
            layer::Entity::insert_many(rows.iter().cloned()).exec_without_returning(&transaction).await?;
        }
        let update = Entity::update_many()
            .col_expr(Column::Manifest, Expr::value(manifest))
            .col_expr(Column::UpdatedAt, Expr::value(now.0));
        update.filter(Column::Id.eq(job)).exec(&transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// The job's layers from the bottom up.
    pub async fn layers(&self, job: i64) -> Result<Vec<LayerRef>, DbError> {
        let rows = layer::Entity::find().filter(layer::Column::JobId.eq(job));
        let rows = rows.order_by_asc(layer::Column::Number).all(&self.connection).await?;
        let parse = |row: layer::Model| {
            serde_json::from_str(&row.reference)
                .map_err(|error| DbError::Statement(sea_orm::DbErr::Json(error.to_string())))
        };
        rows.into_iter().map(parse).collect()
    }

    pub async fn placements(&self, job: i64) -> Result<Vec<Placement>, DbError> {
        let rows = placement::Entity::find().filter(placement::Column::JobId.eq(job));
        let rows = rows
            .order_by_asc(placement::Column::ClusterId)
            .order_by_asc(placement::Column::Peer)
            .order_by_asc(placement::Column::Layer);
        Ok(rows.all(&self.connection).await?)
    }

    /// Keeps how far placements are; rows that did not change need not be given.
    pub async fn keep_placements(&self, changed: Vec<Placement>) -> Result<(), DbError> {
        use placement::Column as P;
        let same = OnConflict::columns([P::JobId, P::ClusterId, P::Peer, P::Layer])
            .update_columns([P::State, P::BytesDone, P::BytesTotal, P::Error, P::UpdatedAt])
            .to_owned();
        let rows: Vec<placement::ActiveModel> = changed.into_iter().map(all_set).collect();
        let transaction = self.connection.begin().await?;
        for rows in rows.chunks(ROWS_PER_INSERT) {
            let insert = placement::Entity::insert_many(rows.iter().cloned()).on_conflict(same.clone());
            insert.exec_without_returning(&transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Pending jobs, and ended ones by how they ended.
    pub async fn count_jobs(&self) -> Result<BTreeMap<&'static str, u64>, DbError> {
        let mut counts = BTreeMap::new();
        for (name, state) in
            [("pending", State::Pending), ("success", State::Success), ("failure", State::Failure)]
        {
            let rows = Entity::find().filter(Column::State.eq(state));
            counts.insert(name, rows.count(&self.connection).await?);
        }
        Ok(counts)
    }
}

fn all_set(row: Placement) -> placement::ActiveModel {
    placement::ActiveModel {
        job_id: Set(row.job_id),
        cluster_id: Set(row.cluster_id),
        peer: Set(row.peer),
        layer: Set(row.layer),
        state: Set(row.state),
        bytes_done: Set(row.bytes_done),
        bytes_total: Set(row.bytes_total),
        error: Set(row.error),
        updated_at: Set(row.updated_at),
    }
}
