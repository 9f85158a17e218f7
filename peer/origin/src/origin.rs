use std::sync::Arc;

use d7y_types::{LayerRef, Sha256Digest};

use crate::blob::BlobStream;
use crate::config::{ConfigError, OriginConfig, RetryConfig};
use crate::credentials::{CredentialStore, Credentials, Secret, default_docker_config};
use crate::error::OriginError;
use crate::fetch::{Fetcher, Object, ObjectAsk, Want};
use crate::grant::{PullAccess, PullToken};
use crate::helper::Helpers;
use crate::patience::Patience;
use crate::registry::{Registries, check_repository};
use crate::route::Route;
use crate::stats::{Hosts, OriginStats};
use crate::token::{Target, Tokens};
use crate::transport::Transport;

/// A client of registries: one per daemon, cheap to clone. Connections, tokens and counters are shared.
#[derive(Debug, Clone)]
pub struct Origin {
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) retry: RetryConfig,
}

/// How to log in to a registry.
#[derive(Clone)]
pub enum Login {
    Password {
        user: String,
        password: String,
    },
    /// The value of an Authorization header, such as a token that is good for one repository.
    Authorization(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

impl Origin {
    /// Reads the certificate authorities; credentials are read when they are needed.
    ///
    /// # Errors
    /// All faults of the configuration together.
    pub fn new(config: OriginConfig) -> Result<Self, ConfigError> {
        let faults = config.faults();
        if !faults.is_empty() {
            return Err(ConfigError(faults));
        }
        let registries = Registries::new(&config).map_err(ConfigError)?;
        let helpers = Helpers::from_env(config.timeouts.credential_helper, &config.credential_helper_env);
        let store = CredentialStore::new(config.docker_config.or_else(default_docker_config), helpers);
        let slots = usize::try_from(config.max_connections_per_host.get()).expect("u32 fits in usize");
        let transport = Arc::new(Transport { hosts: Hosts::new(slots), timeouts: config.timeouts });
        let fetcher =
            Arc::new(Fetcher { transport: transport.clone(), tokens: Tokens::new(transport, store) });
        Ok(Self { fetcher, registries: Arc::new(registries), retry: config.retry })
    }

    /// Starts to read the blob of `layer` at byte `offset`. An offset at the end gives an empty stream, without asking
    /// anybody.
    ///
    /// # Errors
    /// Only what retrying did not or could not mend.
    pub async fn open_blob(&self, layer: &LayerRef, offset: u64) -> Result<BlobStream, OriginError> {
        let route = self.route(&layer.registry, &layer.repository)?;
        BlobStream::open(self.fetcher.clone(), layer.clone(), route, offset).await
    }

    /// Asks whether this node, with its own credentials, may read the blob of `layer`, without reading it.
    ///
    /// # Errors
    /// As [`Self::open_blob`]; [`OriginError::Unauthorized`] and [`OriginError::NotFound`] are final answers.
    pub async fn probe(&self, layer: &LayerRef) -> Result<(), OriginError> {
        let mut route = self.route(&layer.registry, &layer.repository)?;
        loop {
            let (endpoint, patience) = route.next().await?;
            let target = Target { endpoint, repository: &layer.repository };
            let blob = ObjectAsk { object: Object::Blob(layer.digest), want: Want::Head };
            match self.fetcher.get(target, blob, patience).await {
                Ok(_) => return Ok(()),
                Err(error) => route.after(error)?,
            }
        }
    }

    /// The same origin with a login for one registry that comes before what is configured. Connections are shared,
    /// tokens are not.
    pub fn logged_in(&self, registry: &str, login: Login) -> Self {
        let credentials = match login {
            Login::Password { user, password } => Credentials::Password { user, password: Secret(password) },
            Login::Authorization(header) => Credentials::Header(Secret(header)),
        };
        let transport = self.fetcher.transport.clone();
        let tokens = self.fetcher.tokens.with(registry, credentials);
        Self { fetcher: Arc::new(Fetcher { transport, tokens }), ..self.clone() }
    }

    /// What others need to read `repository`, which this origin can read: a token that is good for nothing else, where
    /// the registry has a token service. `manifest` is the digest of an image there, on which it is tried.
    ///
    /// # Errors
    /// As [`Self::probe`].
    pub async fn pull_access(
        &self,
        (registry, repository): (&str, &str),
        manifest: Sha256Digest,
    ) -> Result<PullAccess, OriginError> {
        let mut route = self.route(registry, repository)?.registry_only();
        loop {
            let (endpoint, patience) = route.next().await?;
            let target = Target { endpoint, repository };
            match self.fetcher.pull_access(target, &manifest.to_string(), patience).await {
                Ok(access) => return Ok(access),
                Err(error) => route.after(error)?,
            }
        }
    }

    /// Takes a token for one repository that somebody else obtained. It goes to this registry only, before what this
    /// node's own credentials bring, until it ends or is refused. Another one for the same repository replaces it.
    pub fn grant(&self, registry: &str, repository: &str, token: PullToken) {
        self.fetcher.tokens.grant(registry, repository, token);
    }

    /// The index or manifest that a tag or digest names, at most `limit` bytes, unverified.
    pub(crate) async fn manifest(
        &self,
        (registry, repository): (&str, &str),
        name: &str,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, OriginError> {
        let mut route = self.route(registry, repository)?;
        loop {
            let (endpoint, patience) = route.next().await?;
            let ask = ObjectAsk { object: Object::Manifest(name), want: Want::From(0) };
            match self.fetcher.get(Target { endpoint, repository }, ask, patience).await {
                Ok(reply) => return Ok(reply.body.read_whole(limit, patience).await),
                Err(error) => route.after(error)?,
            }
        }
    }

    /// What was asked of each host since the start.
    pub fn stats(&self) -> OriginStats {
        self.fetcher.transport.hosts.stats()
    }

    fn route(&self, registry: &str, repository: &str) -> Result<Route, OriginError> {
        check_repository(repository)?;
        let patience = Patience::new(self.retry.clone(), self.fetcher.transport.timeouts.no_progress);
        Ok(Route::new(self.registries.endpoints(registry)?, self.registries.elsewhere(registry), patience))
    }
}
