//! Containers that come and go: each reads all files of an image of which most is missing on its node.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::dice::Dice;
use super::log::{FaultKind, Log};
use super::reads::Reader;
use super::stock::Stocked;
use crate::rig::client::{Api, Client, Started};
use crate::rig::command::run;
use crate::rig::image::Files;
use crate::rig::node::Node;

/// Reads each file with the image's own programs, and says what it read.
pub const SCRIPT: &str =
    "cd /data; for f in *; do sha256sum $f || echo failed $f; sleep 0.05; done; exec sleep 600";

/// Beside the container's own reads.
const READERS: u64 = 2;

/// Between two reads of a reader.
const REST: Duration = Duration::from_millis(30);

/// Between two attempts to start a container.
const AGAIN: Duration = Duration::from_millis(200);

/// A line of a container may take this long: longer than a read that fails at its deadline.
const LINE: Duration = Duration::from_secs(90);

/// Starts one container after the other on a node.
pub struct Walker {
    pub node: Node,
    pub images: Arc<Vec<Stocked>>,
    pub log: Arc<Log>,
    pub dice: Dice,
    /// The image to begin with.
    pub first: usize,
}

impl Walker {
    pub fn run(mut self) {
        let (mut next, mut attempt) = (self.first, 0_u32);
        while !self.log.is_stopping() {
            let images = self.images.clone();
            let image = &images[next % images.len()];
            // runc knows containers by this name alone, whatever node they are on.
            let container = format!("{}-walk-{attempt}", self.node.host.name);
            attempt += 1;
            match Api.start(&self.node, &image.wanted, &container) {
                Ok(started) => {
                    self.walk(image, started);
                    self.log.walked();
                    next += 1;
                }
                // Something that a start needs is dead just now.
                Err(error) => {
                    self.log.tried_again(&container, &error);
                    std::thread::sleep(AGAIN);
                }
            }
            remove(&self.node, image, &container);
        }
    }

    fn walk(&mut self, image: &Stocked, started: Started) {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let dice = Dice::new(u64::from(self.dice.below(u32::MAX)));
                let (root, log) = (started.rootfs.clone(), self.log.clone());
                let reader = Reader { root, files: image.files, log, dice, rest: REST };
                std::thread::spawn(move || reader.all())
            })
            .collect();
        if let Err(error) = hear(&started, image.files) {
            self.log.fault(
                FaultKind::FailedRead,
                format!("{} in {}: {error:#}", started.id, image.wanted.reference),
            );
        }
        // A reader that panicked is no reader that failed.
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        started.end();
    }
}

/// Compares what the container says of each file with what the file holds.
fn hear(started: &Started, files: Files) -> Result<()> {
    for number in 0..files.count {
        let line = started.first_output(LINE).with_context(|| format!("at file {number}"))?.line;
        let sum = hex::encode(Sha256::digest(files.content(number)));
        ensure!(line == format!("{sum}  {number:04}"), "at file {number} the container said {line:?}");
    }
    Ok(())
}

/// Removes a container and its image, however far its start came: what cannot be removed now, because something is dead,
/// stays until the lab ends.
pub fn remove(node: &Node, image: &Stocked, container: &str) {
    let reference = image.wanted.reference.to_string();
    let rest: [&[&str]; 4] = [
        &["tasks", "rm", "--force", container],
        &["containers", "rm", container],
        &["snapshots", "--snapshotter", "d7y", "rm", container],
        &["images", "rm", &reference],
    ];
    for words in rest {
        let _ = run(&mut ctr(node, words));
    }
}

fn ctr(node: &Node, words: &[&str]) -> Command {
    node.ctr(&[&["--timeout", "10s"], words].concat())
}

/// Starts a container of a small image and has it read all of it; again and again until it starts.
///
/// # Errors
/// It has not started before `deadline`: with the last reason.
pub fn probe(node: &Node, image: &Stocked, name: &str, deadline: Instant, log: &Log) -> Result<()> {
    for attempt in 0_u32.. {
        let container = format!("{}-{name}-{attempt}", node.host.name);
        let tried = Api.start(node, &image.wanted, &container).map(|started| {
            if let Err(error) = hear(&started, image.files) {
                log.fault(FaultKind::FailedRead, format!("{container}: {error:#}"));
            }
            started.end();
        });
        remove(node, image, &container);
        match tried {
            Ok(()) => break,
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("no container starts on {}", node.host.name));
            }
            Err(error) => {
                log.tried_again(&container, &error);
                std::thread::sleep(AGAIN);
            }
        }
    }
    Ok(())
}
