use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use d7y_origin::testing::{Access, Ending, FakeRegistry, Login, Turn};
use d7y_origin::{Origin, RegistryConfig, Scheme};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::{config, content, kind, read};

/// Makes `cert.pem` and `key.pem` for 127.0.0.1.
fn make_certificate(dir: &Path) {
    let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test \
                     -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem";
    let status = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(dir)
        .stderr(Stdio::null())
        .status()
        .expect("openssl is installed (Debian package openssl)");
    assert!(status.success());
}

/// Takes TLS off in front of `registry`; the address to ask.
async fn terminate(dir: &Path, registry: &FakeRegistry) -> (SocketAddr, JoinSet<()>) {
    let certificate = CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let plain = registry.host();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, plain) = (acceptor.clone(), plain.clone());
            connections.spawn(async move {
                let Ok(mut encrypted) = acceptor.accept(stream).await else { return };
                let mut plain = TcpStream::connect(plain).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut encrypted, &mut plain).await;
            });
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn certificates_and_schemes() {
    let dir = TempDir::new().unwrap();
    make_certificate(dir.path());
    let ca = Some(dir.path().join("cert.pem"));
    let (https, http) = (Some(Scheme::Https), Some(Scheme::Http));
    let registry = FakeRegistry::start().await;
    let (encrypted, _tasks) = terminate(dir.path(), &registry).await;
    let other_name = format!("localhost:{}", encrypted.port());
    let encrypted = encrypted.to_string();
    let other_dir = TempDir::new().unwrap();
    make_certificate(other_dir.path());
    let other_ca = Some(other_dir.path().join("cert.pem"));
    let cases = [
        (encrypted.clone(), https, ca.clone(), "ok"),
        (encrypted.clone(), https, None, "tls"),
        (encrypted.clone(), https, other_ca, "tls"),
        (other_name, https, ca.clone(), "tls"),
        (encrypted, http, None, "connect"),
        (registry.host(), https, ca, "tls"),
        (registry.host(), None, None, "ok"),
    ];
    for (host, scheme, ca_file, expected) in cases {
        let mut layer = registry.add_blob("app", content(10_000));
        layer.registry = host.clone();
        let mut config = config();
        config.registries.push(RegistryConfig { scheme, ca_file, ..RegistryConfig::new(host) });
        let (received, outcome) = read(&Origin::new(config.clone()).unwrap(), &layer, 0).await;
        assert_eq!(kind(&outcome), expected, "{config:?}: {outcome:?}");
        assert_eq!(received.len(), if expected == "ok" { 10_000 } else { 0 });
    }
}

#[tokio::test]
async fn https_is_not_left_for_http() {
    let dir = TempDir::new().unwrap();
    make_certificate(dir.path());
    let plain_token_service = Access::Token { login: Login::Anybody, uses: 9 };
    for (access, expected) in [(Access::Open, "redirect Downgrade"), (plain_token_service, "protocol Realm")]
    {
        let registry = FakeRegistry::start_with(access, Ending::Orderly).await;
        let (encrypted, _tasks) = terminate(dir.path(), &registry).await;
        let mut layer = registry.add_blob("app", content(10));
        registry.always(Turn::RedirectToSelf);
        layer.registry = encrypted.to_string();
        let mut config = config();
        let (scheme, ca_file) = (Some(Scheme::Https), Some(dir.path().join("cert.pem")));
        config.registries.push(RegistryConfig { scheme, ca_file, ..RegistryConfig::new(&layer.registry) });
        let (_, outcome) = read(&Origin::new(config).unwrap(), &layer, 0).await;
        assert_eq!(kind(&outcome), expected);
        assert_eq!(registry.seen().len(), 1);
    }
}
