use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http;

/// The manager's REST API, as one user.
pub struct Api {
    manager: String,
    token: String,
}

impl Api {
    pub fn new(manager: &str, token: String) -> Self {
        let manager = manager.strip_prefix("http://").unwrap_or(manager).trim_end_matches('/');
        Self { manager: manager.to_owned(), token }
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask("POST", path, Some(body.to_string())).await
    }

    async fn ask(&self, method: &str, path: &str, body: Option<String>) -> Result<Value> {
        let found = tokio::net::lookup_host(&self.manager).await.map(|mut found| found.next());
        let address = found.ok().flatten().with_context(|| format!("{:?} is no host:port", self.manager))?;
        let authorization = format!("Bearer {}", self.token);
        let request =
            http::Request { method, path, authorization: Some(&authorization), json: body.as_deref() };
        let answer = http::send(address, &request)
            .await
            .with_context(|| format!("the manager at {} does not answer", self.manager))?;
        let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        match (answer.status, body["message"].as_str()) {
            (200, _) => Ok(body),
            (_, Some(message)) => bail!("{message}"),
            (status, None) => bail!("the manager at {} answered with status {status}", self.manager),
        }
    }
}
