use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use d7y_proto::manager::manager_client::ManagerClient;
use d7y_proto::manager::{DiscoverRequest, Discovery, Kind};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::backoff::{Backoff, chain, connect};
use crate::config::ManagerConfig;

/// Shorter is the load of a cluster, whatever a manager says.
const LEAST_REFRESH: Duration = Duration::from_millis(20);

/// Where a peer's cluster is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Discovered {
    /// host:port, in the order in which to try them.
    pub schedulers: Vec<String>,
    pub seeds: Vec<String>,
    /// What the cluster's members are to be set to, by key: see `d7y_chassis::Managed`.
    pub config: BTreeMap<String, String>,
}

/// What asking needs.
pub struct Asking {
    /// For whom the settings are to be.
    pub kind: Kind,
    pub config: ManagerConfig,
    pub peer_id: String,
    pub version: &'static str,
    /// Where the last answer is kept, by whoever has a place for it.
    pub file: Option<PathBuf>,
    /// Whether it also stays alive with the manager: then that says, and not this, when the manager is away.
    pub is_member: bool,
    /// Asks at once when notified: what is known turned out to be wrong.
    pub again: Arc<Notify>,
}

/// Asks for as long as the peer runs, beginning with what was known when it last ran.
pub async fn discover(asking: Asking, known: watch::Sender<Discovered>) {
    known.send_replace(asking.file.as_deref().map(kept).unwrap_or_default());
    let mut backoff = Backoff::new();
    let mut lost = false;
    loop {
        let wait = match ask(&asking).await {
            Ok(answer) => {
                if std::mem::take(&mut lost) && !asking.is_member {
                    tracing::info!(manager = asking.config.address, "the manager answers again");
                }
                let refresh = Duration::from_millis(u64::from(answer.refresh_ms)).max(LEAST_REFRESH);
                learn(asking.file.as_deref(), &known, answer);
                let is_alone = known.borrow().schedulers.is_empty();
                match is_alone {
                    // When all starts at once, the scheduler may join the manager just after this peer has asked.
                    true => refresh.min(backoff.next()),
                    false => {
                        backoff.reset();
                        refresh
                    }
                }
            }
            Err(why) => {
                if !std::mem::replace(&mut lost, true) && !asking.is_member {
                    tracing::warn!(
                        manager = asking.config.address,
                        "the manager does not answer, going on with what is known: {why}"
                    );
                }
                backoff.next()
            }
        };
        let _ = tokio::time::timeout(wait, asking.again.notified()).await;
        tokio::time::sleep(LEAST_REFRESH).await;
    }
}

/// Why there is no answer, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskError {
    /// The manager is there and knows no such cluster.
    NoCluster(String),
    Other(String),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCluster(why) | Self::Other(why) => f.write_str(why),
        }
    }
}

/// Asks once, for somebody who looks whether the manager is there.
pub async fn look(config: &ManagerConfig, peer_id: &str, version: &str) -> Result<Discovery, AskError> {
    let request = DiscoverRequest {
        cluster: config.cluster.clone(),
        peer_id: peer_id.to_owned(),
        version: version.to_owned(),
        kind: Kind::Unspecified.into(),
    };
    send(config, request).await
}

async fn ask(asking: &Asking) -> Result<Discovery, AskError> {
    let request = DiscoverRequest {
        cluster: asking.config.cluster.clone(),
        peer_id: asking.peer_id.clone(),
        version: asking.version.to_owned(),
        kind: asking.kind.into(),
    };
    send(&asking.config, request).await
}

async fn send(config: &ManagerConfig, request: DiscoverRequest) -> Result<Discovery, AskError> {
    let mut client = ManagerClient::new(connect(&config.address).await.map_err(AskError::Other)?);
    let answer = client.discover(request).await.map_err(|status| match status.code() {
        // It says itself what is wrong.
        tonic::Code::NotFound => AskError::NoCluster(status.message().to_owned()),
        tonic::Code::Internal => AskError::Other(status.message().to_owned()),
        _ => AskError::Other(chain(&status)),
    })?;
    Ok(answer.into_inner())
}

/// Settings are what they are, none too. An empty list is no news: a manager that has just started has not heard of anybody yet, and whom it forgot may still
/// be there.
fn learn(file: Option<&Path>, known: &watch::Sender<Discovered>, answer: Discovery) {
    let mut now = known.borrow().clone();
    if !answer.schedulers.is_empty() {
        now.schedulers = answer.schedulers;
    }
    if !answer.seeds.is_empty() {
        now.seeds = answer.seeds;
    }
    now.config = answer.config.into_iter().collect();
    if *known.borrow() == now {
        return;
    }
    tracing::info!(schedulers = ?now.schedulers, seeds = ?now.seeds, config = ?now.config, "the manager says where the cluster is");
    if let Some(file) = file
        && let Err(error) = save(file, &now)
    {
        tracing::warn!(file = %file.display(), %error, "cannot keep what the manager said for the next start");
    }
    known.send_replace(now);
}

/// The last answer. A missing or damaged file is an empty one: the manager says it again.
pub fn kept(file: &Path) -> Discovered {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn save(file: &Path, known: &Discovered) -> io::Result<()> {
    let partial = file.with_extension("partial");
    fs::write(&partial, serde_json::to_vec(known)?)?;
    fs::rename(partial, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_and_an_empty_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("discovered.json");
        let known = watch::Sender::new(kept(&file));
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        type Names = &'static [&'static str];
        let table: [(Names, Names, Names, Names); 4] = [
            (&["s:1"], &[], &["s:1"], &[]),
            (&[], &["a:1", "b:1"], &["s:1"], &["a:1", "b:1"]),
            (&[], &[], &["s:1"], &["a:1", "b:1"]),
            (&["t:1"], &["b:1"], &["t:1"], &["b:1"]),
        ];
        for (schedulers, seeds, then_schedulers, then_seeds) in table {
            let answer =
                Discovery { schedulers: list(schedulers), seeds: list(seeds), ..Discovery::default() };
            learn(Some(&file), &known, answer);
            let (schedulers, seeds) = (list(then_schedulers), list(then_seeds));
            let expected = Discovered { schedulers, seeds, ..Discovered::default() };
            assert_eq!(*known.borrow(), expected);
            assert_eq!(kept(&file), expected);
        }
        let level = |level: &str| [("log.level".to_owned(), level.to_owned())];
        let config = level("debug").into();
        learn(Some(&file), &known, Discovery { config, ..Discovery::default() });
        assert_eq!(kept(&file).config, level("debug").into());
        learn(Some(&file), &known, Discovery::default());
        assert!(kept(&file).config.is_empty(), "what is no longer set is forgotten");
        fs::write(&file, "{\"schedulers\":").unwrap();
        assert_eq!(kept(&file), Discovered::default(), "a damaged file is an empty one");
    }
}
