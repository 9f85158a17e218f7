use d7y_origin::Origin;
use d7y_origin::testing::{Access, Ending, FakeRegistry, Turn};
use futures_util::future::join_all;

use crate::{content, everything, impatient, kind, origin, read};

const SIZE: usize = 1 << 20;
const ALL: usize = usize::MAX;

struct Case {
    name: &'static str,
    offset: u64,
    turns: Vec<Turn>,
    /// The answer after the turns.
    always: Turn,
    outcome: &'static str,
    requests: usize,
}

fn case(name: &'static str, turns: Vec<Turn>, outcome: &'static str, requests: usize) -> Case {
    Case { name, offset: 0, turns, always: Turn::Serve, outcome, requests }
}

fn from(offset: usize, case: Case) -> Case {
    Case { offset: offset as u64, ..case }
}

fn always(name: &'static str, turn: Turn, outcome: &'static str, requests: usize) -> Case {
    Case { name, offset: 0, turns: Vec::new(), always: turn, outcome, requests }
}

/// Whatever happens, what arrives is the blob from the offset on; the outcome and the number of requests are as said.
async fn check(origin: &Origin, case: Case, ending: Ending) {
    let registry = FakeRegistry::start_with(Access::Open, ending).await;
    let blob = content(SIZE);
    let layer = registry.add_blob("app/base", blob.clone());
    registry.then(case.turns);
    registry.always(case.always);
    let (received, outcome) = read(origin, &layer, case.offset).await;
    let expected = &blob[case.offset as usize..];
    let name = format!("{} ({ending:?}): {:?}", case.name, outcome.as_ref().map_err(everything));
    assert!(expected.starts_with(&received), "{name}: wrong bytes");
    assert_eq!(kind(&outcome), case.outcome, "{name}");
    assert_eq!(outcome.is_ok(), received.len() == expected.len() && case.outcome == "ok", "{name}: length");
    assert_eq!(registry.seen().len(), case.requests, "{name}: {:?}", registry.seen());
}

async fn check_all(cases: Vec<Case>) {
    let origin = &origin();
    join_all(cases.into_iter().map(|case| check(origin, case, Ending::Orderly))).await;
}

fn limited(retry_after: &str) -> Turn {
    Turn::Status(429, vec![("retry-after", retry_after.to_owned())], String::new())
}

#[tokio::test]
async fn statuses() {
    check_all(vec![
        case("a good registry", vec![], "ok", 1),
        case("500, then good", vec![Turn::status(500)], "ok", 2),
        case("408, 503, then good", vec![Turn::status(408), Turn::status(503)], "ok", 3),
        case("429 with a Retry-After", vec![limited("1")], "ok", 2),
        case("429 with one that is cut", vec![limited("86400")], "ok", 2),
        always("always 429", limited("0"), "rate-limited", 3),
        always("always 500", Turn::status(500), "refused 500", 3),
        always("400", Turn::status(400), "refused 400", 1),
        always("401 without a challenge", Turn::status(401), "unauthorized 401", 1),
        always("403", Turn::status(403), "unauthorized 403", 1),
        always("404", Turn::status(404), "not-found", 1),
        always("204", Turn::status(204), "protocol Status(204)", 1),
        always(
            "206 without being asked",
            Turn::ContentRange("bytes 0-9/10".into()),
            "protocol Status(206)",
            1,
        ),
        always("compressed in transit", Turn::Encoded, "protocol ContentEncoding", 1),
    ])
    .await;
}

#[tokio::test]
async fn offsets() {
    check_all(vec![
        from(1, case("the second byte", vec![], "ok", 1)),
        from(SIZE - 1, case("the last byte", vec![], "ok", 1)),
        from(SIZE, case("nothing", vec![], "ok", 0)),
        from(SIZE / 2, case("range ignored", vec![Turn::IgnoreRange(ALL)], "ok", 1)),
        from(SIZE / 2, case("shifted", vec![Turn::Shifted(1)], "protocol ContentRange", 1)),
        from(SIZE / 2, always("416", Turn::status(416), "refused 416", 1)),
        from(1, always("in parts", Turn::Part(300 << 10), "ok", 4)),
        from(
            5,
            always(
                "more than said",
                Turn::ContentRange("bytes 5-9/1048576".into()),
                "protocol ContentRange",
                1,
            ),
        ),
        from(5, always("no numbers", Turn::ContentRange("bytes */9".into()), "protocol ContentRange", 1)),
        from(
            5,
            always("too much", Turn::ContentRange("bytes 5-1048576/*".into()), "protocol ContentRange", 1),
        ),
        from(5, always("longer", Turn::ContentRange("bytes 5-9/1048577".into()), "too-long", 1)),
        from(5, always("shorter", Turn::ContentRange("bytes 5-9/10".into()), "truncated", 3)),
    ])
    .await;
}

#[tokio::test]
async fn broken_connections() {
    let cases = || {
        let piecemeal = (0..9).map(|_| Turn::Cut(100 << 10)).collect();
        vec![
            case("cut once", vec![Turn::Cut(1000)], "ok", 2),
            case("cut before the first byte", vec![Turn::Cut(0)], "ok", 2),
            case("cut before the last byte", vec![Turn::Cut(SIZE - 1)], "ok", 2),
            case("cut, then range ignored", vec![Turn::Cut(1000), Turn::IgnoreRange(ALL)], "ok", 2),
            case("cut, then 500", vec![Turn::Cut(1000), Turn::status(500)], "ok", 3),
            always("no byte ever", Turn::Cut(0), "truncated", 3),
            // A reset may take bytes with it that were sent before: these two need them.
            case("cut again and again, with progress", piecemeal, "ok", 10),
            case("cut, then shifted", vec![Turn::Cut(1000), Turn::Shifted(1)], "protocol ContentRange", 2),
            always("drops that are no progress", Turn::Cut(9), "truncated", 3),
        ]
    };
    check_all(cases()).await;
    for case in cases().into_iter().take(6) {
        check(&origin(), case, Ending::Reset).await;
    }
}

#[tokio::test]
async fn ranges_ignored_over_and_over_are_not_read_over_and_over() {
    let part = |percent: usize| SIZE * percent / 100;
    let turns = vec![Turn::Cut(part(70)), Turn::IgnoreRange(part(75)), Turn::IgnoreRange(ALL)];
    check_all(vec![case("three times", turns, "protocol IgnoresRange", 3)]).await;
}

#[tokio::test]
async fn lengths() {
    check_all(vec![
        always("shorter than the manifest says", Turn::Length(SIZE - 1), "truncated", 3),
        always("longer", Turn::Length(SIZE + 1), "too-long", 1),
        always("endless", Turn::Endless, "too-long", 1),
    ])
    .await;
}

#[tokio::test]
async fn stalls() {
    let origin = &Origin::new(impatient()).unwrap();
    let cases = [
        case("in the body, once", vec![Turn::Stall(1000)], "ok", 2),
        case("before the head, once", vec![Turn::StallHead], "ok", 2),
        always("in the body", Turn::Stall(10), "timeout Body", 3),
        always("before the head", Turn::StallHead, "timeout Response", 3),
        always("complete, but never over", Turn::Unfinished, "ok", 1),
    ];
    join_all(cases.into_iter().map(|case| check(origin, case, Ending::Orderly))).await;
}

#[tokio::test]
async fn nobody_there() {
    let registry = FakeRegistry::start().await;
    let mut layer = registry.add_blob("app", content(10));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases = [
        (closed.to_string(), "app", 0, "connect"),
        ("a registry".to_owned(), "app", 0, "name"),
        (registry.host(), "../app", 0, "name"),
        (registry.host(), "app", 11, "beyond-end"),
    ];
    for (host, repository, offset, expected) in cases {
        (layer.registry, layer.repository) = (host, repository.to_owned());
        let (_, outcome) = read(&origin(), &layer, offset).await;
        assert_eq!(kind(&outcome), expected, "{layer:?}");
    }
    assert_eq!(registry.seen(), []);
}

#[tokio::test]
async fn a_read_that_is_dropped_while_it_waits_loses_nothing() {
    let registry = FakeRegistry::start().await;
    let blob = content(SIZE);
    let layer = registry.add_blob("app", blob.clone());
    registry.then([Turn::Stall(1000), Turn::Stall(1000)]);
    let mut config = impatient();
    config.retry.attempts = 99.try_into().unwrap(); // one that is dropped before the head has come counts
    let mut stream = Origin::new(config).unwrap().open_blob(&layer, 0).await.unwrap();
    let mut received = Vec::new();
    loop {
        let nap = std::time::Duration::from_millis(20);
        match tokio::time::timeout(nap, stream.next()).await {
            Err(_) => continue,
            Ok(None) => break,
            Ok(Some(bytes)) => received.extend_from_slice(&bytes.unwrap()),
        }
        assert_eq!(stream.position(), received.len() as u64);
        if received.len() == 1000 || received.len() == 2000 {
            assert!(tokio::time::timeout(nap, stream.next()).await.is_err(), "the registry does not stall");
        }
    }
    assert!(received == blob);
}

#[tokio::test]
async fn blobs_share_the_connections_of_a_host_and_probes_do_not_wait_for_them() {
    let registry = FakeRegistry::start().await;
    let layer = registry.add_blob("app", content(SIZE));
    let mut config = crate::config();
    config.max_connections_per_host = 1.try_into().unwrap();
    config.timeouts.queue = std::time::Duration::from_millis(50);
    let origin = Origin::new(config).unwrap();
    let first = origin.open_blob(&layer, 0).await.unwrap();
    origin.probe(&layer).await.unwrap();
    let second = origin.open_blob(&layer, 0).await.map(drop);
    assert_eq!(kind(&second), "timeout Queue");
    drop(first);
    let (received, outcome) = read(&origin, &layer, 0).await;
    assert_eq!((received.len(), kind(&outcome)), (SIZE, "ok".into()));
    let stats = origin.stats();
    let [host] = stats.hosts.as_slice() else { panic!("{stats:?}") };
    assert_eq!((host.host.clone(), host.requests), (registry.host(), 3));
    assert!((SIZE as u64..2 * SIZE as u64).contains(&host.bytes), "{host:?}");
}
