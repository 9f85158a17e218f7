//! The whole life of a process, so that a daemon's `main.rs` only says who it is.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{self, Assignment, ConfigError, DaemonArgs, Loaded, Validate};
use crate::listen::BindError;
use crate::notify::Notifier;
use crate::obstacle::Obstacle;
use crate::reload::{Reloader, Reloads};
use crate::shutdown::{Shutdown, ShutdownConfig};
use crate::tasks::Tasks;
use crate::telemetry::{self, LogConfig};

/// sysexits.h: what lies on disk is not what this program writes.
const EX_DATAERR: u8 = 65;
/// sysexits.h: a service that is needed is not available, such as a port that is taken.
const EX_UNAVAILABLE: u8 = 69;
/// sysexits.h: a directory that is needed cannot be made or written.
const EX_CANTCREAT: u8 = 73;
/// sysexits.h: try again later, when the one that runs already has ended.
const EX_TEMPFAIL: u8 = 75;
/// sysexits.h: something is wrong with the configuration.
const EX_CONFIG: u8 = 78;
/// How long blocking work (hashing, fsync) may hold the process after everything else has ended.
const RUNTIME_GRACE: Duration = Duration::from_secs(2);

/// The name of the binary, such as `d7y-peer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DaemonName(&'static str);

impl DaemonName {
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// `d7y-peer` reads `D7Y_PEER__…`.
    pub fn environment_prefix(self) -> String {
        format!("{}__", self.0.replace('-', "_").to_ascii_uppercase())
    }
}

/// A flag without a value that stands for one `--set`.
#[derive(Debug, Clone, Copy)]
pub struct Shorthand {
    /// Without the dashes: `standalone`.
    pub flag: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub help: &'static str,
}

/// Something that the program does once, instead of running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// Without the dashes: `reset-root-password`.
    pub flag: &'static str,
    pub help: &'static str,
}

/// A daemon's configuration: its own keys beside the two sections that all daemons have.
pub trait DaemonConfig: Serialize + DeserializeOwned + Default + Validate + Send + Sync + 'static {
    fn log(&self) -> &LogConfig;
    fn shutdown(&self) -> &ShutdownConfig;

    /// The keys that a running daemon takes over when it is told to reload (SIGHUP).
    fn reloadable() -> Vec<&'static str> {
        vec!["log.level"]
    }

    /// Where the daemon keeps what a manager said last (see [`crate::config::Managed`]), if it belongs to one.
    fn kept_settings(&self) -> Option<PathBuf> {
        None
    }
}

/// Who a daemon is.
#[derive(Debug, Clone, Copy)]
pub struct Daemon {
    pub name: DaemonName,
    pub about: &'static str,
    pub version: &'static str,
    pub shorthands: &'static [Shorthand],
    pub actions: &'static [Action],
}

impl Daemon {
    /// Runs the daemon to its end. `start` binds every socket, spawns the tasks and returns; the daemon then
    /// serves until a signal or a fatal task.
    ///
    /// Exit codes: 0 after an orderly stop, 78 for a faulty configuration, 75 when the daemon runs already, 73 for a
    /// directory that cannot be used, 69 for an address that cannot be had, 65 for data of another version, 1 for any
    /// other failure, 130 or 143 for a second signal.
    pub fn main<C, F, Fut>(self, start: F) -> ExitCode
    where
        C: DaemonConfig + Clone,
        F: FnOnce(C, Tasks) -> Fut,
        Fut: Future<Output = anyhow::Result<()>>,
    {
        self.main_with_reloads(|config, tasks, _| start(config, tasks))
    }

    /// [`Daemon::main`] for a daemon with reloadable keys of its own.
    pub fn main_with_reloads<C, F, Fut>(self, start: F) -> ExitCode
    where
        C: DaemonConfig + Clone,
        F: FnOnce(C, Tasks, Reloads<C>) -> Fut,
        Fut: Future<Output = anyhow::Result<()>>,
    {
        let args = self.parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
        let loaded: Loaded<C> = match config::load_managed(self.name, &args, None) {
            Ok(loaded) => loaded,
            Err(error) => return self.refuse(&error.into()),
        };
        if args.check_config {
            println!("ok");
            return ExitCode::SUCCESS;
        }
        if args.print_config {
            return self.print(&loaded);
        }
        let config = loaded.config;
        let level = match telemetry::init(config.log()) {
            Ok(level) => level,
            Err(error) => return self.refuse(&error.into()),
        };
        let (reloader, reloads) = Reloader::new(self.name, args, level, config.clone());
        match self.serve(config.shutdown().clone(), reloader, |tasks| start(config, tasks, reloads)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{} stops: {error:#}", self.name.as_str());
                exit_code(&error)
            }
        }
    }

    /// Does `action` with the daemon's configuration, if the command line asks for it; None otherwise.
    pub fn act<C, F, Fut>(self, action: Action, work: F) -> Option<ExitCode>
    where
        C: DaemonConfig,
        F: FnOnce(C) -> Fut,
        Fut: Future<Output = anyhow::Result<()>>,
    {
        let matches = self.command().try_get_matches_from(std::env::args_os()).ok()?;
        if !matches.get_flag(action.flag) {
            return None;
        }
        let args = self.parse(std::env::args_os()).ok()?;
        let done = config::load(self.name, &args).map_err(anyhow::Error::from).and_then(|loaded| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work(loaded.config))
        });
        Some(match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => self.refuse(&error),
        })
    }

    fn command(self) -> Command {
        let command = DaemonArgs::augment_args(Command::new(self.name.as_str()));
        let shorthands = self.shorthands.iter().map(|short| (short.flag, short.help));
        let flags = shorthands.chain(self.actions.iter().map(|action| (action.flag, action.help)));
        let flags = flags.map(|(flag, help)| Arg::new(flag).long(flag).help(help).action(ArgAction::SetTrue));
        command.about(self.about).version(self.version).args(flags)
    }

    /// The arguments that all daemons share and this one's shorthands.
    pub fn parse<I, A>(self, arguments: I) -> Result<DaemonArgs, clap::Error>
    where
        I: IntoIterator<Item = A>,
        A: Into<OsString> + Clone,
    {
        let matches: ArgMatches = self.command().try_get_matches_from(arguments)?;
        let mut args = DaemonArgs::from_arg_matches(&matches)?;
        let given = self.shorthands.iter().filter(|shorthand| matches.get_flag(shorthand.flag));
        let set = given.map(|short| Assignment { key: short.key.to_owned(), value: short.value.to_owned() });
        args.assignments.splice(0..0, set);
        Ok(args)
    }

    fn serve<C, F, Fut>(self, shutdown: ShutdownConfig, reloader: Reloader<C>, start: F) -> anyhow::Result<()>
    where
        C: DaemonConfig,
        F: FnOnce(Tasks) -> Fut,
        Fut: Future<Output = anyhow::Result<()>>,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let served = runtime.block_on(async {
            let shutdown = Shutdown::new(shutdown);
            let tasks = Tasks::new(shutdown.clone());
            // Not among the tasks: a second signal and a sign of life count until the very end.
            tokio::spawn(shutdown.on_signals()?);
            tokio::spawn(reloader.on_hangup()?);
            let notifier = Notifier::from_environment();
            tokio::spawn(notifier.clone().keep_alive());
            if let Some(started) = shutdown.closing().run_until_cancelled(start(tasks.clone())).await {
                started?;
                tracing::info!(version = self.version, "{} is ready", self.name.as_str());
                notifier.ready();
            }
            shutdown.closing().cancelled().await;
            notifier.stopping();
            tasks.finish().await?;
            tracing::info!("{} has stopped", self.name.as_str());
            Ok(())
        });
        runtime.shutdown_timeout(RUNTIME_GRACE);
        served
    }

    fn print<C: Serialize>(self, loaded: &Loaded<C>) -> ExitCode {
        match loaded.to_yaml() {
            Ok(yaml) => {
                print!("{yaml}");
                ExitCode::SUCCESS
            }
            Err(error) => self.refuse(&error.into()),
        }
    }

    fn refuse(self, error: &anyhow::Error) -> ExitCode {
        eprintln!("{}: {error:#}", self.name.as_str());
        exit_code(error)
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(error.chain().find_map(known_code).unwrap_or(1))
}

fn known_code(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<ConfigError>() {
        return Some(EX_CONFIG);
    }
    if let Some(obstacle) = cause.downcast_ref::<Obstacle>() {
        return Some(match obstacle {
            Obstacle::Twice { .. } => EX_TEMPFAIL,
            Obstacle::Directory { .. } => EX_CANTCREAT,
            Obstacle::Version { .. } => EX_DATAERR,
        });
    }
    Some(match cause.downcast_ref::<BindError>()? {
        BindError::Alive { .. } => EX_TEMPFAIL,
        BindError::Tcp { .. } | BindError::NotASocket { .. } => EX_UNAVAILABLE,
        BindError::Unix { .. } => EX_CANTCREAT,
    })
}
