use super::*;

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("db")).unwrap();
        Self { directory, store }
    }

    fn reopen(self) -> Self {
        let Self { directory, store } = self;
        drop(store);
        let store = Store::open(&directory.path().join("db")).unwrap();
        Self { directory, store }
    }

    fn create(&self, kind: Kind, name: &str, parent: &str) -> &'static str {
        let new = NewSnapshot { name: name.into(), parent: parent.into(), labels: Labels::new() };
        verdict(self.store.create(kind, new))
    }

    fn commit(&self, key: &str, name: &str) -> &'static str {
        self.commit_on(key, name, "")
    }

    fn commit_on(&self, key: &str, name: &str, parent: &str) -> &'static str {
        let usage = Usage { bytes: 5, inodes: 2 };
        let (key, name, parent) = (key.into(), name.into(), parent.into());
        verdict(self.store.commit(Committing { key, name, parent, usage, labels: Labels::new() }))
    }

    fn names(&self) -> Vec<String> {
        let all = self.store.list(&Filters::default());
        all.iter().map(|row| format!("{} {}", row.kind.as_str(), row.name)).collect()
    }
}

fn verdict<T>(result: Result<T, MetaError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(MetaError::AlreadyExists(_)) => "exists",
        Err(MetaError::NotFound(_)) => "not found",
        Err(MetaError::ParentNotCommitted(_)) => "parent not committed",
        Err(MetaError::NotActive(_)) => "not active",
        Err(MetaError::HasChildren(_)) => "has children",
        Err(MetaError::OtherParent { .. }) => "other parent",
        Err(MetaError::Immutable(_)) => "immutable",
        Err(MetaError::NoName) => "no name",
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn one_key_space_and_only_committed_parents() {
    let fixture = Fixture::new();
    let steps = [
        (fixture.create(Kind::Active, "a", ""), "ok"),
        (fixture.create(Kind::Active, "a", ""), "exists"),
        (fixture.create(Kind::View, "a", ""), "exists"),
        (fixture.create(Kind::Active, "", ""), "no name"),
        (fixture.create(Kind::Active, "b", "a"), "parent not committed"),
        (fixture.create(Kind::Active, "b", "nobody"), "not found"),
        (fixture.commit("nobody", "c"), "not found"),
        (fixture.commit("a", "a"), "exists"),
        (fixture.commit("a", "c"), "ok"),
        (fixture.commit("a", "c"), "exists"),
        (fixture.commit("a", "d"), "not found"),
        (fixture.create(Kind::View, "v", "c"), "ok"),
        (fixture.create(Kind::Active, "v", "c"), "exists"),
        (fixture.commit("v", "w"), "not active"),
        (fixture.commit("c", "w"), "not active"),
        (verdict(fixture.store.remove("c")), "has children"),
        (verdict(fixture.store.remove("v")), "ok"),
        (verdict(fixture.store.remove("v")), "not found"),
        (verdict(fixture.store.remove("c")), "ok"),
    ];
    for (number, (got, expected)) in steps.into_iter().enumerate() {
        assert_eq!(got, expected, "step {number}");
    }
    assert_eq!(fixture.names(), [""; 0]);
}

#[test]
fn a_refused_removal_says_so() {
    let fixture = Fixture::new();
    fixture.create(Kind::Active, "a", "");
    fixture.commit("a", "base");
    fixture.create(Kind::Active, "child", "base");
    let error = fixture.store.remove("base").err().unwrap();
    assert!(error.to_string().contains("remove"), "{error}");
}

#[test]
fn everything_survives_a_restart() {
    let fixture = Fixture::new();
    fixture.create(Kind::Active, "a", "");
    fixture.commit("a", "base");
    fixture.create(Kind::Active, "top", "base");
    let before = fixture.store.chain("top").unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.chain("top").unwrap(), before);
    assert_eq!(before[1].usage, Some(Usage { bytes: 5, inodes: 2 }));
    assert_eq!(verdict(fixture.store.remove("base")), "has children");
    assert_eq!(verdict(fixture.store.remove("top")), "ok");
    fixture.create(Kind::Active, "later", "base");
    assert!(fixture.store.get("later").unwrap().id > before[0].id, "an id was used twice");
    let fixture = fixture.reopen();
    assert_eq!(fixture.names(), ["committed base", "active later"]);
}

#[test]
fn the_parent_may_come_with_the_commit() {
    let fixture = Fixture::new();
    fixture.create(Kind::Active, "a", "");
    fixture.commit("a", "base");
    fixture.create(Kind::Active, "b", "");
    let steps = [
        (fixture.commit_on("b", "x", "nobody"), "not found"),
        (fixture.commit_on("b", "top", "base"), "ok"),
        (fixture.create(Kind::Active, "c", "base"), "ok"),
        (fixture.commit_on("c", "y", "top"), "other parent"),
        (fixture.commit_on("c", "y", "base"), "ok"),
        (verdict(fixture.store.remove("base")), "has children"),
    ];
    for (got, expected) in steps {
        assert_eq!(got, expected);
    }
    assert_eq!(fixture.store.get("top").unwrap().parent, "base");
}

#[test]
fn updates_obey_the_mask() {
    let labels = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect::<Labels>()
    };
    let table: [(&[&str], Labels, &str, Labels); 6] = [
        (&[], labels(&[("c", "3")]), "ok", labels(&[("c", "3")])),
        (&["labels"], labels(&[("c", "3")]), "ok", labels(&[("c", "3")])),
        (&["labels.a"], labels(&[("a", "9"), ("b", "9")]), "ok", labels(&[("a", "9"), ("b", "2")])),
        (
            &["labels.x.y/z"],
            labels(&[("x.y/z", "9")]),
            "ok",
            labels(&[("a", "1"), ("b", "2"), ("x.y/z", "9")]),
        ),
        (&["labels.a"], labels(&[]), "ok", labels(&[("b", "2")])),
        (&["parent"], labels(&[]), "immutable", labels(&[("a", "1"), ("b", "2")])),
    ];
    for (paths, new, expected, after) in table {
        let fixture = Fixture::new();
        let first = labels(&[("a", "1"), ("b", "2"), ("empty", "")]);
        let row = NewSnapshot { name: "s".into(), parent: String::new(), labels: first };
        fixture.store.create(Kind::Active, row).unwrap();
        let paths: Vec<_> = paths.iter().map(|path| (*path).into()).collect();
        let updating = Updating { name: "s".into(), labels: new, paths: paths.clone() };
        assert_eq!(verdict(fixture.store.update(updating)), expected, "{paths:?}");
        let fixture = fixture.reopen();
        assert_eq!(fixture.store.get("s").unwrap().labels, after, "{paths:?}");
    }
}
