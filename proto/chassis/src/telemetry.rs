use std::io::IsTerminal;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::config::{Fault, Validate};
use crate::tasks;

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or levels by module: `info,d7y_store=debug`.
    pub level: String,
    /// Lines for people, or one JSON object per line.
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Validate for LogConfig {
    fn validate(&self) -> Vec<Fault> {
        match EnvFilter::builder().parse(&self.level) {
            Ok(_) => Vec::new(),
            Err(error) => vec![Fault::new("level", format!("{:?} is not a log filter: {error}", self.level))],
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("{level:?} is not a log filter")]
    Filter { level: String, source: tracing_subscriber::filter::ParseError },
    #[error("logging was already started in this process")]
    AlreadyStarted,
    #[error("logging has ended in this process")]
    Ended,
}

/// Changes what is logged while the daemon runs.
pub struct LogLevel(Box<dyn Fn(EnvFilter) -> bool + Send + Sync>);

impl LogLevel {
    pub fn set(&self, level: &str) -> Result<(), TelemetryError> {
        match (self.0)(parse(level)?) {
            true => Ok(()),
            false => Err(TelemetryError::Ended),
        }
    }
}

/// Sends structured logs to standard error, and panics with the name of their task to the log.
pub fn init(config: &LogConfig) -> Result<LogLevel, TelemetryError> {
    let filter = parse(&config.level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let (level, started) = match config.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
            let handle = builder.reload_handle();
            let level = LogLevel(Box::new(move |filter| handle.reload(filter).is_ok()));
            (level, builder.try_init())
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            let level = LogLevel(Box::new(move |filter| handle.reload(filter).is_ok()));
            (level, builder.try_init())
        }
    };
    started.map_err(|_| TelemetryError::AlreadyStarted)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(level)
}

fn parse(level: &str) -> Result<EnvFilter, TelemetryError> {
    let parsed = EnvFilter::builder().parse(level);
    parsed.map_err(|source| TelemetryError::Filter { level: level.to_owned(), source })
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = tasks::panic_message(panic.payload());
    tracing::error!(task = tasks::current_name().as_deref(), place, "panic: {message}");
}
