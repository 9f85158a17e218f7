//! Whether registries answer at all: what tools ask before anybody needs a layer.

use bytes::Bytes;
use http::header::DATE;
use http::{HeaderMap, Method, StatusCode};
use url::Url;

use crate::error::OriginError;
use crate::origin::Origin;
use crate::patience::Patience;
use crate::registry::Endpoint;
use crate::transport::{Ask, Lane};

/// One registry, or mirror of it, and what it said.
#[derive(Debug)]
pub struct Pong {
    /// As image names and credentials files call it.
    pub endpoint: String,
    /// What was asked.
    pub url: Url,
    pub answer: Result<PongAnswer, OriginError>,
}

#[derive(Debug)]
pub struct PongAnswer {
    /// 200, or 401 where everybody has to log in; anything else is not a registry.
    pub status: StatusCode,
    /// Its clock, as the Date header has it.
    pub date: Option<String>,
}

impl Origin {
    /// Asks the registry and its mirrors whether they are there (distribution specification, end-1), once each and
    /// without credentials.
    ///
    /// # Errors
    /// When `registry` is not a host.
    pub async fn ping(&self, registry: &str) -> Result<Vec<Pong>, OriginError> {
        let mut pongs = Vec::new();
        for endpoint in self.registries.endpoints(registry)? {
            let mut url = endpoint.base.clone();
            url.set_path("/v2/");
            let answer = self.ping_endpoint(&endpoint, &url).await;
            pongs.push(Pong { endpoint: endpoint.name, url, answer });
        }
        Ok(pongs)
    }

    async fn ping_endpoint(&self, endpoint: &Endpoint, url: &Url) -> Result<PongAnswer, OriginError> {
        let transport = &self.fetcher.transport;
        let mut patience = Patience::new(self.retry.clone(), transport.timeouts.no_progress);
        let ask = Ask {
            lane: Lane::Quick,
            client: &endpoint.client,
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        let reply = transport.send(ask, &mut patience).await?;
        let date = reply.headers.get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
        Ok(PongAnswer { status: reply.status, date })
    }
}
