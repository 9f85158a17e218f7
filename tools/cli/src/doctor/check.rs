use std::fmt;

use serde::Serialize;

/// What one look at the node found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: `kernel.erofs`.
    pub name: &'static str,
    pub state: State,
    pub detail: String,
    /// The command that mends it, or what to change; nothing when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
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

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Ok, detail: detail.into(), mend: None }
    }

    pub fn warning(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, state: State::Warning, detail: detail.into(), mend: Some(mend.into()) }
    }

    pub fn failed(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, state: State::Failed, detail: detail.into(), mend: Some(mend.into()) }
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
