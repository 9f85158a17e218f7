//! A long-running child process with a log file.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::Mutex;

use super::command::{shown, tail};

/// How often a wait looks again: short beside everything that is measured here.
pub const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A child process. Clones are handles to the same one; the lab keeps one and ends it.
#[derive(Clone, Debug)]
pub struct Daemon {
    name: String,
    pid: Pid,
    log: PathBuf,
    child: Arc<Mutex<Child>>,
}

impl Daemon {
    /// Starts it in a process group of its own (a Ctrl-C in the terminal is for us alone),
    /// its output appended to the log.
    ///
    /// # Errors
    /// The log cannot be opened or the program cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        Self::spawn(name, command.stdout(file.try_clone()?).stderr(file), log)
    }

    /// As [`Daemon::start`], its output where ours is.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn on_terminal(name: &str, command: &mut Command) -> Result<Self> {
        Self::spawn(name, command, Path::new(""))
    }

    fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", shown(command)))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a pid that is no pid")?);
        Ok(Self { name: name.to_owned(), pid, log: log.to_path_buf(), child: Arc::new(Mutex::new(child)) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().expect("no holder of this lock panics");
        child.try_wait().ok().flatten()
    }

    /// Sends a signal; one that has ended already is no error.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Reaped pids may be someone else's by now.
        if self.ended().is_some() {
            return Ok(());
        }
        match kill(self.pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal {}", self.name)),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {limit:?}", self.name);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// SIGKILL, and gone when this returns.
    ///
    /// # Errors
    /// The process cannot die (waits in the kernel).
    pub fn kill(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10))
    }

    /// SIGTERM, then SIGKILL for one that has not ended within `grace`.
    ///
    /// # Errors
    /// As [`Daemon::kill`].
    pub fn stop(&self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(grace).or_else(|_| self.kill())
    }

    /// Waits until it is `ready`.
    ///
    /// # Errors
    /// It ended, or was not ready within `limit`: with the tail of its log.
    pub fn wait_ready(&self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.ended() {
                bail!("{} ended with {status} while starting:\n{}", self.name, self.log_tail());
            }
            if Instant::now() >= deadline {
                bail!("{} was not ready after {limit:?}:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    pub fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        format!("{}\n(log: {})", tail(&String::from_utf8_lossy(&bytes)), self.log.display())
    }
}
