//! The key of stored secrets, and the first user.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use d7y_chassis::Secret;
use d7y_manager_db::{Database, Timestamp, UserRole, Vault};

use crate::config::Config;
use crate::identity;

/// In the manager's directory.
pub(crate) const DATABASE: &str = "manager.db";
/// The first user.
const ROOT: &str = "root";

#[derive(Debug, thiserror::Error)]
#[error("cannot use the key file {path} (configuration key secrets.keyFile)")]
struct KeyFileError {
    path: PathBuf,
    source: io::Error,
}

/// Opens the vault with the configured key, or with one that is made once and kept in a file that only its owner reads.
pub(crate) fn vault(config: &Config) -> anyhow::Result<Vault> {
    let configured = config.secrets.key.expose();
    if !configured.is_empty() {
        return Ok(Vault::new(configured)?);
    }
    let made = config.directory.join("secrets.key");
    let path = config.secrets.key_file.as_ref().unwrap_or(&made);
    let failed = |source| KeyFileError { path: path.clone(), source };
    let key = match fs::read_to_string(path) {
        Ok(key) => key,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound && config.secrets.key_file.is_none() => {
            let key = hex::encode(rand::random::<[u8; 32]>());
            write_new(path, &key).map_err(failed)?;
            key
        }
        Err(other) => return Err(failed(other).into()),
    };
    Ok(Vault::new(&key)?)
}

fn write_new(path: &Path, key: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(key.as_bytes())?;
    file.sync_all()
}

/// Makes the user `root` when there is no user yet. Returns the password when it was made up here.
pub(crate) async fn first_user(db: &Database, config: &Config) -> anyhow::Result<Option<Secret>> {
    if db.has_users().await? {
        return Ok(None);
    }
    let configured = config.initial_root_password.clone();
    let made_up = configured.is_empty().then(|| Secret::new(identity::random_password()));
    let password = made_up.clone().unwrap_or(configured);
    let hash = identity::hash_password(password).await?;
    db.add_user(ROOT, &hash, UserRole::Root, Timestamp::now()).await?;
    Ok(made_up)
}

/// Gives the user `root` a new password and all rights again. Works on the database, so that it needs no running manager
/// and minds none.
pub async fn reset_root_password(config: &Config) -> anyhow::Result<Secret> {
    let path = config.directory.join(DATABASE);
    anyhow::ensure!(
        path.exists(),
        "there is no database at {}: name the manager's configuration with --config, or start the manager once",
        path.display()
    );
    let db = crate::open_database(config).await?;
    let password = Secret::new(identity::random_password());
    let hash = identity::hash_password(password.clone()).await?;
    db.restore_root(ROOT, &hash, Timestamp::now()).await?;
    db.close().await?;
    Ok(password)
}
