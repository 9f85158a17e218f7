//! A YAML file as values that know where they stand.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

/// A place in the file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub line: u64,
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

#[derive(Debug)]
pub(super) enum Tree {
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
    List(Vec<Spanned<Tree>>),
    Scalar(Value),
}

/// A value that is set as a whole: a scalar, a list, or a map without keys.
#[derive(Debug)]
pub(super) struct Leaf<'a> {
    pub path: Vec<String>,
    /// Where its key stands.
    pub place: Place,
    pub tree: &'a Tree,
}

impl Tree {
    pub fn leaves(&self) -> Vec<Leaf<'_>> {
        let mut leaves = Vec::new();
        self.collect(&mut Vec::new(), Place { line: 1, column: 1 }, &mut leaves);
        leaves
    }

    fn collect<'a>(&'a self, path: &mut Vec<String>, place: Place, leaves: &mut Vec<Leaf<'a>>) {
        match self {
            Self::Map(entries) if !entries.is_empty() => {
                for (key, inner) in entries {
                    path.push(key.value.clone());
                    inner.value.collect(path, key.referenced.into(), leaves);
                    path.pop();
                }
            }
            _ => leaves.push(Leaf { path: path.clone(), place, tree: self }),
        }
    }

    pub fn value(&self) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::List(items) => Value::Array(items.iter().map(|item| item.value.value()).collect()),
            Self::Map(entries) => {
                let entries = entries.iter().map(|(key, inner)| (key.value.clone(), inner.value.value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// Where the fault is in a refused list: the key without which, or else the item with which it is refused.
    pub fn blame(&self, refused: &dyn Fn(Value) -> bool) -> Option<Place> {
        let Self::List(items) = self else { return None };
        let item = items.iter().find(|item| refused(Value::Array(vec![item.value.value()])))?;
        let Self::Map(entries) = &item.value else { return Some(item.referenced.into()) };
        let Value::Object(whole) = item.value.value() else { return None };
        let mended_without = |key: &str| {
            let mut rest = whole.clone();
            rest.remove(key);
            !refused(Value::Array(vec![Value::Object(rest)]))
        };
        let key = entries.iter().find(|(key, _)| mended_without(&key.value)).map(|(key, _)| key.referenced);
        Some(key.unwrap_or(item.referenced).into())
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Number(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Number(value.into())))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Tree::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::String(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}
