//! Layered configuration: defaults < manager < YAML file < environment < command line.
//!
//! Keys are camelCase and nest with `.` on the command line (`--set store.maxBytes=64GiB`) and with `__` in
//! the environment (`D7Y_PEER__STORE__MAX_BYTES=64GiB`). Every key that no component knows is refused.

mod args;
mod fault;
mod managed;
mod overlay;
mod print;
mod reference;
mod reload;
mod spelling;
mod tree;
mod values;

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use args::{Assignment, DaemonArgs};
pub use fault::{Fault, Validate};
pub use managed::Managed;
pub use overlay::Origins;
pub use reference::reference;
pub(crate) use reload::{Changes, Flat, flat};
pub use values::{ByteSize, HumanDuration, Secret};

use crate::daemon::{DaemonConfig, DaemonName};
use overlay::Applied;
use tree::Tree;

/// The largest configuration file that is read, in bytes; anything bigger is a mistaken path.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no configuration file {}; one with {{}} in it is enough, and without --config the defaults hold", path.display())]
    Missing { path: PathBuf },
    #[error("cannot read the configuration file {}: {}", path.display(), advice(.source))]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {MAX_FILE_BYTES} bytes and cannot be a configuration file", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}: {problem}", path.display())]
    Syntax { path: PathBuf, problem: String },
    #[error("the configuration has {} fault(s):{}", .0.len(), fault::list(.0))]
    Faults(Vec<Fault>),
}

/// A sound configuration, and who has set what in it.
#[derive(Debug)]
pub struct Loaded<T> {
    pub config: T,
    pub origins: Origins,
}

impl<T: Serialize> Loaded<T> {
    /// As YAML, secrets masked, each value with where it comes from.
    pub fn to_yaml(&self) -> Result<String, serde_json::Error> {
        print::annotated(&self.config, &self.origins)
    }
}

/// Reads, merges and validates a daemon's configuration.
pub fn load<T>(name: DaemonName, args: &DaemonArgs) -> Result<Loaded<T>, ConfigError>
where
    T: Serialize + DeserializeOwned + Default + Validate,
{
    let environment = overlay::utf8(name, std::env::vars_os()).map_err(ConfigError::Faults)?;
    load_from(name, args, environment)
}

/// [`load`] for a daemon that a manager may tell some keys: those that `said` has, or else those that it kept.
///
/// What is set on this host must be sound by itself. A manager's value that does not fit, say because the manager is
/// newer, leaves all as if it had said nothing, and is logged.
pub(crate) fn load_managed<C: DaemonConfig>(
    name: DaemonName,
    args: &DaemonArgs,
    said: Option<&Managed>,
) -> Result<Loaded<C>, ConfigError> {
    let local: Loaded<C> = load(name, args)?;
    let mut managed = match (said, local.config.kept_settings()) {
        (Some(said), _) => said.clone(),
        (None, Some(path)) => managed::kept(&path),
        (None, None) => Managed::new(),
    };
    managed.retain(|key, _| C::reloadable().contains(&key.as_str()));
    if managed.is_empty() {
        return Ok(local);
    }
    let environment = overlay::utf8(name, std::env::vars_os()).map_err(ConfigError::Faults)?;
    load_layers(name, args, environment, &managed).or_else(|error| {
        let error = anyhow::Error::from(error);
        tracing::warn!("what the manager says of the configuration does not fit and is left out: {error:#}");
        Ok(local)
    })
}

/// [`load`] with the environment as an argument.
///
/// Every value is laid over the defaults on its own, so that all faults are found at once: those of the file with line
/// and column, those of the environment and the flags with the variable or the flag. What is at fault is left out, and
/// the rest is validated.
pub fn load_from<T>(
    name: DaemonName,
    args: &DaemonArgs,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded<T>, ConfigError>
where
    T: Serialize + DeserializeOwned + Default + Validate,
{
    load_layers(name, args, environment, &Managed::new())
}

fn load_layers<T>(
    name: DaemonName,
    args: &DaemonArgs,
    environment: impl IntoIterator<Item = (String, String)>,
    managed: &Managed,
) -> Result<Loaded<T>, ConfigError>
where
    T: Serialize + DeserializeOwned + Default + Validate,
{
    let path = args.config.clone().unwrap_or_default();
    let tree = match read_file(args)?.filter(|text| !is_blank(text)) {
        Some(text) => Some(
            serde_saphyr::from_str_with_options::<Tree>(&text, yaml_options())
                .map_err(|error| ConfigError::Syntax { path: path.clone(), problem: error.to_string() })?,
        ),
        None => None,
    };
    if tree.as_ref().is_some_and(|tree| !matches!(tree, Tree::Map(_))) {
        let problem = "line 1, column 1: a configuration is keys and values".to_owned();
        return Err(ConfigError::Syntax { path, problem });
    }
    let mut overrides = overlay::from_manager(managed);
    overrides.extend(tree.as_ref().map(|tree| overlay::from_file(&path, tree)).unwrap_or_default());
    let defaults = serde_json::to_value(T::default()).unwrap_or_default();
    let (environment, misspelt) = spelling::sort_out(name, &defaults, environment);
    overrides.extend(overlay::from_environment(name, environment));
    overrides.extend(args.overrides());
    let Applied { value, origins, mut faults } = overlay::apply::<T>(overrides, &defaults);
    faults.extend(misspelt);
    let config: T = serde_json::from_value(value)
        .map_err(|error| ConfigError::Faults(vec![Fault::new("configuration", error.to_string())]))?;
    faults.extend(config.validate().into_iter().map(|fault| origins.locate(fault)));
    if faults.is_empty() { Ok(Loaded { config, origins }) } else { Err(ConfigError::Faults(faults)) }
}

fn read_file(args: &DaemonArgs) -> Result<Option<String>, ConfigError> {
    let Some(path) = args.config.clone() else { return Ok(None) };
    match fs::metadata(&path) {
        Ok(meta) if meta.len() > MAX_FILE_BYTES => return Err(ConfigError::TooLarge { path }),
        Ok(_) => {}
        Err(source) if source.kind() == ErrorKind::NotFound => return Err(ConfigError::Missing { path }),
        Err(source) => return Err(ConfigError::Read { path, source }),
    }
    fs::read_to_string(&path).map(Some).map_err(|source| ConfigError::Read { path, source })
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "not permitted; let the daemon's user read it",
        ErrorKind::IsADirectory => "it is a directory; name a file",
        ErrorKind::NotADirectory => "a part of the path is no directory; name a file",
        _ => "the system refused",
    }
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
