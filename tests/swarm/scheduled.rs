//! The same with a scheduler: peers know nobody but it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use d7y_chassis::{HumanDuration, Secret, Shutdown, Tasks};
use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::{Config, Role};
use d7y_proto::local::{OpenImage, RecordTrace, TraceRun};

use crate::layer::TestLayer;
use crate::rig::{Cluster, Peer, SEED_KEY, runtime};
use crate::{SOON, blob_requests};

struct Scheduler {
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Scheduler {
    async fn start(listen: SocketAddr) -> Self {
        let mut config = d7y_scheduler::Config::default();
        config.server.listen = listen;
        config.metrics.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.settle = HumanDuration::from_millis(0);
        let tasks = Tasks::new(Shutdown::new(config.shutdown.clone()));
        let runtime = runtime();
        let starting = runtime.spawn(async move { d7y_scheduler::run(config, &tasks).await });
        let address = starting.await.unwrap().expect("the scheduler starts").server;
        Self { address, runtime: Some(runtime) }
    }

    fn kill(mut self) -> SocketAddr {
        self.runtime.take().expect("killed once").shutdown_background();
        self.address
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn join(cluster: &Cluster, scheduler: SocketAddr, name: &str, role: Role) -> Peer {
    join_with(cluster, scheduler, name, |config| config.role = role).await
}

async fn join_with(
    cluster: &Cluster,
    scheduler: SocketAddr,
    name: &str,
    change: impl FnOnce(&mut Config),
) -> Peer {
    let scheduled = move |config: &mut Config| {
        config.standalone = false;
        config.scheduler.address = scheduler.to_string();
        config.fetch.background = false;
        config.fetch.origin_fallback_after = HumanDuration::from_secs(8);
        change(config);
    };
    let peer = cluster.start_with(name, &[], scheduled).await;
    peer.wait_for_scheduler().await;
    peer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_node_takes_from_the_first_what_it_has() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(100, 50_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let seed = join(&cluster, scheduler.address, "seed", Role::Seed).await;
    let one = join(&cluster, scheduler.address, "one", Role::Node).await;
    one.assert_reads(&reference, &layer).await;
    let from_seed = seed.metric("d7y_peer_uploaded_bytes_total").await;
    let two = join(&cluster, scheduler.address, "two", Role::Node).await;
    two.assert_reads(&reference, &layer).await;
    assert_eq!(blob_requests(&registry), 1);
    let more = seed.metric("d7y_peer_uploaded_bytes_total").await - from_seed;
    let neighbour = one.metric("d7y_peer_uploaded_bytes_total").await;
    // How much more depends on how busy this machine is: a slow neighbour is helped by the seed.
    assert!(neighbour > more, "{neighbour} bytes from the neighbour, {more} more from the seed");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_without_a_seed_read_the_origin_once() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(30, 50_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let shared = |config: &mut Config| config.index_trust.signing_key = Secret::new(SEED_KEY);
    let one = join_with(&cluster, scheduler.address, "one", shared).await;
    let two = join_with(&cluster, scheduler.address, "two", shared).await;
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer));
    assert_eq!(blob_requests(&registry), 1, "the origin lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_do_not_trust_each_other_read_the_origin_once_each_and_without_delay() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(30, 50_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let patient = |config: &mut Config| config.fetch.origin_fallback_after = HumanDuration::from_secs(600);
    let one = join_with(&cluster, scheduler.address, "one", patient).await;
    let two = join_with(&cluster, scheduler.address, "two", patient).await;
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer));
    assert_eq!(blob_requests(&registry), 2, "as many as plain pulls");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_seed_dies_after_long_work_one_node_takes_over_and_the_others_follow() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(100, 50_000);
    let reference = layer.push(&registry);
    registry.then([Turn::Stall(2_000_000)]);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let seed = join(&cluster, scheduler.address, "seed", Role::Seed).await;
    let patience = Duration::from_secs(1);
    let trusting = |config: &mut Config| {
        config.index_trust.signing_key = Secret::new(SEED_KEY);
        config.fetch.origin_fallback_after = patience.into();
    };
    let one = join_with(&cluster, scheduler.address, "one", trusting).await;
    let two = join_with(&cluster, scheduler.address, "two", trusting).await;
    let (reading, read) = (std::time::Instant::now(), "d7y_peer_received_bytes_total{source=\"seed\"}");
    let crash = async {
        one.wait_for_metric(read, 1.0).await;
        two.wait_for_metric(read, 1.0).await;
        // Long after the patience of a node that gets nothing would be over, with a scheduler too.
        tokio::time::sleep_until((reading + patience * 5).into()).await;
        seed.crash().await;
    };
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer), crash);
    assert_eq!(blob_requests(&registry), 2, "the seed's read and one more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_scheduler_is_not_noticed_and_a_new_one_learns_everything() {
    let registry = FakeRegistry::start().await;
    let (known, new) = (TestLayer::random(20, 50_000), TestLayer::random(21, 50_000));
    let (known_reference, new_reference) = (known.push(&registry), new.push(&registry));
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let _seed = join(&cluster, scheduler.address, "seed", Role::Seed).await;
    let one = join(&cluster, scheduler.address, "one", Role::Node).await;
    one.client.open_layer(&known_reference, SOON).await.unwrap();
    let address = scheduler.kill();
    one.assert_reads(&known_reference, &known).await;
    let _restarted = Scheduler::start(address).await;
    one.wait_for_scheduler().await;
    one.assert_reads(&new_reference, &new).await;
    registry.always(Turn::status(500));
    let two = join(&cluster, address, "two", Role::Node).await;
    two.assert_reads(&known_reference, &known).await;
    assert_eq!(blob_requests(&registry), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_recorded_on_one_node_is_replayed_on_another() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 60_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let _seed = join(&cluster, scheduler.address, "seed", Role::Seed).await;
    let one = join(&cluster, scheduler.address, "one", Role::Node).await;
    let image = || OpenImage {
        manifest_digest: vec![9; 32],
        reference: "registry.example/app:1".into(),
        layers: vec![d7y_peer_client::layer_to_wire(&reference)],
    };
    assert!(!one.client.open_image(image(), SOON).await.unwrap(), "nobody knows a trace yet");
    one.client.open_layer(&reference, SOON).await.unwrap();
    let run = TraceRun { layer: reference.digest.0.to_vec(), first_chunk: 10, chunks: 5 };
    let beyond = TraceRun { layer: reference.digest.0.to_vec(), first_chunk: 1 << 30, chunks: 5 };
    let trace = RecordTrace { manifest_digest: vec![9; 32], runs: vec![run, beyond] };
    one.client.record_trace(trace, SOON).await.unwrap();

    let two = join(&cluster, scheduler.address, "two", Role::Node).await;
    assert!(two.client.open_image(image(), SOON).await.unwrap(), "the scheduler passes the trace on");
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let present = two.client.status(SOON).await.unwrap().layers.first().map_or(0, |l| l.chunks_present);
        if present == 5 {
            break;
        }
        assert!(present < 5 && std::time::Instant::now() < deadline, "{present} chunks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
