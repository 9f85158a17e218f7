use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use crate::helper::{HelperError, HelperName, Helpers};

/// A file with a thousand registries has some 200 KiB.
const MAX_DOCKER_CONFIG_BYTES: u64 = 1 << 20;

/// `docker login` has sometimes left the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Docker Hub's server name in files and helpers, and the hosts that mean it.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
const HUB_HOSTS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];

/// Text that no log may show.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password {
        user: String,
        password: Secret,
    },
    /// An OAuth2 refresh token, to be exchanged at the token service.
    IdentityToken(Secret),
    /// The value of an Authorization header that somebody else obtained.
    Header(Secret),
}

/// Why the credentials of a registry cannot be had. Shows neither them nor what helpers print.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("{path} cannot be read ({kind}); check its owner and mode")]
    Read { path: PathBuf, kind: io::ErrorKind },
    #[error("{0} is larger than 1 MiB; it is not a docker configuration")]
    TooLarge(PathBuf),
    #[error(
        "{path} is not a docker configuration (line {line}, column {column}); mend it or run `docker login`"
    )]
    Syntax { path: PathBuf, line: usize, column: usize },
    #[error("{path} has a broken entry for {host}; run `docker login {host}`")]
    Entry { path: PathBuf, host: String },
    #[error("{path} names a credential helper for {host} by more than letters, digits, '-', '_' and '.'")]
    HelperName { path: PathBuf, host: String },
    #[error(transparent)]
    Helper(#[from] HelperError),
}

/// Finds the credentials of a registry. Nothing is kept: the file may be rewritten at any time, and helpers hand out
/// passwords that live for hours.
#[derive(Debug)]
pub(crate) struct CredentialStore {
    path: Option<PathBuf>,
    helpers: Helpers,
    given: Option<(String, Credentials)>,
}

impl CredentialStore {
    pub fn new(path: Option<PathBuf>, helpers: Helpers) -> Self {
        Self { path, helpers, given: None }
    }

    /// The same with a login for one registry that comes before what the file says.
    pub fn with(&self, registry: &str, credentials: Credentials) -> Self {
        let given = Some((registry.to_ascii_lowercase(), credentials));
        Self { path: self.path.clone(), helpers: self.helpers.clone(), given }
    }

    /// None: nobody is logged in to `registry`, and requests go without.
    pub async fn find(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        if let Some((given, credentials)) = &self.given
            && (given == registry || (is_hub(given) && is_hub(registry)))
        {
            return Ok(Some(credentials.clone()));
        }
        let Some(path) = &self.path else { return Ok(None) };
        let Some(text) = read(path).await? else { return Ok(None) };
        let file = DockerFile::parse(&text, path)?;
        if let Some(helper) = file.helper(registry) {
            let name = HelperName::new(helper).ok_or_else(|| CredentialError::HelperName {
                path: path.clone(),
                host: registry.to_owned(),
            })?;
            if let Some(found) = self.helpers.get(&name, server_name(registry)).await? {
                return Ok(Some(found));
            }
        }
        let Some(entry) = file.entry(registry) else { return Ok(None) };
        entry
            .credentials()
            .map_err(|BrokenEntry| CredentialError::Entry { path: path.clone(), host: registry.to_owned() })
    }
}

/// What the file says about a registry, without asking a helper.
#[cfg(feature = "fuzzing")]
pub(crate) fn said_of(text: &[u8], registry: &str) -> Option<Credentials> {
    let file = DockerFile::parse(text, Path::new("config.json")).ok()?;
    let _ = file.helper(registry).and_then(HelperName::new);
    file.entry(registry)?.credentials().unwrap_or_default()
}

/// The file that `docker` would use: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
pub(crate) fn default_docker_config() -> Option<PathBuf> {
    let directory = match std::env::var_os("DOCKER_CONFIG") {
        Some(directory) if !directory.is_empty() => PathBuf::from(directory),
        _ => std::env::home_dir()?.join(".docker"),
    };
    Some(directory.join("config.json"))
}

async fn read(path: &Path) -> Result<Option<Vec<u8>>, CredentialError> {
    let fault = |error: io::Error| CredentialError::Read { path: path.to_owned(), kind: error.kind() };
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_DOCKER_CONFIG_BYTES + 1).read_to_end(&mut text).await.map_err(fault)?;
    if text.len() as u64 > MAX_DOCKER_CONFIG_BYTES {
        return Err(CredentialError::TooLarge(path.to_owned()));
    }
    Ok(Some(text))
}

/// What d7y reads of docker's `config.json`; all else in it is docker's own business.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerFile {
    auths: Option<BTreeMap<String, Option<AuthEntry>>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

struct BrokenEntry;

impl DockerFile {
    /// serde's own message would quote the value that it did not expect, which may be a password.
    fn parse(text: &[u8], path: &Path) -> Result<Self, CredentialError> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(text).map_err(|error| CredentialError::Syntax {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
        })
    }

    fn helper(&self, registry: &str) -> Option<&str> {
        let own = self.cred_helpers.as_ref().and_then(|helpers| find(helpers, registry));
        own.or(self.creds_store.as_ref()).map(String::as_str).filter(|name| !name.is_empty())
    }

    fn entry(&self, registry: &str) -> Option<&AuthEntry> {
        self.auths.as_ref().and_then(|auths| find(auths, registry))?.as_ref()
    }
}

impl AuthEntry {
    fn credentials(&self) -> Result<Option<Credentials>, BrokenEntry> {
        let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        if let Some(token) = text(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(Secret(token))));
        }
        if let Some(auth) = text(&self.auth) {
            let plain = BASE64.decode(auth.trim()).map_err(|_| BrokenEntry)?;
            let plain = String::from_utf8(plain).map_err(|_| BrokenEntry)?;
            let (user, password) = plain.split_once(':').ok_or(BrokenEntry)?;
            let password = Secret(password.trim_end_matches('\0').to_owned());
            return Ok(Some(Credentials::Password { user: user.to_owned(), password }));
        }
        Ok(text(&self.username)
            .zip(text(&self.password))
            .map(|(user, password)| Credentials::Password { user, password: Secret(password) }))
    }
}

/// The value for a registry, by its very name first, then by the host of a key that is a URL.
fn find<'a, V>(map: &'a BTreeMap<String, V>, registry: &str) -> Option<&'a V> {
    let names: &[&str] = if is_hub(registry) { &HUB_HOSTS } else { &[registry] };
    let exact = if is_hub(registry) { HUB_SERVER } else { registry };
    map.get(exact).or_else(|| {
        names
            .iter()
            .find_map(|name| map.iter().find(|(key, _)| host_of(key).eq_ignore_ascii_case(name)))
            .map(|(_, value)| value)
    })
}

fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

fn is_hub(registry: &str) -> bool {
    HUB_HOSTS.contains(&registry)
}

fn server_name(registry: &str) -> &str {
    if is_hub(registry) { HUB_SERVER } else { registry }
}

#[cfg(test)]
mod tests;
