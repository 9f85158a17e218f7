//! `d7y`, the command line for people: one module per subcommand, each with its `Args` and a `run`.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not done within `--timeout` (preheat). What a command prints for
//! programs or for pipes goes to standard output, everything said to the person goes to standard error.

mod config_reference;
mod containerd;
mod doctor;
mod http;
mod image_name;
mod login;
mod manager;
mod metrics_reference;
mod output;
mod preheat;
mod status;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(name = "d7y", version, about = "Starts containers before their images have been downloaded")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Connect this node's containerd with d7y
    Containerd(containerd::Args),
    /// Print docs/configuration.md, all keys of all daemons
    #[command(hide = true)]
    ConfigReference,
    /// Print docs/metrics.md, all metrics of all daemons
    #[command(hide = true)]
    MetricsReference,
    /// Check whether this node can start containers through d7y, and say how to mend what it cannot
    Doctor(doctor::Args),
    /// Log in to a manager, for preheats; the token is kept in a file that only you can read
    Login(login::Args),
    /// Put images on the disks of a cluster's peers before anybody starts them
    Preheat(preheat::Args),
    /// Show what d7y knows about an image on this node
    Image(status::ImageArgs),
    /// Show this node at a glance: images, downloads, cache, errors
    Status(status::NodeArgs),
    /// Show why containers took as long to start as they did
    Why(why::Args),
}

pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Containerd(args) => containerd::run(args),
        Command::ConfigReference => config_reference::run(),
        Command::Doctor(args) => doctor::run(&args),
        Command::Login(args) => login::run(&args),
        Command::MetricsReference => metrics_reference::run(),
        Command::Preheat(args) => preheat::run(&args),
        Command::Image(args) => status::image(&args),
        Command::Status(args) => status::node(&args),
        Command::Why(args) => why::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("d7y: {error:#}");
        ExitCode::FAILURE
    })
}
