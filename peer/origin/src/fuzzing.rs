//! Ways into the parsers of what registries and users write.

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};

use crate::challenge::Challenge;
use crate::credentials;
use crate::image::{ImageName, Platform, documents};

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

/// What a registry says of an image: index, manifest or config.
pub fn image_document(text: &[u8]) {
    documents::exercise(text, &Platform::own());
    if let Some(ids) = documents::diff_ids(text) {
        assert!(ids.len() <= documents::MAX_LAYERS, "more layers than can be stacked");
    }
}

/// A name that is read is written so that it is read as the same.
pub fn image_name(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse(), Ok(platform));
    }
}
