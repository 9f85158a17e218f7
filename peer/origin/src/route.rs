use tokio::time::Instant;

use crate::error::OriginError;
use crate::patience::Patience;
use crate::registry::Endpoint;

/// Whom one read asks, in which order, for how long. A mirror that has failed, for whatever reason, is not asked again
/// by this read; the registry itself, the last, is, as long as there is patience.
pub(crate) struct Route {
    endpoints: Vec<Endpoint>,
    at: usize,
    /// The registry at another port, should nobody listen at the usual one.
    elsewhere: Option<Endpoint>,
    /// Whether it is asked instead.
    is_elsewhere: bool,
    /// The registry is not asked before this time.
    pause: Option<Instant>,
    pub patience: Patience,
}

impl Route {
    /// `endpoints` is not empty.
    pub fn new(endpoints: Vec<Endpoint>, elsewhere: Option<Endpoint>, patience: Patience) -> Self {
        assert!(!endpoints.is_empty(), "the registry itself is always an endpoint");
        Self { endpoints, at: 0, elsewhere, is_elsewhere: false, pause: None, patience }
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
        let elsewhere = self.elsewhere.as_ref().filter(|_| self.is_elsewhere);
        let endpoint = elsewhere.unwrap_or(&self.endpoints[self.at]);
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
        if matches!(error, OriginError::Connect { .. }) && self.elsewhere.is_some() {
            self.is_elsewhere = !self.is_elsewhere;
            if self.is_elsewhere {
                return Ok(());
            }
        }
        let Some(delay) = self.patience.next_delay(&error, rand::random()) else { return Err(error) };
        tracing::debug!(endpoint, %error, ?delay, "origin failed, asking again");
        self.pause = Some(Instant::now() + delay);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{OriginConfig, RetryConfig};
    use crate::registry::Registries;

    #[tokio::test]
    async fn a_name_without_its_port_is_asked_at_the_usual_one_too() {
        let refused = || OriginError::Connect {
            host: "localhost".into(),
            source: std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
        };
        let registries = Registries::new(&OriginConfig::default()).unwrap();
        for (name, asked) in [
            ("localhost", ["localhost", "localhost:5000", "localhost", "localhost:5000"]),
            ("localhost:5001", ["localhost:5001"; 4]),
        ] {
            let retry = RetryConfig { initial_delay: Duration::from_millis(1), ..RetryConfig::default() };
            let patience = Patience::new(retry, Duration::from_secs(60));
            let (endpoints, elsewhere) = (registries.endpoints(name).unwrap(), registries.elsewhere(name));
            let mut route = Route::new(endpoints, elsewhere, patience);
            for expected in asked {
                assert_eq!(route.next().await.unwrap().0.name, expected);
                route.after(refused()).unwrap();
            }
        }
    }
}
