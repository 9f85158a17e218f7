//! What opens the layers of a private image to peers that have no credential for it: a token of the registry's own token
//! service, good for reading one repository for some minutes. The credential stays here.

use std::time::{Duration, Instant};

use d7y_origin::PullAccess;
use d7y_origin::image::ImageName;
use d7y_proto::scheduler as wire;
use d7y_types::Sha256Digest;

use super::resolve::ResolveError;
use crate::manager::Manager;

/// How long after a failure the next attempt to renew comes, while the old token lives.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What the peers of one job are given; nothing of it is in the job's row.
#[derive(Debug, Default)]
pub(super) struct Access {
    known: Option<PullAccess>,
    /// Never, when nothing ends.
    renew_at: Option<Instant>,
}

impl Access {
    /// Asks for a token, or for a newer one well before the last one ends.
    ///
    /// # Errors
    /// When peers can be given nothing that opens the layers.
    pub async fn keep(
        &mut self,
        manager: &Manager,
        job: i64,
        (image, manifest): (&ImageName, Sha256Digest),
    ) -> Result<(), ResolveError> {
        let due = match self.renew_at {
            Some(at) => Instant::now() >= at,
            None => self.known.is_none(),
        };
        if !due {
            return Ok(());
        }
        match manager.pull_access(job, image, manifest).await {
            Ok(access) => {
                self.renew_at = match &access {
                    PullAccess::Token(token) => Some(Instant::now() + token.life() / 2),
                    PullAccess::Own | PullAccess::Password => None,
                };
                self.known = Some(access);
                Ok(())
            }
            Err(error) if error.is_transient() && self.grant(image).is_some() => {
                self.renew_at = Some(Instant::now() + RETRY_AFTER);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The token, while it lives.
    pub fn grant(&self, image: &ImageName) -> Option<wire::PullGrant> {
        let Some(PullAccess::Token(token)) = &self.known else { return None };
        let lives_ms = u32::try_from(token.life().as_millis()).unwrap_or(u32::MAX);
        (lives_ms > 0).then(|| wire::PullGrant {
            registry: image.registry.clone(),
            repository: image.repository.clone(),
            authorization: token.expose().to_owned(),
            lives_ms,
        })
    }

    /// What is to be said of a job that failed although the manager could read the image.
    pub fn remark(&self, image: &ImageName) -> Option<String> {
        matches!(self.known, Some(PullAccess::Password)).then(|| {
            let registry = &image.registry;
            format!(
                "{registry} gives no tokens, and passwords do not leave the manager: on each seed peer, run \
                 `docker login {registry}`, or name a file with its credentials under origin.dockerConfig"
            )
        })
    }
}
