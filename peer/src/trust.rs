//! The peer's signing key and the keys that it believes.

use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use d7y_image::{IndexError, IndexSigner, LayerIndex, TrustError, TrustedKeys};
use rand::RngExt;

use crate::config::IndexTrustConfig;

pub struct Trust {
    signer: IndexSigner,
    keys: TrustedKeys,
}

#[derive(Debug, thiserror::Error)]
pub enum TrustSetupError {
    #[error("cannot keep the signing key in {0}")]
    File(String, #[source] io::Error),
    #[error("the signing key or a public key under indexTrust is malformed")]
    Key(#[from] TrustError),
}

impl Trust {
    /// Uses the configured key, or one that is made once and kept in `directory`.
    pub fn set_up(config: &IndexTrustConfig, directory: &Path) -> Result<Self, TrustSetupError> {
        let configured = config.signing_key.expose();
        let signer = match configured.is_empty() {
            false => IndexSigner::from_hex(configured)?,
            true => IndexSigner::from_hex(&kept_key(&directory.join("signing.key"))?)?,
        };
        let mut keys = TrustedKeys::from_hex(config.public_keys.iter().map(String::as_str))?;
        keys.add(signer.public_key());
        Ok(Self { signer, keys })
    }

    pub fn seal(&self, index: &LayerIndex) -> Result<Vec<u8>, IndexError> {
        self.signer.seal(index)
    }

    pub fn open(&self, sealed: &[u8]) -> Result<LayerIndex, TrustError> {
        self.keys.open(sealed)
    }

    pub fn public_key_hex(&self) -> String {
        hex::encode(self.signer.public_key())
    }
}

fn kept_key(path: &Path) -> Result<String, TrustSetupError> {
    let failed = |error| TrustSetupError::File(path.display().to_string(), error);
    match fs::read_to_string(path) {
        Ok(key) => Ok(key.trim().to_owned()),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
            let seed: [u8; 32] = rand::rng().random();
            let key = hex::encode(seed);
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            file.and_then(|mut file| file.write_all(key.as_bytes())).map_err(failed)?;
            Ok(key)
        }
        Err(other) => Err(failed(other)),
    }
}
