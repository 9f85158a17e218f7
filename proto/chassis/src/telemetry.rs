use std::io::IsTerminal;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::config::{Fault, Validate};
use crate::recent::Recent;
use crate::tasks;

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`; of libraries nothing below `info`), or levels by module:
    /// `info,d7y_store=debug`.
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
        if let Err(error) = EnvFilter::builder().parse(&self.level) {
            return vec![Fault::new("level", format!("{:?} is not a log filter: {error}", self.level))];
        }
        // The filter takes such a word for a module, and then logs nothing else.
        let stray = bare_words(&self.level).find(|word| word.parse::<LevelFilter>().is_err());
        let problem = |word| {
            format!(
                "{word:?} is not a level: off, error, warn, info, debug or trace; that of a module is MODULE=LEVEL"
            )
        };
        stray.map(|word| Fault::new("level", problem(word))).into_iter().collect()
    }
}

/// The directives that name neither a module's level nor a span.
fn bare_words(filter: &str) -> impl Iterator<Item = &str> {
    filter.split(',').filter(|word| !word.is_empty() && !word.contains(['=', '[']))
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
pub struct LogLevel(reload::Handle<EnvFilter, tracing_subscriber::Registry>);

impl LogLevel {
    pub fn set(&self, level: &str) -> Result<(), TelemetryError> {
        self.0.reload(parse(level)?).map_err(|_| TelemetryError::Ended)
    }
}

/// The last warnings and errors of this process; empty before [`init`].
pub fn recent() -> &'static Recent {
    static RECENT: LazyLock<Recent> = LazyLock::new(Recent::default);
    &RECENT
}

/// Sends structured logs to standard error, and panics with the name of their task to the log.
pub fn init(config: &LogConfig) -> Result<LogLevel, TelemetryError> {
    let (filter, level) = reload::Layer::new(parse(&config.level)?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines).with(recent().clone());
    subscriber.try_init().map_err(|_| TelemetryError::AlreadyStarted)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(LogLevel(level))
}

/// A mere `debug` is about d7y: HTTP/2 alone would say several lines per connection and second.
fn parse(level: &str) -> Result<EnvFilter, TelemetryError> {
    let parsed = match level.parse::<LevelFilter>() {
        Ok(plain) if plain > LevelFilter::INFO => EnvFilter::builder().parse(format!("info,d7y={plain}")),
        _ => EnvFilter::builder().parse(level),
    };
    parsed.map_err(|source| TelemetryError::Filter { level: level.to_owned(), source })
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = tasks::panic_message(panic.payload());
    tracing::error!(task = tasks::current_name().as_deref(), place, "panic: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mere_level_is_about_d7y() {
        for (level, own, library) in [
            ("debug", LevelFilter::DEBUG, LevelFilter::INFO),
            ("TRACE", LevelFilter::TRACE, LevelFilter::INFO),
            ("info", LevelFilter::INFO, LevelFilter::INFO),
            ("error", LevelFilter::ERROR, LevelFilter::ERROR),
            ("debug,d7y=warn", LevelFilter::WARN, LevelFilter::DEBUG),
        ] {
            let subscriber = tracing_subscriber::registry().with(parse(level).unwrap());
            tracing::subscriber::with_default(subscriber, || {
                let said = |target: LevelFilter, enabled: [bool; 4]| {
                    let levels =
                        [LevelFilter::ERROR, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE];
                    assert_eq!(enabled, levels.map(|at| at <= target), "{level}: {target}");
                };
                said(
                    own,
                    [
                        tracing::enabled!(target: "d7y_peer::fetch", tracing::Level::ERROR),
                        tracing::enabled!(target: "d7y_peer::fetch", tracing::Level::INFO),
                        tracing::enabled!(target: "d7y_peer::fetch", tracing::Level::DEBUG),
                        tracing::enabled!(target: "d7y_peer::fetch", tracing::Level::TRACE),
                    ],
                );
                said(
                    library,
                    [
                        tracing::enabled!(target: "h2::codec", tracing::Level::ERROR),
                        tracing::enabled!(target: "h2::codec", tracing::Level::INFO),
                        tracing::enabled!(target: "h2::codec", tracing::Level::DEBUG),
                        tracing::enabled!(target: "h2::codec", tracing::Level::TRACE),
                    ],
                );
            });
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        let sound = [
            "info",
            "OFF",
            "d7y_peer=debug,info",
            "warn,d7y_store=trace",
            "[read{id=2}]=debug",
            "d7y_peer[read]",
            "",
        ];
        let faulty = ["verbose", "info,verbose", "d7y_peer", "d7y_peer=verbose"];
        for (levels, expected) in [(&sound[..], 0), (&faulty[..], 1)] {
            for level in levels {
                let config = LogConfig { level: (*level).to_owned(), ..LogConfig::default() };
                assert_eq!(config.validate().len(), expected, "{level:?}");
            }
        }
    }
}
