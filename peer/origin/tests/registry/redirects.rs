use d7y_origin::testing::{Access, Ending, FakeRegistry, Turn};
use d7y_origin::{Origin, RegistryConfig};

use crate::access::docker_config;
use crate::{config, content, everything, kind, origin, read};

const PASSWORD: &str = "hunter2";

fn url(registry: &FakeRegistry, layer: &d7y_types::LayerRef) -> String {
    format!("http://{}/v2/{}/blobs/{}?sig=s3cret", registry.host(), layer.repository, layer.digest)
}

#[tokio::test]
async fn storage_never_sees_an_authorization() {
    let registry = FakeRegistry::start_with(Access::Basic("user", PASSWORD), Ending::Orderly).await;
    let storage = FakeRegistry::start().await;
    let blob = content(100_000);
    let layer = registry.add_blob("app", blob.clone());
    storage.add_blob("app", blob.clone());
    registry.always(Turn::Redirect(url(&storage, &layer)));
    storage.then([Turn::Cut(5000)]);
    let (_dir, origin) = docker_config(&registry.host(), "user", PASSWORD);
    let (received, outcome) = read(&origin, &layer, 0).await;
    assert_eq!((kind(&outcome), received == blob), ("ok".into(), true), "{outcome:?}");
    let authorizations: Vec<_> = storage.seen().into_iter().map(|seen| seen.authorization).collect();
    assert_eq!(authorizations, [None, None]);
    assert_eq!(storage.seen()[1].range.as_deref(), Some("bytes=5000-"));
    assert!(registry.seen().iter().skip(1).all(|seen| seen.authorization.is_some()));
}

#[tokio::test]
async fn a_way_back_to_the_registry_brings_no_authorization_either() {
    let registry = FakeRegistry::start_with(Access::Basic("user", PASSWORD), Ending::Orderly).await;
    let storage = FakeRegistry::start().await;
    let layer = registry.add_blob("app", content(10));
    storage.add_blob("app", content(10));
    registry.always(Turn::Redirect(url(&storage, &layer)));
    storage.always(Turn::Redirect(url(&registry, &layer)));
    let (_dir, origin) = docker_config(&registry.host(), "user", PASSWORD);
    let (_, outcome) = read(&origin, &layer, 0).await;
    assert_eq!(kind(&outcome), "refused 401");
    assert_eq!(registry.seen().last().unwrap().authorization, None);
}

#[tokio::test]
async fn where_a_redirect_may_not_lead() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let to = |url: &str| Turn::Redirect(url.to_owned());
    let cases = [
        (Turn::RedirectToSelf, "redirect TooMany", 6),
        (Turn::status(307), "redirect Location", 1),
        (to("ftp://storage.example/blob"), "redirect Location", 1),
        (to("file:///etc/passwd"), "redirect Location", 1),
        (to("http://"), "redirect Location", 1),
        (to("http://user:s3cret@storage.example/"), "redirect Location", 1),
        (to(&format!("http://{closed}/?sig=s3cret")), "connect", 3),
        (Turn::status(304), "protocol Status(304)", 1),
    ];
    for (turn, expected, requests) in cases {
        let registry = FakeRegistry::start().await;
        let layer = registry.add_blob("app", content(10));
        registry.always(turn.clone());
        let (_, outcome) = read(&origin(), &layer, 0).await;
        assert_eq!(kind(&outcome), expected, "{turn:?}");
        assert_eq!(registry.seen().len(), requests, "{turn:?}");
        let text = everything(&outcome.unwrap_err());
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn what_storage_answers_is_not_taken_for_an_answer_of_the_registry() {
    for (status, expected) in [(401, "refused 401"), (403, "refused 403"), (404, "refused 404")] {
        let (registry, storage) = (FakeRegistry::start().await, FakeRegistry::start().await);
        let layer = registry.add_blob("app", content(10));
        storage.add_blob("app", content(10));
        registry.always(Turn::Redirect(url(&storage, &layer)));
        let challenge = format!(r#"Bearer realm="http://{}/token""#, storage.host());
        storage.always(Turn::Status(status, vec![("www-authenticate", challenge)], String::new()));
        let (_, outcome) = read(&origin(), &layer, 0).await;
        assert_eq!(kind(&outcome), expected);
        assert_eq!(storage.seen().len(), 1, "storage had its way with {status}");
    }
}

/// Each mirror is asked once, whatever it answers; then the registry is.
#[tokio::test]
async fn mirrors_go_first_and_are_left_at_their_first_failure() {
    let cases = [
        (vec![], vec![], [1, 0]),
        (vec![Turn::status(404)], vec![], [1, 1]),
        (vec![Turn::status(401)], vec![Turn::status(500)], [1, 2]),
        (vec![Turn::Cut(5000)], vec![], [1, 1]),
        (vec![Turn::Length(7)], vec![Turn::Cut(5000)], [1, 2]),
    ];
    for (at_mirror, at_registry, requests) in cases {
        let (mirror, registry) = (FakeRegistry::start().await, FakeRegistry::start().await);
        let blob = content(100_000);
        let layer = registry.add_blob("app", blob.clone());
        mirror.add_blob("app", blob.clone());
        mirror.then(at_mirror);
        registry.then(at_registry);
        let entry = RegistryConfig { mirrors: vec![mirror.host()], ..RegistryConfig::new(registry.host()) };
        let mut config = config();
        config.registries.push(entry);
        let (received, outcome) = read(&Origin::new(config).unwrap(), &layer, 0).await;
        assert_eq!((kind(&outcome), received == blob), ("ok".into(), true), "{outcome:?}");
        assert_eq!([mirror.seen().len(), registry.seen().len()], requests);
        let namespace = format!("ns={}", registry.host().replace(':', "%3A"));
        assert!(mirror.seen()[0].target.ends_with(&namespace), "{:?}", mirror.seen());
    }
}
