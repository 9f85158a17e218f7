//! Small changes to a TOML document that leave everything else as its owner wrote it.

use std::fmt;

use anyhow::{Result, bail};
use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// One key that gets another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    pub old: Option<String>,
    pub new: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.old {
            Some(old) => write!(f, "~ {} = {} (was {old})", self.key, self.new),
            None => write!(f, "+ {} = {}", self.key, self.new),
        }
    }
}

/// A document and what was changed in it.
pub struct Document {
    toml: DocumentMut,
    changes: Vec<Change>,
}

impl Document {
    pub fn parse(text: &str) -> Result<Self, toml_edit::TomlError> {
        Ok(Self { toml: text.parse()?, changes: Vec::new() })
    }

    pub fn empty() -> Self {
        Self { toml: DocumentMut::new(), changes: Vec::new() }
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub fn get(&self, path: &[&str]) -> Option<&Item> {
        path.iter().try_fold(self.toml.as_item(), |item, key| item.get(key))
    }

    /// Gives the key at `path` this value, making the tables on the way.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        let Some((key, tables)) = path.split_last() else { bail!("a value needs a key") };
        let table = descend(self.toml.as_table_mut(), tables)?;
        let old = table.get(key).map(plain);
        if table.get(key).and_then(Item::as_value).is_some_and(|present| is_same(present, &value)) {
            return Ok(());
        }
        let new = plain(&Item::Value(value.clone()));
        match table.get_mut(key).and_then(Item::as_value_mut) {
            Some(present) => {
                let decor = present.decor().clone();
                *present = value;
                *present.decor_mut() = decor;
            }
            None if old.is_some() => bail!("{} is a table and should be a value", dotted(path)),
            None => {
                table.insert(key, Item::Value(value));
            }
        }
        self.changes.push(Change { key: dotted(path), old, new });
        Ok(())
    }

    /// Adds a table of these text values to the array of tables at `path`.
    pub fn push(&mut self, path: &[&str], values: &[(&str, &str)]) -> Result<()> {
        let Some((key, tables)) = path.split_last() else { bail!("an array needs a key") };
        let parent = descend(self.toml.as_table_mut(), tables)?;
        let array = parent.entry(key).or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        match array {
            Item::ArrayOfTables(array) => array.push(filled(Table::new(), values)),
            Item::Value(Value::Array(array)) => array.push(filled(InlineTable::new(), values)),
            _ => bail!("{} should be an array of tables", dotted(path)),
        }
        let new =
            values.iter().map(|(key, value)| format!("{key} = {value:?}")).collect::<Vec<_>>().join(", ");
        self.changes.push(Change { key: dotted(path), old: None, new: format!("{{ {new} }}") });
        Ok(())
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.toml.fmt(f)
    }
}

fn descend<'a>(root: &'a mut Table, path: &[&str]) -> Result<&'a mut dyn TableLike> {
    let mut table: &mut dyn TableLike = root;
    for (depth, key) in path.iter().enumerate() {
        let item = table.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        let Some(inner) = item.as_table_like_mut() else {
            bail!("{} should be a table", dotted(&path[..=depth]));
        };
        table = inner;
    }
    Ok(table)
}

fn filled<T: TableLike>(mut table: T, values: &[(&str, &str)]) -> T {
    for (key, value) in values {
        table.insert(key, Item::Value((*value).into()));
    }
    table
}

/// Whether a reader of TOML sees a difference: it does not between the quotes that containerd 2.x writes and ours.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::String(one), Value::String(other)) => one.value() == other.value(),
        (Value::Boolean(one), Value::Boolean(other)) => one.value() == other.value(),
        (Value::Integer(one), Value::Integer(other)) => one.value() == other.value(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        _ => false,
    }
}

/// The value without the spaces and comments around it.
fn plain(item: &Item) -> String {
    let mut item = item.clone();
    if let Some(value) = item.as_value_mut() {
        value.decor_mut().clear();
    }
    item.to_string().trim().to_owned()
}

fn dotted(path: &[&str]) -> String {
    let quoted = |key: &&str| match key.contains('.') {
        true => format!("{key:?}"),
        false => (*key).to_owned(),
    };
    path.iter().map(quoted).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_is_no_change() {
        let text = Value::from("a\"b");
        let list = || Value::Array(["a", "b"].into_iter().collect());
        for (present, value, changes) in [
            ("'a\"b'", text.clone(), false),
            (r#""a\"b""#, text.clone(), false),
            ("'a'", text.clone(), true),
            ("true", Value::from(true), false),
            ("'true'", Value::from(true), true),
            ("0x10", Value::from(16), false),
            ("[ 'a', \"b\" ]", list(), false),
            ("['a']", list(), true),
            ("['b', 'a']", list(), true),
        ] {
            let before = format!("[t]\nkey = {present} # why\n");
            let mut document = Document::parse(&before).unwrap();
            document.set(&["t", "key"], value).unwrap();
            assert_eq!(document.changes().len(), usize::from(changes), "{present}");
            assert_eq!(document.to_string() != before, changes, "{present}");
        }
    }
}
