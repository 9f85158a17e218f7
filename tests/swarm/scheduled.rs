//! The same with a scheduler: peers know nobody but it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use d7y_chassis::{HumanDuration, Secret, Shutdown, Tasks};
use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::{Config, Role};
use d7y_proto::local::{OpenImage, RecordTrace, TraceRun};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::layer::TestLayer;
use crate::rescue::proxy;
use crate::rig::{Cluster, Peer, SEED_KEY, runtime};
use crate::{SOON, blob_requests};

/// Longer than all patience in the product.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct Scheduler {
    pub address: SocketAddr,
    metrics: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Scheduler {
    pub async fn start(listen: SocketAddr) -> Self {
        let mut config = d7y_scheduler::Config::default();
        config.server.listen = listen;
        config.metrics.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.settle = HumanDuration::from_millis(0);
        let tasks = Tasks::new(Shutdown::new(config.shutdown.clone()));
        let runtime = runtime();
        let starting = runtime.spawn(async move { d7y_scheduler::run(config, &tasks).await });
        let addresses = starting.await.unwrap().expect("the scheduler starts");
        Self { address: addresses.server, metrics: addresses.metrics, runtime: Some(runtime) }
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.metrics).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: d7y\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let value = |line: &str| line.strip_prefix("d7y_scheduler_")?.strip_prefix(name)?.trim().parse().ok();
        text.lines().find_map(value).unwrap()
    }

    pub async fn wait_for_metric(&self, name: &str, expected: f64) {
        let deadline = std::time::Instant::now() + SOON;
        while self.metric(name).await != expected {
            assert!(std::time::Instant::now() < deadline, "{name} is {}", self.metric(name).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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

pub fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn join(cluster: &Cluster, scheduler: SocketAddr, name: &str, role: Role) -> Peer {
    join_with(cluster, scheduler, name, |config| config.role = role).await
}

pub async fn join_with(
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
async fn a_slow_scheduler_sends_nobody_to_the_origin_before_time() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(5, 30_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let (address, hang) = proxy(scheduler.address).await;
    let patience = Duration::from_secs(3);
    let patient = |config: &mut Config| config.fetch.origin_fallback_after = patience.into();
    let node = join_with(&cluster, address, "node", patient).await;
    hang.cancel();
    let asked = std::time::Instant::now();
    node.assert_reads(&reference, &layer).await;
    assert!(asked.elapsed() >= patience, "it read the origin after {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_have_all_lost_a_layer_do_not_wait_for_each_other() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(5, 30_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let mut peers = vec![
        join(&cluster, scheduler.address, "one", Role::Node).await,
        join(&cluster, scheduler.address, "two", Role::Node).await,
        join(&cluster, scheduler.address, "three", Role::Node).await,
    ];
    peers.push(join(&cluster, scheduler.address, "seed", Role::Seed).await);
    for peer in &peers {
        peer.client.open_layer(&reference, SOON).await.unwrap();
    }
    assert_eq!(blob_requests(&registry), 1);
    peers.iter().for_each(Peer::delete_store);
    let asked = std::time::Instant::now();
    let opened = peers.iter().map(|peer| peer.client.open_layer(&reference, PATIENCE));
    for opened in futures_util::future::join_all(opened).await {
        opened.unwrap();
    }
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert_eq!(blob_requests(&registry), 2, "once more, for all");
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

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_hears_of_completion_and_eviction_and_tasks_are_closed() {
    let registry = FakeRegistry::start().await;
    let (first, second) = (TestLayer::random(50, 50_000), TestLayer::random(51, 50_000));
    let (first_reference, second_reference) = (first.push(&registry), second.push(&registry));
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let seed = join(&cluster, scheduler.address, "seed", Role::Seed).await;
    let small = |config: &mut Config| config.store.limit = d7y_chassis::ByteSize::mib(7);
    let node = join_with(&cluster, scheduler.address, "node", small).await;
    node.assert_reads(&first_reference, &first).await;
    scheduler.wait_for_metric("open_tasks", 0.0).await;
    assert_eq!(scheduler.metric("tasks").await, 1.0);

    // Of the first layer only the node has anything now, and all of it.
    seed.crash().await;
    let other = join(&cluster, scheduler.address, "other", Role::Node).await;
    registry.always(Turn::status(404));
    other.assert_reads(&first_reference, &first).await;
    other.stop().await;

    registry.always(Turn::Serve);
    node.assert_reads(&second_reference, &second).await;
    // The first one made room, and nobody else is there any more that has it.
    scheduler.wait_for_metric("tasks", 1.0).await;
}
