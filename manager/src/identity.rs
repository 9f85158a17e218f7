//! Passwords and tokens: made, hashed, checked.

use std::sync::LazyLock;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use d7y_chassis::Secret;
use rand::RngExt;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

/// Password hashes at once: each takes 19 MiB and a core for some 20 ms, whoever asks.
static HASHING: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(2));
/// Without letters and digits that look alike.
const PASSWORD_LETTERS: &[u8] = b"abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
const PASSWORD_CHARS: usize = 24;
/// So that scanners for leaked secrets, and people, know it when they see it.
const TOKEN_PREFIX: &str = "d7y_";

#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("a password cannot be hashed")]
    Hash(#[from] argon2::password_hash::Error),
    #[error("hashing a password was cut short")]
    Aborted(#[from] tokio::task::JoinError),
}

pub(crate) fn random_password() -> String {
    let mut rng = rand::rng();
    let letter = |_| char::from(PASSWORD_LETTERS[rng.random_range(..PASSWORD_LETTERS.len())]);
    (0..PASSWORD_CHARS).map(letter).collect()
}

/// Argon2id with a salt of its own.
pub(crate) async fn hash_password(password: Secret) -> Result<String, IdentityError> {
    blocking(move || {
        let hash: PasswordHash = Argon2::default().hash_password(password.expose().as_bytes())?;
        Ok(hash.to_string())
    })
    .await
}

/// As slow for a user that does not exist as for a wrong password.
pub(crate) async fn password_fits(password: Secret, hash: Option<String>) -> Result<bool, IdentityError> {
    blocking(move || {
        let Some(hash) = hash else {
            let _: PasswordHash = Argon2::default().hash_password(password.expose().as_bytes())?;
            return Ok(false);
        };
        let hash = PasswordHash::new(&hash).map_err(argon2::password_hash::Error::from)?;
        Ok(Argon2::default().verify_password(password.expose().as_bytes(), &hash).is_ok())
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IdentityError> + Send + 'static,
) -> Result<T, IdentityError> {
    let _turn = HASHING.acquire().await.expect("never closed");
    tokio::task::spawn_blocking(work).await?
}

/// 256 random bits.
pub(crate) fn new_token() -> Secret {
    Secret::new(format!("{TOKEN_PREFIX}{}", hex::encode(rand::random::<[u8; 32]>())))
}

/// What is kept of a token.
pub(crate) fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passwords_fit_their_own_hash_only() {
        let (one, two) = (random_password(), random_password());
        assert_ne!(one, two);
        let hash = hash_password(Secret::new(&one)).await.unwrap();
        assert!(hash.starts_with("$argon2id$") && !hash.contains(&one));
        for (password, hash, expected) in
            [(&one, Some(&hash), true), (&two, Some(&hash), false), (&one, None, false)]
        {
            let fits = password_fits(Secret::new(password), hash.cloned()).await.unwrap();
            assert_eq!(fits, expected);
        }
        let token = new_token();
        assert_eq!(token_hash(token.expose()).len(), 64);
    }
}
