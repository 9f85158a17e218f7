//! The same with a manager: peers know nobody but it, and it may be killed. Preheats end whatever else is killed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use d7y_chassis::{HumanDuration, Secret, Shutdown, Tasks};
use d7y_manager_client::ManagerConfig;
use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_peer::{Config, Role};
use d7y_types::{ByteRange, LayerRef};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::layer::TestLayer;
use crate::rig::{Cluster, Peer, runtime};

const PASSWORD: &str = "correct horse battery";
/// Leases, reconnects and retries add up; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(90);

/// A daemon in a runtime of its own: dropping that is as sudden as kill -9.
struct Daemon {
    addresses: Vec<SocketAddr>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Daemon {
    async fn run(start: impl Future<Output = Vec<SocketAddr>> + Send + 'static) -> Self {
        let runtime = runtime();
        let addresses = runtime.spawn(start).await.unwrap();
        Self { addresses, runtime: Some(runtime) }
    }

    async fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let ended = move || runtime.shutdown_timeout(Duration::from_secs(5));
            tokio::task::spawn_blocking(ended).await.unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Manager, scheduler, a seed and nodes, each of which can be killed and started again where it was.
pub struct Site {
    cluster: Cluster,
    directory: tempfile::TempDir,
    manager: Daemon,
    scheduler: Daemon,
    token: String,
}

fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn manager(directory: PathBuf, rest: SocketAddr, grpc: SocketAddr) -> Daemon {
    manager_with(directory, rest, grpc, |_| ()).await
}

async fn manager_with(
    directory: PathBuf,
    rest: SocketAddr,
    grpc: SocketAddr,
    change: impl FnOnce(&mut d7y_manager::Config),
) -> Daemon {
    let listen = |listen| d7y_manager::ListenConfig { listen };
    let mut config = d7y_manager::Config {
        rest: listen(rest),
        grpc: listen(grpc),
        metrics: listen(any()),
        directory,
        initial_root_password: Secret::new(PASSWORD),
        ..d7y_manager::Config::default()
    };
    config.keep_alive.interval = HumanDuration::from_millis(500);
    config.discovery.refresh = HumanDuration::from_millis(100);
    config.origin.docker_config = Some("/nonexistent".into());
    change(&mut config);
    let tasks = Tasks::new(Shutdown::new(config.shutdown.clone()));
    Daemon::run(async move {
        let running = d7y_manager::start(config, &tasks).await.expect("the manager starts");
        vec![running.rest, running.grpc]
    })
    .await
}

async fn scheduler(manager: SocketAddr, listen: SocketAddr) -> Daemon {
    scheduler_named("scheduler", manager, listen).await
}

async fn scheduler_named(name: &str, manager: SocketAddr, listen: SocketAddr) -> Daemon {
    let mut config = d7y_scheduler::Config::default();
    config.server.listen = listen;
    config.metrics.listen = any();
    config.settle = HumanDuration::from_millis(0);
    config.name = name.into();
    config.manager = at(manager);
    let tasks = Tasks::new(Shutdown::new(config.shutdown.clone()));
    Daemon::run(async move {
        vec![d7y_scheduler::run(config, &tasks).await.expect("the scheduler starts").server]
    })
    .await
}

fn at(manager: SocketAddr) -> ManagerConfig {
    ManagerConfig { address: manager.to_string(), cluster: String::new() }
}

impl Site {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path().to_owned(), any(), any()).await;
        let scheduler = scheduler(manager.addresses[1], any()).await;
        let mut site = Self { cluster: Cluster::new(), directory, manager, scheduler, token: String::new() };
        let login = base64(&format!("root:{PASSWORD}"));
        site.token = format!("Basic {login}");
        let name = json!({ "name": "test" });
        let made = site.ask("POST", "/api/v1/personal-access-tokens", &name).await;
        site.token = format!("Bearer {}", made["token"].as_str().unwrap());
        site
    }

    pub async fn join(&self, name: &str, role: Role) -> Peer {
        let peer = self.start(name, role).await;
        peer.wait_for_scheduler().await;
        peer
    }

    async fn start(&self, name: &str, role: Role) -> Peer {
        self.start_at(name, role, String::new()).await
    }

    /// With this very scheduler, where one is named.
    async fn start_at(&self, name: &str, role: Role, scheduler: String) -> Peer {
        self.start_with(name, role, |config| config.scheduler.address = scheduler).await
    }

    async fn start_with(&self, name: &str, role: Role, change: impl FnOnce(&mut Config)) -> Peer {
        let manager = at(self.manager.addresses[1]);
        let managed = move |config: &mut Config| {
            config.standalone = false;
            config.manager = manager;
            config.role = role;
            config.fetch.background = false;
            config.fetch.origin_fallback_after = HumanDuration::from_secs(8);
            config.origin.timeouts.idle = Duration::from_millis(500);
            config.origin.retry.max_delay = Duration::from_millis(500);
            change(config);
        };
        self.cluster.start_with(name, &[], managed).await
    }

    async fn restart_manager(&mut self) {
        self.manager.kill().await;
        let [rest, grpc] = self.manager.addresses[..] else { panic!("two addresses") };
        self.manager = manager(self.directory.path().to_owned(), rest, grpc).await;
    }

    pub async fn restart_scheduler(&mut self) {
        self.scheduler.kill().await;
        self.scheduler = scheduler(self.manager.addresses[1], self.scheduler.addresses[0]).await;
    }

    async fn preheat(&self, image: &str, scope: &str) -> i64 {
        self.preheat_with(image, scope, json!({})).await
    }

    pub async fn preheat_with(&self, image: &str, scope: &str, more: Value) -> i64 {
        let mut args = json!({ "type": "image", "url": image, "scope": scope });
        args.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let job = self.ask("POST", "/api/v1/jobs", &json!({ "type": "preheat", "args": args })).await;
        job["id"].as_i64().unwrap()
    }

    async fn job(&self, id: i64) -> Value {
        self.ask("GET", &format!("/api/v1/jobs/{id}"), &Value::Null).await
    }

    pub async fn wait(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask("GET", path, &Value::Null).await;
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} is still {answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn wait_for_job(&self, id: i64) -> Value {
        self.wait(&format!("/api/v1/jobs/{id}"), |job| job["state"] != "PENDING").await
    }

    pub async fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let (body, token) = (body.to_string(), &self.token);
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: d7y\r\nConnection: close\r\nAuthorization: {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let mut socket = tokio::net::TcpStream::connect(self.manager.addresses[0]).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
        serde_json::from_str(body).unwrap_or_default()
    }
}

fn base64(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    text.as_bytes()
        .chunks(3)
        .flat_map(|part| {
            let bits = (0..3).fold(0u32, |bits, n| bits << 8 | u32::from(part.get(n).copied().unwrap_or(0)));
            let letter = move |n: usize| match n <= part.len() {
                true => char::from(LETTERS[(bits >> (18 - 6 * n) & 63) as usize]),
                false => '=',
            };
            (0..4).map(letter)
        })
        .collect()
}

/// An image of two layers in the registry.
pub fn image(registry: &FakeRegistry) -> (String, Vec<(LayerRef, TestLayer)>) {
    let layers: Vec<_> = [TestLayer::random(40, 50_000), TestLayer::random(20, 30_000)]
        .into_iter()
        .map(|layer| (layer.push(registry), layer))
        .collect();
    let references: Vec<_> = layers.iter().map(|(reference, _)| reference.clone()).collect();
    registry.add_image("app", "1", &references);
    (format!("{}/app:1", registry.host()), layers)
}

pub fn layer_requests(registry: &FakeRegistry, layers: &[(LayerRef, TestLayer)]) -> usize {
    let seen = registry.seen();
    let of_layers =
        |target: &str| layers.iter().any(|(layer, _)| target.ends_with(&layer.digest.to_string()));
    seen.iter().filter(|seen| of_layers(&seen.target)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_find_each_other_through_the_manager_and_do_not_notice_its_death() {
    let registry = FakeRegistry::start().await;
    let (known, new) = (TestLayer::random(20, 50_000), TestLayer::random(21, 50_000));
    let (known_reference, new_reference) = (known.push(&registry), new.push(&registry));
    let mut site = Site::new().await;
    let seed = site.join("seed", Role::Seed).await;
    let one = site.join("one", Role::Node).await;
    site.wait("/api/v1/peers", |peers| peers.as_array().unwrap().len() == 2).await;
    site.wait("/api/v1/seed-peers", |seeds| seeds[0]["host_name"] == "seed").await;
    one.assert_reads(&known_reference, &known).await;
    assert!(seed.metric("d7y_peer_uploaded_bytes_total").await > 0.0, "the node took it from the seed");

    site.manager.kill().await;
    one.assert_reads(&new_reference, &new).await;
    one.stop().await;
    let again = site.join("one", Role::Node).await;
    again.assert_reads(&new_reference, &new).await;
    assert_eq!(crate::blob_requests(&registry), 2, "each layer once, by the seed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preheated_image_needs_nobody_any_more() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let site = Site::new().await;
    let seed = site.join("seed", Role::Seed).await;
    let (one, two) = (site.join("one", Role::Node).await, site.join("two", Role::Node).await);
    let job = site.preheat(&name, "all-peers").await;
    let ended = site.wait_for_job(job).await;
    assert_eq!(ended["state"], "SUCCESS", "{ended}");
    let placements = ended["progress"]["placements"].as_array().unwrap();
    assert_eq!(placements.len(), 3 * 2, "two layers on a seed and two nodes: {placements:?}");
    for placement in placements {
        assert_eq!(placement["state"], "done");
        assert!(placement["bytes_total"].as_i64().unwrap() > 0, "{placement}");
        assert_eq!(placement["bytes_done"], placement["bytes_total"]);
    }
    assert_eq!(layer_requests(&registry, &layers), 2, "each layer once");
    drop(registry);
    seed.kill();
    for node in [&one, &two] {
        for (reference, layer) in &layers {
            node.assert_reads(reference, layer).await;
        }
    }
    let again = site.preheat(&name, "all-peers").await;
    let failed = site.wait_for_job(again).await;
    assert_eq!(failed["state"], "FAILURE");
    assert!(failed["note"].as_str().unwrap().contains("cannot be reached"), "{}", failed["note"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preheat_ends_on_a_node_whose_readers_never_rest() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let busy = TestLayer::random(400, 16 << 10);
    let read = busy.push(&registry);
    let site = Site::new().await;
    let seed = site.join("seed", Role::Seed).await;
    // Whoever comes while the seed still reads the registry is given all that it reads.
    seed.client.open_layer(&read, PATIENCE).await.unwrap();
    let one = site.join("one", Role::Node).await;
    one.client.open_layer(&read, PATIENCE).await.unwrap();
    let first = site.preheat(&name, "single-seed").await;
    site.wait_for_job(first).await;
    let job = site.preheat(&name, "all-peers").await;
    let path = format!("/api/v1/jobs/{job}");
    // Backwards: nothing is read ahead, so that each read wants something that is missing.
    for number in (0..400).rev() {
        let range = ByteRange::new(number * (16 << 10), 16 << 10);
        one.client.ensure_range(read.digest, range, PATIENCE).await.unwrap();
        let now = site.ask("GET", &path, &Value::Null).await;
        if now["state"] != "PENDING" {
            assert_eq!(now["state"], "SUCCESS", "{now}");
            assert_eq!(layer_requests(&registry, &layers), 2, "each layer once");
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the reader has read all, and the preheat has not ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_which_a_store_has_no_room_is_not_said_to_be_there() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let site = Site::new().await;
    let _seed = site.join("seed", Role::Seed).await;
    // Either layer fits, both do not.
    let limit = |config: &mut Config| config.store.limit = d7y_chassis::ByteSize::mib(4);
    let one = site.start_with("one", Role::Node, limit).await;
    one.wait_for_scheduler().await;
    let job = site.preheat(&name, "all-peers").await;
    let ended = site.wait_for_job(job).await;
    assert_eq!(ended["state"], "FAILURE", "{ended}");
    let placements = ended["progress"]["placements"].as_array().unwrap();
    let of = |peer: &str, state: &str| {
        placements.iter().filter(|row| row["peer"] == peer && row["state"] == state).count()
    };
    assert_eq!((of("seed", "done"), of("one", "failed")), (2, 1), "{placements:?}");
    assert!(ended.to_string().contains("raise store.limit"), "{ended}");
    assert!(layer_requests(&registry, &layers) <= 2, "each layer once");
}

/// Peers that have the indexes, and nobody the chunks: one of them reads, and the others take from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_preheat_of_what_nobody_holds_any_more_reads_the_origin_once() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let site = Site::new().await;
    let seed = site.join("seed", Role::Seed).await;
    let mut nodes = Vec::new();
    for node in ["one", "two", "three"] {
        nodes.push(site.join(node, Role::Node).await);
    }
    for (reference, _) in &layers {
        seed.client.open_layer(reference, PATIENCE).await.unwrap();
        for node in &nodes {
            node.client.open_layer(reference, PATIENCE).await.unwrap();
        }
    }
    assert_eq!(layer_requests(&registry, &layers), layers.len());
    seed.crash().await;
    let job = site.preheat(&name, "all-peers").await;
    let job = site.wait_for_job(job).await;
    assert_eq!(job["state"], "SUCCESS", "{job}");
    assert_eq!(layer_requests(&registry, &layers), 2 * layers.len(), "once more for all");
    for node in &nodes {
        for (reference, layer) in &layers {
            node.assert_reads(reference, layer).await;
        }
    }
}

/// What the registry says to whoever reads again is what the job says.
#[tokio::test(flavor = "multi_thread")]
async fn a_preheat_of_what_nobody_holds_and_the_registry_has_deleted_fails_and_says_so() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let site = Site::new().await;
    let seed = site.join("seed", Role::Seed).await;
    let node = site.join("node", Role::Node).await;
    for (reference, _) in &layers {
        seed.client.open_layer(reference, PATIENCE).await.unwrap();
        node.client.open_layer(reference, PATIENCE).await.unwrap();
    }
    seed.crash().await;
    let job = site.preheat(&name, "all-peers").await;
    // The manager has read the image's config.
    let path = format!("/api/v1/jobs/{job}");
    site.wait(&path, |job| !job["progress"]["placements"].as_array().unwrap().is_empty()).await;
    registry.always(Turn::status(404));
    let job = site.wait_for_job(job).await;
    assert_eq!(job["state"], "FAILURE", "{job}");
    assert!(job.to_string().contains("no such blob"), "{job}");
}

/// Nor does anybody ever give a layer whose blob has changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_preheat_of_a_new_layer_that_the_registry_has_changed_fails_and_says_so() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let site = Site::new().await;
    let _seed = site.join("seed", Role::Seed).await;
    let _node = site.join("node", Role::Node).await;
    layers[0].1.touch(&registry, &layers[0].0);
    let job = site.wait_for_job(site.preheat(&name, "all-peers").await).await;
    assert_eq!(job["state"], "FAILURE", "{job}");
    assert!(job.to_string().contains("fetch it again, or from another source"), "{job}");
}

/// Its index is known, and what it describes is nowhere any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_preheat_of_a_known_layer_that_the_registry_has_changed_fails_and_says_so() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let site = Site::new().await;
    let seed = site.join("seed", Role::Seed).await;
    let nodes = [site.join("one", Role::Node).await, site.join("two", Role::Node).await];
    for (reference, _) in &layers {
        seed.client.open_layer(reference, PATIENCE).await.unwrap();
        for node in &nodes {
            node.client.open_layer(reference, PATIENCE).await.unwrap();
        }
    }
    seed.crash().await;
    layers[0].1.change(&registry, &layers[0].0);
    let job = site.wait_for_job(site.preheat(&name, "all-peers").await).await;
    assert_eq!(job["state"], "FAILURE", "{job}");
    let placements = job["progress"]["placements"].as_array().unwrap();
    let said =
        |placement: &&Value| placement["error"].as_str().unwrap().contains("the registry has changed it");
    assert_eq!(placements.iter().filter(said).count(), nodes.len(), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preheat_ends_whoever_is_killed_meanwhile() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let mut site = Site::new().await;
    let seed = site.join("seed", Role::Seed).await;
    let one = site.join("one", Role::Node).await;
    // No layer comes to its end before everybody has died once. The config is read first, so it must come.
    registry.then([Turn::Serve]);
    registry.always(Turn::Stall(5000));
    let job = site.preheat(&name, "all-peers").await;
    let path = format!("/api/v1/jobs/{job}");
    let under_way = |job: &Value| {
        let placements = job["progress"]["placements"].as_array().cloned().unwrap_or_default();
        placements.len() == 4 && placements.iter().all(|placement| placement["state"] == "fetching")
    };
    site.wait(&path, under_way).await;

    site.restart_manager().await;
    assert_eq!(site.job(job).await["state"], "PENDING");
    site.restart_scheduler().await;
    seed.kill();
    drop(seed);
    let waits = |job: &Value| {
        let placements = job["progress"]["placements"].as_array().unwrap();
        placements.iter().any(|placement| placement["peer"] == "seed" && placement["state"] == "waiting")
    };
    let missing = site.wait(&path, waits).await;
    assert_eq!(missing["state"], "PENDING", "it waits for the seed");
    let _seed = site.join("seed", Role::Seed).await;
    site.wait(&path, under_way).await;
    registry.always(Turn::Serve);
    let ended = site.wait_for_job(job).await;
    assert_eq!(ended["state"], "SUCCESS", "{ended}");
    drop(registry);
    for (reference, layer) in &layers {
        one.assert_reads(reference, layer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_name_their_peers_and_an_empty_one_says_what_to_do() {
    let registry = FakeRegistry::start().await;
    let (name, _) = image(&registry);
    let site = Site::new().await;
    let _one = site.join("one", Role::Node).await;
    let _two = site.join("two", Role::Node).await;
    let none = site.preheat(&name, "single-seed").await;
    let share = site.preheat(&name, "50%").await;
    let peers = |job: &Value| {
        let placements = job["progress"]["placements"].as_array().unwrap().clone();
        let mut peers: Vec<_> =
            placements.iter().map(|row| row["peer"].as_str().unwrap().to_owned()).collect();
        peers.dedup();
        peers
    };
    let ended = site.wait_for_job(share).await;
    assert_eq!((ended["state"].as_str(), peers(&ended).len()), (Some("SUCCESS"), 1), "{ended}");
    let failed = site.wait_for_job(none).await;
    assert_eq!(failed["state"], "FAILURE");
    let note = failed["note"].as_str().unwrap();
    assert!(note.contains("no seed peer is connected; start d7y-peer with role: seed"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_placed_over_all_schedulers_of_the_cluster() {
    let registry = FakeRegistry::start().await;
    let (name, layers) = image(&registry);
    let site = Site::new().await;
    let mut second = scheduler_named("second", site.manager.addresses[1], any()).await;
    site.wait("/api/v1/schedulers", |schedulers| schedulers.as_array().unwrap().len() == 2).await;
    let mut peers = Vec::new();
    for n in 0..4 {
        // Two with a session of each.
        let pinned = [&site.scheduler, &second][n % 2].addresses[0].to_string();
        peers.push(site.start_at(&format!("node-{n}"), Role::Node, pinned).await);
    }
    site.wait("/api/v1/peers", |peers| peers.as_array().unwrap().len() == 4).await;
    let on = |job: &Value| {
        let placements = job["progress"]["placements"].as_array().unwrap();
        let peers = placements.iter().map(|row| row["peer"].as_str().unwrap().to_owned());
        peers.collect::<std::collections::BTreeSet<_>>().len()
    };
    for (scope, expected) in [("25%", 1), ("75%", 3), ("all-peers", 4)] {
        let job = site.preheat(&name, scope).await;
        let ended = site.wait_for_job(job).await;
        assert_eq!((ended["state"].as_str(), on(&ended)), (Some("SUCCESS"), expected), "{scope}: {ended}");
    }
    for node in &peers {
        for (reference, layer) in &layers {
            node.assert_reads(reference, layer).await;
        }
    }
    // One of them is gone: its peers are not among those that can be reached, and the other's still are.
    second.kill().await;
    site.wait("/api/v1/schedulers", |schedulers| schedulers.as_array().unwrap().len() == 1).await;
    let job = site.preheat(&name, "all-peers").await;
    let ended = site.wait_for_job(job).await;
    assert_eq!((ended["state"].as_str(), on(&ended)), (Some("SUCCESS"), 2), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_came_before_the_scheduler_hears_of_it_soon() {
    let directory = tempfile::tempdir().unwrap();
    let seldom = |config: &mut d7y_manager::Config| config.discovery.refresh = HumanDuration::from_secs(600);
    let manager = manager_with(directory.path().to_owned(), any(), any(), seldom).await;
    let address = at(manager.addresses[1]);
    let managed = move |config: &mut Config| (config.standalone, config.manager) = (false, address);
    let cluster = Cluster::new();
    let peer = cluster.start_with("early", &[], managed).await;
    // It has asked by then; should it not have, the test shows nothing, and fails nobody.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _scheduler = scheduler(manager.addresses[1], any()).await;
    peer.wait_for_scheduler().await;
}
