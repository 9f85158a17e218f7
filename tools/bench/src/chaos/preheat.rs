//! Preheats through the manager, as a release does them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::dice::Dice;
use super::log::{FaultKind, Log};
use super::stock::Stocked;
use crate::rig::http;
use crate::rig::manager::Manager;

/// Between two looks at a job.
const LOOK: Duration = Duration::from_millis(100);

/// A job that takes longer hangs: reads, leases and retries add up to less.
const LONGEST: Duration = Duration::from_secs(120);

/// The longest time between two jobs.
const REST: Duration = Duration::from_secs(1);

/// The manager's REST, as a client that asks again while nobody answers.
#[derive(Clone, Debug)]
pub struct Jobs {
    rest: SocketAddr,
    authorization: String,
}

impl Jobs {
    pub fn of(manager: &Manager) -> Self {
        Self { rest: manager.rest(), authorization: format!("Bearer {}", manager.token()) }
    }

    /// Preheats an image on every peer, and waits for the end.
    ///
    /// # Errors
    /// The job failed, or has not ended at `deadline`.
    pub fn preheat(&self, image: &Stocked, deadline: Instant) -> Result<()> {
        let args =
            json!({ "type": "image", "url": image.wanted.reference.to_string(), "scope": "all-peers" });
        let body = json!({ "type": "preheat", "args": args }).to_string();
        let made =
            self.until(deadline, || http::post(self.rest, "/api/v1/jobs", &self.authorization, &body))?;
        let path = format!("/api/v1/jobs/{}", made["id"]);
        let mut job = made;
        while Instant::now() < deadline {
            match job["state"].as_str() {
                Some("SUCCESS") => return Ok(()),
                Some("PENDING") | None => std::thread::sleep(LOOK),
                Some(_) => bail!("{path} has failed: {job}"),
            }
            job = self.until(deadline, || http::get_as(self.rest, &path, &self.authorization))?;
        }
        bail!("{path} has not ended: {job}")
    }

    /// Asks again until there is an answer.
    fn until(&self, deadline: Instant, ask: impl Fn() -> Result<String>) -> Result<Value> {
        loop {
            match ask() {
                Ok(answer) => {
                    return serde_json::from_str(&answer).context("the manager's answer is not JSON");
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("the manager does not answer");
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }
}

/// One job after the other until the end.
pub struct Preheater {
    pub jobs: Jobs,
    pub images: Arc<Vec<Stocked>>,
    pub log: Arc<Log>,
    pub dice: Dice,
}

impl Preheater {
    pub fn run(mut self) {
        let images = self.images.clone();
        for image in images.iter().cycle() {
            if self.log.is_stopping() {
                return;
            }
            match self.jobs.preheat(image, Instant::now() + LONGEST) {
                Ok(()) => self.log.preheated(),
                Err(error) => self.log.fault(FaultKind::Preheat, format!("{error:#}")),
            }
            std::thread::sleep(self.dice.pause(REST));
        }
    }
}
