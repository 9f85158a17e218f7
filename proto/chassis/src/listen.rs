use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

/// A socket that could not be opened; the message names the key to change.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address} (configuration key {key}): {}", advice(.source))]
    Tcp { address: SocketAddr, key: &'static str, source: io::Error },
    #[error("cannot listen on {} (configuration key {key}): {}", path.display(), advice(.source))]
    Unix { path: PathBuf, key: &'static str, source: io::Error },
    #[error(
        "cannot listen on {} (configuration key {key}): the daemon runs already and answers there; stop it or set another path",
        path.display()
    )]
    Alive { path: PathBuf, key: &'static str },
    #[error(
        "cannot listen on {} (configuration key {key}): the path exists and is no socket; remove it or set another path",
        path.display()
    )]
    NotASocket { path: PathBuf, key: &'static str },
}

/// Opens a TCP listener. `key` is the configuration key that holds the address; port 0 takes a free one.
pub async fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError::Tcp { address, key, source })
}

/// Opens a Unix socket that only its owner may use (mode 0600), creating the directory it lies in. A socket
/// file that a dead process left behind is replaced; one that answers is refused. Needs a tokio runtime.
pub fn bind_unix(path: &Path, key: &'static str) -> Result<UnixListener, BindError> {
    let failed = |source| BindError::Unix { path: path.to_owned(), key, source };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path, key)?;
            UnixListener::bind(path).map_err(failed)?
        }
        bound => bound.map_err(failed)?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

fn remove_stale(path: &Path, key: &'static str) -> Result<(), BindError> {
    let failed = |source| BindError::Unix { path: path.to_owned(), key, source };
    if !std::fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned(), key });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(source) => Err(failed(source)),
        Ok(_) => Err(BindError::Alive { path: path.to_owned(), key }),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is taken; stop its owner or set another one",
        io::ErrorKind::AddrNotAvailable => "this host has no such address; set one it has, or 0.0.0.0",
        io::ErrorKind::PermissionDenied => "not permitted; run as root or set another one",
        io::ErrorKind::ReadOnlyFilesystem => "its file system is read-only; set another path",
        io::ErrorKind::NotADirectory => "a part of the path is no directory; set another path",
        io::ErrorKind::InvalidInput => "the path is too long for a socket (107 bytes); set a shorter one",
        _ => "the system refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_address_key_and_remedy() {
        let first = bind("127.0.0.1:0".parse().unwrap(), "server.listen").await.unwrap();
        let address = first.local_addr().unwrap();
        let message = bind(address, "server.listen").await.unwrap_err().to_string();
        for part in [address.to_string().as_str(), "server.listen", "taken", "set another"] {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[tokio::test]
    async fn unix_sockets_replace_the_dead_and_respect_the_living() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/d7y.sock");
        let living = bind_unix(&path, "socket").unwrap();
        assert!(matches!(bind_unix(&path, "socket"), Err(BindError::Alive { .. })));
        drop(living);
        assert!(path.exists(), "the dead socket's file is still there");
        let replaced = bind_unix(&path, "socket").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(replaced);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind_unix(&path, "socket"), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
