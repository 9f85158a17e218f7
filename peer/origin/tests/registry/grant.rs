//! A token that one origin obtains and another one uses, instead of the credential itself.

use std::time::Duration;

use d7y_origin::testing::{Access, Ending, FakeRegistry, Login};
use d7y_origin::{Login as Given, Origin, OriginConfig, PullAccess, PullToken, RegistryConfig};

use crate::access::docker_config;
use crate::{config, content, kind, origin, read};

const LIFE: Duration = Duration::from_secs(60);

fn with_password(uses: u32) -> Access {
    Access::Token { login: Login::Password("robot", "hunter2"), uses }
}

fn login() -> Given {
    Given::Password { user: "robot".into(), password: "hunter2".into() }
}

async fn token(origin: &Origin, registry: &FakeRegistry) -> PullToken {
    let manifest = registry.add_image("team/app", "1", &[]);
    match origin.pull_access((&registry.host(), "team/app"), manifest).await.unwrap() {
        PullAccess::Token(token) => token,
        other => panic!("{other:?} instead of a token"),
    }
}

#[tokio::test]
async fn the_holder_of_a_token_reads_one_repository_and_never_sees_the_password() {
    let registry = FakeRegistry::start_with(with_password(9), Ending::Orderly).await;
    let blob = content(1000);
    let layer = registry.add_blob("team/app", blob.clone());
    let elsewhere = registry.add_blob("team/other", blob.clone());
    let (holder, reader) = (origin().logged_in(&registry.host(), login()), origin());
    assert_eq!(kind(&read(&reader, &layer, 0).await.1), "unauthorized 401", "it has no credential");
    let token = token(&holder, &registry).await;
    assert!(token.life() > Duration::ZERO && token.life() <= Duration::from_secs(300));
    assert!(!format!("{token:?}").contains("token-"));

    reader.grant(&registry.host(), "team/app", token.clone());
    let before = registry.seen().len();
    let (received, outcome) = read(&reader, &layer, 0).await;
    assert_eq!(
        (kind(&outcome), received == blob),
        ("ok".into(), true),
        "a refusal a moment ago does not count"
    );
    let used = registry.seen().split_off(before);
    assert!(used.iter().all(|seen| seen.is_blob()), "the token service is not asked: {used:?}");
    reader.grant(&registry.host(), "team/other", token);
    assert_eq!(kind(&read(&reader, &elsewhere, 0).await.1), "unauthorized 401", "of another repository");
}

#[tokio::test]
async fn a_token_that_ended_gives_way_to_a_newer_one_and_to_the_nodes_own_login() {
    let registry = FakeRegistry::start_with(with_password(99), Ending::Orderly).await;
    let layer = registry.add_blob("team/app", content(1000));
    let (holder, reader) = (origin().logged_in(&registry.host(), login()), origin());
    reader.grant(&registry.host(), "team/app", token(&holder, &registry).await);
    assert_eq!(kind(&read(&reader, &layer, 0).await.1), "ok");
    registry.end_tokens();
    assert_eq!(kind(&read(&reader, &layer, 0).await.1), "unauthorized 401");
    reader.grant(&registry.host(), "team/app", token(&holder, &registry).await);
    assert_eq!(kind(&read(&reader, &layer, 0).await.1), "ok", "at once");

    let (_dir, own) = docker_config(&registry.host(), "robot", "hunter2");
    own.grant(&registry.host(), "team/app", PullToken::new("Bearer forged", LIFE).unwrap());
    assert_eq!(kind(&read(&own, &layer, 0).await.1), "ok", "its own login opens what the token does not");
}

#[tokio::test]
async fn what_others_need_depends_on_the_registry() {
    let bearer = || Given::Authorization("Bearer brought".into());
    let table: [(Access, Option<Given>, &str); 6] = [
        (Access::Open, None, "Own"),
        (Access::Open, Some(login()), "Own"),
        (Access::Basic("robot", "hunter2"), Some(login()), "Password"),
        (Access::Basic("robot", "hunter2"), Some(Given::Authorization("Custom x".into())), "Password"),
        (with_password(9), Some(login()), "Token([secret])"),
        (with_password(9), None, "Own"),
    ];
    for (access, given, expected) in table {
        let name = format!("{access:?} {given:?}");
        let registry = FakeRegistry::start_with(access, Ending::Orderly).await;
        let manifest = registry.add_image("app", "1", &[]);
        let origin = match given {
            Some(given) => origin().logged_in(&registry.host(), given),
            None => origin(),
        };
        let found = origin.pull_access((&registry.host(), "app"), manifest).await.unwrap();
        assert_eq!(format!("{found:?}"), expected, "{name}");
    }
    let registry = FakeRegistry::start_with(with_password(9), Ending::Orderly).await;
    let manifest = registry.add_image("app", "1", &[]);
    let forged = origin().logged_in(&registry.host(), bearer());
    let refused = forged.pull_access((&registry.host(), "app"), manifest).await.map(drop);
    assert_eq!(kind(&refused), "unauthorized 401", "a token is tried before it is passed on");
}

#[tokio::test]
async fn a_mirror_does_not_get_the_registrys_token() {
    let registry = FakeRegistry::start_with(with_password(9), Ending::Orderly).await;
    let mirror = FakeRegistry::start_with(with_password(9), Ending::Orderly).await;
    let layer = registry.add_blob("team/app", content(1000));
    mirror.add_blob("team/app", content(1000));
    let mirrored = RegistryConfig { mirrors: vec![mirror.host()], ..RegistryConfig::new(registry.host()) };
    let reader = Origin::new(OriginConfig { registries: vec![mirrored], ..config() }).unwrap();
    let holder = origin().logged_in(&registry.host(), login());
    let token = token(&holder, &registry).await;
    reader.grant(&registry.host(), "team/app", token.clone());
    assert_eq!(kind(&read(&reader, &layer, 0).await.1), "ok");
    let shown = mirror.seen();
    assert!(!shown.is_empty(), "the mirror is asked first");
    assert!(shown.iter().all(|seen| seen.authorization.as_deref() != Some(token.expose())), "{shown:?}");
}

#[test]
fn only_bearer_tokens_are_passed_on() {
    let long = format!("Bearer {}", "x".repeat(16 << 10));
    for header in ["", "Bearer ", "Basic cm9ib3Q6aHVudGVyMg==", "Bearer a\nb", &long] {
        assert!(PullToken::new(header, LIFE).is_none(), "{header:?}");
    }
    let token = PullToken::new("Bearer x", LIFE * 1000).unwrap();
    assert!(token.life() <= Duration::from_secs(300), "asked for anew after some minutes at most");
}
