//! Real peers and schedulers, real sockets, a registry that misbehaves on request.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod builders;
mod disk;
mod drain;
mod layer;
mod managed;
mod private;
mod rescue;
mod reuse;
mod rig;
mod scheduled;
mod scrub;
mod traced;

use std::time::Duration;

use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::{Config, Role};
use d7y_peer_client::ClientError;
use d7y_proto::local::Reason;
use d7y_types::{ByteRange, LayerRef};
use futures_util::future::try_join_all;

use layer::TestLayer;
use rig::Cluster;

const SOON: Duration = Duration::from_secs(20);

fn refused(result: Result<impl std::fmt::Debug, ClientError>) -> (Reason, String) {
    match result {
        Err(ClientError::Refused { reason, message }) => (reason, message),
        Err(error @ ClientError::Deadline(_)) => (error.reason(), error.to_string()),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn blob_requests(registry: &FakeRegistry) -> usize {
    registry.seen().iter().filter(|seen| seen.target.contains("/blobs/")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_gives_each_byte_once_and_may_then_go_away() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let one = cluster.start("one", Role::Node, &[&seed]).await;
    one.assert_reads(&reference, &layer).await;
    assert_eq!(blob_requests(&registry), 1);

    registry.always(Turn::status(500));
    let two = cluster.start("two", Role::Node, &[&seed]).await;
    two.assert_reads(&reference, &layer).await;
    assert_eq!(blob_requests(&registry), 1, "the second node is served by the swarm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_from_its_neighbour_when_the_seed_is_gone() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(20, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let one = cluster.start("one", Role::Node, &[&seed]).await;
    one.assert_reads(&reference, &layer).await;
    seed.kill();
    registry.always(Turn::status(500));
    // Listed as a seed: a peer that may be asked.
    let two = cluster.start("two", Role::Node, &[&one]).await;
    two.assert_reads(&reference, &layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_one_chunk_cause_one_fetch() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(4, 60_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    cluster.start("one", Role::Node, &[&seed]).await.assert_reads(&reference, &layer).await;
    let uploaded = seed.metric("d7y_peer_uploaded_bytes_total").await;

    let two = cluster.start_lazy("two", &[&seed]).await;
    two.client.open_layer(&reference, SOON).await.unwrap();
    let range = ByteRange::new(0, 4096);
    let reads = (0..32).map(|_| two.client.ensure_range(reference.digest, range, SOON));
    try_join_all(reads).await.unwrap();
    let frames = seed.metric("d7y_peer_uploaded_bytes_total").await - uploaded;
    assert!(frames > 0.0 && frames < 70_000.0, "32 reads of one chunk moved {frames} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_seed_the_node_reads_the_origin_itself() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(5, 30_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let node = cluster.start("alone", Role::Node, &[]).await;
    node.assert_reads(&reference, &layer).await;
    assert_eq!(blob_requests(&registry), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_seed_does_not_keep_a_node_from_its_layer() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(5, 30_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    seed.kill();
    let node = cluster.start("node", Role::Node, &[&seed]).await;
    node.assert_reads(&reference, &layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_dies_after_long_work_may_come_back() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(100, 50_000);
    let reference = layer.push(&registry);
    registry.then([Turn::Stall(2_000_000)]);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let patience = Duration::from_secs(4);
    let patient = |config: &mut Config| config.fetch.origin_fallback_after = patience.into();
    let node = cluster.start_with("node", &[&seed], patient).await;
    let reading = std::time::Instant::now();
    let restart = async {
        node.wait_for_metric("d7y_peer_received_bytes_total", 1.0).await;
        // Long after the patience of a node that gets nothing would be over.
        tokio::time::sleep_until((reading + patience).into()).await;
        let address = seed.crash().await;
        let again = |config: &mut Config| (config.role, config.transfer.listen) = (Role::Seed, address);
        cluster.start_with("seed", &[], again).await
    };
    let (_, _seed) = tokio::join!(node.assert_reads(&reference, &layer), restart);
    assert_eq!(node.metric("d7y_peer_received_bytes_total{source=\"origin\"}").await, 0.0);
    assert_eq!(blob_requests(&registry), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_origin_refuses_is_said_clearly() {
    let cases = [
        (Turn::status(401), Reason::Unauthorized, "docker login"),
        (Turn::status(403), Reason::Unauthorized, "docker login"),
        (Turn::status(404), Reason::NotFound, "no such blob"),
    ];
    for (turn, reason, says) in cases {
        let registry = FakeRegistry::start().await;
        let reference = TestLayer::random(3, 10_000).push(&registry);
        registry.always(turn);
        let cluster = Cluster::new();
        let seed = cluster.start("seed", Role::Seed, &[]).await;
        let node = cluster.start("node", Role::Node, &[&seed]).await;
        let (got, message) = refused(node.client.open_layer(&reference, SOON).await);
        assert_eq!(got, reason, "{message}");
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_its_digests_say_is_refused_and_not_kept() {
    let registry = FakeRegistry::start().await;
    let good = TestLayer::random(3, 10_000).push(&registry);
    let other = TestLayer::random(4, 10_000).push(&registry);
    let forged_config = LayerRef { diff_id: other.diff_id, ..good.clone() };
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let node = cluster.start("node", Role::Node, &[&seed]).await;
    let (reason, message) = refused(node.client.open_layer(&forged_config, SOON).await);
    assert_eq!(reason, Reason::Corrupt, "{message}");
    assert_eq!(node.client.status(SOON).await.unwrap().layers, []);
    assert_eq!(seed.client.status(SOON).await.unwrap().layers, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_breaks_off_is_resumed() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(30, 40_000);
    let reference = layer.push(&registry);
    registry.then([Turn::status(503), Turn::status(429)]);
    let cluster = Cluster::new();
    let node = cluster.start("node", Role::Node, &[]).await;
    node.assert_reads(&reference, &layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_whose_disk_lies_is_found_out_and_the_origin_helps() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(10, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    cluster.start("one", Role::Node, &[&seed]).await.assert_reads(&reference, &layer).await;
    seed.damage_pack(&reference);
    let two = cluster.start_lazy("two", &[&seed]).await;
    two.assert_reads(&reference, &layer).await;
    assert!(two.metric("d7y_peer_rejected_chunks_total").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_serves_what_it_kept() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(10, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let node = cluster.start("node", Role::Node, &[]).await;
    node.assert_reads(&reference, &layer).await;
    node.stop().await;
    registry.always(Turn::status(500));
    let node = cluster.start("node", Role::Node, &[]).await;
    node.assert_reads(&reference, &layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_fetches_for_readers_that_never_opened_the_layer_again() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(10, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    cluster.start("one", Role::Node, &[&seed]).await.assert_reads(&reference, &layer).await;
    registry.always(Turn::status(500));
    let two = cluster.start_lazy("two", &[&seed]).await;
    two.client.open_layer(&reference, SOON).await.unwrap();
    two.stop().await;
    let two = cluster.start_lazy("two", &[&seed]).await;
    let range = ByteRange::new(0, layer.device.len() as u64);
    two.client.ensure_range(reference.digest, range, Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_layer_gives_its_space_back_and_can_be_had_again() {
    let registry = FakeRegistry::start().await;
    let (first, second) = (TestLayer::random(50, 50_000), TestLayer::random(51, 50_000));
    let (first_reference, second_reference) = (first.push(&registry), second.push(&registry));
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    // Room for one of the two.
    let limited = |config: &mut Config| config.store.limit = d7y_chassis::ByteSize::mib(7);
    let node = cluster.start_with("node", &[&seed], limited).await;
    for _ in 0..2 {
        node.assert_reads(&first_reference, &first).await;
        node.assert_reads(&second_reference, &second).await;
    }
    let status = node.client.status(SOON).await.unwrap();
    assert!(status.store_bytes <= status.store_limit_bytes, "{status:?}");
    assert_eq!(node.metric("d7y_peer_store_full_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_serves_uncached_and_raises_one_alarm() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(60, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let limited = |config: &mut Config| {
        config.store.limit = d7y_chassis::ByteSize::mib(1);
        config.fetch.background = false;
    };
    let small = cluster.start_with("small", &[&seed], limited).await;
    small.assert_reads(&reference, &layer).await;
    assert!(small.metric("d7y_peer_store_full_total").await > 0.0);
    small.wait_for_health(false).await;
    small.wait_for_health(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_nobody_can_serve_ends_at_its_deadline() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(10, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    cluster.start("one", Role::Node, &[&seed]).await.assert_reads(&reference, &layer).await;
    let two = cluster.start_lazy("two", &[&seed]).await;
    two.client.open_layer(&reference, SOON).await.unwrap();
    seed.kill();
    registry.always(Turn::status(500));
    let deadline = Duration::from_millis(700);
    let began = std::time::Instant::now();
    let (reason, _) =
        refused(two.client.ensure_range(reference.digest, ByteRange::new(0, 4096), deadline).await);
    assert_eq!(reason, Reason::Deadline);
    assert!(began.elapsed() < Duration::from_secs(3));
    let beyond = two.client.ensure_range(reference.digest, ByteRange::new(1 << 40, 4096), deadline).await;
    assert_eq!(refused(beyond).0, Reason::Invalid);
}
