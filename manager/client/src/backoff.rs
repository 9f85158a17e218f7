use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const FIRST: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(5);

/// Between two attempts: doubles from 200 ms to 5 s.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub fn new() -> Self {
        Self(FIRST)
    }

    pub fn reset(&mut self) {
        self.0 = FIRST;
    }

    pub fn next(&mut self) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(MOST);
        delay
    }
}

pub(crate) async fn connect(manager: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{manager}"))
        .map_err(|error| chain(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5));
    endpoint.connect().await.map_err(|error| {
        format!("cannot connect, start d7y-manager there or correct manager.address: {}", chain(&error))
    })
}

/// An error and all its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
