use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::*;

const PATH: &str = "config.json";

/// What a file says about a registry, in one word or two.
fn look_up(text: &[u8], registry: &str) -> String {
    let file = match DockerFile::parse(text, Path::new(PATH)) {
        Ok(file) => file,
        Err(error) => return format!("error: {error}"),
    };
    if let Some(helper) = file.helper(registry) {
        return format!("helper {helper}");
    }
    match file.entry(registry).map(AuthEntry::credentials) {
        None | Some(Ok(None)) => "none".to_owned(),
        Some(Ok(Some(Credentials::Password { user, password }))) => format!("{user} {}", password.0),
        Some(Ok(Some(Credentials::IdentityToken(token)))) => format!("token {}", token.0),
        Some(Ok(Some(Credentials::Header(header)))) => format!("header {}", header.0),
        Some(Err(BrokenEntry)) => "broken".to_owned(),
    }
}

#[test]
fn files_as_docker_writes_them_and_as_people_do() {
    let hub = "docker.io";
    let host = "registry.example:5000";
    let cases = [
        ("", host, "none"),
        (" \n", host, "none"),
        ("{}", host, "none"),
        (r#"{"auths":null,"credHelpers":null,"credsStore":null}"#, host, "none"),
        (r#"{"auths":{"registry.example:5000":{}}}"#, host, "none"),
        (r#"{"auths":{"registry.example:5000":null}}"#, host, "none"),
        (r#"{"auths":{"registry.example:5000":{"auth":""}}}"#, host, "none"),
        // Encoded: the password may hold colons, the padding may be missing, docker once wrote NULs.
        (r#"{"auths":{"registry.example:5000":{"auth":"YTpi"}}}"#, host, "a b"),
        (r#"{"auths":{"registry.example:5000":{"auth":"YTpiOmM="}}}"#, host, "a b:c"),
        (r#"{"auths":{"registry.example:5000":{"auth":" YTpiOmM "}}}"#, host, "a b:c"),
        (r#"{"auths":{"registry.example:5000":{"auth":"YTpiAAA="}}}"#, host, "a b"),
        (r#"{"auths":{"registry.example:5000":{"auth":"YWI="}}}"#, host, "broken"),
        (r#"{"auths":{"registry.example:5000":{"auth":"%%"}}}"#, host, "broken"),
        (r#"{"auths":{"registry.example:5000":{"auth":"/////w=="}}}"#, host, "broken"),
        (r#"{"auths":{"registry.example:5000":{"username":"a","password":"b"}}}"#, host, "a b"),
        (r#"{"auths":{"registry.example:5000":{"username":"a"}}}"#, host, "none"),
        (r#"{"auths":{"registry.example:5000":{"auth":"YTpi","identitytoken":"t"}}}"#, host, "token t"),
        // Keys: URLs, other cases of letters, other ports.
        (r#"{"auths":{"https://registry.example:5000":{"auth":"YTpi"}}}"#, host, "a b"),
        (r#"{"auths":{"http://Registry.Example:5000/v2/":{"auth":"YTpi"}}}"#, host, "a b"),
        (
            r#"{"auths":{"registry.example:5000/v1/":{"auth":"YTpj"},"registry.example:5000":{"auth":"YTpi"}}}"#,
            host,
            "a b",
        ),
        (r#"{"auths":{"registry.example":{"auth":"YTpi"}}}"#, host, "none"),
        (r#"{"auths":{"evil-registry.example:5000":{"auth":"YTpi"}}}"#, host, "none"),
        (r#"{"auths":{"registry.example:5000.evil":{"auth":"YTpi"}}}"#, host, "none"),
        // Docker Hub's three names.
        (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}"#, hub, "a b"),
        (r#"{"auths":{"docker.io":{"auth":"YTpi"}}}"#, hub, "a b"),
        (r#"{"auths":{"registry-1.docker.io":{"auth":"YTpi"}}}"#, hub, "a b"),
        (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}"#, host, "none"),
        // Helpers.
        (r#"{"credsStore":"desktop"}"#, host, "helper desktop"),
        (r#"{"credsStore":""}"#, host, "none"),
        (r#"{"credsStore":"desktop","credHelpers":{"registry.example:5000":"cloud"}}"#, host, "helper cloud"),
        (
            r#"{"credHelpers":{"other.example":"cloud"},"auths":{"registry.example:5000":{"auth":"YTpi"}}}"#,
            host,
            "a b",
        ),
        // What docker keeps there besides.
        (
            r#"{"HttpHeaders":{"a":"b"},"psFormat":"x","auths":{"registry.example:5000":{"auth":"YTpi","email":"e"}}}"#,
            host,
            "a b",
        ),
    ];
    for (text, registry, expected) in cases {
        assert_eq!(look_up(text.as_bytes(), registry), expected, "{registry} in {text}");
    }
}

#[test]
fn faults_are_placed_and_quote_nothing() {
    let cases = [
        ("{", "line 1, column 1"),
        ("7", "line 1, column 1"),
        ("{\n \"auths\": \"hunter2\"}", "line 2, column 19"),
        (r#"{"auths":{"registry.example":"hunter2"}}"#, "line 1, column 38"),
        (r#"{"auths":{"registry.example":{"password":7}}}"#, "line 1, column 42"),
        ("{} hunter2", "line 1, column 4"),
        ("\u{feff}{}", "line 1, column 1"),
    ];
    for (text, place) in cases {
        let outcome = look_up(text.as_bytes(), "registry.example");
        assert!(outcome.starts_with("error: ") && outcome.contains(place), "{text}: {outcome}");
        assert!(!outcome.contains("hunter2"), "{outcome}");
    }
}

/// Every prefix of a good file, and every change of one byte: no panic, and no fault that quotes the password.
#[test]
fn mangled_files_are_survived() {
    let seed = br#"{"auths":{"https://registry.example/v2/":{"auth":"YTpodW50ZXIy","identitytoken":"","username":"a","password":"hunter2"},"b":null},"credHelpers":{"c":"d"},"credsStore":""}"#;
    assert_eq!(look_up(seed, "registry.example"), "a hunter2");
    for at in 0..seed.len() {
        let mut variants = vec![seed[..at].to_vec()];
        for byte in *b"\"\\{}[],: 0\n\xff\0" {
            let mut changed = seed.to_vec();
            changed[at] = byte;
            variants.push(changed);
        }
        for variant in variants {
            let outcome = look_up(&variant, "registry.example");
            assert!(!outcome.starts_with("error") || !outcome.contains("hunter"), "{outcome}");
        }
    }
}

#[test]
fn debug_output_hides_what_is_secret() {
    let file = DockerFile::parse(br#"{"auths":{"a":{"password":"hunter2"}}}"#, Path::new(PATH)).unwrap();
    let password = Secret("hunter2".into());
    let credentials = Credentials::Password { user: "a".into(), password };
    for text in [format!("{file:?}"), format!("{credentials:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// A file that names the helper `name` for all registries, and the helper itself, in `dir`.
fn install_helper(dir: &Path, name: &str, script: &str) -> PathBuf {
    let config = dir.join(format!("{name}.json"));
    std::fs::write(&config, format!(r#"{{"credsStore":"{name}","auths":{{"b":{{"auth":"YTpi"}}}}}}"#))
        .unwrap();
    let program = dir.join(format!("docker-credential-{name}"));
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    config
}

/// One test for all of them: a program that another thread is about to start must not be open for writing.
#[tokio::test]
async fn helpers() {
    let limit = Duration::from_secs(5);
    let answer = |user: &str, secret: &str| {
        format!(
            r#"read server; printf '{{"ServerURL":"%s","Username":"{user}","Secret":"{secret}"}}' "$server""#
        )
    };
    let echo = r#"read server; [ "$1" = get ] && printf '{"Username":"u","Secret":"%s"}' "$server""#;
    let environment =
        r#"printf '{"Username":"u","Secret":"%s"}' "$(env | cut -d= -f1 | sort | tr '\n' ' ')""#;
    let none = "echo credentials not found in native keychain; exit 1";
    let cases = [
        ("good", answer("u", "p"), "a", "u p"),
        ("token", answer("<token>", "t"), "a", "token t"),
        ("echo", echo.to_owned(), "a", "u a"),
        ("hub", echo.to_owned(), "docker.io", "u https://index.docker.io/v1/"),
        ("environment", environment.to_owned(), "a", "u GIVEN PATH PWD "),
        ("none", none.to_owned(), "a", "none"),
        ("none-but-file", none.to_owned(), "b", "a b"),
        ("fails", "echo hunter2; echo hunter2 >&2; exit 3".to_owned(), "a", "Failed"),
        ("garbage", "echo hunter2".to_owned(), "a", "Answer"),
        ("endless", "yes hunter2".to_owned(), "a", "Failed"),
        ("../up", String::new(), "a", "HelperName"),
        ("absent", String::new(), "a", "Start"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let configs: Vec<_> = cases
        .iter()
        .map(|(name, script, ..)| install_helper(dir.path(), &name.replace('/', "_"), script))
        .collect();
    std::fs::write(&configs[10], r#"{"credsStore":"../up"}"#).unwrap();
    std::fs::remove_file(dir.path().join("docker-credential-absent")).unwrap();
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    let helpers = Helpers::new(limit, vec![("PATH".into(), path.into()), ("GIVEN".into(), "x".into())]);
    for ((name, _, registry, expected), config) in cases.iter().zip(configs) {
        let outcome = CredentialStore::new(Some(config), helpers.clone()).find(registry).await;
        let text = match &outcome {
            Ok(None) => "none".to_owned(),
            Ok(Some(Credentials::Password { user, password })) => format!("{user} {}", password.0),
            Ok(Some(Credentials::IdentityToken(token))) => format!("token {}", token.0),
            Ok(Some(Credentials::Header(header))) => format!("header {}", header.0),
            Err(error) => format!("{error:?} {error}"),
        };
        assert!(text == *expected || outcome.is_err() && text.contains(expected), "{name}: {text}");
        assert!(!text.contains("hunter2"), "{name}: {text}");
    }
}

#[tokio::test]
async fn a_helper_that_hangs_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let config = install_helper(dir.path(), "hangs", "exec sleep 600");
    let environment = vec![("PATH".into(), format!("{}:/usr/bin:/bin", dir.path().display()).into())];
    let helpers = Helpers::new(Duration::from_millis(100), environment);
    let start = Instant::now();
    let outcome = CredentialStore::new(Some(config), helpers).find("a").await;
    assert!(matches!(outcome, Err(CredentialError::Helper(HelperError::Timeout { .. }))), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large.json");
    std::fs::write(&large, vec![b' '; MAX_DOCKER_CONFIG_BYTES as usize + 1]).unwrap();
    let helpers = Helpers::new(Duration::from_secs(1), Vec::new());
    let find = |path: Option<PathBuf>| {
        let store = CredentialStore::new(path, helpers.clone());
        async move { store.find("a").await }
    };
    assert_eq!(find(None).await, Ok(None));
    assert_eq!(find(Some(dir.path().join("absent.json"))).await, Ok(None));
    assert_eq!(find(Some(large.clone())).await, Err(CredentialError::TooLarge(large)));
    assert!(matches!(find(Some(dir.path().to_owned())).await, Err(CredentialError::Read { .. })));
}
