//! Secrets at rest: AES-256-GCM with the manager's key, which never lies in the database.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// How to log in to a registry. Can be written and used, not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryLogin(Login);

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Login {
    Password {
        username: String,
        password: String,
    },
    /// The value of an Authorization header, such as a token that is good for one repository.
    Authorization(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error("the key for secrets is not 64 hex digits; `openssl rand -hex 32` makes one")]
    Key,
    #[error("a stored secret cannot be read with this key; restore the key, or store the secret again")]
    Open,
    #[error("the system gives no random numbers")]
    Random,
}

/// Seals and opens secrets.
pub struct Vault {
    key: LessSafeKey,
    random: SystemRandom,
}

impl RegistryLogin {
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self(Login::Password { username: username.into(), password: password.into() })
    }

    pub fn authorization(header: impl Into<String>) -> Self {
        Self(Login::Authorization(header.into()))
    }

    /// User name and password, for the registry that they belong to.
    pub fn expose_password(&self) -> Option<(&str, &str)> {
        match &self.0 {
            Login::Password { username, password } => Some((username, password)),
            Login::Authorization(_) => None,
        }
    }

    /// The header, for the registry that it belongs to.
    pub fn expose_authorization(&self) -> Option<&str> {
        match &self.0 {
            Login::Password { .. } => None,
            Login::Authorization(header) => Some(header),
        }
    }
}

impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Vault {
    /// `key` is 32 bytes in hex.
    pub fn new(key: &str) -> Result<Self, VaultError> {
        let mut raw = [0; 32];
        hex::decode_to_slice(key.trim(), &mut raw).map_err(|_| VaultError::Key)?;
        let key = UnboundKey::new(&AES_256_GCM, &raw).map_err(|_| VaultError::Key)?;
        Ok(Self { key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// `place` is bound in: what is sealed for one registry opens for no other.
    pub(crate) fn seal(&self, place: &str, login: &RegistryLogin) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| VaultError::Random)?;
        let mut text = serde_json::to_vec(&login.0).expect("two strings are plain data");
        let bound = Aad::from(place.as_bytes());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound, &mut text)
            .map_err(|_| VaultError::Random)?;
        Ok([&nonce[..], &text].concat())
    }

    pub(crate) fn open(&self, place: &str, sealed: &[u8]) -> Result<RegistryLogin, VaultError> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(VaultError::Open)?;
        let mut text = text.to_vec();
        let bound = Aad::from(place.as_bytes());
        let plain = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), bound, &mut text);
        let plain = plain.map_err(|_| VaultError::Open)?;
        serde_json::from_slice(plain).map(RegistryLogin).map_err(|_| VaultError::Open)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_secrets_open_only_where_they_belong() {
        let vault = Vault::new(&"ab".repeat(32)).unwrap();
        for login in [RegistryLogin::password("me", "hunter2"), RegistryLogin::authorization("Bearer x")] {
            let sealed = vault.seal("a.example", &login).unwrap();
            assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
            assert_eq!(vault.open("a.example", &sealed).unwrap(), login);
            assert_eq!(vault.open("b.example", &sealed), Err(VaultError::Open));
            assert_eq!(
                Vault::new(&"cd".repeat(32)).unwrap().open("a.example", &sealed),
                Err(VaultError::Open)
            );
            assert_eq!(vault.open("a.example", &sealed[..5]), Err(VaultError::Open));
            assert_ne!(vault.seal("a.example", &login).unwrap(), sealed, "a nonce is used once");
            assert_eq!(format!("{login:?}"), "***");
        }
        assert!(matches!(Vault::new("short"), Err(VaultError::Key)));
    }
}
