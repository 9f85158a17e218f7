use std::collections::{BTreeMap, HashMap};

use url::{Host, Url};

use crate::config::{ConfigFault, OriginConfig, RegistryConfig, Scheme, Timeouts};
use crate::error::OriginError;
use crate::fetch::Object;
use crate::tls::Trust;
use crate::transport::{HttpClient, http_client};

/// RFC 1035, and a port.
const MAX_HOST_BYTES: usize = 253 + 6;
/// Distribution specification, "Pulling manifests": registries may limit names to 255 characters with the host.
const MAX_REPOSITORY_BYTES: usize = 255;
/// The host that image names call `docker.io`.
const HUB: &str = "docker.io";
const HUB_ENDPOINT: &str = "registry-1.docker.io";

/// Where a registry listens that has no name of its own (the registry image, docker-registry).
const USUAL_PORT: u16 = 5000;

/// One place to ask for the blobs of a registry: itself or a mirror of it.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// As image names and credentials files call it.
    pub name: String,
    /// `scheme://host:port/`.
    pub base: Url,
    /// The registry that this is a mirror of.
    pub mirror_of: Option<String>,
    pub client: HttpClient,
}

impl Endpoint {
    /// Mirrors of several registries tell them apart by the `ns` parameter (containerd, docs/hosts.md).
    pub fn url(&self, repository: &str, object: Object<'_>) -> Url {
        let mut url = self.base.clone();
        url.set_path(&match object {
            Object::Blob(digest) => format!("/v2/{repository}/blobs/{digest}"),
            Object::Manifest(name) => format!("/v2/{repository}/manifests/{name}"),
        });
        if let Some(registry) = &self.mirror_of {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    /// Whether `url` leads to this very host, port and scheme: the only place that may see its credentials.
    pub fn owns(&self, url: &Url) -> bool {
        self.base.origin() == url.origin()
    }
}

/// What is known about registries from the configuration.
#[derive(Debug)]
pub(crate) struct Registries {
    configured: BTreeMap<String, RegistryConfig>,
    with_own_ca: HashMap<String, HttpClient>,
    default_client: HttpClient,
}

impl Registries {
    /// Of a configuration without [`OriginConfig::faults`].
    pub fn new(config: &OriginConfig) -> Result<Self, Vec<ConfigFault>> {
        let mut faults = Vec::new();
        let trust = Trust::system();
        let mut with_own_ca = HashMap::new();
        for registry in &config.registries {
            match own_client(registry, &trust, &config.timeouts) {
                Ok(Some(client)) => drop(with_own_ca.insert(registry.host.to_ascii_lowercase(), client)),
                Ok(None) => {}
                Err(fault) => faults.push(fault),
            }
        }
        let default_client = trust.client_config().map(|tls| http_client(tls, &config.timeouts));
        let default_client = match default_client {
            Ok(client) if faults.is_empty() => client,
            Ok(_) => return Err(faults),
            Err(error) => return Err(vec![ConfigFault::Tls(error)]),
        };
        let configured =
            config.registries.iter().map(|entry| (entry.host.to_ascii_lowercase(), entry.clone())).collect();
        Ok(Self { configured, with_own_ca, default_client })
    }

    /// Where to ask, in this order: the mirrors, then the registry itself.
    ///
    /// containerd's `distribution.source` labels name a registry without its port. Such a name means the configured
    /// registries that it is the host of, if there are any.
    pub fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, OriginError> {
        let name = registry.to_ascii_lowercase();
        let prefix = format!("{name}:");
        let with_port = || self.configured.keys().filter(|host| host.starts_with(&prefix));
        let names: Vec<&str> = match self.configured.contains_key(&name) || with_port().next().is_none() {
            true => vec![&name],
            false => with_port().map(String::as_str).collect(),
        };
        let all = names.into_iter().flat_map(|name| self.with_mirrors(name));
        all.collect::<Option<_>>().ok_or_else(|| OriginError::Name(clip(registry)))
    }

    /// The same registry at [`USUAL_PORT`], for a name whose port containerd may have left out. What is read is checked
    /// by digest wherever it comes from, and credentials are those of that very host and port.
    pub fn elsewhere(&self, registry: &str) -> Option<Endpoint> {
        let name = registry.to_ascii_lowercase();
        let prefix = format!("{name}:");
        let is_configured = self.configured.keys().any(|host| *host == name || host.starts_with(&prefix));
        let says_port = parse_host(&name, Scheme::Https)?.port().is_some();
        if is_configured || says_port || name == HUB {
            None
        } else {
            self.endpoint(&format!("{name}:{USUAL_PORT}"), None)
        }
    }

    fn with_mirrors<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Option<Endpoint>> + 'a {
        let mirrors = self.configured.get(name).map(|entry| entry.mirrors.as_slice()).unwrap_or_default();
        let mirrors =
            mirrors.iter().map(move |mirror| self.endpoint(&mirror.to_ascii_lowercase(), Some(name)));
        mirrors.chain([self.endpoint(name, None)])
    }

    fn endpoint(&self, name: &str, mirror_of: Option<&str>) -> Option<Endpoint> {
        let address = if name == HUB { HUB_ENDPOINT } else { name };
        let mut base = parse_host(address, Scheme::Https)?;
        let configured = self.configured.get(name).and_then(|entry| entry.scheme);
        if configured.unwrap_or_else(|| default_scheme(&base)) == Scheme::Http {
            base = parse_host(address, Scheme::Http)?;
        }
        let client = self.with_own_ca.get(name).unwrap_or(&self.default_client).clone();
        Some(Endpoint { name: name.to_owned(), base, mirror_of: mirror_of.map(str::to_owned), client })
    }
}

/// Refuses what would leave `/v2/<repository>/` (distribution specification, "Pulling manifests").
pub(crate) fn check_repository(repository: &str) -> Result<(), OriginError> {
    let safe = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    if repository.len() <= MAX_REPOSITORY_BYTES && repository.split('/').all(safe) {
        Ok(())
    } else {
        Err(OriginError::Name(clip(repository)))
    }
}

/// Hosts that are none, two entries for one, and certificate files that cannot be used.
pub(crate) fn registry_faults(registries: &[RegistryConfig]) -> Vec<ConfigFault> {
    let mut faults = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for registry in registries {
        let hosts = std::iter::once(&registry.host).chain(&registry.mirrors);
        faults.extend(
            hosts
                .filter(|host| parse_host(host, Scheme::Https).is_none())
                .map(|host| ConfigFault::Host(host.clone())),
        );
        if !seen.insert(registry.host.to_ascii_lowercase()) {
            faults.push(ConfigFault::Duplicate(registry.host.clone()));
        }
        if let Some(path) = &registry.ca_file
            && let Err(source) = Trust::nobody().with_ca_file(path)
        {
            faults.push(ConfigFault::CaFile { host: registry.host.clone(), source });
        }
    }
    faults
}

fn own_client(
    registry: &RegistryConfig,
    system: &Trust,
    timeouts: &Timeouts,
) -> Result<Option<HttpClient>, ConfigFault> {
    let Some(path) = &registry.ca_file else { return Ok(None) };
    let trust = system
        .with_ca_file(path)
        .map_err(|source| ConfigFault::CaFile { host: registry.host.clone(), source })?;
    let tls = trust.client_config().map_err(ConfigFault::Tls)?;
    Ok(Some(http_client(tls, timeouts)))
}

/// `host` or `host:port`, and nothing that a URL parser would take for something else.
pub(crate) fn parse_host(text: &str, scheme: Scheme) -> Option<Url> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if text.is_empty() || text.len() > MAX_HOST_BYTES || !text.chars().all(safe) {
        return None;
    }
    let url = Url::parse(&format!("{}://{text}/", scheme.as_str())).ok()?;
    (url.path() == "/" && url.username().is_empty() && url.password().is_none()).then_some(url)
}

/// As docker and containerd do: a registry on this machine is a plain one.
fn default_scheme(base: &Url) -> Scheme {
    let loopback = match base.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if loopback { Scheme::Http } else { Scheme::Https }
}

fn clip(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_registry_is_asked() {
        let configured = |host: &str, scheme, mirrors: &[&str]| RegistryConfig {
            scheme,
            mirrors: mirrors.iter().map(|&mirror| mirror.to_owned()).collect(),
            ..RegistryConfig::new(host)
        };
        let config = OriginConfig {
            registries: vec![
                configured("plain.example:5000", Some(Scheme::Http), &[]),
                configured("docker.io", None, &["mirror.example", "plain.example:5000"]),
                configured("127.0.0.1:5443", Some(Scheme::Https), &[]),
            ],
            ..OriginConfig::default()
        };
        let registries = Registries::new(&config).unwrap();
        let cases: &[(&str, Option<&[&str]>)] = &[
            ("registry.example", Some(&["https://registry.example/"])),
            ("Registry.Example:444", Some(&["https://registry.example:444/"])),
            ("plain.example:5000", Some(&["http://plain.example:5000/"])),
            ("plain.example", Some(&["http://plain.example:5000/"])),
            ("localhost:5000", Some(&["http://localhost:5000/"])),
            ("127.0.0.9", Some(&["http://127.0.0.9/"])),
            ("[::1]:5000", Some(&["http://[::1]:5000/"])),
            ("127.0.0.1:5443", Some(&["https://127.0.0.1:5443/"])),
            (
                "docker.io",
                Some(&[
                    "https://mirror.example/",
                    "http://plain.example:5000/",
                    "https://registry-1.docker.io/",
                ]),
            ),
            ("", None),
            ("user@host", None),
            ("host/path", None),
            ("host:port", None),
            ("host:99999", None),
            ("ho st", None),
            ("host?x", None),
            ("hóst", None),
        ];
        for (name, expected) in cases {
            let endpoints = registries.endpoints(name).ok();
            let urls = endpoints.map(|all| all.iter().map(|one| one.base.to_string()).collect::<Vec<_>>());
            assert_eq!(
                urls,
                expected.map(|urls| urls.iter().map(|url| url.to_string()).collect()),
                "{name:?}"
            );
        }
    }

    #[test]
    fn the_port_that_a_name_may_have_lost() {
        let config = OriginConfig {
            registries: vec![RegistryConfig::new("known.example:444"), RegistryConfig::new("plain.example")],
            ..OriginConfig::default()
        };
        let registries = Registries::new(&config).unwrap();
        for (name, expected) in [
            ("registry.example", Some("https://registry.example:5000/")),
            ("localhost", Some("http://localhost:5000/")),
            ("[::1]", Some("http://[::1]:5000/")),
            ("localhost:5001", None),
            ("known.example", None),
            ("plain.example", None),
            ("docker.io", None),
            ("user@host", None),
        ] {
            let url = registries.elsewhere(name).map(|endpoint| endpoint.base.to_string());
            assert_eq!(url.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn repositories() {
        for good in ["a", "library/python", "a/b/c-d__e.f", "0/1"] {
            assert!(check_repository(good).is_ok(), "{good:?}");
        }
        let long = "a".repeat(256);
        for bad in ["", "/", "a//b", "../x", "a/..", "a/./b", "A", "a b", "a?b", "a%2fb", "a/", "é", &long] {
            assert!(check_repository(bad).is_err(), "{bad:?}");
        }
    }
}
