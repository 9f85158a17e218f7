//! What a peer's disk and its host give or refuse.

use std::time::{Duration, Instant};

use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::Role;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::SOON;
use crate::layer::TestLayer;
use crate::rig::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_takes_all_the_descriptors_that_it_may_have() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard).unwrap();
    let _node = Cluster::new().start("node", Role::Node, &[]).await;
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
}

/// Nothing is fetched that the disk still holds, nothing served that it lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebooted_node_reads_what_it_kept_and_fetches_what_it_lost() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let node = cluster.start("node", Role::Node, &[&seed]).await;
    node.assert_reads(&reference, &layer).await;
    node.reboot(&reference);
    node.damage_pack(&reference);
    node.damage_device(&reference);
    node.stop().await;
    registry.always(Turn::status(500));

    let node = cluster.start_lazy("node", &[&seed]).await;
    node.assert_reads(&reference, &layer).await;
    let received = node.metric("d7y_peer_received_chunks_total").await;
    assert!((1.0..=2.0).contains(&received), "{received} chunks were fetched");
}

/// The seed hashes what it kept from the first question on, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebooted_seed_serves_what_it_kept() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    cluster.start("one", Role::Node, &[&seed]).await.assert_reads(&reference, &layer).await;
    seed.reboot(&reference);
    seed.stop().await;
    registry.always(Turn::status(500));

    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let two = cluster.start_lazy("two", &[&seed]).await;
    two.assert_reads(&reference, &layer).await;
    assert_eq!(seed.metric("d7y_peer_origin_refills_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebooted_node_confirms_the_whole_of_a_layer_in_use() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(200, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let node = cluster.start("node", Role::Node, &[]).await;
    node.assert_reads(&reference, &layer).await;
    let chunks = |status: d7y_proto::local::Status| status.layers[0].chunks_present;
    let all = chunks(node.client.status(SOON).await.unwrap());
    node.reboot(&reference);
    node.stop().await;

    let node = cluster.start("node", Role::Node, &[]).await;
    let before = chunks(node.client.status(SOON).await.unwrap());
    assert!(before < all, "nothing of it is in use yet");
    node.client.open_layer(&reference, SOON).await.unwrap();
    let deadline = Instant::now() + SOON;
    while chunks(node.client.status(SOON).await.unwrap()) < all {
        assert!(Instant::now() < deadline, "the layer is not confirmed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(node.metric("d7y_peer_received_chunks_total").await, 0.0);
}

/// Somebody makes room with `rm -rf`, or an agent cleans up: nobody has to restart anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_store_is_filled_again_whether_the_peer_runs_or_not() {
    let registry = FakeRegistry::start().await;
    let (first, second) = (TestLayer::random(20, 50_000), TestLayer::random(21, 50_000));
    let (first_reference, second_reference) = (first.push(&registry), second.push(&registry));
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let node = cluster.start("node", Role::Node, &[&seed]).await;
    node.assert_reads(&first_reference, &first).await;
    node.delete_store();
    node.assert_reads(&first_reference, &first).await;
    node.assert_reads(&second_reference, &second).await;
    assert_eq!(node.private_directories(), ["layers", "staging"], "as at the start");

    let lost = cluster.directory.path().join("node");
    node.stop().await;
    std::fs::remove_dir_all(lost).unwrap();
    let node = cluster.start("node", Role::Node, &[&seed]).await;
    node.assert_reads(&first_reference, &first).await;

    seed.delete_store();
    let other = cluster.start("other", Role::Node, &[&seed]).await;
    other.assert_reads(&first_reference, &first).await;
}
