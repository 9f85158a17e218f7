//! The registry's side of a pull, over plain HTTP.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::rig::client::Reference;

const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.v2+json";

/// Manifests and configs are small; a larger one is not one.
const JSON_LIMIT: usize = 8 << 20;

/// One repository of a registry.
pub struct Registry {
    http: Client<HttpConnector, Empty<Bytes>>,
    base: String,
}

impl Registry {
    pub fn new(reference: &Reference) -> Self {
        let base = format!("http://{}/v2/{}", reference.registry, reference.repository);
        Self { http: Client::builder(TokioExecutor::new()).build_http(), base }
    }

    pub async fn manifest(&self, tag: &str) -> Result<Bytes> {
        small(self.get(&format!("manifests/{tag}")).await?).await
    }

    pub async fn small_blob(&self, digest: &str) -> Result<Bytes> {
        small(self.blob(digest).await?).await
    }

    pub async fn blob(&self, digest: &str) -> Result<Incoming> {
        self.get(&format!("blobs/{digest}")).await
    }

    async fn get(&self, path: &str) -> Result<Incoming> {
        let uri = format!("{}/{path}", self.base);
        let request = Request::get(&uri).header(ACCEPT, ACCEPTED).body(Empty::new())?;
        let response = self.http.request(request).await.with_context(|| format!("cannot get {uri}"))?;
        if response.status() != StatusCode::OK {
            bail!("{uri}: {}", response.status());
        }
        Ok(response.into_body())
    }
}

async fn small(body: Incoming) -> Result<Bytes> {
    let limited = http_body_util::Limited::new(body, JSON_LIMIT);
    let collected =
        limited.collect().await.map_err(|error| anyhow::anyhow!("cannot read the answer: {error}"))?;
    Ok(collected.to_bytes())
}
