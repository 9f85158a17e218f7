//! The end of a peer: what is under way is finished, and nobody is sent there any more.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use d7y_chassis::HumanDuration;
use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::{Config, Role};
use d7y_types::ByteRange;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::layer::TestLayer;
use crate::rig::{Cluster, Peer};
use crate::scheduled::{Scheduler, any, join_with};
use crate::{SOON, blob_requests};

/// What a slow link carries in each [`TURN`]: some 400 kB/s.
const PER_TURN: usize = 16 << 10;
const TURN: Duration = Duration::from_millis(40);
/// More than anything takes here that is to be finished.
const DRAIN: HumanDuration = HumanDuration::from_secs(20);

/// A slow link to a peer.
async fn slow_link(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            // A peer that has closed refuses: so does its link.
            let Ok(far) = TcpStream::connect(to).await else { continue };
            tokio::spawn(async move {
                let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
                    (near.into_split(), far.into_split());
                let up = tokio::io::copy(&mut from_near, &mut to_far);
                let down = async {
                    let mut part = vec![0; PER_TURN];
                    loop {
                        match from_far.read(&mut part).await {
                            Ok(0) | Err(_) => return to_near.shutdown().await,
                            Ok(bytes) => to_near.write_all(&part[..bytes]).await?,
                        }
                        tokio::time::sleep(TURN).await;
                    }
                };
                let _ = tokio::join!(up, down);
            });
        }
    });
    address
}

async fn wait_until_refused(address: SocketAddr) {
    let deadline = Instant::now() + SOON;
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "it goes on accepting");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// All of a layer in one read.
async fn read_all(node: &Peer, reference: &d7y_types::LayerRef, layer: &TestLayer) {
    let range = ByteRange::new(0, layer.device.len() as u64);
    node.client.ensure_range(reference.digest, range, SOON).await.unwrap();
    node.assert_reads(reference, layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_stops_finishes_a_slow_transfer_and_is_nobodys_parent_any_more() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(60, 50_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let role = |config: &mut Config| {
        config.role = Role::Seed;
        config.shutdown.drain_timeout = DRAIN;
    };
    let seed = join_with(&cluster, scheduler.address, "seed", role).await;
    seed.client.open_layer(&reference, SOON).await.unwrap();
    let link = slow_link(seed.running.transfer).await;
    let far = |config: &mut Config| {
        config.fetch.background = false;
        config.seeds = vec![link.to_string()];
        config.fetch.origin_fallback_after = HumanDuration::from_secs(60);
    };
    let node = cluster.start_with("node", &[], far).await;
    node.client.open_layer(&reference, SOON).await.unwrap();

    let stopping = async {
        node.wait_for_metric("d7y_peer_received_bytes_total", 100_000.0).await;
        seed.begin_stop();
        wait_until_refused(seed.running.transfer).await;
        scheduler.wait_for_metric("peers{role=\"seed\"}", 0.0).await;
        let left = reference.size as f64 - node.metric("d7y_peer_received_bytes_total").await;
        assert!(
            left > 500_000.0,
            "the transfer was not slow enough to show anything: {left} bytes were left"
        );
        let (seed, began) = (seed, Instant::now());
        seed.stop().await;
        began.elapsed()
    };
    let ((), took) = tokio::join!(read_all(&node, &reference, &layer), stopping);
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(node.metric("d7y_peer_received_chunks_total{source=\"seed\"}").await, chunks(&node).await);
    assert_eq!(blob_requests(&registry), 1);
}

async fn chunks(node: &Peer) -> f64 {
    f64::from(node.client.status(SOON).await.unwrap().layers[0].chunks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_answers_the_reads_under_way() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    seed.client.open_layer(&reference, SOON).await.unwrap();
    let link = slow_link(seed.running.transfer).await;
    let far = |config: &mut Config| {
        config.fetch.background = false;
        config.seeds = vec![link.to_string()];
        config.fetch.origin_fallback_after = HumanDuration::from_secs(60);
        config.shutdown.drain_timeout = DRAIN;
    };
    let node = cluster.start_with("node", &[], far).await;
    node.client.open_layer(&reference, SOON).await.unwrap();
    let client = node.client.clone();
    let range = ByteRange::new(0, layer.device.len() as u64);
    let read = client.ensure_range(reference.digest, range, SOON);
    let stopping = async {
        node.wait_for_metric("d7y_peer_received_bytes_total", 100_000.0).await;
        assert!(node.metric("d7y_peer_received_bytes_total").await < 1_000_000.0);
        node.stop().await;
    };
    // There is no successor that could answer.
    let (read, ()) = tokio::join!(read, stopping);
    read.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_stops_finishes_what_it_reads_from_the_origin_for_who_follows() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(60, 50_000);
    let reference = layer.push(&registry);
    // The first part, then nothing for as long as the seed waits.
    registry.then([Turn::Stall(300_000)]);
    let cluster = Cluster::new();
    let role = |config: &mut Config| {
        config.role = Role::Seed;
        config.origin.timeouts.idle = Duration::from_secs(2);
        config.shutdown.drain_timeout = DRAIN;
    };
    let seed = cluster.start_with("seed", &[], role).await;
    let patient = |config: &mut Config| config.fetch.origin_fallback_after = HumanDuration::from_secs(60);
    let node = cluster.start_with("node", &[&seed], patient).await;
    let stopping = async {
        node.wait_for_metric("d7y_peer_received_bytes_total", 1.0).await;
        seed.stop().await;
    };
    let (opened, ()) = tokio::join!(node.client.open_layer(&reference, SOON), stopping);
    opened.unwrap();
    assert_eq!(blob_requests(&registry), 2, "the read and its other part");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_within_the_deadline_is_cut() {
    let registry = FakeRegistry::start().await;
    let reference = TestLayer::random(5, 50_000).push(&registry);
    registry.always(Turn::Stall(1000));
    let cluster = Cluster::new();
    let short = |config: &mut Config| {
        config.shutdown.drain_timeout = HumanDuration::from_secs(2);
        config.shutdown.stop_timeout = HumanDuration::from_secs(60);
    };
    let node = cluster.start_with("node", &[], short).await;
    let client = node.client.clone();
    let opening = tokio::spawn(async move { client.open_layer(&reference, SOON).await });
    node.wait_for_metric("d7y_peer_received_bytes_total", 1.0).await;
    let began = Instant::now();
    node.stop().await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(20), "{took:?}");
    opening.abort();
}
