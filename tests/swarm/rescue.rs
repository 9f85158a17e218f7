//! Chunks that readers want and that no peer holds, and peers that are there and do not help.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use d7y_chassis::HumanDuration;
use d7y_chassis::config::ByteSize;
use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::{Config, Role};
use d7y_proto::local::Reason;
use d7y_transfer::{OpenStream, Opened, Purpose};
use d7y_types::{ByteRange, LayerRef};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::layer::TestLayer;
use crate::rig::{Cluster, Peer};
use crate::scheduled::{Scheduler, any, join_with};
use crate::{SOON, blob_requests, refused};

/// A lazy node: what it lacks when its parents go, it has to get anew.
fn lazy(config: &mut Config) {
    config.fetch.background = false;
    config.fetch.origin_fallback_after = HumanDuration::from_millis(1500);
}

/// Lets the seed read a layer before anybody follows: who asks later gets the index and no chunk.
async fn read(seed: &Peer, layer: &LayerRef) {
    seed.client.open_layer(layer, SOON).await.unwrap();
}

/// Far more than a read of what nobody holds may take, and far less than a node's patience.
const PROMPT: Duration = Duration::from_secs(4);

/// Nodes with the patience of production: what comes within [`PROMPT`] has not waited for its end.
fn patient(config: &mut Config) {
    lazy(config);
    config.fetch.origin_fallback_after = HumanDuration::from_secs(10);
}

/// A seed with room for one of the two layers: what it reads again it keeps unpacked, too.
fn small_seed(config: &mut Config) {
    config.role = Role::Seed;
    config.store.limit = ByteSize::mib(5);
}

async fn wait_until_evicted(seed: &Peer, layer: &LayerRef) {
    let deadline = Instant::now() + SOON;
    while seed.file_of(layer, "index").exists() {
        assert!(Instant::now() < deadline, "the seed keeps the layer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Both nodes read a piece of the layer that nobody has.
async fn assert_reads_within(nodes: [&Peer; 2], layer: &LayerRef, limit: Duration) {
    let began = Instant::now();
    let range = ByteRange::new(0, 4096);
    let [one, two] = nodes.map(|node| node.client.ensure_range(layer.digest, range, SOON));
    let (one, two) = tokio::join!(one, two);
    one.unwrap();
    two.unwrap();
    assert!(began.elapsed() < limit, "they waited for {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_seed_has_evicted_it_reads_again_soon() {
    let registry = FakeRegistry::start().await;
    let (layer, other) = (TestLayer::random(50, 50_000), TestLayer::random(100, 50_000));
    let (reference, other_reference) = (layer.push(&registry), other.push(&registry));
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let seed = join_with(&cluster, scheduler.address, "seed", small_seed).await;
    read(&seed, &reference).await;
    let one = join_with(&cluster, scheduler.address, "one", patient).await;
    let two = join_with(&cluster, scheduler.address, "two", patient).await;
    for node in [&one, &two] {
        node.client.open_layer(&reference, SOON).await.unwrap();
    }
    read(&seed, &other_reference).await;
    wait_until_evicted(&seed, &reference).await;
    assert_reads_within([&one, &two], &reference, PROMPT).await;
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer));
    assert_eq!(blob_requests(&registry), 3, "each layer once, and one of them once more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_seed_has_evicted_it_reads_again_soon_without_a_scheduler() {
    let registry = FakeRegistry::start().await;
    let (layer, other) = (TestLayer::random(50, 50_000), TestLayer::random(100, 50_000));
    let (reference, other_reference) = (layer.push(&registry), other.push(&registry));
    let cluster = Cluster::new();
    let seed = cluster.start_with("seed", &[], small_seed).await;
    read(&seed, &reference).await;
    let one = cluster.start_with("one", &[&seed], patient).await;
    let two = cluster.start_with("two", &[&seed], patient).await;
    for node in [&one, &two] {
        node.client.open_layer(&reference, SOON).await.unwrap();
    }
    read(&seed, &other_reference).await;
    wait_until_evicted(&seed, &reference).await;
    assert_reads_within([&one, &two], &reference, PROMPT).await;
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer));
    assert_eq!(blob_requests(&registry), 3, "each layer once, and one of them once more");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_seed_that_has_a_layer_is_dead_another_one_reads_it_soon() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let role = |config: &mut Config| config.role = Role::Seed;
    let holder = join_with(&cluster, scheduler.address, "holder", role).await;
    read(&holder, &reference).await;
    let spare = join_with(&cluster, scheduler.address, "spare", role).await;
    let one = join_with(&cluster, scheduler.address, "one", patient).await;
    let two = join_with(&cluster, scheduler.address, "two", patient).await;
    for node in [&one, &two] {
        node.client.open_layer(&reference, SOON).await.unwrap();
    }
    holder.crash().await;
    assert_reads_within([&one, &two], &reference, PROMPT).await;
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer));
    assert_eq!(blob_requests(&registry), 2, "the first seed's read and the second one's");
    assert_eq!(spare.metric("d7y_peer_received_bytes_total{source=\"origin\"}").await, reference.size as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_scheduler_the_next_seed_reads_what_only_a_dead_one_had() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let role = |config: &mut Config| {
        config.role = Role::Seed;
        config.fetch.origin_fallback_after = HumanDuration::from_secs(10);
    };
    let first = cluster.start_with("first", &[], role).await;
    let second = cluster.start_with("second", &[&first], role).await;
    let address = first.crash().await;
    let again = |config: &mut Config| {
        role(config);
        config.transfer.listen = address;
    };
    let first = cluster.start_with("first", &[&second], again).await;
    // Asked by a node, the seed that wins the rendezvous reads the layer, and it alone.
    let scout = cluster.start_with("scout", &[&first, &second], patient).await;
    scout.client.open_layer(&reference, SOON).await.unwrap();
    scout.stop().await;
    let one = cluster.start_with("one", &[&first, &second], patient).await;
    let two = cluster.start_with("two", &[&first, &second], patient).await;
    for node in [&one, &two] {
        node.client.open_layer(&reference, SOON).await.unwrap();
    }
    let holds = |seed: &Peer| seed.file_of(&reference, "index").exists();
    assert!(holds(&first) != holds(&second));
    let (holder, spare) = if holds(&first) { (first, second) } else { (second, first) };
    holder.crash().await;
    assert_reads_within([&one, &two], &reference, Duration::from_secs(8)).await;
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer));
    assert_eq!(blob_requests(&registry), 2, "the first seed's read and the second one's");
    drop(spare);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_seed_stays_dead_one_node_reads_again_and_the_others_take_from_it() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let (cluster, scheduler) = (Cluster::new(), Scheduler::start(any()).await);
    let seed = join_with(&cluster, scheduler.address, "seed", |config| config.role = Role::Seed).await;
    read(&seed, &reference).await;
    let patient = |config: &mut Config| {
        lazy(config);
        config.fetch.origin_fallback_after = HumanDuration::from_millis(2500);
        config.origin.timeouts.idle = Duration::from_secs(2);
    };
    let mut nodes = Vec::new();
    for name in ["one", "two", "three"] {
        let node = join_with(&cluster, scheduler.address, name, patient).await;
        node.client.open_layer(&reference, SOON).await.unwrap();
        nodes.push(node);
    }
    seed.crash().await;
    // The read takes longer than the others need to come to the end of their patience.
    registry.then([Turn::Stall(300_000)]);
    let [one, two, three] = &nodes[..] else { unreachable!() };
    tokio::join!(
        one.assert_reads(&reference, &layer),
        two.assert_reads(&reference, &layer),
        three.assert_reads(&reference, &layer)
    );
    let mut refills = 0.0;
    for node in &nodes {
        refills += node.metric("d7y_peer_origin_refills_total").await;
    }
    assert_eq!(refills, 1.0);
    assert_eq!(blob_requests(&registry), 3, "the seed's read, and one more in two parts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_lost_its_disk_reads_again_for_all() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    read(&seed, &reference).await;
    let one = cluster.start_with("one", &[&seed], lazy).await;
    let two = cluster.start_with("two", &[&seed], lazy).await;
    for node in [&one, &two] {
        node.client.open_layer(&reference, SOON).await.unwrap();
    }
    let address = seed.crash().await;
    let empty = |config: &mut Config| (config.role, config.transfer.listen) = (Role::Seed, address);
    let _seed = cluster.start_with("new seed", &[], empty).await;
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer));
    assert_eq!(blob_requests(&registry), 2);
    assert_eq!(one.metric("d7y_peer_origin_refills_total").await, 0.0);
    assert_eq!(two.metric("d7y_peer_origin_refills_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_name_each_other_agree_on_who_reads_again() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(40, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    read(&seed, &reference).await;
    let one = cluster.start_with("one", &[&seed], lazy).await;
    let two = cluster.start_with("two", &[&seed, &one], lazy).await;
    one.client.open_layer(&reference, SOON).await.unwrap();
    two.client.open_layer(&reference, SOON).await.unwrap();
    let address = one.crash().await;
    let again = |config: &mut Config| {
        lazy(config);
        config.transfer.listen = address;
    };
    let one = cluster.start_with("one", &[&seed, &two], again).await;
    seed.crash().await;
    tokio::join!(one.assert_reads(&reference, &layer), two.assert_reads(&reference, &layer));
    assert_eq!(blob_requests(&registry), 2, "the seed's read and one more");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_is_not_asked_again_for_readers_that_have_left() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(10, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    read(&seed, &reference).await;
    let eager = |config: &mut Config| {
        lazy(config);
        config.fetch.origin_fallback_after = HumanDuration::from_millis(300);
    };
    let node = cluster.start_with("node", &[&seed], eager).await;
    node.client.open_layer(&reference, SOON).await.unwrap();
    seed.crash().await;
    registry.always(Turn::status(404));
    let read = node.client.ensure_range(reference.digest, ByteRange::new(0, 4096), Duration::from_secs(4));
    assert_eq!(refused(read.await).0, Reason::Deadline);
    let asked = blob_requests(&registry) - 1;
    assert!((1..6).contains(&asked), "asked {asked} times in 4 s, further and further apart");
    // Time for what is noticed of the reader's leaving and for one more read; then for the one that must not come.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let asked = blob_requests(&registry);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(blob_requests(&registry), asked);
}

/// Passes bytes on until it is told to hang: connections stay up, and nothing moves.
pub async fn proxy(to: SocketAddr) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, hang) = (listener.local_addr().unwrap(), CancellationToken::new());
    let hanging = hang.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let hanging = hanging.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let copying = tokio::io::copy_bidirectional(&mut near, &mut far);
                if hanging.run_until_cancelled(copying).await.is_none() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (address, hang)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_hangs_is_given_up() {
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(10, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let seed = cluster.start("seed", Role::Seed, &[]).await;
    read(&seed, &reference).await;
    let (address, hang) = proxy(seed.running.transfer).await;
    let through = |config: &mut Config| {
        lazy(config);
        config.seeds = vec![address.to_string()];
    };
    let node = cluster.start_with("node", &[], through).await;
    node.client.open_layer(&reference, SOON).await.unwrap();
    let range = ByteRange::new(0, 4096);
    node.client.ensure_range(reference.digest, range, SOON).await.unwrap();
    hang.cancel();
    node.assert_reads_within(&reference, &layer, Duration::from_secs(60)).await;
    assert_eq!(blob_requests(&registry), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn seeds_that_name_each_other_read_once_and_at_once() {
    let registry = FakeRegistry::start().await;
    let layers: Vec<_> = (20..26).map(|files| TestLayer::random(files, 50_000)).collect();
    let cluster = Cluster::new();
    let role = |config: &mut Config| {
        config.role = Role::Seed;
        config.fetch.origin_fallback_after = HumanDuration::from_secs(600);
    };
    let first = cluster.start_with("first", &[], role).await;
    let second = cluster.start_with("second", &[&first], role).await;
    let address = first.crash().await;
    let again = |config: &mut Config| {
        role(config);
        config.transfer.listen = address;
    };
    let first = cluster.start_with("first", &[&second], again).await;
    // Each seed of a pair is asked by a node of its own.
    let one = cluster.start("one", Role::Node, &[&first]).await;
    let two = cluster.start("two", Role::Node, &[&second]).await;
    for layer in &layers {
        let reference = layer.push(&registry);
        tokio::join!(one.assert_reads(&reference, layer), two.assert_reads(&reference, layer));
    }
    assert_eq!(blob_requests(&registry), layers.len());
}

/// Nodes ask again and again; a seed that reads the layer anew remembers it once.
#[tokio::test(flavor = "multi_thread")]
async fn many_questions_for_a_layer_that_a_seed_is_opening_are_one_promise() {
    const QUESTIONS: usize = 40;
    let registry = FakeRegistry::start().await;
    let reference = TestLayer::random(40, 50_000).push(&registry);
    registry.then([Turn::Stall(300_000)]);
    let cluster = Cluster::new();
    let slow = |config: &mut Config| {
        config.role = Role::Seed;
        config.origin.timeouts.idle = Duration::from_secs(5);
    };
    let seed = cluster.start_with("seed", &[], slow).await;
    for number in 0..QUESTIONS {
        let asker = format!("node-{}", number % 4);
        let question =
            OpenStream::connect_for(Purpose::Refill, seed.running.transfer, &asker, &reference, SOON);
        let answer = question.await.unwrap().next(SOON).await.unwrap();
        assert!(matches!(answer, Opened::Working), "{answer:?}");
    }
    let deadline = Instant::now() + Duration::from_secs(4);
    while seed.running_tasks("serve an opening") > 0 {
        assert!(Instant::now() < deadline, "{} wait", seed.running_tasks("serve an opening"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(seed.running_tasks("refill what is being opened"), 1);
    assert_eq!(seed.running_tasks("open layer"), 1, "it is still being read");
    seed.client.open_layer(&reference, SOON).await.unwrap();
    let deadline = Instant::now() + SOON;
    while seed.running_tasks("refill what is being opened") > 0 {
        assert!(Instant::now() < deadline, "the promise is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
