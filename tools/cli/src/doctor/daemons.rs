//! Whether the node's daemons run, agree on their sockets, and are well.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::check::{Check, Mend};
use super::network::PATIENCE;
use super::settings::Settings;
use crate::http;

pub async fn check(settings: &Settings) -> Vec<Check> {
    let Settings { peer, snapshotter, .. } = settings;
    let mut checks = vec![socket("peer.socket", "d7y-peer", &peer.local.socket).await];
    if settings.mounts() {
        checks.push(socket("snapshotter.socket", "d7y-snapshotter", &snapshotter.socket).await);
        if snapshotter.peer.socket != peer.local.socket {
            let (looks, is) = (snapshotter.peer.socket.display(), peer.local.socket.display());
            let detail = format!("the snapshotter looks for the peer at {looks}, the peer listens at {is}");
            let mend = settings.set_snapshotter(format!("peer.socket: {is}"));
            checks.push(Check::failed("peer.socket", detail, mend));
        }
    }
    if let Some(address) = peer.observability.listen.first() {
        checks.push(health("peer.health", "d7y-peer", *address).await);
    }
    if let Some(address) = snapshotter.metrics.listen.filter(|_| settings.mounts()) {
        checks.push(health("snapshotter.health", "d7y-snapshotter", address).await);
    }
    checks
}

async fn socket(name: &'static str, unit: &str, path: &Path) -> Check {
    let shown = path.display();
    let (problem, mend) = match timeout(PATIENCE, UnixStream::connect(path)).await {
        Ok(Ok(_)) => return Check::ok(name, format!("{shown} answers")),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            (error.to_string(), Mend::run("sudo d7y doctor"))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            (format!("left behind, nobody listens ({error})"), start(unit))
        }
        Ok(Err(error)) => (error.to_string(), start(unit)),
        Err(_) => ("no answer".to_owned(), Mend::run(format!("systemctl restart {unit}"))),
    };
    Check::failed(name, format!("{shown}: {problem}"), mend)
}

async fn health(name: &'static str, unit: &str, address: SocketAddr) -> Check {
    let address = http::reachable(address);
    match http::get(address, "/healthy").await {
        Ok(answer) if answer.status == 200 => Check::ok(name, format!("http://{address}/healthy says ok")),
        Ok(answer) => Check::failed(
            name,
            answer.body.trim().replace('\n', "; "),
            Mend::run(format!("journalctl -u {unit} -n 50  # docs/operations.md says what each alarm means")),
        ),
        Err(error) => Check::failed(name, format!("http://{address}/healthy: {error:#}"), start(unit)),
    }
}

/// A daemon that cannot start says why in its log.
fn start(unit: &str) -> Mend {
    Mend::run(format!("systemctl start {unit} || journalctl -u {unit} -n 20"))
}
