//! What drives containerd: nerdctl as a user would, its CRI plugin as the kubelet would, or its API as a CRI plugin would.

mod api;
mod cri;
mod nerdctl;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use api::Api;
pub use cri::{Cri, NAMESPACE as CRI_NAMESPACE, PAUSE};
pub use nerdctl::Nerdctl;

use super::command::tail;
use super::node::{Node, Snapshotter};
use super::places::Places;

/// Pulls and runs images on nodes, all of its network traffic over the node's own link.
pub trait Client: Send + Sync {
    fn name(&self) -> &'static str;

    /// Pulls without running.
    ///
    /// # Errors
    /// The client's, with what it said.
    fn pull(&self, node: &Node, image: &Wanted) -> Result<()>;

    /// Pulls what is missing and starts a container with the image's own command.
    ///
    /// # Errors
    /// The client's, with what it said.
    fn start(&self, node: &Node, image: &Wanted, container: &str) -> Result<Started>;
}

/// nerdctl where it could be built, the API otherwise.
pub fn usual(places: &Places) -> Box<dyn Client> {
    match places.nerdctl() {
        Some(program) => Box::new(Nerdctl::new(program)),
        None => Box::new(Api),
    }
}

/// The image and who unpacks or mounts it.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub reference: Reference,
    pub snapshotter: Snapshotter,
}

/// `HOST:PORT/REPOSITORY:TAG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: String,
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

impl std::str::FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (registry, rest) = text.split_once('/').context("a reference without registry")?;
        let (repository, tag) = rest.rsplit_once(':').context("a reference without tag")?;
        Ok(Self { registry: registry.to_owned(), repository: repository.to_owned(), tag: tag.to_owned() })
    }
}

/// A container that was started; ends when dropped.
pub struct Started {
    /// containerd's id of it.
    pub id: String,
    /// Its root file system while it runs.
    pub rootfs: PathBuf,
    began: Instant,
    lines: Receiver<Line>,
    /// What the client and the application said on standard error.
    log: PathBuf,
    end: Option<Box<dyn FnOnce() + Send>>,
}

struct Line {
    text: String,
    at: Instant,
}

/// What the application said first.
#[derive(Clone, Debug)]
pub struct FirstOutput {
    pub line: String,
    /// Since the client was called, pulling included.
    pub after: Duration,
}

impl Started {
    /// Waits for the application's first line that is not empty.
    ///
    /// # Errors
    /// The application ended without one, or `limit` passed.
    pub fn first_output(&self, limit: Duration) -> Result<FirstOutput> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.text.trim().is_empty() => {}
                Ok(line) => return Ok(FirstOutput { line: line.text, after: line.at - self.began }),
                Err(RecvTimeoutError::Timeout) => bail!("no output of the application within {limit:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                    bail!("the application ended without output: {}", tail(&log));
                }
            }
        }
    }

    /// Kills and removes the container.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Lines as they come, on a thread that ends with the stream.
fn lines(stream: impl Read + Send + 'static) -> Receiver<Line> {
    lines_of(stream, |line| line)
}

/// As [`lines`], with a part of each.
fn lines_of(stream: impl Read + Send + 'static, part: fn(&str) -> &str) -> Receiver<Line> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // The stream is read to its end even when nobody listens: the application must not block.
        for text in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let text = part(&String::from_utf8_lossy(&text)).to_owned();
            let _ = sender.send(Line { text, at: Instant::now() });
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_keep_the_port() -> Result<()> {
        let reference: Reference = "10.1.2.3:5000/team/app:v1".parse()?;
        assert_eq!(reference.registry, "10.1.2.3:5000");
        assert_eq!(reference.repository, "team/app");
        assert_eq!(reference.to_string(), "10.1.2.3:5000/team/app:v1");
        assert!("app".parse::<Reference>().is_err());
        Ok(())
    }
}
