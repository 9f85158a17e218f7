//! Peers that cut the same layer up differently.

use d7y_origin::testing::FakeRegistry;
use d7y_peer::{Config, Role};

use crate::layer::TestLayer;
use crate::rig::Cluster;
use crate::{SOON, blob_requests};

/// Neither is a liar: the other's chunks are of no use, and what nobody has is read from the origin.
#[tokio::test(flavor = "multi_thread")]
async fn honest_builders_with_other_settings_are_not_shunned() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(20, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let builds = |zstd_level: i32| {
        move |config: &mut Config| {
            config.role = Role::Seed;
            config.fetch.zstd_level = zstd_level;
        }
    };
    let fast = cluster.start_with("fast", &[], builds(1)).await;
    let small = cluster.start_with("small", &[], builds(19)).await;
    fast.client.open_layer(&reference, SOON).await.unwrap();
    small.client.open_layer(&reference, SOON).await.unwrap();
    assert_eq!(blob_requests(&registry), 2);

    let node = cluster.start_lazy("node", &[&fast]).await;
    node.client.open_layer(&reference, SOON).await.unwrap();
    node.stop().await;
    let node = cluster.start_lazy("node", &[&small]).await;
    node.assert_reads(&reference, &layer).await;
    assert_eq!(node.metric("d7y_peer_rejected_chunks_total").await, 0.0);
    assert_eq!(blob_requests(&registry), 3);
    node.stop().await;

    let other = cluster.start_lazy("other", &[&small]).await;
    other.assert_reads(&reference, &layer).await;
    assert_eq!(blob_requests(&registry), 3, "whose chunks are the same are traded as ever");
}
