//! Layers that are here whole are mounted without FUSE.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::Ordering;

use super::*;

/// Layers of the image without those that are there twice.
const LAYERS: usize = 4;

impl Setting {
    /// A node that has the whole image, of which a container runs already, but from before the cluster knew how the
    /// image is used.
    async fn complete(driver: &'static str) -> Self {
        let mut setting = Self::new(driver, &["idleMounts=0s"]).await;
        setting.peer.fill();
        setting.run("c1").await;
        setting.peer.has_trace.store(true, Ordering::Relaxed);
        setting.kill_snapshotter();
        setting.start_snapshotter().await;
        setting
    }

    fn top(&self) -> String {
        self.chain_ids[4].to_string()
    }

    fn served(&self) -> usize {
        if self.driver == "erofs" { LAYERS } else { 0 }
    }

    /// On top of the served ones.
    fn direct(&self) -> usize {
        self.served()
    }

    async fn remove(&self, container: &str) {
        d7y_fuse::mounts::unmount(&self.node.path().join(container)).unwrap();
        self.containerd.remove(container).await.unwrap();
        self.containerd.collect().await;
        let left = names(&self.node.socket()).await;
        assert!(!left.iter().any(|name| name.ends_with(&format!("/{container}"))), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_image_needs_nobody_to_serve_it() {
    let mut setting = Setting::complete("erofs").await;
    assert_eq!(setting.node.layers_mounted(), setting.served(), "the accesses were still to be recorded");
    let root = setting.run_on("c2", &setting.top()).await;
    assert_eq!(setting.node.layers_mounted(), setting.served() + setting.direct());
    setting.kill_snapshotter();
    setting.peer_process.take().unwrap().stop().await;
    blocking(move || check_files(&root)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_mounts_outlive_the_snapshotter_and_are_shared_and_swept() {
    for driver in DRIVERS {
        let mut setting = Setting::complete(driver).await;
        let second = setting.run_on("c2", &setting.top()).await;
        setting.kill_snapshotter();
        setting.start_snapshotter().await;
        let third = setting.run_on("c3", &setting.top()).await;
        assert_eq!(setting.node.layers_mounted(), setting.served() + setting.direct(), "{driver}");
        let first = setting.node.path().join("c1");
        for root in [first, second, third] {
            blocking(move || check_files(&root)).await;
        }
        assert_eq!(*setting.peer.ranges.borrow(), 0, "data was asked for that was there");

        let socket = setting.node.socket();
        setting.remove("c1").await;
        setting.remove("c2").await;
        clean_up(&socket).await;
        let root = setting.node.path().join("c3");
        blocking(move || check_files(&root)).await;
        assert_eq!(*setting.peer.pinned.borrow(), setting.layers);
        setting.remove("c3").await;
        clean_up(&socket).await;
        assert_eq!(setting.node.layers_mounted(), 0, "{driver}");
        wait_until(&setting.peer.pinned, "the pins to go", |pinned| pinned.is_empty()).await;
    }
}

/// Otherwise a store full of images that ended a moment ago takes nothing for as long as they stay mounted.
#[tokio::test(flavor = "multi_thread")]
async fn idle_mounts_give_way_when_the_peer_lacks_room() {
    for driver in DRIVERS {
        let setting = Setting::new(driver, &["idleMounts=1h"]).await;
        setting.peer.fill();
        setting.run("c1").await;
        setting.remove("c1").await;
        clean_up(&setting.node.socket()).await;
        assert_eq!(setting.node.layers_mounted(), setting.served(), "{driver}: for the next start");
        assert_eq!(*setting.peer.pinned.borrow(), setting.layers, "{driver}");
        setting.peer.lacked_room.store(1, Ordering::Relaxed);
        wait_until(&setting.peer.pinned, "the pins to go", |pinned| pinned.is_empty()).await;
        assert_eq!(setting.node.layers_mounted(), 0, "{driver}");
    }
}

/// The second start of an image finds what the first one had to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_has_come_is_mounted_directly_before_the_next_container_and_stays_mounted() {
    let setting = Setting::new("erofs", &[]).await;
    setting.peer.has_trace.store(true, Ordering::Relaxed);
    let first = setting.run("c1").await;
    blocking(move || assert!(read(&first, "opt/app").unwrap() == noise(5, 200_000))).await;
    assert_eq!(setting.node.layers_mounted(), setting.served(), "a layer that is not here whole");
    setting.peer.fill();
    let (node, log) = (&setting.node, setting.node.path().join("snapshotter.log"));
    // The empty layer had nothing to wait for.
    let both = setting.served() - 1 + setting.direct();
    let read_ahead = wait_for("the direct mounts", || async {
        let log = fs::read_to_string(&log).unwrap();
        let line = log.lines().find(|line| line.contains("a complete image is mounted directly"))?;
        line.split("bytes=").nth(1)?.split_whitespace().next()?.parse::<u64>().ok()
    })
    .await;
    assert_eq!(node.layers_mounted(), both);
    assert!((200_000..BIG_BYTES as u64).contains(&read_ahead), "read ahead: {read_ahead} bytes");

    let socket = node.socket();
    setting.remove("c1").await;
    clean_up(&socket).await;
    assert_eq!(node.layers_mounted(), setting.direct(), "only what the next container takes is kept");
    assert_eq!(*setting.peer.pinned.borrow(), setting.layers);
    let mounts_before = fs::read_dir(node.path().join("run/m")).unwrap().count();
    let second = setting.run_on("c2", &setting.top()).await;
    assert_eq!(fs::read_dir(node.path().join("run/m")).unwrap().count(), mounts_before);
    blocking(move || check_files(&second)).await;
    setting.remove("c2").await;
    for chain_id in setting.chain_ids.iter().rev() {
        setting.containerd.remove(&chain_id.to_string()).await.unwrap();
    }
    setting.containerd.collect().await;
    assert_eq!(names(&socket).await, Vec::<String>::new());
    clean_up(&socket).await;
    assert_eq!(node.layers_mounted(), 0, "of an image that is gone");
    wait_until(&setting.peer.pinned, "the pins to go", |pinned| pinned.is_empty()).await;
}

/// Nobody asks for a clean-up when time passes.
#[tokio::test(flavor = "multi_thread")]
async fn idle_mounts_end_by_themselves() {
    let setting = Setting::new("erofs", &["idleMounts=5s"]).await;
    setting.peer.fill();
    setting.run("c1").await;
    setting.remove("c1").await;
    clean_up(&setting.node.socket()).await;
    assert_eq!(setting.node.layers_mounted(), setting.served());
    wait_until(&setting.peer.pinned, "the pins to go", |pinned| pinned.is_empty()).await;
    assert_eq!(setting.node.layers_mounted(), 0);
}

/// As a store does that is full, or deleted by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_evicted_under_a_direct_mount_stays_readable() {
    let mut setting = Setting::complete("erofs").await;
    let second = setting.run_on("c2", &setting.top()).await;
    for layer in &setting.layers {
        fs::remove_dir_all(setting.peer.directory(*layer)).unwrap();
    }
    let options = BuildOptions { chunk_bytes: 16 << 10, ..BuildOptions::default() };
    setting.peer_process.take().unwrap().stop().await;
    image().into_iter().for_each(|built| setting.peer.keep(built));
    setting.peer.keep(build_with(&top(), &options));
    let parked = *setting.peer.parked.borrow();
    setting.peer_process = Some(setting.peer.start(&setting.node.peer_socket()));
    // Until the snapshotter has found the new peer, what is mounted serves on.
    wait_until(&setting.peer.parked, "the new peer to be found", |now| *now > parked).await;
    let third = setting.run_on("c3", &setting.top()).await;
    for root in [second, third] {
        blocking(move || check_files(&root)).await;
    }
    assert!(*setting.peer.ranges.borrow() > 0, "an incomplete layer was mounted as if it were complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_the_kernel_does_not_mount_is_served() {
    let setting = Setting::complete("erofs").await;
    let device = setting.peer.directory(image()[0].layer.digest).join("device");
    // EROFS takes plain files only, below a plain file.
    let _device = LoopDevice::instead_of(&device);
    let second = setting.run_on("c2", &setting.top()).await;
    blocking(move || check_files(&second)).await;
    assert_eq!(setting.node.layers_mounted(), setting.served() + setting.direct() - 1);
    let third = setting.run_on("c3", &setting.top()).await;
    blocking(move || check_files(&third)).await;
    let log = fs::read_to_string(setting.node.path().join("snapshotter.log")).unwrap();
    assert_eq!(log.matches("cannot be mounted directly").count(), 1, "it was tried again");
}

/// A file's bytes as a block device, until the last process that has it open ends.
struct LoopDevice {
    _open: File,
}

impl LoopDevice {
    fn instead_of(path: &Path) -> Self {
        let file = path.with_extension("file");
        fs::rename(path, &file).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        let name = String::from_utf8(made.stdout).unwrap();
        let open = File::open(name.trim()).unwrap();
        assert!(Command::new("losetup").arg("--detach").arg(name.trim()).status().unwrap().success());
        std::os::unix::fs::symlink(name.trim(), path).unwrap();
        Self { _open: open }
    }
}
