use tokio::time::Instant;

use crate::error::OriginError;
use crate::patience::Patience;
use crate::registry::Endpoint;

/// Whom one read asks, in which order, for how long. A mirror that has failed, for whatever reason, is not asked again
/// by this read; the registry itself, the last, is, as long as there is patience.
pub(crate) struct Route {
    endpoints: Vec<Endpoint>,
    at: usize,
    /// The registry is not asked before this time.
    pause: Option<Instant>,
    pub patience: Patience,
}

impl Route {
    /// `endpoints` is not empty.
    pub fn new(endpoints: Vec<Endpoint>, patience: Patience) -> Self {
        assert!(!endpoints.is_empty(), "the registry itself is always an endpoint");
        Self { endpoints, at: 0, pause: None, patience }
    }

    /// Without the mirrors: what is asked for is the registry's own.
    pub fn registry_only(mut self) -> Self {
        self.at = self.endpoints.len() - 1;
        self
    }

    /// Whom to ask now, after the pause that the last failure called for.
    ///
    /// # Errors
    /// When too many attempts were begun and dropped.
    pub async fn next(&mut self) -> Result<(&Endpoint, &mut Patience), OriginError> {
        if let Some(time) = self.pause {
            self.patience.rest_until(time).await;
            self.pause = None;
        }
        let endpoint = &self.endpoints[self.at];
        if self.at + 1 == self.endpoints.len() {
            self.patience.begin(&endpoint.name)?;
        }
        Ok((endpoint, &mut self.patience))
    }

    /// After a failure: on to the next endpoint at once, or to the last one again after a pause, or no further.
    pub fn after(&mut self, error: OriginError) -> Result<(), OriginError> {
        let endpoint = self.endpoints[self.at].name.as_str();
        if self.at + 1 < self.endpoints.len() {
            tracing::warn!(endpoint, %error, "mirror failed, asking the next endpoint");
            self.at += 1;
            return Ok(());
        }
        let Some(delay) = self.patience.next_delay(&error, rand::random()) else { return Err(error) };
        tracing::debug!(endpoint, %error, ?delay, "origin failed, asking again");
        self.pause = Some(Instant::now() + delay);
        Ok(())
    }
}
