//! Ways into the parsers of what registries and users write.

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};

use crate::challenge::Challenge;
use crate::credentials;

/// Chooses among the challenges of a 401, a header per line.
pub fn challenge(text: &[u8]) {
    let values = text.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
    let headers: HeaderMap = values.map(|value| (WWW_AUTHENTICATE, value)).collect();
    let _ = Challenge::choose(&headers);
}

/// Looks registries up in a docker configuration; runs no helper.
pub fn docker_config(text: &[u8]) {
    for registry in ["docker.io", "registry.example:5000", ""] {
        let _ = credentials::said_of(text, registry);
    }
}
