//! Layered configuration: defaults < YAML file < environment < command line.
//!
//! Keys are camelCase and nest with `.` on the command line (`--set store.maxBytes=64GiB`) and with `__` in
//! the environment (`D7Y_PEER__STORE__MAX_BYTES=64GiB`). Every key that no component knows is refused.

mod args;
mod fault;
mod overlay;
mod values;

use std::fs;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

pub use args::{Assignment, DaemonArgs};
pub use fault::{Fault, Validate};
pub use values::{ByteSize, HumanDuration, Secret};

use crate::daemon::DaemonName;
use overlay::Override;

/// The largest configuration file that is read, in bytes; anything bigger is a mistaken path.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {MAX_FILE_BYTES} bytes and cannot be a configuration file", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}: {problem}", path.display())]
    Syntax { path: PathBuf, problem: String },
    #[error("the configuration has {} fault(s):{}", .0.len(), fault::list(.0))]
    Faults(Vec<Fault>),
}

/// Reads, merges and validates a daemon's configuration.
///
/// The file is first parsed strictly into `T`, so that its errors carry line, column and the keys allowed
/// there; the environment and the flags are then laid over it and their errors name the variable or the flag.
pub fn load<T>(name: DaemonName, args: &DaemonArgs) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Default + Validate,
{
    let environment = overlay::utf8(name, std::env::vars_os()).map_err(ConfigError::Faults)?;
    load_from(name, args, environment)
}

/// [`load`] with the environment as an argument.
pub fn load_from<T>(
    name: DaemonName,
    args: &DaemonArgs,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Default + Validate,
{
    let text = read_file(args)?;
    let mut overrides = overlay::from_environment(name, environment);
    overrides.extend(args.overrides());
    let config: T = parse(args, text.as_deref(), overrides)?;
    let faults = config.validate();
    if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
}

fn read_file(args: &DaemonArgs) -> Result<Option<String>, ConfigError> {
    let Some(path) = args.config.clone() else { return Ok(None) };
    match fs::metadata(&path) {
        Ok(meta) if meta.len() > MAX_FILE_BYTES => return Err(ConfigError::TooLarge { path }),
        Ok(_) => {}
        Err(source) => return Err(ConfigError::Read { path, source }),
    }
    fs::read_to_string(&path).map(Some).map_err(|source| ConfigError::Read { path, source })
}

fn parse<T>(args: &DaemonArgs, text: Option<&str>, overrides: Vec<Override>) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Default,
{
    let text = text.filter(|text| !is_blank(text));
    let syntax = |error: serde_saphyr::Error| ConfigError::Syntax {
        path: args.config.clone().unwrap_or_default(),
        problem: error.to_string(),
    };
    let from_file: T = match text {
        Some(text) => serde_saphyr::from_str_with_options(text, yaml_options()).map_err(syntax)?,
        None => T::default(),
    };
    if overrides.is_empty() {
        return Ok(from_file);
    }
    let base = match text {
        Some(text) => serde_saphyr::from_str_with_options(text, yaml_options()).map_err(syntax)?,
        None => serde_json::Value::Object(serde_json::Map::new()),
    };
    overlay::apply(base, overrides).map_err(ConfigError::Faults)
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    })
}

/// `no_schema` refuses unquoted numbers and booleans where text is wanted: the file means the same to the
/// typed and the untyped reading. Snippets are off because neighbouring lines may hold secrets.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        no_schema: true,
        strict_booleans: true,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests;
