use std::ffi::OsString;
use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Fault;
use crate::daemon::DaemonName;

/// One value that replaces what the file says.
#[derive(Debug, Clone)]
pub(super) struct Override {
    pub path: Vec<String>,
    pub value: String,
    pub source: Source,
}

#[derive(Debug, Clone)]
pub(super) enum Source {
    Environment(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// The variables that are text; one that is meant for the daemon and is not, is a fault.
pub(super) fn utf8(
    name: DaemonName,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, Vec<Fault>> {
    let prefix = name.environment_prefix();
    let (mut texts, mut faults) = (Vec::new(), Vec::new());
    for (variable, value) in variables {
        match (variable.into_string(), value.into_string()) {
            (Ok(variable), Ok(value)) => texts.push((variable, value)),
            (Ok(variable), Err(_)) if variable.starts_with(&prefix) => {
                faults.push(Fault::new(Source::Environment(variable).to_string(), "is not UTF-8"));
            }
            _ => {}
        }
    }
    if faults.is_empty() { Ok(texts) } else { Err(faults) }
}

/// Variables that start with the daemon's prefix, sorted so that faults come in a stable order.
pub(super) fn from_environment(
    name: DaemonName,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Vec<Override> {
    let prefix = name.environment_prefix();
    let mut found: Vec<_> = variables
        .into_iter()
        .filter_map(|(variable, value)| {
            let path = variable.strip_prefix(&prefix)?.split("__").map(camel_case).collect();
            Some(Override { path, value, source: Source::Environment(variable) })
        })
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// `MAX_BYTES` is `maxBytes`.
fn camel_case(segment: &str) -> String {
    let mut words = segment.split('_').filter(|word| !word.is_empty()).map(str::to_ascii_lowercase);
    let mut key = words.next().unwrap_or_default();
    for word in words {
        let mut letters = word.chars();
        key.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        key.push_str(letters.as_str());
    }
    key
}

/// Lays the overrides over `base` in order. One that is refused alone is tried again together with the other
/// refused ones, because some keys are only valid as a set.
pub(super) fn apply<T: DeserializeOwned>(base: Value, overrides: Vec<Override>) -> Result<T, Vec<Fault>> {
    let mut value = base;
    let mut refused = Vec::new();
    for change in overrides {
        match accept::<T>(&value, &change) {
            Ok(changed) => value = changed,
            Err(problem) => refused.push((change, problem)),
        }
    }
    let together = refused
        .iter()
        .try_fold(value, |value, (change, _)| merge(value, &change.path, reading(&change.value)))
        .and_then(|value| serde_json::from_value(value).map_err(|error| error.to_string()));
    together.map_err(|problem| match refused.is_empty() {
        true => vec![Fault::new("configuration", problem)],
        false => {
            refused.into_iter().map(|(change, why)| Fault::new(change.source.to_string(), why)).collect()
        }
    })
}

/// The value with the change in it: read as YAML (`[a, b]`, `12`, `true`), or else as the plain text it is.
fn accept<T: DeserializeOwned>(value: &Value, change: &Override) -> Result<Value, String> {
    let attempt = |reading: Value| {
        let changed = merge(value.clone(), &change.path, reading)?;
        serde_json::from_value::<T>(changed.clone()).map_err(|error| error.to_string())?;
        Ok(changed)
    };
    attempt(reading(&change.value))
        .or_else(|problem| attempt(Value::String(change.value.clone())).map_err(|_: String| problem))
}

fn reading(text: &str) -> Value {
    serde_saphyr::from_str_with_options(text, super::yaml_options())
        .unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn merge(base: Value, path: &[String], leaf: Value) -> Result<Value, String> {
    let Some((key, rest)) = path.split_first() else { return Ok(leaf) };
    let mut map = match base {
        Value::Object(map) => map,
        Value::Null => Map::new(),
        _ => return Err(format!("{key} would be a key inside a value that has none")),
    };
    let inner = map.remove(key).unwrap_or(Value::Null);
    map.insert(key.clone(), merge(inner, rest, leaf)?);
    Ok(Value::Object(map))
}
