mod direct;
mod kept;
mod swept;
mod traced;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_image::BuildOptions;
use d7y_proto::local::Reason;
use d7y_snapshotter::resolve::chain_ids;
use d7y_types::Sha256Digest;
use tonic::Code;

use crate::containerd::{Containerd, clean_up, names};
use crate::image::{
    BuiltLayer, Entry, build, build_with, directory, documents, file, hard_link, noise, symlink,
};
use crate::node::{Node, Snapshotter, blocking, wait_for, wait_until};
use crate::peer::{FakePeer, Mood, PeerProcess};

const DRIVERS: [&str; 2] = ["erofs", "fuse"];
const BIG_BYTES: usize = 3 << 20;

/// A node on which one image is known to containerd and its layers to the peer.
struct Setting {
    chain_ids: Vec<Sha256Digest>,
    layers: BTreeSet<Sha256Digest>,
    peer: Arc<FakePeer>,
    peer_process: Option<PeerProcess>,
    containerd: Containerd,
    snapshotter: Option<Snapshotter>,
    driver: &'static str,
    settings: &'static [&'static str],
    // Last: unmounts when all the others are gone.
    node: Node,
}

impl Setting {
    async fn new(driver: &'static str, settings: &'static [&'static str]) -> Self {
        let image = image();
        let node = Node::new();
        let containerd = Containerd::start(node.path(), &node.socket()).await;
        let (manifest, config) = documents(&image.iter().collect::<Vec<_>>());
        containerd.add_blob(&config, &[]).await;
        let config = crate::image::sha256(config.as_bytes()).to_string();
        containerd.add_blob(&manifest, &[("containerd.io/gc.ref.content.config", &config)]).await;
        let diff_ids: Vec<_> = image.iter().map(|built| built.layer.diff_id).collect();
        let layers = image.iter().map(|built| built.layer.digest).collect();
        let peer = FakePeer::new(&node.path().join("peer"), image);
        let peer_process = Some(peer.start(&node.peer_socket()));
        let snapshotter = Some(Snapshotter::start(&node, driver, settings).await);
        containerd.reaches_snapshotter().await;
        let chain_ids = chain_ids(&diff_ids);
        Self { chain_ids, layers, peer, peer_process, containerd, snapshotter, driver, settings, node }
    }

    async fn start_snapshotter(&mut self) {
        self.snapshotter = Some(Snapshotter::start(&self.node, self.driver, self.settings).await);
        self.containerd.reaches_snapshotter().await;
    }

    fn kill_snapshotter(&mut self) {
        self.snapshotter.take().unwrap().kill();
    }

    /// Pulls the image and starts a container; returns its root.
    async fn run(&self, name: &str) -> std::path::PathBuf {
        let top = self.containerd.pull(&self.chain_ids).await;
        self.run_on(name, &top).await
    }

    async fn run_on(&self, name: &str, parent: &str) -> std::path::PathBuf {
        let mounts = self.containerd.prepare(name, parent, &[]).await.unwrap();
        self.node.mount(name, &mounts)
    }
}

fn top() -> [Entry; 2] {
    [directory("opt/", 0o700, 0), file("opt/app", noise(5, 200_000))]
}

fn image() -> Vec<BuiltLayer> {
    let base = build(&[
        directory("etc/", 0o750, 5),
        file("etc/passwd", b"root".to_vec()),
        directory("usr/", 0o755, 0),
        file("usr/big", noise(1, BIG_BYTES)),
        hard_link("usr/same", "usr/big"),
        symlink("usr/link", "big"),
        file("usr/gone", noise(2, 100)),
        file("usr/other", noise(3, 300_000)),
    ]);
    let implied = build(&[file("etc/only", noise(4, 5000)), file("usr/.wh.gone", Vec::new())]);
    vec![base, implied, build(&[]), build(&top()), build(&[])]
}

fn read(root: &Path, path: &str) -> io::Result<Vec<u8>> {
    fs::read(root.join(path))
}

/// A read that has failed is refused for a moment more, because the kernel's own second tries count as the same access.
fn wait_until_readable(root: &Path, path: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = read(root, path) {
        assert!(Instant::now() < deadline, "{path} stays unreadable: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn check_files(root: &Path) {
    assert_eq!(read(root, "etc/passwd").unwrap(), b"root");
    for (path, seed, bytes) in [
        ("usr/big", 1, BIG_BYTES),
        ("usr/same", 1, BIG_BYTES),
        ("usr/link", 1, BIG_BYTES),
        ("etc/only", 4, 5000),
    ] {
        assert!(read(root, path).unwrap() == noise(seed, bytes), "{path} has other bytes");
    }
    assert!(read(root, "opt/app").unwrap() == noise(5, 200_000));
    let links = |path: &str| {
        (fs::metadata(root.join(path)).unwrap().ino(), fs::metadata(root.join(path)).unwrap().nlink())
    };
    assert_eq!(links("usr/big"), links("usr/same"));
    assert_eq!(read(root, "usr/gone").unwrap_err().kind(), io::ErrorKind::NotFound);
    let etc = fs::metadata(root.join("etc")).unwrap();
    assert_eq!((etc.mode() & 0o7777, etc.uid()), (0o750, 5), "an implied directory has not inherited");
    let listed: BTreeSet<_> =
        fs::read_dir(root.join("usr")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed, ["big", "link", "other", "same"].map(Into::into).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_before_its_image_is_there() {
    for driver in DRIVERS {
        let setting = Setting::new(driver, &[]).await;
        let root = setting.run("c1").await;
        assert_eq!(*setting.peer.ranges.borrow(), 0, "data was asked for before anybody read");
        for private in ["root/s", "root/b", "run/m", "run/fuse"] {
            let mode = fs::metadata(setting.node.path().join(private)).unwrap().mode() & 0o777;
            assert_eq!(mode, 0o700, "others may enter {private}");
        }
        let at = root.clone();
        blocking(move || check_files(&at)).await;
        assert!(*setting.peer.ranges.borrow() > 0);
        // With all of it read, no read-ahead is under way any more.
        assert!(read(&root, "usr/other").unwrap() == noise(3, 300_000));
        let asked = *setting.peer.ranges.borrow();
        let at = root.clone();
        blocking(move || check_files(&at)).await;
        fs::write(root.join("etc/passwd"), "changed").unwrap();
        assert_eq!(*setting.peer.ranges.borrow(), asked, "what was there was asked for again");

        let second = setting.run_on("c2", &setting.chain_ids[4].to_string()).await;
        assert_eq!(read(&second, "etc/passwd").unwrap(), b"root");
        let view = setting.containerd.view("v1", &setting.chain_ids[1].to_string()).await.unwrap();
        let view = setting.node.mount("v1", &view);
        assert_eq!(fs::metadata(view.join("etc")).unwrap().mode() & 0o7777, 0o750);
        let refused = fs::write(view.join("new"), "").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(*setting.peer.pinned.borrow(), setting.layers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_snapshotter_is_taken_over_in_the_middle_of_a_read() {
    for driver in DRIVERS {
        let mut setting = Setting::new(driver, &[]).await;
        let root = setting.run("c1").await;
        wait_until(&setting.peer.parked, "the descriptor to be parked", |parked| *parked > 0).await;
        let mounted = setting.node.layers_mounted();
        setting.peer.hold.send_replace(true);
        let asked = *setting.peer.ranges.borrow();
        // A process of its own: should this one be killed, it must not wait for itself.
        let mut reader = tokio::process::Command::new("cat");
        let reader =
            reader.arg(root.join("usr/big")).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let reader = tokio::spawn(reader.wait_with_output());
        wait_until(&setting.peer.ranges, "a read", |ranges| *ranges > asked).await;
        setting.kill_snapshotter();
        assert!(!reader.is_finished(), "the reader did not wait");
        setting.start_snapshotter().await;
        setting.peer.hold.send_replace(false);
        let output = reader.await.unwrap().unwrap();
        assert!(output.status.success() && output.stdout == noise(1, BIG_BYTES), "the read has other bytes");
        let at = root.clone();
        blocking(move || check_files(&at)).await;
        assert_eq!(setting.node.layers_mounted(), mounted);

        let second = setting.run_on("c2", &setting.chain_ids[4].to_string()).await;
        blocking(move || check_files(&second)).await;
        assert_eq!(setting.node.layers_mounted(), mounted, "a layer was mounted twice");

        setting.snapshotter.take().unwrap().stop().await;
        setting.start_snapshotter().await;
        let again = setting.node.mount("c1-again", &setting.containerd.mounts("c1").await.unwrap());
        blocking(move || assert!(read(&again, "usr/other").unwrap() == noise(3, 300_000))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_learns_everything_again() {
    let mut setting = Setting::new("erofs", &[]).await;
    let root = setting.run("c1").await;
    let (parked, pinned) = (&setting.peer.parked, &setting.peer.pinned);
    wait_until(parked, "the descriptor to be parked", |parked| *parked == 1).await;
    setting.peer_process.take().unwrap().stop().await;
    setting.peer.pinned.send_replace(BTreeSet::new());
    setting.peer_process = Some(setting.peer.start(&setting.node.peer_socket()));
    wait_until(parked, "the descriptor to be parked again", |parked| *parked == 2).await;
    wait_until(pinned, "the layers to be pinned again", |pinned| *pinned == setting.layers).await;
    blocking(move || check_files(&root)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_another_layout_is_never_read_through_the_old_mount() {
    for (driver, mood) in [("erofs", Mood::Willing), ("erofs", Mood::DiskFull), ("fuse", Mood::DiskFull)] {
        let mut setting = Setting::new(driver, &[]).await;
        let root = setting.run("c1").await;
        setting.peer_process.take().unwrap().stop().await;
        let options = BuildOptions { chunk_bytes: 16 << 10, ..BuildOptions::default() };
        setting.peer.keep(build_with(&top(), &options));
        *setting.peer.mood.lock() = mood;
        setting.peer_process = Some(setting.peer.start(&setting.node.peer_socket()));
        let refused = blocking(move || read(&root, "opt/app").unwrap_err()).await;
        assert_eq!(refused.raw_os_error(), Some(5));
        let second = setting.run_on("c2", &setting.chain_ids[4].to_string()).await;
        let at = second.clone();
        blocking(move || wait_until_readable(&at, "opt/app")).await;
        blocking(move || check_files(&second)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_may_die_and_new_containers_run() {
    for driver in DRIVERS {
        let mut setting = Setting::new(driver, &[]).await;
        setting.run("c1").await;
        setting.kill_snapshotter();
        setting.peer_process.take().unwrap().stop().await;
        setting.peer_process = Some(setting.peer.start(&setting.node.peer_socket()));
        setting.start_snapshotter().await;
        let root = setting.run_on("c2", &setting.chain_ids[4].to_string()).await;
        blocking(move || check_files(&root)).await;
        let again = setting.node.mount("c1-again", &setting.containerd.mounts("c1").await.unwrap());
        blocking(move || check_files(&again)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_keeps_no_container_from_what_is_mounted() {
    for driver in DRIVERS {
        let mut setting = Setting::new(driver, &["startDeadline=20s"]).await;
        let root = setting.run("c1").await;
        blocking(move || check_files(&root)).await;
        setting.peer_process.take().unwrap().stop().await;
        let began = Instant::now();
        let second = setting.run_on("c2", &setting.chain_ids[4].to_string()).await;
        assert!(began.elapsed() < Duration::from_secs(10), "the start waited for the peer");
        blocking(move || check_files(&second)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_container_uses_is_unmounted_and_may_be_evicted() {
    for driver in DRIVERS {
        let setting = Setting::new(driver, &["idleMounts=0s"]).await;
        let root = setting.run("c1").await;
        let socket = setting.node.socket();
        clean_up(&socket).await;
        let at = root.clone();
        blocking(move || check_files(&at)).await;
        d7y_fuse::mounts::unmount(&root).unwrap();
        setting.containerd.remove("c1").await.unwrap();
        setting.containerd.collect().await;
        assert!(!names(&socket).await.iter().any(|name| name.ends_with("/c1")));
        // containerd may clean up at the same time as an operator.
        futures_util::future::join_all((0..4).map(|_| clean_up(&socket))).await;
        assert_eq!(setting.node.layers_mounted(), 0);
        wait_until(&setting.peer.pinned, "the pins to go", BTreeSet::is_empty).await;
        let root = setting.run_on("c2", &setting.chain_ids[4].to_string()).await;
        blocking(move || check_files(&root)).await;
        assert_eq!(*setting.peer.pinned.borrow(), setting.layers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_peer_cannot_supply_is_left_to_containerd() {
    let mut setting = Setting::new("auto", &["prepareWait=300ms"]).await;
    let base = setting.chain_ids[0];
    *setting.peer.mood.lock() = Mood::Refuses(Reason::Corrupt);
    let corrupt = setting.containerd.pull_layer(base, "").await.unwrap_err();
    assert_eq!(corrupt.code(), Code::Unknown, "{corrupt}");
    assert!(corrupt.message().contains("digest"), "{corrupt}");

    *setting.peer.mood.lock() = Mood::Refuses(Reason::Unauthorized);
    let mounts = setting.containerd.pull_layer(base, "").await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");

    let unknown = crate::image::sha256(b"unknown");
    let mounts = setting.containerd.pull_layer(unknown, "").await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");

    setting.peer_process.take().unwrap().stop().await;
    let labels = [("containerd.io/snapshot.ref", base.to_string())];
    let mounts = setting.containerd.prepare("extract-2-abcd", "", &labels).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    let mounts = setting.containerd.prepare("ordinary", "", &[]).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
}

/// containerd downloads them in any case.
#[tokio::test(flavor = "multi_thread")]
async fn what_lies_above_a_layer_that_was_left_is_left_too() {
    let setting = Setting::new("auto", &[]).await;
    let (base, second) = (setting.chain_ids[0], setting.chain_ids[1]);
    *setting.peer.mood.lock() = Mood::Refuses(Reason::Unsupplied);
    let mounts = setting.containerd.pull_layer(base, "").await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    setting.containerd.commit(&format!("extract-1-abcd {base}"), &base.to_string()).await.unwrap();
    *setting.peer.mood.lock() = Mood::Willing;
    let above = setting.containerd.pull_layer(second, &base.to_string()).await;
    assert_eq!(above.expect("it is lazy")[0].r#type, "overlay");

    setting.containerd.remove(&format!("extract-1-abcd {second}")).await.unwrap();
    setting.containerd.remove(&base.to_string()).await.unwrap();
    setting.containerd.pull(&setting.chain_ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_an_index_holds_nobody_up() {
    let mut setting = Setting::new("auto", &["prepareWait=200ms"]).await;
    setting.peer.building.send_replace(true);
    let top = setting.containerd.pull(&setting.chain_ids).await;
    // containerd holds a lock over this call, which its collector needs.
    let prepared = tokio::time::timeout(Duration::from_secs(10), setting.containerd.prepare("c1", &top, &[]));
    let prepared = prepared.await.expect("Prepare waits for the index").unwrap();
    assert!(!Path::new(&prepared[0].source).exists(), "an image without files could be started");
    setting.kill_snapshotter();
    setting.start_snapshotter().await;

    let socket = setting.node.socket();
    let mut mounts = Box::pin(setting.containerd.mounts("c1"));
    let others_work = async {
        setting.containerd.prepare("other", "", &[]).await.unwrap();
        setting.containerd.remove("other").await.unwrap();
        let collecting = tokio::time::timeout(Duration::from_secs(30), setting.containerd.collect());
        collecting.await.expect("the collector runs");
        assert!(!names(&socket).await.iter().any(|name| name.ends_with("/other")));
    };
    tokio::select! {
        mounts = &mut mounts => panic!("the start did not wait: {mounts:?}"),
        () = others_work => {}
    }
    setting.peer.building.send_replace(false);
    let mounts = tokio::time::timeout(Duration::from_secs(30), mounts).await.unwrap().unwrap();
    let root = setting.node.mount("c1", &mounts);
    let trace = wait_for("the trace", || async {
        let at = root.clone();
        blocking(move || check_files(&at)).await;
        setting.peer.traces.lock().first().cloned()
    });
    assert!(!trace.await.runs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_index_does_not_come_fails_in_time() {
    let setting = Setting::new("auto", &["prepareWait=100ms", "startDeadline=1s"]).await;
    setting.peer.building.send_replace(true);
    let top = setting.containerd.pull(&setting.chain_ids).await;
    setting.containerd.prepare("c1", &top, &[]).await.unwrap();
    let refused = setting.containerd.mounts("c1").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    // Whoever mounts at once what it is answered waits.
    for key in ["extract-1-abcd x", "a-remap"] {
        let refused = setting.containerd.prepare(key, &top, &[]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{key}: {refused}");
    }
    let refused = setting.containerd.view("v1", &top).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    setting.peer.building.send_replace(false);
    let root = setting.node.mount("c1", &setting.containerd.mounts("c1").await.unwrap());
    blocking(move || check_files(&root)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_layers_stand_on_lazy_ones() {
    let setting = Setting::new("auto", &[]).await;
    let lazy = setting.containerd.pull(&setting.chain_ids).await;
    let mounts = setting.containerd.prepare("extract-3-abcd", &lazy, &[]).await.unwrap();
    let unpacking = setting.node.mount("unpacking", &mounts);
    fs::write(unpacking.join("etc/ordinary"), "here").unwrap();
    d7y_fuse::mounts::unmount(&unpacking).unwrap();
    setting.containerd.commit("extract-3-abcd", "ordinary").await.unwrap();
    let root = setting.run_on("c1", "ordinary").await;
    assert_eq!(read(&root, "etc/ordinary").unwrap(), b"here");
    blocking(move || assert!(read(&root, "opt/app").unwrap() == noise(5, 200_000))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_fail_reads() {
    let setting = Setting::new("auto", &[]).await;
    let root = setting.run("c1").await;
    *setting.peer.mood.lock() = Mood::DiskFull;
    blocking(move || check_files(&root)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_nobody_answers_fails_in_time() {
    let setting = Setting::new("auto", &["readDeadline=4s"]).await;
    let root = setting.run("c1").await;
    setting.peer.hold.send_replace(true);
    let started = Instant::now();
    let at = root.clone();
    let failed = blocking(move || read(&at, "opt/app").unwrap_err()).await;
    assert_eq!(failed.raw_os_error(), Some(5));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    setting.peer.hold.send_replace(false);
    let at = root.clone();
    blocking(move || wait_until_readable(&at, "opt/app")).await;
    blocking(move || check_files(&root)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_run_is_traced() {
    let setting = Setting::new("auto", &["trace.window=20s"]).await;
    let root = setting.run("c1").await;
    blocking(move || check_files(&root)).await;
    let trace = wait_for("the trace", || async { setting.peer.traces.lock().first().cloned() }).await;
    assert!(trace.runs.iter().any(|run| run.layer == image()[0].layer.digest.0));
    assert!(trace.runs.iter().all(|run| run.chunks > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_fetches_little_more_than_it_asks_for() {
    let setting = Setting::new("erofs", &[]).await;
    let root = setting.run("c1").await;
    const PART: usize = 1 << 20;
    let at = root.clone();
    let part = blocking(move || {
        let mut part = vec![0; PART];
        let mut big = fs::File::open(at.join("usr/big")).unwrap();
        // As a program reads, so that the kernel's read-ahead grows.
        part.chunks_mut(4096).for_each(|page| io::Read::read_exact(&mut big, page).unwrap());
        part
    });
    assert!(part.await == noise(1, BIG_BYTES)[..PART]);
    // What was read ahead is fetched when the read has its bytes already.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let device = setting.peer.directory(image()[0].layer.digest).join("device");
    let fetched = fs::metadata(device).unwrap().blocks() * 512;
    assert!(fetched <= (PART + PART / 2) as u64, "{fetched} bytes fetched for a read of {PART}");
}
