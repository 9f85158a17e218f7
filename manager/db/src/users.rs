use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder};

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
            created_at: Set(now.0),
            ..Default::default()
        };
        user::Entity::insert(row).exec_with_returning(&self.connection).await.map_err(taken)
    }

    pub async fn user_named(&self, name: &str) -> Result<Option<user::Model>, DbError> {
        Ok(user::Entity::find().filter(user::Column::Name.eq(name)).one(&self.connection).await?)
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

    /// Whether there was one.
    pub async fn remove_token(&self, id: i64) -> Result<bool, DbError> {
        Ok(token::Entity::delete_by_id(id).exec(&self.connection).await?.rows_affected > 0)
    }
}
