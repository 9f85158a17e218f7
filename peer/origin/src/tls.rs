use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

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

/// Whom to believe that it is the registry.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    roots: RootCertStore,
    /// The certificates of a caFile, as they are.
    own: Vec<CertificateDer<'static>>,
}

impl Trust {
    pub fn system() -> Self {
        Self { roots: system_roots(), own: Vec::new() }
    }

    pub fn nobody() -> Self {
        Self { roots: RootCertStore::empty(), own: Vec::new() }
    }

    /// The certificates at `path` besides.
    pub fn with_ca_file(&self, path: &Path) -> Result<Self, CaFileError> {
        let read = |source| CaFileError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_CA_FILE_BYTES {
            return Err(CaFileError::TooLarge(path.to_owned()));
        }
        let pem = std::fs::read(path).map_err(read)?;
        let own: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
        let mut roots = self.roots.clone();
        match roots.add_parsable_certificates(own.iter().cloned()) {
            (0, _) => Err(CaFileError::NoCertificate(path.to_owned())),
            _ => Ok(Self { roots, own }),
        }
    }

    /// The provider is named: with two of them in one binary rustls cannot choose, and panics.
    pub fn client_config(self) -> Result<ClientConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        if self.own.is_empty() {
            return Ok(builder.with_root_certificates(self.roots).with_no_client_auth());
        }
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verifier = Arc::new(OwnCertificates { chains, own: self.own });
        Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    }
}

/// Verifies as rustls does, and accepts besides a server certificate that is itself in the caFile. Private registries
/// are mostly set up with a self-signed certificate, for which `openssl req -x509` says that it is an authority; webpki
/// takes no authority for a server, docker and containerd do.
#[derive(Debug)]
struct OwnCertificates {
    chains: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl OwnCertificates {
    /// After `fault`: webpki checks the dates before it says (as `Other`) that the certificate is an authority's, and
    /// the name after it.
    fn verify_own(
        &self,
        end_entity: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
        fault: rustls::Error,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = matches!(fault, rustls::Error::InvalidCertificate(CertificateError::Other(_)));
        if !authority || !self.own.iter().any(|own| own == end_entity) {
            return Err(fault);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for OwnCertificates {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.chains
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .or_else(|fault| self.verify_own(end_entity, server_name, fault))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// A machine may have no authorities and still use plain registries, so that is only a warning.
fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _unusable) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        tracing::warn!("the system has no certificate authorities; registries over https need a caFile");
    }
    roots
}
