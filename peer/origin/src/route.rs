use crate::error::OriginError;
use crate::patience::Patience;
use crate::registry::Endpoint;

/// Whom one read asks, in which order, for how long. A mirror that has failed, for whatever reason, is not asked again
/// by this read; the registry itself, the last, is, as long as there is patience.
pub(crate) struct Route {
    endpoints: Vec<Endpoint>,
    at: usize,
    pub patience: Patience,
}

impl Route {
    /// `endpoints` is not empty.
    pub fn new(endpoints: Vec<Endpoint>, patience: Patience) -> Self {
        assert!(!endpoints.is_empty(), "the registry itself is always an endpoint");
        Self { endpoints, at: 0, patience }
    }

    pub fn next(&mut self) -> (&Endpoint, &mut Patience) {
        (&self.endpoints[self.at], &mut self.patience)
    }

    /// After a failure: on to the next endpoint at once, or to the last one again after a while, or no further.
    pub async fn after(&mut self, error: OriginError) -> Result<(), OriginError> {
        let endpoint = self.endpoints[self.at].name.as_str();
        if self.at + 1 < self.endpoints.len() {
            tracing::debug!(endpoint, %error, "mirror failed, asking the next endpoint");
            self.at += 1;
            return Ok(());
        }
        let Some(delay) = self.patience.next_delay(&error, rand::random()) else { return Err(error) };
        tracing::debug!(endpoint, %error, ?delay, "origin failed, asking again");
        self.patience.rest(delay).await;
        Ok(())
    }
}
