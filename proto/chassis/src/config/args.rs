use std::path::PathBuf;

use clap::Args;

use super::overlay::{Given, Override, Source};

/// The command line that all daemons share.
#[derive(Debug, Clone, Default, Args)]
pub struct DaemonArgs {
    /// YAML configuration file; without it the defaults hold
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Check the configuration, print "ok" or every fault (exit code 78), and stop
    #[arg(long)]
    pub check_config: bool,
    /// Print the effective configuration as YAML, secrets masked, each value with where it comes from, and stop
    #[arg(long)]
    pub print_config: bool,
    /// Set one key, over the file and the environment; may be given many times
    #[arg(long = "set", value_name = "KEY.PATH=VALUE", value_parser = parse_assignment)]
    pub assignments: Vec<Assignment>,
    /// Log filter, the same as --set log.level=FILTER
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
}

/// One `--set key.path=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub key: String,
    pub value: String,
}

impl DaemonArgs {
    pub(super) fn overrides(&self) -> Vec<Override<'static>> {
        let set = |key: &str, value: &str, flag: String| Override {
            path: key.split('.').map(str::to_owned).collect(),
            given: Given::Text(value.to_owned()),
            source: Source::Flag(flag),
        };
        let mut overrides: Vec<_> = self
            .assignments
            .iter()
            .map(|given| set(&given.key, &given.value, format!("--set {}", given.key)))
            .collect();
        if let Some(level) = &self.log_level {
            overrides.push(set("log.level", level, "--log-level".to_owned()));
        }
        overrides
    }
}

fn parse_assignment(text: &str) -> Result<Assignment, String> {
    let (key, value) = text.split_once('=').ok_or("write it as key.path=value, such as log.level=debug")?;
    if key.is_empty() || key.split('.').any(str::is_empty) {
        return Err(format!("{key:?} is not a key path such as log.level"));
    }
    Ok(Assignment { key: key.to_owned(), value: value.to_owned() })
}
