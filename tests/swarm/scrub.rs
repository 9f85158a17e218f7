//! What a disk changes while the peer runs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use d7y_chassis::HumanDuration;
use d7y_chassis::config::ByteSize;
use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::{Config, Role};

use crate::SOON;
use crate::layer::TestLayer;
use crate::rig::Cluster;

const DAMAGED: &str = "d7y_peer_damaged_chunks_total";
const RECEIVED: &str = "d7y_peer_received_chunks_total";

fn scrubs(config: &mut Config) {
    config.store.scrub.rate = ByteSize::gib(1);
    config.store.scrub.interval = HumanDuration::from_secs(1);
}

/// As who has the file mounted sees it: nobody asks the peer for anything.
async fn wait_for_bytes(file: &Path, wanted: &[u8]) {
    let deadline = Instant::now() + SOON;
    while fs::read(file).unwrap() != wanted {
        assert!(Instant::now() < deadline, "{} stays damaged", file.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_of_a_running_node_changes_is_mended_or_fetched_unasked() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    let node = cluster.start_with("node", &[&seed], scrubs).await;
    node.assert_reads(&reference, &layer).await;
    registry.always(Turn::status(500));
    let file = |name| node.file_of(&reference, name);
    let [device, pack, index] = [file("device"), file("pack"), file("index")];
    let (frames, sealed) = (fs::read(&pack).unwrap(), fs::read(&index).unwrap());
    let received = node.metric(RECEIVED).await;

    node.damage_device(&reference);
    wait_for_bytes(&device, &layer.device).await;
    assert_eq!((node.metric(RECEIVED).await, received), (40.0, 40.0), "its frame was here");
    node.wait_for_metric(DAMAGED, 1.0).await;

    node.damage_pack(&reference);
    wait_for_bytes(&pack, &frames).await;
    node.wait_for_metric(RECEIVED, received + 1.0).await;

    node.damage_pack(&reference);
    node.damage_device(&reference);
    wait_for_bytes(&device, &layer.device).await;
    wait_for_bytes(&pack, &frames).await;

    node.damage(&reference, "index");
    wait_for_bytes(&index, &sealed).await;
    node.wait_for_metric(DAMAGED, 5.0).await;
    node.wait_for_metric("d7y_peer_scrubbed_bytes_total", layer.device.len() as f64).await;
    node.wait_for_metric("d7y_peer_scrub_finished_timestamp_seconds", 1.0).await;

    // What was mended is passed on.
    seed.kill();
    let other = cluster.start("other", Role::Node, &[&node]).await;
    other.assert_reads(&reference, &layer).await;
    assert_eq!(other.metric("d7y_peer_rejected_chunks_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_fetches_the_frames_that_its_disk_lost_from_a_node() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let node = cluster.start("node", Role::Node, &[]).await;
    node.assert_reads(&reference, &layer).await;
    let scrubbing_seed = |config: &mut Config| {
        config.role = Role::Seed;
        scrubs(config);
    };
    let seed = cluster.start_with("seed", &[&node], scrubbing_seed).await;
    seed.client.open_layer(&reference, SOON).await.unwrap();
    let pack = seed.file_of(&reference, "pack");
    let frames = fs::read(node.file_of(&reference, "pack")).unwrap();
    wait_for_bytes(&pack, &frames).await;
    seed.damage_pack(&reference);
    seed.wait_for_metric(DAMAGED, 1.0).await;
    wait_for_bytes(&pack, &frames).await;
}

/// Who has the device mounted asks nobody: as urgent as a read, so that the origin is asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_else_has_comes_from_the_origin_unasked() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let node = cluster.start_with("node", &[], scrubs).await;
    node.assert_reads(&reference, &layer).await;
    let device = node.file_of(&reference, "device");
    node.damage_pack(&reference);
    node.wait_for_metric(DAMAGED, 1.0).await;
    node.damage_device(&reference);
    wait_for_bytes(&device, &layer.device).await;
    node.wait_for_metric("d7y_peer_origin_refills_total", 1.0).await;

    node.damage(&reference, "index");
    let deadline = Instant::now() + SOON;
    while device.exists() {
        assert!(Instant::now() < deadline, "the layer stays though its index is damaged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.assert_reads(&reference, &layer).await;
    node.wait_for_metric(DAMAGED, 3.0).await;
}

/// What is mounted is read on as it is, whoever could give it when.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_gives_is_asked_for_again() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    // What is lost is asked for within 1.2 s, and again after 6 s.
    let hasty = |config: &mut Config| {
        scrubs(config);
        config.fetch.origin_fallback_after = HumanDuration::from_millis(100);
    };
    let node = cluster.start_with("node", &[], hasty).await;
    node.assert_reads(&reference, &layer).await;
    registry.always(Turn::status(404));
    node.damage_pack(&reference);
    node.wait_for_metric(DAMAGED, 1.0).await;
    node.damage_device(&reference);
    node.wait_for_metric(DAMAGED, 2.0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(fs::read(node.file_of(&reference, "device")).unwrap() != layer.device, "nobody has it");
    registry.always(Turn::Serve);
    wait_for_bytes(&node.file_of(&reference, "device"), &layer.device).await;
}
