//! `d7y containerd config`: the stanza with which containerd finds d7y, printed or installed.

mod document;
mod install;
mod stanza;
mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;

pub use document::Document;
use install::{Installation, Outcome};
pub use stanza::{NAME, Stanza};
pub use version::Version;

pub const DEFAULT_CONFIG: &str = "/etc/containerd/config.toml";
pub const DEFAULT_PROGRAM: &str = "containerd";
pub const DEFAULT_SOCKET: &str = "/run/d7y/snapshotter.sock";
pub const DEFAULT_ROOT: &str = "/var/lib/d7y/snapshotter";

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Print the configuration that containerd needs, or install it
    Config(ConfigArgs),
}

#[derive(clap::Args, Debug)]
struct ConfigArgs {
    /// Install it: other settings and comments stay, the old file is kept beside the new one
    #[arg(long)]
    write: bool,
    /// Say what --write would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// containerd's configuration file
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// The containerd that reads the file
    #[arg(long, value_name = "PROGRAM", default_value = DEFAULT_PROGRAM)]
    containerd: PathBuf,
    /// For this version, such as 1.7 or 2.2, instead of the one that the program says; the file is then not tried
    #[arg(long, value_name = "VERSION")]
    containerd_version: Option<Version>,
    /// d7y-snapshotter's socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// d7y-snapshotter's rootDirectory
    #[arg(long, value_name = "PATH", default_value = DEFAULT_ROOT)]
    root: PathBuf,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Command::Config(args) = args.command;
    let version = match args.containerd_version {
        Some(version) => version,
        None => Version::of(&args.containerd)?,
    };
    let stanza = Stanza::new(version, &args.socket, &args.root)?;
    if !args.write && !args.dry_run {
        eprintln!(
            "# for containerd {version}; d7y containerd config --write installs it in {}",
            args.config.display()
        );
        print!("{}", stanza.alone());
        return Ok(ExitCode::SUCCESS);
    }
    let installation = Installation {
        stanza,
        path: args.config.clone(),
        checked_by: args.containerd_version.is_none().then_some(args.containerd),
    };
    let outcome = installation
        .prepare()
        .and_then(|prepared| if args.dry_run { Ok(prepared.pretend()) } else { prepared.write() })
        .with_context(|| format!("{} was left as it is", args.config.display()))?;
    report(&outcome, &args.config);
    Ok(ExitCode::SUCCESS)
}

fn report(outcome: &Outcome, path: &std::path::Path) {
    let path = path.display();
    match outcome {
        Outcome::AlreadyThere => println!("{path} already has all that d7y needs"),
        Outcome::Would(changes) => {
            println!("{path} would change:");
            changes.iter().for_each(|change| println!("  {change}"));
        }
        Outcome::Written { changes, backup } => {
            println!("{path} has changed:");
            changes.iter().for_each(|change| println!("  {change}"));
            if let Some(backup) = backup {
                println!("the old file is {}", backup.display());
            }
            println!("containerd reads it at its next start: systemctl restart containerd");
        }
    }
}
