//! Who can be reached from here, and whether the clocks agree.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use d7y_origin::{Origin, Pong, PongAnswer};
use d7y_peer::view::StatusView;
use d7y_peer::{Config, Role};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::check::Check;
use super::manager;
use crate::http;

/// How long anybody may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The Date header has whole seconds; certificates and tokens forgive some tens.
const CLOCK_WARNING: Duration = Duration::from_secs(10);
const CLOCK_FAILED: Duration = Duration::from_secs(60);

pub async fn check(config: &Config, more_registries: &[String]) -> Vec<Check> {
    let mut checks = Vec::new();
    let manager::Answer { check, schedulers, seeds } = manager::ask(config).await;
    checks.extend(check);
    let configured = Some(&config.scheduler.address).filter(|address| !address.is_empty());
    let schedulers = configured.map_or(schedulers, |scheduler| vec![scheduler.clone()]);
    if config.standalone {
        checks.push(Check::ok("scheduler", "none: the peer is standalone"));
    } else if schedulers.is_empty() {
        checks.push(no_scheduler(running_peer(config).await));
    }
    for scheduler in &schedulers {
        let mend = format!("systemctl status d7y-scheduler on its host; open port {}", port(scheduler));
        checks.push(reach("scheduler", scheduler, mend).await);
    }
    for seed in config.seeds.iter().chain(&seeds).collect::<BTreeSet<_>>() {
        let mend = format!("systemctl status d7y-peer on its host; open port {}", port(seed));
        checks.push(reach("seed", seed, mend).await);
    }
    checks.extend(trust(config));
    checks.extend(registries(config, more_registries).await);
    checks
}

/// Flags and the manager may have told the running peer more than its configuration file does.
fn no_scheduler(running: Option<StatusView>) -> Check {
    const NAME: &str = "scheduler";
    match running {
        Some(peer) if peer.scheduler_connected => Check::ok(NAME, "the running peer is connected to one"),
        Some(peer) if peer.standalone => Check::ok(NAME, "none: the running peer is standalone"),
        _ => Check::warning(
            NAME,
            "the peer is told of none: it asks the seeds that it knows, and else the origin",
            "set scheduler.address or manager.address in the peer's configuration, or standalone: true",
        ),
    }
}

async fn running_peer(config: &Config) -> Option<StatusView> {
    let address = http::reachable(*config.observability.listen.first()?);
    let answer = http::get(address, "/status").await.ok()?;
    serde_json::from_str(&answer.body).ok()
}

/// `mend` is for a scheduler or a seed that is down: images start without it, but later or at the registry's cost.
async fn reach(name: &'static str, address: &str, mend: String) -> Check {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Check::ok(name, format!("{address} answers")),
        Ok(Err(error)) => Check::warning(name, format!("{address}: {error}"), mend),
        Err(_) => Check::warning(name, format!("{address} does not answer within {PATIENCE:?}"), mend),
    }
}

fn trust(config: &Config) -> Option<Check> {
    let trust = &config.index_trust;
    let alone = config.seeds.is_empty() && config.scheduler.address.is_empty() && !config.manager.is_set();
    if config.role == Role::Seed || alone {
        return None;
    }
    Some(match trust.public_keys.is_empty() && trust.signing_key.is_empty() {
        true => Check::warning(
            "index.trust",
            "no key is trusted: every index of another peer is refused and built here again",
            "put the seed's public key (it logs it at its start) under indexTrust.publicKeys",
        ),
        false => Check::ok("index.trust", "the keys of other peers are configured"),
    })
}

async fn registries(config: &Config, more: &[String]) -> Vec<Check> {
    let origin = match Origin::new(config.origin.clone()) {
        Ok(origin) => origin,
        Err(error) => {
            return vec![Check::failed(
                "registry",
                error.to_string(),
                "edit origin in the peer's configuration",
            )];
        }
    };
    let configured = config.origin.registries.iter().map(|registry| &registry.host);
    let mut checks = Vec::new();
    let mut skew = None;
    for host in configured.chain(more).collect::<BTreeSet<_>>() {
        match ping(&origin, host).await {
            Ok(pongs) => {
                for pong in pongs {
                    skew = skew.or(clock_skew(&pong));
                    checks.push(registry(pong));
                }
            }
            Err(error) => checks.push(refused(host, format!("{error:#}"))),
        }
    }
    if checks.is_empty() {
        let detail = "none is configured, so none was asked";
        checks.push(Check::warning("registry", detail, "d7y doctor --registry HOST"));
    }
    checks.push(clock(skew));
    checks
}

async fn ping(origin: &Origin, host: &str) -> Result<Vec<Pong>> {
    Ok(timeout(PATIENCE, origin.ping(host)).await.context("no answer within 5s")??)
}

fn registry(pong: Pong) -> Check {
    let Pong { endpoint, answer } = pong;
    match answer {
        Ok(PongAnswer { status, .. }) if matches!(status.as_u16(), 200 | 401) => {
            Check::ok("registry", format!("{endpoint} answers"))
        }
        Ok(PongAnswer { status, .. }) => {
            refused(&endpoint, format!("answers {status} and not as a registry does"))
        }
        Err(error) => refused(&endpoint, error.to_string()),
    }
}

fn refused(host: &str, problem: String) -> Check {
    let mend =
        format!("curl -v https://{host}/v2/; scheme, caFile and mirrors are set under origin.registries");
    Check::warning("registry", format!("{host}: {problem}"), mend)
}

/// How far this node's clock is from the registry's.
fn clock_skew(pong: &Pong) -> Option<Duration> {
    let date = pong.answer.as_ref().ok()?.date.as_deref()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    let ours = SystemTime::now();
    Some(ours.duration_since(theirs).unwrap_or_else(|earlier| earlier.duration()))
}

fn clock(skew: Option<Duration>) -> Check {
    const MEND: &str = "timedatectl set-ntp true; timedatectl timesync-status";
    let Some(skew) = skew else {
        return Check::warning(
            "clock",
            "no registry answered with the time: not compared",
            "timedatectl status",
        );
    };
    let detail = format!("{} s from the registry's", skew.as_secs());
    match skew {
        skew if skew >= CLOCK_FAILED => {
            Check::failed("clock", format!("{detail}: certificates and tokens are refused"), MEND)
        }
        skew if skew >= CLOCK_WARNING => Check::warning("clock", detail, MEND),
        _ => Check::ok("clock", detail),
    }
}

fn port(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(_, port)| port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::State;

    #[test]
    fn clocks_are_judged_by_what_depends_on_them() {
        let table = [
            (None, State::Warning),
            (Some(2), State::Ok),
            (Some(30), State::Warning),
            (Some(90), State::Failed),
        ];
        for (seconds, state) in table {
            assert_eq!(clock(seconds.map(Duration::from_secs)).state, state, "{seconds:?}");
        }
    }
}
