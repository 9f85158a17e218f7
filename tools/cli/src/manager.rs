use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::http;

/// Where the manager is when nobody says.
pub const DEFAULT: &str = "127.0.0.1:8080";

/// The manager's REST API, as one user.
pub struct Api {
    manager: String,
    authorization: String,
}

impl Api {
    pub fn with_token(manager: &str, token: &str) -> Self {
        Self { manager: host_and_port(manager).to_owned(), authorization: format!("Bearer {token}") }
    }

    pub fn with_password(manager: &str, user: &str, password: &str) -> Self {
        let login = BASE64_STANDARD.encode(format!("{user}:{password}"));
        Self { manager: host_and_port(manager).to_owned(), authorization: format!("Basic {login}") }
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
        let authorization = Some(self.authorization.as_str());
        let request = http::Request { method, path, authorization, json: body.as_deref() };
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

/// As one address is written in one way.
pub fn host_and_port(manager: &str) -> &str {
    manager.strip_prefix("http://").unwrap_or(manager).trim_end_matches('/')
}
