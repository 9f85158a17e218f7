use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// More than any bundle of authorities in use (Debian's is 220 KiB): a wrong path must not fill the memory.
const MAX_CA_FILE_BYTES: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    #[error("{path} cannot be read; check its name and mode")]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} is larger than 4 MiB; name a PEM file of certificates")]
    TooLarge(PathBuf),
    #[error("{0} holds no usable certificate in PEM form")]
    NoCertificate(PathBuf),
}

/// The authorities of the system. A machine may have none and still use plain registries, so that is only a warning.
pub(crate) fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _unusable) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        tracing::warn!("the system has no certificate authorities; registries over https need a caFile");
    }
    roots
}

/// The system's authorities and those of `path`.
pub(crate) fn with_ca_file(system: &RootCertStore, path: &Path) -> Result<RootCertStore, CaFileError> {
    let read = |source| CaFileError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(read)?.len() > MAX_CA_FILE_BYTES {
        return Err(CaFileError::TooLarge(path.to_owned()));
    }
    let pem = std::fs::read(path).map_err(read)?;
    let mut roots = system.clone();
    let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    match roots.add_parsable_certificates(certificates) {
        (0, _) => Err(CaFileError::NoCertificate(path.to_owned())),
        _ => Ok(roots),
    }
}

/// The provider is named: with two of them in one binary rustls cannot choose, and panics.
pub(crate) fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
