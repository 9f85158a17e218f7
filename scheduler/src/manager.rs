//! How the manager knows of this scheduler and its peers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use d7y_chassis::{OnEnd, Reloads, Tasks};
use d7y_manager_client::{Asking, Crowd, Discovered, Member};
use d7y_proto::manager::{Kind, Peer, Register, Role};
use d7y_scheduler_core as core;
use tokio::sync::watch;

use crate::config::Config;
use crate::hub::Hub;

/// Keeps alive with the manager, if there is one.
pub(crate) fn keep_alive(
    config: &Config,
    server: SocketAddr,
    hub: &Arc<Hub>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    if !config.manager.is_set() {
        return Ok(());
    }
    let name = name(config)?;
    let address = match config.advertise.is_empty() {
        true => server.to_string(),
        false => config.advertise.clone(),
    };
    let register = Register {
        kind: Kind::Scheduler.into(),
        name,
        cluster: config.manager.cluster.clone(),
        address,
        version: crate::DAEMON.version.to_owned(),
    };
    let member = Member { register, crowd: Sessions { hub: hub.clone(), said: None } };
    let staying = d7y_manager_client::keep_alive(config.manager.clone(), member);
    let closing = tasks.shutdown().closing();
    tasks.spawn("manager", OnEnd::Fatal, async move {
        closing.run_until_cancelled(staying).await;
        Ok::<_, Infallible>(())
    });
    Ok(())
}

fn name(config: &Config) -> anyhow::Result<String> {
    if !config.name.is_empty() {
        return Ok(config.name.clone());
    }
    let name = nix::unistd::gethostname().context("cannot read the host's name; set name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Has the manager's settings taken over. A scheduler keeps nothing on disk: without the manager it starts with its own.
pub(crate) fn follow(config: &Config, tasks: &Tasks, reloads: Reloads<Config>) -> anyhow::Result<()> {
    if !config.manager.is_set() {
        return Ok(());
    }
    let asking = Asking {
        kind: Kind::Scheduler,
        config: config.manager.clone(),
        peer_id: name(config)?,
        version: crate::DAEMON.version,
        file: None,
        is_member: true,
        again: Arc::default(),
    };
    let (known, discovered) = watch::channel(Discovered::default());
    let asking = d7y_manager_client::discover(asking, known);
    let following = d7y_manager_client::settings(discovered, reloads.manager());
    let closing = tasks.shutdown().closing();
    tasks.spawn("managed settings", OnEnd::Fatal, async move {
        // Nothing reads what was reloaded but the log.
        let _reloads = reloads;
        closing.run_until_cancelled(async { tokio::join!(asking, following) }).await;
        Ok::<_, Infallible>(())
    });
    Ok(())
}

struct Sessions {
    hub: Arc<Hub>,
    /// The state of the crowd that the manager was told of last.
    said: Option<u64>,
}

impl Crowd for Sessions {
    fn peers(&mut self, fresh: bool) -> Option<Vec<Peer>> {
        let (peers, crowd) = self.hub.peers(self.said.filter(|_| !fresh))?;
        self.said = Some(crowd);
        Some(peers.into_iter().map(peer).collect())
    }
}

fn peer(info: core::PeerInfo) -> Peer {
    let role = match info.role {
        core::Role::Node => Role::Node,
        core::Role::Seed => Role::Seed,
    };
    Peer { name: info.id.to_string(), role: role.into(), address: info.address }
}
