//! Whether the manager answers, and what it says of the cluster.

use d7y_manager_client::look;
use d7y_peer::Config;
use tokio::time::timeout;

use super::check::Check;
use super::network::PATIENCE;

/// What the manager said.
#[derive(Debug, Default)]
pub struct Answer {
    /// None when nobody is configured to be asked.
    pub check: Option<Check>,
    /// host:port; of an earlier answer when there is none now.
    pub schedulers: Vec<String>,
    pub seeds: Vec<String>,
}

/// Nothing on the node waits for the manager, so that its faults are warnings.
pub async fn ask(config: &Config) -> Answer {
    let manager = &config.manager;
    if !manager.is_set() {
        return Answer::default();
    }
    let address = &manager.address;
    let asked = timeout(PATIENCE, look(manager, &config.peer_id, d7y_peer::DAEMON.version)).await;
    match asked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
        Ok(found) => {
            let (schedulers, seeds) = (found.schedulers.len(), found.seeds.len());
            let mut detail = format!(
                "{address}: cluster {} with {schedulers} scheduler(s) and {seeds} seed peer(s)",
                found.cluster
            );
            if !found.config.is_empty() {
                let mut keys: Vec<_> = found.config.keys().map(String::as_str).collect();
                keys.sort_unstable();
                detail.push_str(&format!("; it sets {}", keys.join(", ")));
            }
            let mend = "start d7y-scheduler with manager.address set to this manager";
            let check = match found.schedulers.is_empty() {
                true => Check::warning("manager", detail, mend),
                false => Check::ok("manager", detail),
            };
            Answer { check: Some(check), schedulers: found.schedulers, seeds: found.seeds }
        }
        Err(problem) => {
            let mend = "systemctl status d7y-manager on its host; check manager.address and manager.cluster";
            let kept = d7y_manager_client::kept(&config.discovered_file());
            let check = Check::warning("manager", format!("{address}: {problem}"), mend);
            Answer { check: Some(check), schedulers: kept.schedulers, seeds: kept.seeds }
        }
    }
}
