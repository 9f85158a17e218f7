//! SIGHUP, or another word of the manager: the configuration is read again while the daemon runs.
//!
//! A faulty one changes nothing and is logged with all its faults. Of a sound one the keys in
//! [`DaemonConfig::reloadable`] take effect; the others that differ are named in the log, at every reload, until the
//! daemon is started anew.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{self, Changes, DaemonArgs, Managed};
use crate::daemon::{DaemonConfig, DaemonName};
use crate::notify::Notifier;
use crate::telemetry::LogLevel;

/// The configuration as it was last read; only its reloadable keys may be taken from it.
pub struct Reloads<C> {
    read: watch::Receiver<Arc<C>>,
    said: watch::Sender<Option<Managed>>,
}

impl<C> Reloads<C> {
    /// Waits until the configuration has been read again.
    ///
    /// # Errors
    /// When the daemon has ended.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.read.changed().await
    }

    pub fn borrow_and_update(&mut self) -> watch::Ref<'_, Arc<C>> {
        self.read.borrow_and_update()
    }

    /// Where to say what the manager says: the configuration is then read again.
    pub fn manager(&self) -> watch::Sender<Option<Managed>> {
        self.said.clone()
    }
}

pub(crate) struct Reloader<C> {
    name: DaemonName,
    args: DaemonArgs,
    level: LogLevel,
    notifier: Notifier,
    held: config::Flat,
    sender: watch::Sender<Arc<C>>,
    said: watch::Receiver<Option<Managed>>,
}

impl<C: DaemonConfig> Reloader<C> {
    pub fn new(name: DaemonName, args: DaemonArgs, level: LogLevel, config: C) -> (Self, Reloads<C>) {
        let held = config::flat(&config);
        let (sender, read) = watch::channel(Arc::new(config));
        let (say, said) = watch::channel(None);
        let notifier = Notifier::from_environment();
        (Self { name, args, level, notifier, held, sender, said }, Reloads { read, said: say })
    }

    /// Installs the handler at once; the future waits for the signals.
    pub fn on_hangup(mut self) -> io::Result<impl Future<Output = ()> + Send> {
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(async move {
            loop {
                tokio::select! {
                    hangup = hangup.recv() => {
                        if hangup.is_none() {
                            return;
                        }
                        self.notifier.reloading();
                        self.reload();
                        self.notifier.ready();
                    }
                    Ok(()) = self.said.changed() => self.reload(),
                }
            }
        })
    }

    fn reload(&mut self) {
        let said = self.said.borrow_and_update().clone();
        let read: C = match config::load_managed(self.name, &self.args, said.as_ref()) {
            Ok(loaded) => loaded.config,
            Err(error) => {
                let error = anyhow::Error::from(error);
                return tracing::error!("the configuration stays as it was: {error:#}");
            }
        };
        let new = config::flat(&read);
        let changes = Changes::between(&self.held, &new, &C::reloadable());
        if let Err(error) = self.level.set(&read.log().level) {
            tracing::error!("the log level stays as it was: {error}");
        }
        for key in &changes.taken {
            match new.get(key) {
                Some(value) => drop(self.held.insert(key.clone(), value.clone())),
                None => drop(self.held.remove(key)),
            }
        }
        self.sender.send_replace(Arc::new(read));
        tracing::info!(taken = ?changes.taken, "the configuration was read again");
        if !changes.waiting.is_empty() {
            tracing::warn!(keys = ?changes.waiting, "these keys have changed and take effect at the next start");
        }
    }
}
