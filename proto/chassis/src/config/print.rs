//! The effective configuration as YAML, each value with its origin.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::overlay::Origins;

/// Secrets are masked by their type.
pub(crate) fn annotated<T: Serialize>(config: &T, origins: &Origins) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    write_section(&serde_json::to_value(config)?, &mut Vec::new(), origins, &mut text);
    Ok(text)
}

fn write_section(value: &Value, path: &mut Vec<String>, origins: &Origins, text: &mut String) {
    let Value::Object(entries) = value else { return };
    for (key, inner) in entries {
        let indent = "  ".repeat(path.len());
        path.push(key.clone());
        match inner {
            Value::Object(keys) if !keys.is_empty() => {
                let _ = writeln!(text, "{indent}{key}:");
                write_section(inner, path, origins, text);
            }
            _ => {
                let origin = origins.of(path).map_or_else(|| "default".to_owned(), ToString::to_string);
                let _ = writeln!(text, "{indent}{key}: {}  # {origin}", flow(inner));
            }
        }
        path.pop();
    }
}

/// On one line. JSON is YAML; text is bare where a reader gets the same text.
pub(crate) fn flow(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let harmless = text.chars().all(|c| c.is_ascii_alphanumeric() || "._/:+-@".contains(c));
    let read = serde_saphyr::from_str_with_options::<Value>(text, super::yaml_options());
    harmless && read.is_ok_and(|read| read == Value::String(text.to_owned()))
}
