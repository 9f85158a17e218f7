use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::credentials::{Credentials, Secret};

/// Cloud tokens take a few KiB.
const MAX_OUTPUT_BYTES: u64 = 64 << 10;
const ALWAYS_PASSED: [&str; 3] = ["PATH", "HOME", "DOCKER_CONFIG"];
/// The user name by which helpers mark an identity token (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";
/// What they print, with a failure, when nobody is logged in.
const NOT_FOUND: &str = "credentials not found";

/// The end of a helper's file name: `docker-credential-<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HelperName(String);

impl HelperName {
    /// Only names that stay in the directories of `PATH`.
    pub fn new(name: &str) -> Option<Self> {
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (!name.is_empty() && name.len() <= 64 && name.chars().all(safe)).then(|| Self(name.to_owned()))
    }
}

/// Why a credential helper gave nothing. What it printed is left out: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    #[error("docker-credential-{helper} cannot be run ({kind}); install it in the PATH of this daemon")]
    Start { helper: String, kind: io::ErrorKind },
    #[error("docker-credential-{helper} failed ({status}); run `docker-credential-{helper} get` to see why")]
    Failed { helper: String, status: ExitStatus },
    #[error("docker-credential-{helper} took longer than timeouts.credentialHelper ({limit:?})")]
    Timeout { helper: String, limit: Duration },
    #[error("docker-credential-{helper} answered with something other than credentials")]
    Answer { helper: String },
}

/// Runs credential helpers with a bare environment and a time limit.
#[derive(Debug, Clone)]
pub(crate) struct Helpers {
    limit: Duration,
    environment: Vec<(OsString, OsString)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Helpers {
    pub fn new(limit: Duration, environment: Vec<(OsString, OsString)>) -> Self {
        Self { limit, environment }
    }

    /// With what helpers always need of this process's environment, and `passed` besides.
    pub fn from_env(limit: Duration, passed: &[String]) -> Self {
        let keys = ALWAYS_PASSED.into_iter().chain(passed.iter().map(String::as_str));
        Self::new(limit, keys.filter_map(|key| Some((key.into(), std::env::var_os(key)?))).collect())
    }

    /// Asks `docker-credential-<name> get` for the credentials of `server`; none when it has none.
    pub async fn get(&self, name: &HelperName, server: &str) -> Result<Option<Credentials>, HelperError> {
        let helper = || name.0.clone();
        let start = |error: io::Error| HelperError::Start { helper: helper(), kind: error.kind() };
        let mut child = self.command(name).spawn().map_err(start)?;
        let (status, output) = timeout(self.limit, converse(&mut child, server))
            .await
            .map_err(|_| HelperError::Timeout { helper: helper(), limit: self.limit })?
            .map_err(start)?;
        if !status.success() {
            let none = String::from_utf8_lossy(&output).contains(NOT_FOUND);
            return if none { Ok(None) } else { Err(HelperError::Failed { helper: helper(), status }) };
        }
        let answer: Answer =
            serde_json::from_slice(&output).map_err(|_| HelperError::Answer { helper: helper() })?;
        let secret = Secret(answer.secret);
        Ok(Some(if answer.username == TOKEN_USER {
            Credentials::IdentityToken(secret)
        } else {
            Credentials::Password { user: answer.username, password: secret }
        }))
    }

    fn command(&self, name: &HelperName) -> Command {
        let mut command = Command::new(format!("docker-credential-{}", name.0));
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.kill_on_drop(true).env_clear();
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }
}

async fn converse(child: &mut Child, server: &str) -> io::Result<(ExitStatus, Vec<u8>)> {
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input may still answer.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_OUTPUT_BYTES).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?, output))
}
