use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// What the manager says about keys that a running daemon takes over: text as in `--set`, by key. It lies over the
/// defaults and under everything that is set on the host itself.
pub type Managed = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Kept {
    #[serde(default)]
    config: Managed,
}

/// What a daemon kept of it: the member `config` of a JSON object. A missing or damaged file says nothing.
pub(crate) fn kept(path: &Path) -> Managed {
    let kept = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
    kept.map(|kept| kept.config).unwrap_or_default()
}
