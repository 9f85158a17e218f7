//! d7y-manager, and its REST as root sees it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::client::Reference;
use super::config;
use super::daemon::Daemon;
use super::host::Link;
use super::http;
use super::lab::Lab;
use super::places::Places;
use super::service::{Plan, Service};

/// For a password after the start, and for members after their own.
const SOON: Duration = Duration::from_secs(30);

/// What the manager prints before the first password, and after it.
const PASSWORD: (&str, &str) = ("with the password ", ". ");

/// Who keeps alive with the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    Scheduler,
    Seed,
}

/// A manager with an empty database, and a token of its first user.
pub struct Manager {
    pub service: Service,
    rest: SocketAddr,
    grpc: SocketAddr,
    password: String,
    token: String,
}

impl Manager {
    /// Starts it, reads the password that it prints, and has it make a token for jobs.
    ///
    /// # Errors
    /// It does not come up, or refuses the password.
    pub fn start(lab: &Lab, registry: &str) -> Result<Self> {
        let host = lab.host("manager", Link(None))?;
        let at = |port| SocketAddr::new(host.address.into(), port);
        let (rest, grpc, health) =
            (at(config::MANAGER_REST_PORT), at(config::MANAGER_GRPC_PORT), at(config::MANAGER_STATUS_PORT));
        let text = config::Manager { dir: &host.dir, rest, grpc, status: health, registry }.text();
        let plan = Plan {
            name: "manager".into(),
            program: "d7y-manager",
            config: text,
            arguments: Vec::new(),
            host,
            health,
        };
        let service = Service::start(lab, plan)?;
        let password = first_password(&service.daemon)?;
        let login = format!("Basic {}", BASE64_STANDARD.encode(format!("root:{password}")));
        let wanted = json!({ "name": "rig", "scopes": ["jobs", "schedulers", "seed-peers"] });
        let made = http::post(rest, "/api/v1/personal-access-tokens", &login, &wanted.to_string())?;
        let made: Value = serde_json::from_str(&made).context("the manager's answer is not JSON")?;
        let token = made["token"].as_str().context("the manager's answer has no token")?.to_owned();
        Ok(Self { service, rest, grpc, password, token })
    }

    /// Where schedulers and peers reach it.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where people reach it.
    pub fn rest(&self) -> SocketAddr {
        self.rest
    }

    /// Of the user `root`.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A personal access token of root's.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Waits until it tells peers of a member: who asks before that is told again only after a while.
    ///
    /// # Errors
    /// The member does not come.
    pub fn wait_for(&self, member: Member) -> Result<()> {
        let path = match member {
            Member::Scheduler => "/api/v1/schedulers",
            Member::Seed => "/api/v1/seed-peers",
        };
        let authorization = format!("Bearer {}", self.token);
        let mut last = String::new();
        let here = || {
            let answer = http::get_as(self.rest, path, &authorization);
            let rows = answer.and_then(|text| Ok(serde_json::from_str::<Value>(&text)?));
            last = format!("{rows:?}");
            rows.is_ok_and(|rows| {
                rows.as_array().is_some_and(|rows| rows.iter().any(|row| row["state"] == "active"))
            })
        };
        let waited = self.service.daemon.wait_ready(SOON, here);
        waited.with_context(|| format!("the manager has no {member:?}: {path} has {last}"))
    }

    /// `d7y preheat` of an image to every peer, waiting for its end.
    ///
    /// # Errors
    /// d7y is not built.
    pub fn preheat(&self, places: &Places, image: &Reference) -> Result<Command> {
        let mut d7y = Command::new(places.daemon("d7y")?);
        d7y.args(["preheat", &image.to_string(), "--scope", "all-peers", "--wait"]);
        d7y.args(["--manager", &self.rest.to_string()]).env("D7Y_TOKEN", &self.token);
        Ok(d7y)
    }
}

/// The daemon is healthy before it has printed the password.
fn first_password(daemon: &Daemon) -> Result<String> {
    let mut found = None;
    daemon.wait_ready(SOON, || {
        let log = std::fs::read_to_string(daemon.log()).unwrap_or_default();
        found = password(&log).map(str::to_owned);
        found.is_some()
    })?;
    match found {
        Some(password) => Ok(password),
        None => bail!("the manager printed no password"),
    }
}

fn password(log: &str) -> Option<&str> {
    let (before, after) = PASSWORD;
    log.split_once(before)?.1.split_once(after).map(|(password, _)| password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_found_once_its_line_is_whole() {
        for (log, found) in [
            ("INFO listening\nThe first user is root, with the password aB3. It is shown", Some("aB3")),
            ("The first user is root, with the password aB", None),
            ("", None),
        ] {
            assert_eq!(password(log), found, "{log}");
        }
    }
}
