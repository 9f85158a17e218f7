//! Two layers that have chunks in common: version 2 of an application.

use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::Role;
use d7y_types::LayerRef;

use crate::layer::TestLayer;
use crate::rig::{Cluster, Peer};

const RECEIVED: &str = "d7y_peer_received_chunks_total";
const REUSED: &str = "d7y_peer_reused_bytes_total";

/// One file is one chunk. The second version has 30 of the first one's 40 files, at other places, and 10 of its own.
struct Versions {
    first: (LayerRef, TestLayer),
    second: (LayerRef, TestLayer),
}

impl Versions {
    /// Both are in the seed, and the registry gives nothing more.
    async fn in_seed(cluster: &Cluster, registry: &FakeRegistry) -> (Peer, Self) {
        let pushed = |layer: TestLayer| (layer.push(registry), layer);
        let first = pushed(TestLayer::numbered(0..40, 50_000));
        let second = pushed(TestLayer::numbered((100..110).chain(0..30), 50_000));
        let versions = Self { first, second };
        let seed = cluster.start("seed", Role::Seed, &[]).await;
        let one = cluster.start("one", Role::Node, &[&seed]).await;
        one.assert_reads(&versions.first.0, &versions.first.1).await;
        one.assert_reads(&versions.second.0, &versions.second.1).await;
        registry.always(Turn::status(500));
        (seed, versions)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_layer_holds_is_not_fetched_again() {
    let registry = FakeRegistry::start().await;
    let cluster = Cluster::new();
    let (seed, Versions { first, second }) = Versions::in_seed(&cluster, &registry).await;
    let two = cluster.start("two", Role::Node, &[&seed]).await;
    let lazy = cluster.start_lazy("lazy", &[&seed]).await;
    for node in [&two, &lazy] {
        node.assert_reads(&first.0, &first.1).await;
        assert_eq!(node.metric(RECEIVED).await, 40.0);
        node.assert_reads(&second.0, &second.1).await;
        assert_eq!(node.metric(RECEIVED).await, 50.0, "30 of the second one's 40 chunks were here");
        node.wait_for_metric(REUSED, 30.0 * 30_000.0).await;
    }

    // What was taken from a layer here can be passed on.
    seed.kill();
    let three = cluster.start("three", Role::Node, &[&two]).await;
    three.assert_reads(&second.0, &second.1).await;
    assert_eq!(three.metric(RECEIVED).await, 40.0);
}

/// Nobody has read it: it is taken because the rest of a layer follows by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_layer_is_taken_from_another_before_it_is_read() {
    let registry = FakeRegistry::start().await;
    let cluster = Cluster::new();
    let (seed, Versions { first, second }) = Versions::in_seed(&cluster, &registry).await;
    let node = cluster.start("node", Role::Node, &[&seed]).await;
    node.assert_reads(&first.0, &first.1).await;
    node.client.open_layer(&second.0, crate::SOON).await.unwrap();
    node.wait_for_metric(REUSED, 30.0 * 30_000.0).await;
    node.wait_for_metric(RECEIVED, 50.0).await;
    node.assert_reads(&second.0, &second.1).await;
    assert_eq!(node.metric(RECEIVED).await, 50.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_fetched_rather_than_taken() {
    let registry = FakeRegistry::start().await;
    let cluster = Cluster::new();
    let (seed, Versions { first, second }) = Versions::in_seed(&cluster, &registry).await;
    let node = cluster.start_lazy("node", &[&seed]).await;
    node.assert_reads(&first.0, &first.1).await;
    // Both versions have its first chunk.
    node.damage_device(&first.0);
    node.damage_pack(&first.0);
    node.assert_reads(&second.0, &second.1).await;
    assert_eq!(node.metric(RECEIVED).await, 40.0 + 10.0 + 1.0);
    node.wait_for_metric("d7y_peer_damaged_chunks_total", 1.0).await;
}
