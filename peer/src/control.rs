//! This peer's place in the control plane: its scheduler, its manager, and what they order.

use std::net::SocketAddr;
use std::sync::Arc;

use d7y_chassis::tasks::Tasks;
use d7y_manager_client::{Asking, Discovered, ManagerConfig, Member};
use d7y_proto::manager::{Kind, Register};
use d7y_proto::scheduler::{self, Announce};
use tokio::sync::{Notify, mpsc, watch};

use crate::config::{Config, Role};
use crate::directory::{Directory, DirectoryConfig, Order};
use crate::fetch::Fetcher;
use crate::metrics::Metrics;
use crate::preheat::{ORDER_QUEUE, Preheater};
use crate::start::{DAEMON, supervise, supervise_until_closing};

/// What talks to scheduler and manager once it has begun.
pub struct Control {
    directory: Arc<Directory>,
    orders: mpsc::Receiver<Order>,
    manager: Option<Manager>,
    /// There is a scheduler, or somebody who knows one.
    scheduled: bool,
}

struct Manager {
    asking: Asking,
    known: watch::Sender<Discovered>,
    /// A seed lets itself be found.
    member: Option<(ManagerConfig, Register)>,
}

impl Control {
    pub fn set_up(
        config: &Config,
        peer_id: &str,
        transfer: SocketAddr,
        metrics: &Arc<Metrics>,
    ) -> (Arc<Directory>, Self) {
        let (send_orders, orders) = mpsc::channel(ORDER_QUEUE);
        let (known, discovered) = watch::channel(Discovered::default());
        let ask_manager = Arc::new(Notify::new());
        let announce = announce(config, peer_id, transfer);
        let manager = config.manager.is_set().then(|| Manager {
            asking: Asking {
                config: config.manager.clone(),
                kind: Kind::Unspecified,
                peer_id: announce.peer_id.clone(),
                version: DAEMON.version,
                file: Some(config.discovered_file()),
                is_member: config.role == Role::Seed,
                again: ask_manager.clone(),
            },
            known,
            member: (config.role == Role::Seed)
                .then(|| (config.manager.clone(), register(config, &announce))),
        });
        let directory_config = DirectoryConfig {
            announce,
            scheduler: config.scheduler.address.clone(),
            seeds: config.seeds.clone(),
            discovered,
            ask_manager,
            orders: send_orders,
        };
        let directory = Arc::new(Directory::new(directory_config, metrics.clone()));
        let scheduled = manager.is_some() || !config.scheduler.address.is_empty();
        (directory.clone(), Self { directory, orders, manager, scheduled })
    }

    /// What the manager says, from now on.
    pub fn discovered(&self) -> Option<watch::Receiver<Discovered>> {
        self.manager.as_ref().map(|manager| manager.known.subscribe())
    }

    /// From now on scheduler and manager are spoken with.
    pub fn begin(self, tasks: &Tasks, preheater: Preheater, fetcher: Fetcher) {
        if let Some(Manager { asking, known, member }) = self.manager {
            supervise(tasks, "discovery", d7y_manager_client::discover(asking, known));
            if let Some((config, register)) = member {
                let member = Member { register, crowd: () };
                supervise_until_closing(tasks, "manager", d7y_manager_client::keep_alive(config, member));
            }
        }
        if self.scheduled {
            let (directory, closing) = (self.directory.clone(), tasks.shutdown().closing());
            supervise(tasks, "scheduler session", async move {
                closing.run_until_cancelled(directory.clone().run(fetcher)).await;
                directory.leave();
            });
        }
        supervise(tasks, "preheater", Arc::new(preheater).run(self.orders));
    }
}

fn announce(config: &Config, peer_id: &str, transfer: SocketAddr) -> Announce {
    let address = match config.transfer.advertise.is_empty() {
        true => transfer.to_string(),
        false => config.transfer.advertise.clone(),
    };
    let role = match config.role {
        Role::Node => scheduler::Role::Node,
        Role::Seed => scheduler::Role::Seed,
    };
    let incarnation: u64 = rand::random();
    Announce {
        peer_id: peer_id.to_owned(),
        hostname: peer_id.to_owned(),
        role: role.into(),
        address,
        version: DAEMON.version.to_owned(),
        incarnation: format!("{incarnation:016x}"),
    }
}

fn register(config: &Config, announce: &Announce) -> Register {
    Register {
        kind: Kind::Seed.into(),
        name: announce.peer_id.clone(),
        cluster: config.manager.cluster.clone(),
        address: announce.address.clone(),
        version: announce.version.clone(),
    }
}
