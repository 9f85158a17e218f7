use std::fmt;
use std::str::FromStr;

use d7y_types::Sha256Digest;

use crate::registry::{check_repository, parse_host};

/// Where names without a host are looked for, as docker does it.
const HUB: &str = "docker.io";
/// The tag of names without one.
const LATEST: &str = "latest";
/// Distribution specification, "Pulling manifests": `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
const MAX_TAG_CHARS: usize = 128;

/// An image as people write it: `nginx`, `registry.example:5000/team/app:1.2`, `app@sha256:…`, or as Harbor does:
/// `https://registry.example/v2/team/app/manifests/1.2`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// With the port where one is given; `docker.io` when the name has no host.
    pub registry: String,
    pub repository: String,
    pub version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Version {
    Tag(String),
    Digest(Sha256Digest),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of an image such as nginx, registry.example:5000/team/app:1.2 or app@sha256:…"
)]
pub struct NameError(String);

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = || NameError(text.chars().take(128).collect());
        let name = if let Some(url) = text.strip_prefix("https://") {
            Self::from_url(url, 443)
        } else if let Some(url) = text.strip_prefix("http://") {
            Self::from_url(url, 80)
        } else {
            Self::from_reference(text)
        };
        name.filter(Self::is_sound).ok_or_else(refuse)
    }
}

impl ImageName {
    /// `host/v2/<repository>/manifests/<version>`. A host that would be taken for a part of the repository gets its port.
    fn from_url(url: &str, port: u16) -> Option<Self> {
        let (registry, path) = url.split_once("/v2/")?;
        let (repository, version) = path.rsplit_once("/manifests/")?;
        let version = match version.contains(':') {
            true => Version::Digest(version.parse().ok()?),
            false => Version::Tag(version.to_owned()),
        };
        let registry = match is_host(registry) {
            true => registry.to_owned(),
            false => format!("{registry}:{port}"),
        };
        Some(Self { registry, repository: repository.to_owned(), version })
    }

    fn from_reference(text: &str) -> Option<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().ok()?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag, one before it a port.
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest.to_owned()),
            Some(_) => (HUB, name.to_owned()),
            None => (HUB, format!("library/{name}")),
        };
        let version = match digest {
            Some(digest) => Version::Digest(digest),
            None => Version::Tag(tag.unwrap_or(LATEST).to_owned()),
        };
        Some(Self { registry: registry.to_owned(), repository, version })
    }

    fn is_sound(&self) -> bool {
        let tag = match &self.version {
            Version::Tag(tag) => tag.as_str(),
            Version::Digest(_) => LATEST,
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let tag_is_sound = tag.len() <= MAX_TAG_CHARS
            && tag.starts_with(word)
            && tag.chars().all(|c| word(c) || c == '.' || c == '-');
        tag_is_sound
            && parse_host(&self.registry, crate::Scheme::Https).is_some()
            && check_repository(&self.repository).is_ok()
    }
}

/// Whether the first part of a name is its host, as docker tells.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self.version {
            Version::Tag(_) => ':',
            Version::Digest(_) => '@',
        };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let table = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("team/app:1", "docker.io/team/app:1".into()),
            ("localhost/app", "localhost/app:latest".into()),
            ("registry.example:5000/team/app:1.2", "registry.example:5000/team/app:1.2".into()),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest".into()),
            (&format!("r.example/app:1@{digest}"), format!("r.example/app@{digest}")),
            ("https://r.example/v2/team/app/manifests/1.2", "r.example/team/app:1.2".into()),
            ("https://harbor/v2/team/app/manifests/1.2", "harbor:443/team/app:1.2".into()),
            ("http://harbor/v2/team/app/manifests/1.2", "harbor:80/team/app:1.2".into()),
            (&format!("http://r.example:80/v2/app/manifests/{digest}"), format!("r.example:80/app@{digest}")),
        ];
        for (text, expected) in table {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.to_string(), expected, "{text}");
            assert_eq!(expected.parse::<ImageName>(), Ok(name), "what is written is read as the same");
        }
        let long = format!("app:{}", "a".repeat(129));
        for bad in [
            "",
            "App",
            "a b",
            "app:",
            "app:-1",
            "app@sha256:00",
            "r.example/../app",
            "r.example/",
            "user@r.example/app",
            "https://r.example/app",
            "https://r.example/v2/app/manifests/",
            "https://u:p@r.example/v2/app/manifests/1",
            "oci://r.example/app",
            &long,
        ] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?} was accepted");
        }
    }
}
