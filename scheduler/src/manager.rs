//! How the manager knows of this scheduler and its peers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use d7y_chassis::{OnEnd, Tasks};
use d7y_manager_client::{Crowd, Member};
use d7y_proto::manager::{Kind, Peer, Register, Role};
use d7y_scheduler_core as core;

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
    let name = match config.name.is_empty() {
        true => nix::unistd::gethostname().context("cannot read the host's name; set name")?,
        false => config.name.clone().into(),
    };
    let address = match config.advertise.is_empty() {
        true => server.to_string(),
        false => config.advertise.clone(),
    };
    let register = Register {
        kind: Kind::Scheduler.into(),
        name: name.to_string_lossy().into_owned(),
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
