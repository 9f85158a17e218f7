//! Who can be reached from here, and whether the clocks agree.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use d7y_origin::{Origin, OriginError, Pong, PongAnswer};
use d7y_peer::view::StatusView;
use d7y_peer::{Config, Role};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::check::{Check, Mend};
use super::machine::Machine;
use super::manager;
use super::settings::Settings;
use crate::http;

/// How long anybody may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The Date header has whole seconds; certificates and tokens forgive some tens.
const CLOCK_WARNING: Duration = Duration::from_secs(10);
const CLOCK_FAILED: Duration = Duration::from_secs(60);

pub async fn check(settings: &Settings, more_registries: &[String], machine: &impl Machine) -> Vec<Check> {
    let config = &settings.peer;
    let mut checks = Vec::new();
    let manager::Answer { check, schedulers, seeds } = manager::ask(settings).await;
    checks.extend(check);
    let configured = Some(&config.scheduler.address).filter(|address| !address.is_empty());
    let schedulers = configured.map_or(schedulers, |scheduler| vec![scheduler.clone()]);
    if config.standalone {
        checks.push(Check::ok("scheduler", "none: the peer is standalone"));
    } else if schedulers.is_empty() {
        checks.push(no_scheduler(settings, running_peer(config).await));
    }
    for scheduler in &schedulers {
        checks.push(reach("scheduler", scheduler, "d7y-scheduler").await);
    }
    for seed in config.seeds.iter().chain(&seeds).collect::<BTreeSet<_>>() {
        checks.push(reach("seed", seed, "d7y-peer").await);
    }
    checks.extend(trust(settings));
    checks.extend(registries(settings, more_registries, machine.now()).await);
    checks
}

/// Flags and the manager may have told the running peer more than its configuration file does.
fn no_scheduler(settings: &Settings, running: Option<StatusView>) -> Check {
    const NAME: &str = "scheduler";
    match running {
        Some(peer) if peer.scheduler_connected => Check::ok(NAME, "the running peer is connected to one"),
        Some(peer) if peer.standalone => Check::ok(NAME, "none: the running peer is standalone"),
        _ => Check::warning(
            NAME,
            "the peer is told of none: it asks the seeds that it knows, and else the origin (standalone: true says \
             that this is meant; with manager.address the manager tells it)",
            settings.set_peer("scheduler.address: HOST:8002"),
        ),
    }
}

async fn running_peer(config: &Config) -> Option<StatusView> {
    let address = http::reachable(*config.observability.listen.first()?);
    let answer = http::get(address, "/status").await.ok()?;
    serde_json::from_str(&answer.body).ok()
}

/// A scheduler or a seed that is down is a warning: images start without it, but later or at the registry's cost.
async fn reach(name: &'static str, address: &str, unit: &str) -> Check {
    let (problem, mend) = match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => return Check::ok(name, format!("{address} answers")),
        Ok(Err(error)) => (error.to_string(), format!("systemctl start {unit}")),
        Err(_) => {
            let problem =
                format!("no answer within {PATIENCE:?}: it hangs, or the port is closed on the way");
            (problem, format!("systemctl restart {unit}"))
        }
    };
    Check::warning(name, format!("{address}: {problem}"), Mend::run_on(address, mend))
}

fn trust(settings: &Settings) -> Option<Check> {
    let config = &settings.peer;
    let trust = &config.index_trust;
    let alone = config.seeds.is_empty() && config.scheduler.address.is_empty() && !config.manager.is_set();
    if config.role == Role::Seed || alone {
        return None;
    }
    Some(match trust.public_keys.is_empty() && trust.signing_key.is_empty() {
        true => Check::warning(
            "index.trust",
            "no key is trusted: every index of another peer is refused and built here again (each seed logs its key \
             at its start: journalctl -u d7y-peer | grep public_key)",
            settings.set_peer("indexTrust.publicKeys: [KEY OF EACH SEED]"),
        ),
        false => Check::ok("index.trust", "the keys of other peers are configured"),
    })
}

async fn registries(settings: &Settings, more: &[String], now: SystemTime) -> Vec<Check> {
    let config = &settings.peer;
    let origin = match Origin::new(config.origin.clone()) {
        Ok(origin) => origin,
        Err(error) => {
            let file = settings.peer_file.display();
            let mend = Mend::run(format!("sudoedit {file} && d7y-peer --config {file} --check-config"));
            return vec![Check::failed("registry", error.to_string(), mend)];
        }
    };
    let configured = config.origin.registries.iter().map(|registry| &registry.host);
    let mut checks = Vec::new();
    let mut skew = None;
    for host in configured.chain(more).collect::<BTreeSet<_>>() {
        match ping(&origin, host).await {
            Ok(pongs) => {
                for pong in pongs {
                    skew = skew.or(clock_skew(&pong, now));
                    checks.push(registry(settings, pong));
                }
            }
            Err(error) => {
                let mend = Mend::run(format!("curl -v https://{host}/v2/"));
                checks.push(Check::warning("registry", format!("{host}: {error:#}"), mend));
            }
        }
    }
    if checks.is_empty() {
        let detail = "none is configured, so none was asked";
        checks.push(Check::warning("registry", detail, Mend::run("d7y doctor --registry HOST")));
    }
    checks.push(clock(skew));
    checks
}

async fn ping(origin: &Origin, host: &str) -> Result<Vec<Pong>> {
    Ok(timeout(PATIENCE, origin.ping(host)).await.context("no answer within 5s")??)
}

fn registry(settings: &Settings, pong: Pong) -> Check {
    const NAME: &str = "registry";
    let Pong { endpoint, url, answer } = pong;
    let look = Mend::run(format!("curl -v {url}"));
    match answer {
        Ok(PongAnswer { status, .. }) if matches!(status.as_u16(), 200 | 401) => {
            Check::ok(NAME, format!("{endpoint} answers"))
        }
        Ok(PongAnswer { status, .. }) => {
            Check::warning(NAME, format!("{endpoint}: answers {status} and not as a registry does"), look)
        }
        Err(error @ OriginError::Tls { .. }) => {
            let line = format!("origin.registries: [{{host: \"{endpoint}\", caFile: PEM OF ITS AUTHORITY}}]");
            Check::warning(NAME, format!("{endpoint}: {error}"), settings.set_peer(line))
        }
        Err(error) => Check::warning(NAME, format!("{endpoint}: {error}"), look),
    }
}

/// How far this node's clock is from the registry's.
fn clock_skew(pong: &Pong, ours: SystemTime) -> Option<Duration> {
    let date = pong.answer.as_ref().ok()?.date.as_deref()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    Some(ours.duration_since(theirs).unwrap_or_else(|earlier| earlier.duration()))
}

fn clock(skew: Option<Duration>) -> Check {
    const NAME: &str = "clock";
    let mend = Mend::run("timedatectl set-ntp true; timedatectl timesync-status");
    let Some(skew) = skew else {
        return Check::warning(NAME, "no registry answered with the time: not compared", mend);
    };
    let detail = format!("{} s from the registry's", skew.as_secs());
    match skew {
        skew if skew >= CLOCK_FAILED => {
            Check::failed(NAME, format!("{detail}: certificates and tokens are refused"), mend)
        }
        skew if skew >= CLOCK_WARNING => Check::warning(NAME, detail, mend),
        _ => Check::ok(NAME, detail),
    }
}
