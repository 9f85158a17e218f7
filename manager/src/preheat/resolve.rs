//! What an image's name means, asked with the login that the job may use.

use d7y_manager_db::{DbError, RegistryLogin};
use d7y_origin::image::{Image, ImageError, ImageName, Platform};
use d7y_origin::{Login, Origin, OriginError};

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
        let registry = name.registry.to_ascii_lowercase();
        let login = self.db.credential(&self.vault, &registry, job).await;
        let origin = match login.map_err(ResolveError::Credential)? {
            Some(login) => logged_in(&self.origin, &registry, &login),
            None => self.origin.clone(),
        };
        Ok(origin.image(name, platform).await?)
    }
}

fn logged_in(origin: &Origin, registry: &str, login: &RegistryLogin) -> Origin {
    if let Some((user, password)) = login.expose_password() {
        let login = Login::Password { user: user.to_owned(), password: password.to_owned() };
        return origin.logged_in(registry, login);
    }
    match login.expose_authorization() {
        Some(header) => origin.logged_in(registry, Login::Authorization(header.to_owned())),
        None => origin.clone(),
    }
}
