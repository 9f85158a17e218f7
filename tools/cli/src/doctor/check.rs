use std::fmt;
use std::path::Path;

use serde::{Serialize, Serializer};

/// What one look at the node found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: `kernel.erofs`.
    pub name: &'static str,
    pub state: State,
    pub detail: String,
    /// Nothing when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<Mend>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Containers start, but something is slower, less safe or about to break.
    Warning,
    /// Containers do not start through d7y.
    Failed,
}

/// What mends a fault: never prose, so that it can be typed as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mend {
    Run(String),
    /// On another machine.
    RunOn {
        host: String,
        command: String,
    },
    /// A line of a configuration file, and how its reader hears of it.
    Set {
        line: String,
        file: String,
        then: String,
    },
}

impl Mend {
    pub fn run(command: impl Into<String>) -> Self {
        Self::Run(command.into())
    }

    /// `address` is host:port.
    pub fn run_on(address: &str, command: impl Into<String>) -> Self {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        Self::RunOn { host: host.to_owned(), command: command.into() }
    }

    pub fn set(line: impl Into<String>, file: &Path, then: impl Into<String>) -> Self {
        Self::Set { line: line.into(), file: file.display().to_string(), then: then.into() }
    }
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(command) => f.write_str(command),
            Self::RunOn { host, command } => write!(f, "on {host}: {command}"),
            Self::Set { line, file, then } => write!(f, "set `{line}` in {file}; {then}"),
        }
    }
}

impl Serialize for Mend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Ok, detail: detail.into(), mend: None }
    }

    pub fn warning(name: &'static str, detail: impl Into<String>, mend: Mend) -> Self {
        Self { name, state: State::Warning, detail: detail.into(), mend: Some(mend) }
    }

    pub fn failed(name: &'static str, detail: impl Into<String>, mend: Mend) -> Self {
        Self { name, state: State::Failed, detail: detail.into(), mend: Some(mend) }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        })
    }
}
