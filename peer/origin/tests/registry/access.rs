use d7y_origin::Origin;
use d7y_origin::testing::{Access, Ending, FakeRegistry, Login, Seen, Turn};
use tempfile::TempDir;

use crate::{config, content, everything, impatient, kind, read};

const USER: &str = "user";
const PASSWORD: &str = "hunter2";

/// An origin with the docker configuration `text`; it lives as long as the directory.
fn logged_in(text: &str) -> (TempDir, Origin) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    let origin = Origin::new(d7y_origin::OriginConfig { docker_config: Some(path), ..config() }).unwrap();
    (dir, origin)
}

pub fn docker_config(host: &str, user: &str, password: &str) -> (TempDir, Origin) {
    logged_in(&format!(r#"{{"auths":{{"{host}":{{"username":"{user}","password":"{password}"}}}}}}"#))
}

fn token(login: Login, uses: u32) -> Access {
    Access::Token { login, uses }
}

struct Case {
    access: Access,
    /// The entry of the docker configuration, if any.
    entry: &'static str,
    outcome: &'static str,
    /// Requests for blobs, and for tokens.
    requests: [usize; 2],
}

#[tokio::test]
async fn who_may_read() {
    let password = r#"{"username":"user","password":"hunter2"}"#;
    let encoded = r#"{"auth":"dXNlcjpodW50ZXIy"}"#;
    let wrong = r#"{"username":"user","password":"hunter3"}"#;
    let identity = r#"{"identitytoken":"refresh-me"}"#;
    let with_password = || token(Login::Password(USER, PASSWORD), 9);
    let case = |access, entry, outcome, requests| Case { access, entry, outcome, requests };
    let cases = [
        case(Access::Open, "", "ok", [1, 0]),
        case(Access::Basic(USER, PASSWORD), password, "ok", [2, 0]),
        case(Access::Basic(USER, PASSWORD), encoded, "ok", [2, 0]),
        case(Access::Basic(USER, PASSWORD), wrong, "unauthorized 401", [2, 0]),
        case(Access::Basic(USER, PASSWORD), "", "unauthorized 401", [1, 0]),
        case(Access::Basic(USER, PASSWORD), identity, "unauthorized 401", [1, 0]),
        case(Access::Basic(USER, PASSWORD), r#"{"auth":"%"}"#, "credentials", [1, 0]),
        case(token(Login::Anybody, 9), "", "ok", [2, 1]),
        case(with_password(), password, "ok", [2, 1]),
        case(with_password(), wrong, "unauthorized 401", [1, 1]),
        case(with_password(), "", "unauthorized 401", [1, 1]),
        case(token(Login::Identity("refresh-me"), 9), identity, "ok", [2, 1]),
        case(token(Login::Identity("refresh-you"), 9), identity, "unauthorized 401", [1, 1]),
        case(token(Login::Anybody, 0), "", "unauthorized 401", [2, 1]),
        case(Access::Refused(401), password, "unauthorized 401", [1, 1]),
        case(Access::Refused(401), "", "unauthorized 401", [2, 1]),
        case(Access::Refused(403), "", "unauthorized 403", [2, 1]),
        case(Access::Realm("ftp://token.example/".into()), password, "protocol Realm", [1, 0]),
        case(Access::Realm("http://user:pw@token.example/".into()), password, "protocol Realm", [1, 0]),
        case(Access::Realm("/token".into()), password, "protocol Realm", [1, 0]),
    ];
    for Case { access, entry, outcome: expected, requests } in cases {
        let name = format!("{access:?} with {entry:?}");
        let registry = FakeRegistry::start_with(access, Ending::Orderly).await;
        let blob = content(1000);
        let layer = registry.add_blob("team/app", blob.clone());
        let host = registry.host();
        let auths = if entry.is_empty() { String::new() } else { format!(r#""https://{host}/v1/":{entry}"#) };
        let (_dir, origin) = logged_in(&format!(r#"{{"auths":{{{auths}}}}}"#));
        let (received, outcome) = read(&origin, &layer, 0).await;
        assert_eq!(kind(&outcome), expected, "{name}: {outcome:?}");
        assert_eq!(received.len(), if expected == "ok" { 1000 } else { 0 }, "{name}");
        let (blobs, tokens): (Vec<_>, Vec<_>) = registry.seen().into_iter().partition(|seen| seen.is_blob());
        assert_eq!([blobs.len(), tokens.len()], requests, "{name}");
        let text = outcome.as_ref().map_or_else(everything, |()| String::new());
        for secret in [PASSWORD, "hunter3", "token-", "refresh-", "dXNlcjpodW50ZXIy", "user:"] {
            assert!(!text.contains(secret), "{name}: {text}");
        }
        let probed = origin.probe(&layer).await;
        assert_eq!(kind(&probed), expected, "{name}: probe");
    }
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_a_read_is_renewed() {
    let registry = FakeRegistry::start_with(token(Login::Anybody, 1), Ending::Orderly).await;
    let blob = content(1 << 20);
    let layer = registry.add_blob("app", blob.clone());
    registry.then([Turn::Cut(100 << 10), Turn::Cut(200 << 10)]);
    let (_dir, origin) = logged_in("{}");
    let (received, outcome) = read(&origin, &layer, 0).await;
    assert_eq!((kind(&outcome), received == blob), ("ok".into(), true), "{outcome:?}");
    let requests: Vec<_> = registry.seen().iter().map(|seen| (seen.is_blob(), seen.range.clone())).collect();
    let range = |first: usize| (true, Some(format!("bytes={first}-")));
    let (whole, token) = ((true, None), (false, None));
    let [second, third] = [range(100 << 10), range(300 << 10)];
    assert_eq!(
        requests,
        [
            whole.clone(),
            token.clone(),
            whole,
            second.clone(),
            token.clone(),
            second,
            third.clone(),
            token,
            third
        ]
    );
}

/// The layers of an image are asked for together.
#[tokio::test]
async fn many_reads_of_a_repository_cost_one_token_or_one_refusal() {
    for (password, expected) in [(PASSWORD, "ok"), ("hunter3", "unauthorized 401")] {
        let access = token(Login::Password(USER, PASSWORD), 99);
        let registry = FakeRegistry::start_with(access, Ending::Orderly).await;
        let (_dir, origin) = docker_config(&registry.host(), USER, password);
        let layers: Vec<_> = (1..=8).map(|size| registry.add_blob("app", content(size))).collect();
        let outcomes = futures_util::future::join_all(layers.iter().map(|layer| origin.probe(layer))).await;
        assert!(outcomes.iter().all(|outcome| kind(outcome) == expected), "{outcomes:?}");
        assert_eq!(registry.seen().iter().filter(|seen| !seen.is_blob()).count(), 1, "{password}");
    }
}

#[tokio::test]
async fn probes() {
    let registry = FakeRegistry::start().await;
    let layer = registry.add_blob("app", content(10));
    let other = d7y_types::LayerRef { repository: "other".into(), ..layer.clone() };
    let (_dir, origin) = logged_in("");
    assert_eq!(kind(&origin.probe(&layer).await), "ok");
    assert_eq!(kind(&origin.probe(&other).await), "not-found");
    assert!(registry.seen().iter().all(|seen| seen.method == "HEAD"));
}

/// With basic authentication, and with tokens that the registry does not take.
#[tokio::test]
async fn credentials_that_were_refused_are_not_sent_again_at_once() {
    for access in [Access::Basic(USER, "hunter3"), Access::Refused(401), Access::Refused(403)] {
        let basic = matches!(access, Access::Basic(..));
        let registry = FakeRegistry::start_with(access, Ending::Orderly).await;
        let layer = registry.add_blob("app", content(10));
        let entry = if basic { r#"{"username":"user","password":"hunter2"}"# } else { "{}" };
        let (_dir, origin) = logged_in(&format!(r#"{{"auths":{{"{}":{entry}}}}}"#, registry.host()));
        let outcomes = [origin.probe(&layer).await, origin.probe(&layer).await, origin.probe(&layer).await];
        assert!(outcomes.iter().all(|outcome| kind(outcome).starts_with("unauthorized")), "{outcomes:?}");
        let blobs = registry.seen().into_iter().filter(Seen::is_blob);
        let with_credentials = blobs.filter(|seen| seen.authorization.is_some()).count();
        assert_eq!(with_credentials, 1, "{:?}", registry.seen());
    }
}

#[tokio::test]
async fn a_login_between_two_reads_is_noticed() {
    let registry = FakeRegistry::start_with(Access::Basic(USER, PASSWORD), Ending::Orderly).await;
    let layer = registry.add_blob("app", content(10));
    let (dir, origin) = docker_config(&registry.host(), USER, "hunter3");
    assert_eq!(kind(&origin.probe(&layer).await), "unauthorized 401");
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpodW50ZXIy"}}}}}}"#, registry.host());
    std::fs::write(dir.path().join("config.json"), text).unwrap();
    assert_eq!(kind(&origin.probe(&layer).await), "ok");
}

#[tokio::test]
async fn a_token_service_that_hangs_is_left() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = format!("http://{}/token", silent.local_addr().unwrap());
    let registry = FakeRegistry::start_with(Access::Realm(realm), Ending::Orderly).await;
    let layer = registry.add_blob("app", content(10));
    let outcome = Origin::new(impatient()).unwrap().probe(&layer).await;
    assert_eq!(kind(&outcome), "timeout Response");
}
