use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, TransactionTrait, TryIntoModel,
};

use crate::database::{Database, DbError, Timestamp, taken};
use crate::entity::{token, user};

/// A token to keep; its text is known to nobody but the caller.
#[derive(Debug, Clone)]
pub struct NewToken {
    pub user_id: i64,
    pub name: String,
    /// SHA-256 in hex.
    pub hash: String,
    pub scopes: Vec<String>,
    pub expires_at: Option<Timestamp>,
}

impl Database {
    pub async fn has_users(&self) -> Result<bool, DbError> {
        Ok(user::Entity::find().count(&self.connection).await? > 0)
    }

    /// # Errors
    /// [`DbError::Taken`] when there is one of this name.
    pub async fn add_user(
        &self,
        name: &str,
        password_hash: &str,
        role: user::Role,
        now: Timestamp,
    ) -> Result<user::Model, DbError> {
        let row = user::ActiveModel {
            name: Set(name.to_owned()),
            password_hash: Set(password_hash.to_owned()),
            role: Set(role),
            disabled: Set(false),
            created_at: Set(now.0),
            ..Default::default()
        };
        user::Entity::insert(row).exec_with_returning(&self.connection).await.map_err(taken)
    }

    pub async fn user_named(&self, name: &str) -> Result<Option<user::Model>, DbError> {
        Ok(user::Entity::find().filter(user::Column::Name.eq(name)).one(&self.connection).await?)
    }

    pub async fn user(&self, id: i64) -> Result<Option<user::Model>, DbError> {
        Ok(user::Entity::find_by_id(id).one(&self.connection).await?)
    }

    /// Changes what a user may do; None when there is no such user.
    ///
    /// # Errors
    /// [`DbError::LastRoot`] when nobody would be left who may do everything.
    pub async fn change_user(
        &self,
        id: i64,
        role: Option<user::Role>,
        disabled: Option<bool>,
    ) -> Result<Option<user::Model>, DbError> {
        let transaction = self.connection.begin().await?;
        let Some(row) = user::Entity::find_by_id(id).one(&transaction).await? else { return Ok(None) };
        let mut row = row.into_active_model();
        role.into_iter().for_each(|role| row.role = Set(role));
        disabled.into_iter().for_each(|disabled| row.disabled = Set(disabled));
        let row = if row.is_changed() { row.update(&transaction).await? } else { row.try_into_model()? };
        let roots = user::Entity::find()
            .filter(user::Column::Role.eq(user::Role::Root))
            .filter(user::Column::Disabled.eq(false));
        if roots.count(&transaction).await? == 0 {
            return Err(DbError::LastRoot);
        }
        transaction.commit().await?;
        Ok(Some(row))
    }

    /// Whether there was such a user.
    pub async fn set_password(&self, id: i64, password_hash: &str) -> Result<bool, DbError> {
        let update = user::Entity::update_many()
            .col_expr(user::Column::PasswordHash, Expr::value(password_hash))
            .filter(user::Column::Id.eq(id));
        Ok(update.exec(&self.connection).await?.rows_affected == 1)
    }

    /// Gives this user a password and all rights, whatever it had; made when there is none.
    pub async fn restore_root(&self, name: &str, password_hash: &str, now: Timestamp) -> Result<(), DbError> {
        let row = user::ActiveModel {
            name: Set(name.to_owned()),
            password_hash: Set(password_hash.to_owned()),
            role: Set(user::Role::Root),
            disabled: Set(false),
            created_at: Set(now.0),
            ..Default::default()
        };
        let same = OnConflict::column(user::Column::Name)
            .update_columns([user::Column::PasswordHash, user::Column::Role, user::Column::Disabled])
            .to_owned();
        user::Entity::insert(row).on_conflict(same).exec_without_returning(&self.connection).await?;
        Ok(())
    }

    pub async fn users(&self) -> Result<Vec<user::Model>, DbError> {
        Ok(user::Entity::find().order_by_asc(user::Column::Id).all(&self.connection).await?)
    }

    pub async fn add_token(&self, new: NewToken, now: Timestamp) -> Result<token::Model, DbError> {
        let row = token::ActiveModel {
            user_id: Set(new.user_id),
            name: Set(new.name),
            hash: Set(new.hash),
            scopes: Set(serde_json::to_string(&new.scopes).expect("a list of words is plain data")),
            expires_at: Set(new.expires_at.map(|at| at.0)),
            created_at: Set(now.0),
            ..Default::default()
        };
        token::Entity::insert(row).exec_with_returning(&self.connection).await.map_err(taken)
    }

    /// The token with this hash that has not expired, and whose it is.
    pub async fn token(
        &self,
        hash: &str,
        now: Timestamp,
    ) -> Result<Option<(token::Model, user::Model)>, DbError> {
        let found = token::Entity::find().filter(token::Column::Hash.eq(hash)).one(&self.connection).await?;
        let valid = found.filter(|row| row.expires_at.is_none_or(|at| now.0 < at));
        let Some(token) = valid else { return Ok(None) };
        let user = user::Entity::find_by_id(token.user_id).one(&self.connection).await?;
        Ok(user.map(|user| (token, user)))
    }

    pub async fn tokens(&self) -> Result<Vec<token::Model>, DbError> {
        Ok(token::Entity::find().order_by_asc(token::Column::Id).all(&self.connection).await?)
    }

    /// Whether there was one, of this user where one is named.
    pub async fn remove_token(&self, id: i64, of: Option<i64>) -> Result<bool, DbError> {
        let mut remove = token::Entity::delete_many().filter(token::Column::Id.eq(id));
        if let Some(user) = of {
            remove = remove.filter(token::Column::UserId.eq(user));
        }
        Ok(remove.exec(&self.connection).await?.rows_affected > 0)
    }
}
