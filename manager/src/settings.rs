//! What the daemons of a cluster can be set to while they run: the keys that they reload, and no others.

use std::collections::BTreeMap;
use std::time::Duration;

use d7y_chassis::{ByteSize, HumanDuration, LogConfig, Validate};
use serde_json::Value;

/// As the peer has it.
const LEAST_STORE_BYTES: u64 = 1 << 20;
const LEAST_SCRUB_INTERVAL: Duration = Duration::from_secs(1);
const MAX_VALUE_CHARS: usize = 1024;

/// A key, and what is wrong with a value of it.
type Setting = (&'static str, fn(&str) -> Result<(), String>);

const PEER: &[Setting] = &[
    ("log.level", log_level),
    ("store.limit", store_limit),
    ("store.scrub.rate", scrub_rate),
    ("store.scrub.interval", scrub_interval),
];
const SCHEDULER: &[Setting] = &[("log.level", log_level)];

/// Whose configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Peer,
    Scheduler,
}

/// The keys that can be set for all daemons of a kind.
pub fn keys(of: Of) -> Vec<&'static str> {
    settings(of).iter().map(|(key, _)| *key).collect()
}

fn settings(of: Of) -> &'static [Setting] {
    match of {
        Of::Peer => PEER,
        Of::Scheduler => SCHEDULER,
    }
}

/// Reads what somebody wants to set: values by key, and null for a key that each daemon is to decide again.
///
/// # Errors
/// One sentence: what is wrong, and what would be right.
pub(crate) fn parse(
    of: Of,
    wanted: &BTreeMap<String, Value>,
) -> Result<BTreeMap<String, Option<String>>, String> {
    let mut parsed = BTreeMap::new();
    for (key, value) in wanted {
        let known = settings(of).iter().find(|(known, _)| known == key);
        let (key, check) = known.ok_or_else(|| {
            let key: String = key.chars().take(64).collect();
            format!("{key:?} cannot be set from here; what can is {}", keys(of).join(", "))
        })?;
        let value = match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => return Err(format!("{key} is text, a number, or null to leave it to each host")),
        };
        if let Some(value) = &value {
            if value.chars().count() > MAX_VALUE_CHARS {
                return Err(format!("{key} has at most {MAX_VALUE_CHARS} characters"));
            }
            check(value).map_err(|problem| format!("{key}: {problem}"))?;
        }
        parsed.insert((*key).to_owned(), value);
    }
    Ok(parsed)
}

fn log_level(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("is empty; say error, warn, info, debug or trace".to_owned());
    }
    let faults = LogConfig { level: text.to_owned(), ..LogConfig::default() }.validate();
    faults.into_iter().next().map_or(Ok(()), |fault| Err(fault.problem))
}

fn store_limit(text: &str) -> Result<(), String> {
    let size: ByteSize = text.parse()?;
    match size.as_u64() < LEAST_STORE_BYTES {
        true => Err("must be at least 1MiB".to_owned()),
        false => Ok(()),
    }
}

fn scrub_rate(text: &str) -> Result<(), String> {
    text.parse::<ByteSize>().map(drop)
}

fn scrub_interval(text: &str) -> Result<(), String> {
    let interval: HumanDuration = text.parse()?;
    match interval.get() < LEAST_SCRUB_INTERVAL {
        true => Err("must be at least 1s".to_owned()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_can_be_reloaded_and_only_sound_values() {
        let table = [
            (Of::Peer, json!({ "log.level": "debug", "store.limit": "200GiB" }), Ok(2)),
            (Of::Peer, json!({ "log.level": "info,d7y_store=trace", "store.limit": null }), Ok(2)),
            (Of::Peer, json!({ "store.limit": 1_073_741_824 }), Ok(1)),
            (Of::Peer, json!({ "store.limit": "1KiB" }), Err("at least 1MiB")),
            (Of::Peer, json!({ "store.limit": "much" }), Err("store.limit: ")),
            (Of::Peer, json!({ "store.limit": true }), Err("is text, a number, or null")),
            (Of::Peer, json!({ "store.scrub.rate": 0, "store.scrub.interval": "2days" }), Ok(2)),
            (Of::Peer, json!({ "store.scrub.interval": "0s" }), Err("at least 1s")),
            (Of::Peer, json!({ "log.level": "d7y=loud" }), Err("log filter")),
            (Of::Peer, json!({ "log.level": "" }), Err("is empty")),
            (Of::Peer, json!({ "store.directory": "/" }), Err("what can is log.level, store.limit")),
            (Of::Scheduler, json!({ "log.level": "warn" }), Ok(1)),
            (Of::Scheduler, json!({ "store.limit": "1GiB" }), Err("what can is log.level")),
        ];
        for (of, wanted, expected) in table {
            let wanted = serde_json::from_value(wanted).unwrap();
            let parsed = parse(of, &wanted);
            match expected {
                Ok(count) => assert_eq!(parsed.map(|keys| keys.len()), Ok(count), "{wanted:?}"),
                Err(part) => {
                    let problem = parsed.unwrap_err();
                    assert!(problem.contains(part), "{wanted:?}: {problem}");
                }
            }
        }
    }
}
