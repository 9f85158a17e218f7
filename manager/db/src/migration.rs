//! What the tables looked like, step by step. A step that has been released is never changed.

use sea_orm::DatabaseConnection;
use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, big_pk_auto, binary, boolean, integer, string, string_null, string_uniq,
    text,
};

pub(crate) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(First), Box::new(SettingsAndUsers)]
    }
}

impl Migrator {
    /// The last step that the database has taken and this program does not know. Only reads.
    pub async fn newer(connection: &DatabaseConnection) -> Result<Option<String>, DbErr> {
        if !SchemaManager::new(connection).has_table("seaql_migrations").await? {
            return Ok(None);
        }
        let taken = Self::get_migration_models(connection).await?.into_iter().map(|step| step.version);
        let known = Self::migrations();
        Ok(taken.filter(|name| known.iter().all(|step| step.name() != name)).max())
    }
}

struct First;

impl MigrationName for First {
    fn name(&self) -> &str {
        "0001_first"
    }
}

#[allow(
    elided_lifetimes_in_paths,
    reason = "async_trait binds a named lifetime elsewhere than the trait does"
)]
#[async_trait::async_trait]
impl MigrationTrait for First {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in cluster_tables().into_iter().chain(user_tables()).chain(job_tables()) {
            manager.create_table(table).await?;
        }
        let unique = [
            ("member", &["cluster_id", "kind", "name"][..]),
            ("peer", &["cluster_id", "scheduler_id", "name"][..]),
            ("registry_credential", &["registry", "job_id"][..]),
        ];
        for (table, columns) in unique {
            let mut index = Index::create();
            index.name(format!("{table}_unique")).table(table).unique();
            for column in columns {
                index.col(*column);
            }
            manager.create_index(index).await?;
        }
        let by_state = Index::create().name("job_state").table("job").col("state").take();
        manager.create_index(by_state).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables = [
            "job_placement",
            "job_layer",
            "job",
            "registry_credential",
            "personal_access_token",
            "user",
            "peer",
            "member",
            "cluster",
        ];
        for table in tables {
            manager.drop_table(Table::drop().table(table).take()).await?;
        }
        Ok(())
    }
}

/// What a cluster's daemons are set to, and users that may not log in any more.
struct SettingsAndUsers;

impl SettingsAndUsers {
    fn columns() -> [(&'static str, ColumnDef); 3] {
        [
            ("cluster", text("peer_config").default("{}").take()),
            ("cluster", text("scheduler_config").default("{}").take()),
            ("user", boolean("disabled").default(false).take()),
        ]
    }
}

impl MigrationName for SettingsAndUsers {
    fn name(&self) -> &str {
        "0002_settings_and_users"
    }
}

#[allow(
    elided_lifetimes_in_paths,
    reason = "async_trait binds a named lifetime elsewhere than the trait does"
)]
#[async_trait::async_trait]
impl MigrationTrait for SettingsAndUsers {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, mut column) in Self::columns() {
            manager.alter_table(Table::alter().table(table).add_column(&mut column).take()).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column) in Self::columns() {
            let name = column.get_column_name();
            manager.alter_table(Table::alter().table(table).drop_column(name).take()).await?;
        }
        Ok(())
    }
}

fn table(name: &'static str, columns: impl IntoIterator<Item = ColumnDef>) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name);
    for column in columns {
        table.col(column);
    }
    table
}

/// Rows that go with the row of another table.
fn part_of(
    mut table: TableCreateStatement,
    column: &'static str,
    whole: &'static str,
) -> TableCreateStatement {
    let from = table.get_table_name().cloned();
    let mut key = ForeignKey::create();
    if let Some(from) = from {
        key.from_tbl(from);
    }
    key.from_col(column).to_tbl(whole).to_col("id").on_delete(ForeignKeyAction::Cascade);
    table.foreign_key(&mut key).take()
}

fn cluster_tables() -> [TableCreateStatement; 3] {
    let cluster = table(
        "cluster",
        [
            big_pk_auto("id"),
            string_uniq("name"),
            text("bio"),
            boolean("is_default"),
            big_integer("created_at"),
            big_integer("updated_at"),
        ],
    );
    let member = table(
        "member",
        [
            big_pk_auto("id"),
            string("kind"),
            big_integer("cluster_id"),
            string("name"),
            string("address"),
            string("version"),
            big_integer("last_keep_alive_at"),
            big_integer("created_at"),
            big_integer("updated_at"),
        ],
    );
    let peer = table(
        "peer",
        [
            big_pk_auto("id"),
            big_integer("cluster_id"),
            big_integer("scheduler_id"),
            string("name"),
            string("role"),
            string("address"),
            big_integer("created_at"),
        ],
    );
    [cluster, part_of(member, "cluster_id", "cluster"), part_of(peer, "scheduler_id", "member")]
}

fn user_tables() -> [TableCreateStatement; 3] {
    let user = table(
        "user",
        [
            big_pk_auto("id"),
            string_uniq("name"),
            string("password_hash"),
            string("role"),
            big_integer("created_at"),
        ],
    );
    let token = table(
        "personal_access_token",
        [
            big_pk_auto("id"),
            big_integer("user_id"),
            string("name"),
            string_uniq("hash"),
            text("scopes"),
            big_integer_null("expires_at"),
            big_integer("created_at"),
        ],
    );
    let credential = table(
        "registry_credential",
        [
            big_pk_auto("id"),
            string("registry"),
            big_integer("job_id"),
            binary("sealed"),
            big_integer("created_at"),
            big_integer("updated_at"),
        ],
    );
    [user, part_of(token, "user_id", "user"), credential]
}

fn job_tables() -> [TableCreateStatement; 3] {
    let job = table(
        "job",
        [
            big_pk_auto("id"),
            string("kind"),
            text("bio"),
            text("args"),
            text("clusters"),
            string("state"),
            text("note"),
            string_null("manifest"),
            string("lease_holder"),
            big_integer("lease_until"),
            big_integer("deadline_at"),
            big_integer("user_id"),
            big_integer("created_at"),
            big_integer("updated_at"),
        ],
    );
    let mut layer = table("job_layer", [big_integer("job_id"), integer("number"), text("reference")]);
    layer.primary_key(Index::create().col("job_id").col("number"));
    let mut placement = table(
        "job_placement",
        [
            big_integer("job_id"),
            big_integer("cluster_id"),
            string("peer"),
            integer("layer"),
            string("state"),
            big_integer("bytes_done"),
            big_integer("bytes_total"),
            text("error"),
            big_integer("updated_at"),
        ],
    );
    placement.primary_key(Index::create().col("job_id").col("cluster_id").col("peer").col("layer"));
    [job, part_of(layer, "job_id", "job"), part_of(placement, "job_id", "job")]
}
