use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Every key of a configuration with its value.
pub(crate) type Flat = BTreeMap<String, Value>;

/// What is different between the configuration that holds and the one that was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Keys that take effect now.
    pub taken: Vec<String>,
    /// Keys that take effect at the next start.
    pub waiting: Vec<String>,
}

impl Changes {
    pub fn between(held: &Flat, read: &Flat, reloadable: &[&str]) -> Self {
        let mut changes = Self::default();
        let keys = held.keys().chain(read.keys().filter(|key| !held.contains_key(*key)));
        for key in keys.filter(|key| held.get(*key) != read.get(*key)) {
            match reloadable.contains(&key.as_str()) {
                true => changes.taken.push(key.clone()),
                false => changes.waiting.push(key.clone()),
            }
        }
        changes
    }
}

pub(crate) fn flat<T: Serialize>(config: &T) -> Flat {
    let mut keys = Flat::new();
    flatten(String::new(), serde_json::to_value(config).unwrap_or_default(), &mut keys);
    keys
}

fn flatten(key: String, value: Value, keys: &mut Flat) {
    match value {
        Value::Object(entries) => {
            for (name, inner) in entries {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(key, inner, keys);
            }
        }
        other => drop(keys.insert(key, other)),
    }
}
