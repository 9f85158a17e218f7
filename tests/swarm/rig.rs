use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use d7y_chassis::config::ByteSize;
use d7y_chassis::{HumanDuration, Secret, Shutdown, Tasks};
use d7y_image::IndexSigner;
use d7y_peer::{Config, Role, Running};
use d7y_peer_client::LocalClient;
use d7y_types::{ByteRange, LayerRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::SOON;
use crate::layer::TestLayer;

/// What seeds sign with, and what nodes trust beside the keys that they make themselves: the README's configuration.
pub const SEED_KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";

/// Peers of one test, in one temporary directory.
pub struct Cluster {
    pub directory: tempfile::TempDir,
}

pub struct Peer {
    pub client: LocalClient,
    pub running: Running,
    runtime: Option<tokio::runtime::Runtime>,
    shutdown: Shutdown,
    tasks: Tasks,
    store: PathBuf,
}

impl Cluster {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub async fn start(&self, name: &str, role: Role, seeds: &[&Peer]) -> Peer {
        self.start_with(name, seeds, |config| config.role = role).await
    }

    /// A node that fetches only what is read.
    pub async fn start_lazy(&self, name: &str, seeds: &[&Peer]) -> Peer {
        self.start_with(name, seeds, |config| config.fetch.background = false).await
    }

    pub async fn start_with(&self, name: &str, seeds: &[&Peer], change: impl FnOnce(&mut Config)) -> Peer {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let mut config = Config { peer_id: name.into(), standalone: true, ..Config::default() };
        config.store.directory = self.directory.path().join(name);
        config.local.socket = self.directory.path().join(format!("{name}.sock"));
        config.transfer.listen = any;
        config.observability.listen = vec![any];
        config.fetch.origin_fallback_after = HumanDuration::from_millis(1500);
        // Tests count what is found and fetched.
        config.store.scrub.rate = ByteSize::bytes(0);
        config.seeds = seeds.iter().map(|seed| seed.running.transfer.to_string()).collect();
        change(&mut config);
        if config.role == Role::Seed {
            config.index_trust.signing_key = Secret::new(SEED_KEY);
        }
        let trusted = IndexSigner::from_hex(SEED_KEY).unwrap().public_key();
        config.index_trust.public_keys = vec![hex::encode(trusted)];
        Peer::start(config).await
    }
}

impl Peer {
    /// Waits until the scheduler session is up.
    pub async fn wait_for_scheduler(&self) {
        let deadline = Instant::now() + SOON;
        while !self.client.status(SOON).await.unwrap().scheduler_connected {
            assert!(Instant::now() < deadline, "no scheduler session");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn start(config: Config) -> Self {
        let (socket, store) = (config.local.socket.clone(), config.store.directory.clone());
        // A runtime of its own: dropping it is as sudden as kill -9.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shutdown = Shutdown::new(config.shutdown.clone());
        let tasks = Tasks::new(shutdown.clone());
        let starting = tasks.clone();
        let running = runtime.spawn(async move { d7y_peer::start(config, starting).await });
        let running = running.await.unwrap().expect("the peer starts");
        let client = LocalClient::new(&socket);
        Self { client, running, runtime: Some(runtime), shutdown, tasks, store }
    }

    pub fn kill(&self) {
        self.shutdown.begin("killed by the test");
        // Without a drain: connections are cut as by a crash.
        self.shutdown.stopping().cancel();
    }

    /// As kill -9: what it was doing stops where it stands. Its address is free when this returns.
    pub async fn crash(mut self) -> SocketAddr {
        let runtime = self.runtime.take().expect("taken only here, in stop and in drop");
        let ended = move || runtime.shutdown_timeout(Duration::from_secs(5));
        tokio::task::spawn_blocking(ended).await.unwrap();
        self.running.transfer
    }

    /// Waits until a metric's samples add up to this.
    pub async fn wait_for_metric(&self, name: &str, at_least: f64) {
        let deadline = Instant::now() + SOON;
        while self.metric(name).await < at_least {
            assert!(Instant::now() < deadline, "{name} stays below {at_least}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As SIGTERM; [`Self::stop`] waits for the end.
    pub fn begin_stop(&self) {
        self.shutdown.begin("stopped by the test");
    }

    pub async fn stop(mut self) {
        self.begin_stop();
        let tasks = self.tasks.clone();
        let runtime = self.runtime.take().expect("taken only here and in drop");
        runtime.spawn(async move { tasks.finish().await }).await.unwrap().expect("an orderly stop");
        let ended = move || runtime.shutdown_timeout(Duration::from_secs(5));
        tokio::task::spawn_blocking(ended).await.unwrap();
    }

    /// Opens the layer, makes all of it readable piece by piece, and compares the device.
    pub async fn assert_reads(&self, reference: &LayerRef, layer: &TestLayer) {
        self.assert_reads_within(reference, layer, SOON).await;
    }

    pub async fn assert_reads_within(&self, reference: &LayerRef, layer: &TestLayer, deadline: Duration) {
        let opened = self.client.open_layer(reference, SOON).await.expect("open");
        let device = fs::File::open(&opened.device_path).unwrap();
        let bytes = device.metadata().unwrap().len();
        assert_eq!(bytes, layer.device.len() as u64);
        for offset in (0..bytes).step_by(256 << 10) {
            let range = ByteRange::new(offset, (bytes - offset).min(256 << 10));
            let uncached = self.client.ensure_range(reference.digest, range, deadline).await.expect("ensure");
            let mut read = uncached.to_vec();
            if read.is_empty() {
                read.resize(range.length as usize, 0);
                device.read_exact_at(&mut read, offset).unwrap();
            }
            assert!(read == layer.device[offset as usize..range.end() as usize], "bytes differ at {offset}");
        }
    }

    pub fn file_of(&self, reference: &LayerRef, name: &str) -> PathBuf {
        self.store.join("layers").join(reference.digest.to_hex()).join(name)
    }

    pub fn damage_pack(&self, reference: &LayerRef) {
        self.damage(reference, "pack");
    }

    pub fn damage_device(&self, reference: &LayerRef) {
        self.damage(reference, "device");
    }

    pub fn damage(&self, reference: &LayerRef, name: &str) {
        let file = fs::OpenOptions::new().write(true).open(self.file_of(reference, name)).unwrap();
        file.write_all_at(&[0xa5; 32], 200).unwrap();
    }

    /// What is on disk is of an earlier boot of the machine, as far as the next peer can tell.
    pub fn reboot(&self, reference: &LayerRef) {
        let layer = self.store.join("layers").join(reference.digest.to_hex());
        fs::write(layer.join("boot"), "another boot").unwrap();
    }

    pub fn delete_store(&self) {
        fs::remove_dir_all(&self.store).unwrap();
    }

    /// Directories of the store that only its owner may enter.
    pub fn private_directories(&self) -> Vec<String> {
        let private = |entry: &fs::DirEntry| entry.metadata().unwrap().permissions().mode() & 0o777 == 0o700;
        let entries = fs::read_dir(&self.store).unwrap().map(Result::unwrap).filter(private);
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// How many tasks of this name run.
    pub fn running_tasks(&self, name: &str) -> usize {
        format!("{:?}", self.tasks).matches(&format!("{name:?}")).count()
    }

    /// The sum of a metric's samples, 0 when there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let samples = text.lines().filter(|line| line.starts_with(name));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub async fn wait_for_health(&self, healthy: bool) {
        let deadline = Instant::now() + SOON;
        loop {
            let answer = self.get("/healthy").await;
            if answer.starts_with("HTTP/1.1 200") == healthy {
                return;
            }
            assert!(Instant::now() < deadline, "still: {answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn get(&self, path: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(self.running.observability[0]).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: d7y\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
