//! containerd's filter grammar (`filters/parser.go`) over snapshots.
//!
//! `fieldpath` is a presence test; `fieldpath op value` with `==`, `!=`, `~=` compares. Components of a path are
//! separated by dots and may be quoted (`labels."containerd.io/snapshot.ref"`). Commas mean AND; several filters
//! mean OR; no filter matches everything.

use std::iter::Peekable;
use std::str::CharIndices;

use regex::Regex;

use crate::meta::Snapshot;

/// The longest filter that is read, in bytes: label values have 4 KiB at most.
const MAX_FILTER_BYTES: usize = 16 << 10;
/// Compiled regular expressions larger than this are refused, in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {problem}")]
pub struct FilterError {
    filter: String,
    problem: String,
}

#[derive(Debug, Default)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        let parse = |filter: &S| {
            let text = filter.as_ref();
            Parser::new(text)
                .filter()
                .map_err(|problem| FilterError { filter: text.chars().take(256).collect(), problem })
        };
        filters.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    pub fn match_all(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, snapshot: &Snapshot) -> bool {
        self.match_all() || self.0.iter().any(|all| all.iter().all(|selector| selector.matches(snapshot)))
    }
}

impl Selector {
    fn matches(&self, snapshot: &Snapshot) -> bool {
        let found = field(snapshot, &self.path);
        let value = found.unwrap_or_default();
        match &self.test {
            Test::Present => found.is_some(),
            Test::Equal(wanted) => found.is_some() && value == wanted,
            Test::NotEqual(unwanted) => value != unwanted,
            Test::Matches(pattern) => pattern.is_match(value),
        }
    }
}

fn field<'s>(snapshot: &'s Snapshot, path: &[String]) -> Option<&'s str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "kind" => Some(snapshot.kind.as_str()),
        "name" => Some(&snapshot.name),
        "parent" => Some(&snapshot.parent),
        "labels" => snapshot.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a str,
    at: Peekable<CharIndices<'a>>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: text.char_indices().peekable() }
    }

    fn filter(mut self) -> Result<Vec<Selector>, String> {
        if self.text.len() > MAX_FILTER_BYTES {
            return Err(format!("longer than {MAX_FILTER_BYTES} bytes"));
        }
        let mut all = Vec::new();
        while self.peek().is_some() {
            all.push(self.selector()?);
            match self.next() {
                None => break,
                Some(',') if self.peek().is_some() => {}
                Some(other) => return Err(format!("unexpected {other:?}")),
            }
        }
        Ok(all)
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.component()?];
        while self.peek() == Some('.') {
            self.next();
            path.push(self.component()?);
        }
        let test = match self.peek() {
            None | Some(',') => Test::Present,
            Some(_) => self.comparison()?,
        };
        Ok(Selector { path, test })
    }

    fn comparison(&mut self) -> Result<Test, String> {
        let operator = (self.next(), self.next());
        match operator {
            (Some('='), Some('=')) => self.value("\"").map(Test::Equal),
            (Some('!'), Some('=')) => self.value("\"").map(Test::NotEqual),
            (Some('~'), Some('=')) => {
                let pattern = self.value("\"/|")?;
                let compiled = regex::RegexBuilder::new(&pattern).size_limit(MAX_REGEX_BYTES).build();
                compiled.map(Test::Matches).map_err(|error| error.to_string())
            }
            _ => Err("expected ==, != or ~=".into()),
        }
    }

    fn component(&mut self) -> Result<String, String> {
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let name = self.take_while(|c| c.is_alphanumeric() || c == '_');
        if name.is_empty() { Err("expected a field name".into()) } else { Ok(name.into()) }
    }

    fn value(&mut self, quotes: &str) -> Result<String, String> {
        match self.peek() {
            Some(quote) if quotes.contains(quote) => self.quoted(),
            _ => Ok(self.take_while(|c| c != ',').into()),
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let quote = self.next().ok_or("expected a quotation mark")?;
        let mut out = String::new();
        loop {
            match self.next().ok_or("a quotation is not closed")? {
                end if end == quote => return Ok(out),
                '\\' => out.push_str(&self.escape(quote)?),
                other => out.push(other),
            }
        }
    }

    /// In double quotes as in Go strings; between other marks only the mark itself is escaped.
    fn escape(&mut self, quote: char) -> Result<String, String> {
        let escaped = self.next().ok_or("a quotation is not closed")?;
        match (quote, escaped) {
            (_, same) if same == quote => Ok(same.into()),
            ('"', '\\') => Ok("\\".into()),
            ('"', 'n') => Ok("\n".into()),
            ('"', 't') => Ok("\t".into()),
            ('"', other) => Err(format!("unknown escape \\{other}")),
            (_, other) => Ok(format!("\\{other}")),
        }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let start = self.position();
        while self.peek().is_some_and(&accept) {
            self.next();
        }
        &self.text[start..self.position()]
    }

    fn position(&mut self) -> usize {
        self.at.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    fn peek(&mut self) -> Option<char> {
        self.at.peek().map(|(_, c)| *c)
    }

    fn next(&mut self) -> Option<char> {
        self.at.next().map(|(_, c)| c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{Kind, Labels, SnapshotId, Timestamp};

    fn snapshot() -> Snapshot {
        let labels = [("containerd.io/snapshot.ref", "sha256:aa"), ("a.b", "x,y"), ("plain", "1")];
        Snapshot {
            id: SnapshotId(1),
            name: "default/3/sha256:aa".into(),
            kind: Kind::Committed,
            parent: "default/2/sha256:bb".into(),
            labels: labels.map(|(key, value)| (key.into(), value.into())).into_iter().collect::<Labels>(),
            created: Timestamp(0, 0),
            updated: Timestamp(0, 0),
            usage: None,
            remote: None,
        }
    }

    #[test]
    fn filters_select_as_containerds_do() {
        let table: &[(&[&str], bool)] = &[
            (&[], true),
            (&[""], true),
            (&["name==default/3/sha256:aa"], true),
            (&["name==other"], false),
            (&["name!=other"], true),
            (&["kind==committed"], true),
            (&["kind==active", "kind==committed"], true),
            (&["kind==committed,name==other"], false),
            (&[r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent==default/2/sha256:bb"#], true),
            (&[r#"labels."containerd.io/snapshot.ref"=="sha256:aa",parent=="""#], false),
            (&["labels.plain"], true),
            (&["labels.absent"], false),
            (&["labels.absent!=x"], true),
            (&["labels.absent==\"\""], false),
            (&["labels.a.b==\"x,y\""], true),
            (&["labels.\"a.b\"!=\"x,y\""], false),
            (&["name~=^default/[0-9]+/"], true),
            (&["name~=|sha256:[ab]{2}$|"], true),
            (&["name~=/^default\\/3/"], true),
            (&["name~=\"^other\""], false),
            (&["unknown"], false),
            (&["unknown!=x"], true),
        ];
        for (filters, expected) in table {
            let parsed = Filters::parse(filters).unwrap();
            assert_eq!(parsed.matches(&snapshot()), *expected, "{filters:?}");
        }
    }

    #[test]
    fn malformed_filters_are_refused() {
        for bad in
            ["=", "name=x", "name<x", "name==\"x", "labels.", ".name", "name==a,", "name~=(", "name,,kind"]
        {
            assert!(Filters::parse(&[bad]).is_err(), "{bad:?} was accepted");
        }
        assert!(Filters::parse(&["x".repeat(MAX_FILTER_BYTES + 1)]).is_err());
    }
}
