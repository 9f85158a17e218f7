use std::collections::HashMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::WWW_AUTHENTICATE;
use http::{Response, StatusCode};
use url::Url;

use super::body::{Answer, whole};
use super::{Seen, reply};

/// Who may read blobs.
#[derive(Debug, Clone)]
pub enum Access {
    Open,
    /// This user with this password (basic authentication).
    Basic(&'static str, &'static str),
    /// The bearer of a token that `/token` issued. A token is good for `uses` requests.
    Token {
        login: Login,
        uses: u32,
    },
    /// Tokens are issued to everybody, and refused with this status.
    Refused(u16),
    /// Whoever has a token of the service at this URL; none is good.
    Realm(String),
}

/// Whom `/token` gives a token.
#[derive(Debug, Clone)]
pub enum Login {
    Anybody,
    Password(&'static str, &'static str),
    /// The holder of this refresh token (OAuth2).
    Identity(&'static str),
}

pub(super) struct Gate {
    access: Access,
    realm: String,
    /// Of which repository each token is, and how many requests it is still good for.
    tokens: HashMap<String, (String, u32)>,
    issued: usize,
    /// Seconds that new tokens claim to live.
    life: u64,
}

impl Gate {
    pub fn new(access: Access, host: &str) -> Self {
        let realm = match &access {
            Access::Realm(url) => url.clone(),
            _ => format!("http://{host}/token"),
        };
        Self { access, realm, tokens: HashMap::new(), issued: 0, life: 300 }
    }

    pub fn end_tokens(&mut self) {
        self.tokens.clear();
    }

    pub fn set_life(&mut self, seconds: u64) {
        self.life = seconds;
    }

    /// The refusal of a request for a blob or a manifest, if it is one and is refused.
    pub fn check(&mut self, seen: &Seen) -> Option<Response<Answer>> {
        if !seen.is_blob() {
            return None;
        }
        let authorization = seen.authorization.as_deref();
        match &self.access {
            Access::Open => None,
            Access::Basic(user, password) => {
                let fits = authorization == Some(&basic(user, password));
                (!fits).then(|| refuse(StatusCode::UNAUTHORIZED, r#"Basic realm="test""#))
            }
            Access::Refused(status) if authorization.is_some() => {
                Some(refuse(StatusCode::from_u16(*status).expect("a status"), &self.challenge(seen)))
            }
            Access::Token { .. } | Access::Refused(_) | Access::Realm(_) => {
                let left = authorization
                    .and_then(|text| text.strip_prefix("Bearer "))
                    .and_then(|token| self.tokens.get_mut(token));
                match left {
                    Some((of, left @ 1..)) if *of == repository(seen) => {
                        *left -= 1;
                        None
                    }
                    _ => Some(refuse(StatusCode::UNAUTHORIZED, &self.challenge(seen))),
                }
            }
        }
    }

    /// The answer of `/token`; `form` is the body of a POST.
    pub fn issue(&mut self, seen: &Seen, form: &str) -> Response<Answer> {
        let (login, uses) = match &self.access {
            Access::Token { login, uses } => (login.clone(), *uses),
            _ => (Login::Anybody, 0),
        };
        let query = Url::parse(&format!("http://test{}", seen.target)).expect("a request target");
        let asked: HashMap<_, _> = if form.is_empty() {
            query.query_pairs().into_owned().collect()
        } else {
            url::form_urlencoded::parse(form.as_bytes()).into_owned().collect()
        };
        let service = asked.get("service").map(String::as_str);
        let scope = asked.get("scope").map(String::as_str).unwrap_or_default();
        let welcome = match login {
            Login::Anybody => seen.authorization.is_none(),
            Login::Password(user, password) => seen.authorization == Some(basic(user, password)),
            Login::Identity(token) => asked.get("refresh_token").map(String::as_str) == Some(token),
        };
        if !welcome
            || service != Some("test")
            || !scope.starts_with("repository:")
            || !scope.ends_with(":pull")
        {
            return refuse(StatusCode::UNAUTHORIZED, "Basic");
        }
        let token = format!("token-{}", self.issued);
        self.issued += 1;
        let of = scope.trim_start_matches("repository:").trim_end_matches(":pull");
        self.tokens.insert(token.clone(), (of.to_owned(), uses));
        let life = self.life;
        reply(StatusCode::OK, [], whole(format!(r#"{{"token":"{token}","expires_in":{life}}}"#)))
    }

    fn challenge(&self, seen: &Seen) -> String {
        let repository = repository(seen);
        format!(r#"Bearer realm="{}",service="test",scope="repository:{repository}:pull""#, self.realm)
    }
}

fn repository(seen: &Seen) -> &str {
    let path = seen.target.strip_prefix("/v2/").unwrap_or_default();
    let end = path.find("/blobs/").or_else(|| path.find("/manifests/")).unwrap_or(path.len());
    &path[..end]
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn refuse(status: StatusCode, challenge: &str) -> Response<Answer> {
    let text = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    reply(status, [(WWW_AUTHENTICATE, challenge.to_owned())], whole(text))
}
