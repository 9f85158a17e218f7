//! The configuration reference, from what is written once: the keys' types, their defaults and their doc comments.

use std::fmt::Write;

use schemars::{JsonSchema, schema_for};
use serde_json::Value;

use super::print::flow;
use crate::daemon::{Daemon, DaemonConfig};

/// One section of the reference, in Markdown: a table of all keys of a daemon.
pub fn reference<C: DaemonConfig + JsonSchema>(daemon: &Daemon) -> String {
    let root = schema_for!(C).to_value();
    let default = serde_json::to_value(C::default()).unwrap_or_default();
    let mut table = Table { root: &root, reloadable: &C::reloadable(), rows: String::new() };
    table.section("", &root, Some(&default));
    format!(
        "## {}\n\n{}.\n\n| Key | Type | Default | What |\n|---|---|---|---|\n{}",
        daemon.name.as_str(),
        daemon.about,
        table.rows
    )
}

struct Table<'a> {
    root: &'a Value,
    reloadable: &'a [&'static str],
    rows: String,
}

impl Table<'_> {
    fn section(&mut self, prefix: &str, schema: &Value, default: Option<&Value>) {
        let Some(Value::Object(properties)) = self.resolve(schema).get("properties").cloned() else { return };
        for (name, property) in &properties {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let default = default.and_then(|default| default.get(name));
            self.key(&key, property, default);
        }
    }

    fn key(&mut self, key: &str, property: &Value, default: Option<&Value>) {
        let schema = self.resolve(property).clone();
        if schema.get("properties").is_some() {
            return self.section(key, &schema, default);
        }
        let doc = |schema: &Value| schema.get("description").and_then(Value::as_str).map(one_line);
        let doc = doc(property).or_else(|| doc(&schema)).unwrap_or_default();
        let reload = if self.reloadable.contains(&key) { " *SIGHUP*" } else { "" };
        let default = default.map_or_else(String::new, shown_default);
        let kind = self.kind(&schema);
        let _ = writeln!(self.rows, "| `{key}`{reload} | {kind} | {default} | {doc} |");
        if let Some(items) = schema.get("items") {
            let items = items.clone();
            self.section(&format!("{key}[]"), &items, None);
        }
    }

    /// What a reference or an optional value stands for.
    fn resolve<'s>(&'s self, schema: &'s Value) -> &'s Value {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            let path = name.strip_prefix('#').unwrap_or(name);
            return self.root.pointer(path).map_or(schema, |found| self.resolve(found));
        }
        let choices = schema.get("anyOf").and_then(Value::as_array).map(Vec::as_slice);
        match choices {
            Some([value, null]) if is_null(null) => self.resolve(value),
            _ => schema,
        }
    }

    fn kind(&self, schema: &Value) -> String {
        let texts = |list: &Value| -> Vec<String> {
            list.as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| one.as_str().map(|one| format!("`{one}`")))
                .collect()
        };
        if let Some(values) = schema.get("enum") {
            return texts(values).join(", ");
        }
        if let Some(choices) = schema.get("oneOf").and_then(Value::as_array) {
            let names = choices.iter().flat_map(|choice| match choice.get("const").and_then(Value::as_str) {
                Some(name) => vec![format!("`{name}`")],
                None => choice.get("enum").map(texts).unwrap_or_default(),
            });
            return names.collect::<Vec<_>>().join(", ");
        }
        let type_name = match schema.get("type") {
            Some(Value::Array(names)) => names.iter().find(|name| *name != "null").and_then(Value::as_str),
            Some(name) => name.as_str(),
            None => None,
        };
        match (type_name, schema.get("format").and_then(Value::as_str)) {
            (Some("string"), Some(format @ ("size" | "duration" | "secret"))) => format.to_owned(),
            (Some("string"), _) => "text".to_owned(),
            (Some("array"), _) => {
                let item =
                    schema.get("items").map(|items| self.kind(self.resolve(items))).unwrap_or_default();
                format!("list of {item}")
            }
            (Some("object"), _) => "section".to_owned(),
            (Some(name), _) => name.to_owned(),
            (None, _) => "any".to_owned(),
        }
    }
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").is_some_and(|name| name == "null")
}

fn shown_default(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) if text.is_empty() || text == "***" => "empty".to_owned(),
        other => format!("`{}`", flow(other)),
    }
}

/// As a table cell takes it.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
