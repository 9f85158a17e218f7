//! `d7y status` and `d7y image status`: what the daemons of this node say about themselves, put together.

mod image;
mod node;
mod table;

use std::io::{ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use d7y_chassis::recent::RecentEvent;
use d7y_peer::view::StatusView;
use d7y_snapshotter::images::ImageView;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use crate::doctor::settings::Settings;
use crate::http;
use crate::output::Output;
use node::Node;

/// Between two looks of --watch.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Clears the terminal and starts at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Exit codes: 0 when both daemons answered, 1 otherwise; 0 with --watch.
#[derive(clap::Args, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Look again every 2 seconds, until Ctrl-C: a terminal shows the last look, a pipe gets one after the other (JSON:
    /// one line each)
    #[arg(short, long)]
    watch: bool,
}

#[derive(clap::Args, Debug)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(clap::Subcommand, Debug)]
enum ImageCommand {
    /// Show how much of each layer of an image is on this node, and who gave it
    Status {
        /// The name that the image was pulled under, a part of it, or its manifest's digest or the beginning of that
        image: String,
        #[command(flatten)]
        common: CommonArgs,
    },
}

#[derive(clap::Args, Debug)]
struct CommonArgs {
    /// Text for people, or JSON
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The peer's configuration file, which says where it serves its metrics
    #[arg(long, value_name = "PATH", default_value = "/etc/d7y/peer.yaml")]
    peer: PathBuf,
    /// The snapshotter's configuration file
    #[arg(long, value_name = "PATH", default_value = "/etc/d7y/snapshotter.yaml")]
    snapshotter: PathBuf,
}

/// Where the daemons answer.
struct Places {
    peer: SocketAddr,
    snapshotter: SocketAddr,
}

pub fn node(args: &NodeArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let places = args.common.places()?;
    if args.watch {
        return runtime.block_on(watch(&places, args.common.output));
    }
    let node = runtime.block_on(Node::look(&places));
    match args.common.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&node)?),
        Output::Text => print!("{}", node.text()),
    }
    Ok(if node.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends with Ctrl-C, or when nobody reads any more.
async fn watch(places: &Places, output: Output) -> Result<ExitCode> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut stdout = std::io::stdout();
    let on_terminal = stdout.is_terminal();
    loop {
        let node = tokio::select! {
            _ = interrupted.recv() => return Ok(ExitCode::SUCCESS),
            node = Node::look(places) => node,
        };
        let frame = match output {
            Output::Json => serde_json::to_string(&node)? + "\n",
            Output::Text if on_terminal => format!("{CLEAR}{}", node.text()),
            Output::Text => {
                format!("{}\n{}\n", humantime::format_rfc3339_seconds(SystemTime::now()), node.text())
            }
        };
        match stdout.write_all(frame.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            written => written.context("cannot print")?,
        }
        tokio::select! {
            _ = interrupted.recv() => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
    }
}

pub fn image(args: &ImageArgs) -> Result<ExitCode> {
    let ImageCommand::Status { image, common } = &args.command;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let places = common.places()?;
    let (peer, images) = runtime.block_on(async {
        let peer: StatusView = places.peer_status().await?;
        anyhow::Ok((peer, places.images().await?))
    })?;
    let found = image::find(&images, image)?;
    let status = image::Status::of(found, &peer);
    match common.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Text => print!("{}", status.text()),
    }
    Ok(ExitCode::SUCCESS)
}

impl CommonArgs {
    fn places(&self) -> Result<Places> {
        let (settings, checks) = Settings::load(&self.peer, &self.snapshotter);
        if let Some(check) = checks.iter().find(|check| check.mend.is_some()) {
            bail!("{}", check.detail);
        }
        let peer = settings.peer.observability.listen.first().copied();
        let peer =
            peer.context("the peer serves no metrics: set observability.listen in its configuration")?;
        let snapshotter = settings.snapshotter.metrics.listen;
        let snapshotter = snapshotter
            .context("the snapshotter serves no metrics: set metrics.listen in its configuration")?;
        Ok(Places { peer: http::reachable(peer), snapshotter: http::reachable(snapshotter) })
    }
}

impl Places {
    async fn peer_status(&self) -> Result<StatusView> {
        ask("d7y-peer", self.peer, "/status").await
    }

    async fn images(&self) -> Result<Vec<ImageView>> {
        ask("d7y-snapshotter", self.snapshotter, "/images").await
    }

    async fn peer_events(&self) -> Result<Vec<RecentEvent>> {
        ask("d7y-peer", self.peer, "/events").await
    }

    async fn snapshotter_events(&self) -> Result<Vec<RecentEvent>> {
        ask("d7y-snapshotter", self.snapshotter, "/events").await
    }
}

async fn ask<T: DeserializeOwned>(daemon: &str, address: SocketAddr, path: &str) -> Result<T> {
    let answer = http::get(address, path).await.with_context(|| {
        format!("{daemon} does not answer at http://{address}: systemctl status {daemon}")
    })?;
    ensure!(answer.status == 200, "{daemon} at http://{address}{path} answers {}", answer.status);
    serde_json::from_str(&answer.body)
        .with_context(|| format!("{daemon}'s answer is not understood; is it of the same version as d7y?"))
}
