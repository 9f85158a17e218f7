//! What an image's name means, asked with the login that the job may use.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use d7y_manager_db::{DbError, RegistryLogin};
use d7y_origin::image::{Image, ImageError, ImageName, Platform};
use d7y_origin::{Login, Origin, OriginError, PullAccess};
use d7y_types::Sha256Digest;

use crate::manager::Manager;

#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the registry's stored credential cannot be used")]
    Credential(#[source] DbError),
}

impl ResolveError {
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Image(error) => error.is_transient(),
            Self::Credential(_) => false,
        }
    }

    /// One sentence for whoever asked for the preheat: what is wrong, and what to do.
    pub fn sentence(&self) -> String {
        match self {
            Self::Image(ImageError::Origin(OriginError::Unauthorized {
                registry,
                repository,
                status,
                ..
            })) => {
                format!(
                    "{registry} refused access to {repository} ({status}); store a credential for it with \
                     POST /api/v1/registry-credentials, or give the preheat a user and a password"
                )
            }
            other => chain(other),
        }
    }
}

/// An error and all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    // A transparent error says the same as its source.
    texts.dedup();
    texts.join(": ")
}

impl Manager {
    pub(super) async fn resolve(
        &self,
        job: i64,
        name: &ImageName,
        platform: &Platform,
    ) -> Result<Image, ResolveError> {
        Ok(self.origin_for(job, name).await?.image(name, platform).await?)
    }

    /// What others need to read the layers of the image.
    pub(super) async fn pull_access(
        &self,
        job: i64,
        name: &ImageName,
        manifest: Sha256Digest,
    ) -> Result<PullAccess, ResolveError> {
        let origin = self.origin_for(job, name).await?;
        let access = origin.pull_access((&name.registry, &name.repository), manifest).await;
        access.map_err(|error| ResolveError::Image(error.into()))
    }

    /// With the login that the job may use.
    async fn origin_for(&self, job: i64, name: &ImageName) -> Result<Origin, ResolveError> {
        let registry = name.registry.to_ascii_lowercase();
        let login = self.db.credential(&self.vault, &registry, job).await;
        Ok(match login.map_err(ResolveError::Credential)? {
            Some(login) => logged_in(&self.origin, &registry, &login),
            None => self.origin.clone(),
        })
    }
}

fn logged_in(origin: &Origin, registry: &str, login: &RegistryLogin) -> Origin {
    if let Some((user, password)) = login.expose_password() {
        let login = Login::Password { user: user.to_owned(), password: password.to_owned() };
        return origin.logged_in(registry, login);
    }
    match login.expose_authorization() {
        Some(header) if let Some((user, password)) = user_and_password(header) => {
            origin.logged_in(registry, Login::Password { user, password })
        }
        Some(header) => origin.logged_in(registry, Login::Authorization(header.to_owned())),
        None => origin.clone(),
    }
}

/// Of a header that holds them, so that they are exchanged for a token where there are tokens (RFC 7617).
fn user_and_password(header: &str) -> Option<(String, String)> {
    let (scheme, encoded) = header.split_once(' ')?;
    let plain =
        scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(encoded.trim()).ok())??;
    let plain = String::from_utf8(plain).ok()?;
    plain.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}
