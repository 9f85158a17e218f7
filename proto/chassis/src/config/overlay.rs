//! Values from the file, the environment and the command line, laid over the defaults one by one: a fault of one does
//! not hide those of the others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::tree::{Leaf, Place, Tree};
use super::{Fault, Managed};
use crate::daemon::DaemonName;

/// One value and who gave it.
#[derive(Debug, Clone)]
pub(super) struct Override<'a> {
    pub path: Vec<String>,
    pub given: Given<'a>,
    pub source: Source,
}

#[derive(Debug, Clone)]
pub(super) enum Given<'a> {
    /// Takes the type of its key.
    Text(String),
    /// Has the type that the file gives it.
    Yaml(&'a Tree),
}

/// Where a value comes from, when it is not the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Manager,
    File(PathBuf, Place),
    Environment(String),
    Flag(String),
}

impl Source {
    /// The place of a fault at this key.
    fn fault(&self, key: &[String]) -> String {
        match self {
            Self::File(..) => format!("{self}: {}", key.join(".")),
            Self::Manager => format!("{self}: {}", key.join(".")),
            Self::Environment(_) | Self::Flag(_) => self.to_string(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager => f.write_str("manager"),
            Self::File(path, place) => write!(f, "{} {place}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Who has set which key; keys that are not here have their default.
#[derive(Debug, Clone, Default)]
pub struct Origins(BTreeMap<Vec<String>, Source>);

impl Origins {
    /// Who has set this key, or the nearest one around it.
    pub(super) fn of(&self, path: &[String]) -> Option<&Source> {
        (1..=path.len()).rev().find_map(|length| self.0.get(&path[..length]))
    }

    /// The fault of a check, with the place of the value that it is about.
    pub(super) fn locate(&self, fault: Fault) -> Fault {
        let path: Vec<_> = fault.place.split('.').map(str::to_owned).collect();
        let below = || self.0.iter().find(|(set, _)| set.starts_with(&path)).map(|(_, source)| source);
        match self.of(&path).or_else(below) {
            Some(Source::File(file, place)) => {
                Fault::new(format!("{} {place}: {}", file.display(), fault.place), fault.problem)
            }
            Some(source) => Fault::new(format!("{} ({source})", fault.place), fault.problem),
            None => fault,
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

/// What the manager says.
pub(super) fn from_manager(managed: &Managed) -> Vec<Override<'static>> {
    let given = |(key, value): (&String, &String)| Override {
        path: key.split('.').map(str::to_owned).collect(),
        given: Given::Text(value.clone()),
        source: Source::Manager,
    };
    managed.iter().map(given).collect()
}

/// Every value of the file.
pub(super) fn from_file<'a>(file: &Path, tree: &'a Tree) -> Vec<Override<'a>> {
    let given = |Leaf { path, place, tree }| Override {
        path,
        given: Given::Yaml(tree),
        source: Source::File(file.to_path_buf(), place),
    };
    tree.leaves().into_iter().filter(|leaf| !leaf.path.is_empty()).map(given).collect()
}

/// Variables that start with the daemon's prefix, sorted so that faults come in a stable order.
pub(super) fn from_environment(
    name: DaemonName,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Vec<Override<'static>> {
    let prefix = name.environment_prefix();
    let mut found: Vec<_> = variables
        .into_iter()
        .filter_map(|(variable, value)| {
            let path = variable.strip_prefix(&prefix)?.split("__").map(camel_case).collect();
            Some(Override { path, given: Given::Text(value), source: Source::Environment(variable) })
        })
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// `MAX_BYTES` is `maxBytes`.
pub(super) fn camel_case(segment: &str) -> String {
    let mut words = segment.split('_').filter(|word| !word.is_empty()).map(str::to_ascii_lowercase);
    let mut key = words.next().unwrap_or_default();
    for word in words {
        let mut letters = word.chars();
        key.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        key.push_str(letters.as_str());
    }
    key
}

/// What became of all values: those that fit, who gave them, and the faults of the others.
pub(super) struct Applied {
    pub value: Value,
    pub origins: Origins,
    pub faults: Vec<Fault>,
}

/// Lays the values over each other in order. One that is refused alone is tried again together with the refused ones
/// beside it, because some keys are only valid as a set.
pub(super) fn apply<T: DeserializeOwned>(overrides: Vec<Override<'_>>, defaults: &Value) -> Applied {
    let empty = Value::Object(Map::new());
    let mut applied = Applied { value: empty, origins: Origins::default(), faults: Vec::new() };
    let mut refused: Vec<(Override<'_>, String)> = Vec::new();
    for change in overrides {
        match accept::<T>(&applied.value, &change) {
            Ok(changed) => applied.take(changed, [&change]),
            // A section without keys says nothing.
            Err(_) if matches!(change.given, Given::Yaml(Tree::Scalar(Value::Null))) => {}
            Err(problem) => refused.push((change, problem)),
        }
    }
    while let Some((first, _)) = refused.first() {
        let section = first.path[..first.path.len() - 1].to_vec();
        let (set, others): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|(change, _)| change.path.starts_with(&section));
        refused = others;
        match together::<T>(&applied.value, &set) {
            Ok(changed) => applied.take(changed, set.iter().map(|(change, _)| change)),
            Err(_) => {
                let fault = |(change, problem)| {
                    blame::<T>(&applied.value, &change, advised(problem, &change, defaults))
                };
                let faults: Vec<_> = set.into_iter().map(fault).collect();
                applied.faults.extend(faults);
            }
        }
    }
    applied
}

impl Applied {
    fn take<'a>(&mut self, value: Value, changes: impl IntoIterator<Item = &'a Override<'a>>) {
        self.value = value;
        for change in changes {
            self.origins.0.insert(change.path.clone(), change.source.clone());
        }
    }
}

fn together<T: DeserializeOwned>(value: &Value, set: &[(Override<'_>, String)]) -> Result<Value, String> {
    let merged = set
        .iter()
        .try_fold(value.clone(), |value, (change, _)| merge(value, &change.path, reading(&change.given)))?;
    serde_json::from_value::<T>(merged.clone()).map_err(|error| error.to_string())?;
    Ok(merged)
}

/// The value with the change in it. Text is read as YAML (`[a, b]`, `12`, `true`), or else is the plain text it is.
fn accept<T: DeserializeOwned>(value: &Value, change: &Override<'_>) -> Result<Value, String> {
    let attempt = |leaf: Value| {
        let changed = merge(value.clone(), &change.path, leaf)?;
        serde_json::from_value::<T>(changed.clone()).map_err(|error| error.to_string())?;
        Ok(changed)
    };
    attempt(reading(&change.given)).or_else(|problem| match &change.given {
        Given::Text(text) => attempt(Value::String(text.clone())).map_err(|_: String| problem),
        Given::Yaml(_) => Err(problem),
    })
}

/// The problem, and how a list is written where one is wanted.
fn advised(problem: String, change: &Override<'_>, defaults: &Value) -> String {
    let wanted = change.path.iter().try_fold(defaults, |value, key| value.get(key));
    match (wanted, reading(&change.given)) {
        (Some(Value::Array(_)), Value::String(text)) => {
            format!("{problem}; write a list: [{}]", Value::String(text))
        }
        _ => problem,
    }
}

fn blame<T: DeserializeOwned>(value: &Value, change: &Override<'_>, problem: String) -> Fault {
    let mut source = change.source.clone();
    if let (Source::File(_, place), Given::Yaml(tree)) = (&mut source, &change.given) {
        let refused = |leaf| {
            let changed = merge(value.clone(), &change.path, leaf);
            changed.is_ok_and(|changed| serde_json::from_value::<T>(changed).is_err())
        };
        *place = tree.blame(&refused).unwrap_or(*place);
    }
    Fault::new(source.fault(&change.path), problem)
}

fn reading(given: &Given<'_>) -> Value {
    match given {
        Given::Yaml(tree) => tree.value(),
        Given::Text(text) => serde_saphyr::from_str_with_options(text, super::yaml_options())
            .unwrap_or_else(|_| Value::String(text.to_owned())),
    }
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
