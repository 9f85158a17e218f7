//! Environment variables that mean a key and do not name it.

use serde_json::Value;

use super::Fault;
use super::overlay::camel_case;
use crate::daemon::DaemonName;

/// The variables without those that differ from a key's only in their underscores, and a fault for each of these.
///
/// Others that merely start like the daemon's name are left alone: Kubernetes sets `D7Y_PEER_SERVICE_HOST` and the like
/// for a service of that name.
pub(super) fn sort_out(
    name: DaemonName,
    defaults: &Value,
    variables: impl IntoIterator<Item = (String, String)>,
) -> (Vec<(String, String)>, Vec<Fault>) {
    let prefix = name.environment_prefix();
    let mut known = Vec::new();
    collect(&prefix, defaults, &mut known);
    let (mut kept, mut faults) = (Vec::new(), Vec::new());
    for (variable, value) in variables {
        match meant(&variable, &prefix, &known) {
            Some(right) => {
                let problem = format!(
                    "is not the name of a key; write {right}: the words of a key are separated by one underscore, keys by two"
                );
                faults.push(Fault::new(format!("environment variable {variable}"), problem));
            }
            None => kept.push((variable, value)),
        }
    }
    faults.sort_by(|a, b| a.place.cmp(&b.place));
    (kept, faults)
}

/// How the variable would have to be written.
fn meant(variable: &str, prefix: &str, known: &[String]) -> Option<String> {
    if !variable.starts_with(prefix.trim_end_matches('_')) {
        return None;
    }
    if let Some(path) = variable.strip_prefix(prefix) {
        let path = canonical(prefix, path);
        // A key below a list or a map is not known here; the part before it may be.
        if known.iter().any(|key| path == *key || path.starts_with(&format!("{key}__"))) {
            return None;
        }
    }
    known.iter().find(|key| squashed(key) == squashed(variable)).cloned()
}

fn canonical(prefix: &str, path: &str) -> String {
    let keys: Vec<_> = path.split("__").map(|key| upper_snake_case(&camel_case(key))).collect();
    format!("{prefix}{}", keys.join("__"))
}

fn squashed(variable: &str) -> String {
    variable.chars().filter(|c| *c != '_').map(|c| c.to_ascii_uppercase()).collect()
}

/// The variables of all keys that have a value of their own.
fn collect(at: &str, value: &Value, known: &mut Vec<String>) {
    let Value::Object(entries) = value else { return };
    for (key, inner) in entries {
        let variable = format!("{at}{}", upper_snake_case(key));
        match inner {
            Value::Object(_) => collect(&format!("{variable}__"), inner, known),
            _ => known.push(variable),
        }
    }
}

/// `maxBytes` is `MAX_BYTES`.
fn upper_snake_case(key: &str) -> String {
    let mut text = String::new();
    for letter in key.chars() {
        if letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}
