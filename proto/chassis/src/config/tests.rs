use serde::{Deserialize, Serialize};

use super::*;

const NAME: DaemonName = DaemonName::new("d7y-test");

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    label: String,
    store: Store,
    tls: Option<Tls>,
    token: Secret,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    host: String,
    #[serde(default)]
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Store {
    max_bytes: ByteSize,
    interval: HumanDuration,
    seeds: Vec<String>,
    sync: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    cert: String,
    key: String,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            max_bytes: ByteSize::gib(1),
            interval: HumanDuration::from_secs(5),
            seeds: Vec::new(),
            sync: true,
        }
    }
}

impl Validate for Config {
    fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.store.max_bytes.as_u64() == 0 {
            faults.push(Fault::new("maxBytes", "must be more than 0").within("store"));
        }
        if self.store.interval.get().is_zero() {
            faults.push(Fault::new("store.interval", "must be more than 0"));
        }
        faults
    }
}

/// What one load is given; the file is written only when there is text.
#[derive(Default, Clone, Copy)]
struct Given {
    file: &'static str,
    environment: &'static [(&'static str, &'static str)],
    flags: &'static [(&'static str, &'static str)],
}

fn load_given(given: Given) -> Result<Config, String> {
    load_traced(given).map(|loaded| loaded.config)
}

fn load_traced(given: Given) -> Result<Loaded<Config>, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    std::fs::write(&path, given.file).unwrap();
    let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    let flag = |pair| {
        let (key, value) = owned(pair);
        Assignment { key, value }
    };
    let args = DaemonArgs {
        config: Some(path),
        assignments: given.flags.iter().map(flag).collect(),
        ..DaemonArgs::default()
    };
    let loaded =
        load_from(NAME, &args, given.environment.iter().map(owned)).map_err(|error| error.to_string())?;
    Ok(loaded)
}

#[test]
fn later_layers_win() {
    let base = Given { file: "store:\n  maxBytes: 64MiB\n  interval: 1m\n", ..Given::default() };
    let size = |given| load_given(given).unwrap().store.max_bytes;
    assert_eq!(size(Given::default()), ByteSize::gib(1), "default");
    assert_eq!(size(Given { file: "# nothing\n---\n", ..base }), ByteSize::gib(1), "empty file");
    assert_eq!(size(base), ByteSize::mib(64), "file");
    let with_environment = Given { environment: &[("D7Y_TEST__STORE__MAX_BYTES", "128MiB")], ..base };
    assert_eq!(size(with_environment), ByteSize::mib(128), "environment");
    let with_flag = Given { flags: &[("store.maxBytes", "4096")], ..with_environment };
    assert_eq!(size(with_flag), ByteSize::bytes(4096), "flag");
    assert_eq!(load_given(with_flag).unwrap().store.interval, HumanDuration::from_secs(60), "file still");
}

#[test]
fn overrides_take_the_type_of_their_key() {
    let config = load_given(Given {
        file: "label: from-file\n",
        environment: &[
            ("D7Y_TEST__LABEL", "12"),
            ("D7Y_TEST__TOKEN", "true"),
            ("D7Y_TEST__STORE__SYNC", "false"),
            ("D7Y_TEST__STORE__SEEDS", "[a:1, b:2]"),
            ("D7Y_TEST__TLS__CERT", "c.pem"),
            ("D7Y_TEST__TLS__KEY", "k: {pem"),
            ("D7Y_TESTING__LABEL", "another daemon's"),
            ("D7Y_TEST_SERVICE_HOST", "of Kubernetes"),
            ("D7Y_TEST_PORT_4000_TCP", "of Kubernetes"),
        ],
        flags: &[],
    })
    .unwrap();
    assert_eq!(config.label, "12");
    assert_eq!(config.token.expose(), "true");
    assert!(!config.store.sync);
    assert_eq!(config.store.seeds, ["a:1", "b:2"]);
    assert_eq!(config.tls, Some(Tls { cert: "c.pem".into(), key: "k: {pem".into() }));
}

#[test]
fn faults_name_their_place_and_what_is_allowed() {
    let file = |file| Given { file, ..Given::default() };
    let environment = |environment| Given { environment, ..Given::default() };
    let flags = |flags| Given { flags, ..Given::default() };
    let table: [(Given, &[&str]); 15] = [
        (file("store:\n  maxByte: 1\n"), &["config.yaml", "line 2", "column 3", "maxByte", "maxBytes"]),
        (file("store:\n  maxBytes: lots\n"), &["line 2", "lots", "64MiB"]),
        (file("store:\n  maxBytes: -1\n"), &["line 2", "64MiB"]),
        (file("store:\n  interval: 5\n"), &["line 2", "a duration with its unit, such as 10s"]),
        (file("store:\n  seeds: x:4000\n"), &["line 2", "write a list: [\"x:4000\"]"]),
        (environment(&[("D7Y_TEST__STORE__SEEDS", "x:4000")]), &["write a list: [\"x:4000\"]"]),
        (
            environment(&[("D7Y_TEST__STORE__MAXBYTES", "1")]),
            &["variable D7Y_TEST__STORE__MAXBYTES", "write D7Y_TEST__STORE__MAX_BYTES"],
        ),
        (
            environment(&[("D7Y_TEST_STORE_MAX_BYTES", "1"), ("D7Y_TEST_LABEL", "x")]),
            &["2 fault", "write D7Y_TEST__STORE__MAX_BYTES", "write D7Y_TEST__LABEL:"],
        ),
        (file("store:\n  interval: \"5\"\n"), &["line 2", "unit", "30s"]),
        (file("label: a\nlabel: b\n"), &["line 2", "label"]),
        (file("store: [1\n"), &["line"]),
        (file("store:\n  maxBytes: 0\n  interval: 0s\n"), &["2 fault", "store.maxBytes", "store.interval"]),
        (environment(&[("D7Y_TEST__STORE__SIZE", "1")]), &["D7Y_TEST__STORE__SIZE", "maxBytes"]),
        (
            flags(&[("store.sync", "maybe"), ("store.interval", "9")]),
            &["--set store.sync", "--set store.interval"],
        ),
        (flags(&[("label.deep", "1")]), &["--set label.deep"]),
    ];
    for (given, parts) in table {
        let message = load_given(given).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_missing_file_is_told_what_would_do() {
    let args = DaemonArgs { config: Some("/nonexistent/peer.yaml".into()), ..DaemonArgs::default() };
    let message = load_from::<Config>(NAME, &args, []).unwrap_err().to_string();
    for part in ["there is no configuration file /nonexistent/peer.yaml", "{}"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert_eq!(load_given(Given { file: "{}\n", ..Given::default() }), Ok(Config::default()));
}

#[test]
fn all_faults_are_named_at_once_with_their_places() {
    let message = load_given(Given {
        file: "label: 7\nstore:\n  maxBytes: 0\n  maxByte: 1\n  interval: soon\nmirrors:\n  - host: a\n  - host: b\n    prot: 5\n",
        environment: &[("D7Y_TEST__STORE__SYNC", "maybe")],
        flags: &[("tls.cert", "c.pem")],
    })
    .unwrap_err();
    let places = [
        "7 fault",
        "config.yaml line 1, column 1: label: invalid type",
        "config.yaml line 3, column 3: store.maxBytes: must be more than 0",
        "config.yaml line 4, column 3: store.maxByte: unknown field `maxByte`, expected one of `maxBytes`",
        "config.yaml line 5, column 3: store.interval: \"soon\"",
        "config.yaml line 9, column 5: mirrors: unknown field `prot`, expected `host` or `port`",
        "environment variable D7Y_TEST__STORE__SYNC: invalid",
        "flag --set tls.cert: missing field `key`",
    ];
    for place in places {
        assert!(message.contains(place), "{place:?} is not in\n{message}");
    }
}

#[test]
fn printed_values_say_where_they_come_from() {
    let yaml = load_traced(Given {
        file: "label: \"12\"\nstore:\n  interval: 1m\n  sync:\ntoken: hunter2\nmirrors: [{host: a}]\n",
        environment: &[("D7Y_TEST__STORE__MAX_BYTES", "64MiB")],
        flags: &[("tls.cert", "c.pem"), ("tls.key", "k.pem")],
    })
    .unwrap()
    .to_yaml()
    .unwrap();
    let lines = [
        "label: \"12\"  # ",
        "config.yaml line 1, column 1\n",
        "  interval: 1m  # ",
        "  maxBytes: 64MiB  # environment variable D7Y_TEST__STORE__MAX_BYTES\n",
        "  sync: true  # default\n",
        "  cert: c.pem  # flag --set tls.cert\n",
        "token: \"***\"  # ",
        "mirrors: [{\"host\":\"a\",\"port\":0}]  # ",
    ];
    for line in lines {
        assert!(yaml.contains(line), "{line:?} is not in\n{yaml}");
    }
    assert!(!yaml.contains("hunter2"));
    let read: Config = serde_saphyr::from_str_with_options(&yaml, yaml_options()).unwrap();
    assert_eq!(read.label, "12", "what is printed can be read: {yaml}");
}

#[test]
fn secrets_are_masked_wherever_they_are_shown() {
    let config = Config { token: Secret::new("hunter2"), ..Config::default() };
    let shown = [format!("{config:?}"), serde_saphyr::to_string(&config).unwrap()];
    for text in shown {
        assert!(text.contains("***") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn printed_configuration_reads_back() {
    let config = Config {
        label: "12".into(),
        store: Store { max_bytes: ByteSize::bytes(4097), seeds: vec!["a".into()], ..Store::default() },
        token: Secret::new("***"),
        ..Config::default()
    };
    let yaml = serde_saphyr::to_string(&config).unwrap();
    assert_eq!(
        serde_saphyr::from_str_with_options::<Config>(&yaml, yaml_options()).unwrap(),
        config,
        "{yaml}"
    );
}

#[test]
fn sizes_and_durations() {
    for (text, bytes) in [("64MiB", 64 << 20), ("1.5KiB", 1536), ("10", 10), ("2GB", 2_000_000_000), ("0", 0)]
    {
        let size: ByteSize = text.parse().unwrap();
        assert_eq!(size.as_u64(), bytes, "{text}");
        assert_eq!(size.to_string().parse(), Ok(size), "{text} is written without loss");
    }
    for (text, ms) in [("500ms", 500), ("5m", 300_000), ("1h 30m", 5_400_000)] {
        let duration: HumanDuration = text.parse().unwrap();
        assert_eq!(duration, HumanDuration::from_millis(ms), "{text}");
        assert_eq!(duration.to_string().parse(), Ok(duration), "{text} is written without loss");
    }
    for bad in ["", "5", "-5s", "soon"] {
        assert!(bad.parse::<HumanDuration>().is_err(), "{bad:?}");
    }
}
