//! Whether the manager answers, and what it says of the cluster.

use d7y_manager_client::{AskError, look};
use tokio::time::timeout;

use super::check::{Check, Mend};
use super::network::PATIENCE;
use super::settings::Settings;

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
pub async fn ask(settings: &Settings) -> Answer {
    let config = &settings.peer;
    let manager = &config.manager;
    if !manager.is_set() {
        return Answer::default();
    }
    let address = &manager.address;
    let asked = timeout(PATIENCE, look(manager, &config.peer_id, d7y_peer::DAEMON.version)).await;
    match asked.unwrap_or_else(|_| Err(AskError::Other(format!("no answer within {PATIENCE:?}")))) {
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
            let check = match found.schedulers.is_empty() {
                true => Check::warning("manager", detail, scheduler_to_join(address)),
                false => Check::ok("manager", detail),
            };
            Answer { check: Some(check), schedulers: found.schedulers, seeds: found.seeds }
        }
        Err(problem) => {
            let mend = match &problem {
                AskError::NoCluster(_) => settings.set_peer("manager.cluster: NAME OF ONE OF ITS CLUSTERS"),
                AskError::Other(_) => Mend::run_on(address, "systemctl start d7y-manager"),
            };
            let kept = d7y_manager_client::kept(&config.discovered_file());
            let check = Check::warning("manager", format!("{address}: {problem}"), mend);
            Answer { check: Some(check), schedulers: kept.schedulers, seeds: kept.seeds }
        }
    }
}

fn scheduler_to_join(manager: &str) -> Mend {
    Mend::RunOn {
        host: "the scheduler's host".into(),
        command: Mend::set(
            format!("manager.address: {manager}"),
            std::path::Path::new("/etc/d7y/scheduler.yaml"),
            "systemctl restart d7y-scheduler",
        )
        .to_string(),
    }
}
