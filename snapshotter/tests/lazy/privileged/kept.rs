//! What the service manager keeps while none of us runs.

use super::*;
use crate::manager::ServiceManager;

impl Setting {
    async fn start_under(&mut self, manager: &mut ServiceManager) {
        let command = manager.command(Snapshotter::PROGRAM);
        self.snapshotter = Some(Snapshotter::start_by(command, &self.node, self.driver, self.settings).await);
        self.containerd.reaches_snapshotter().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_fails_when_snapshotter_and_peer_are_killed_at_once() {
    for driver in DRIVERS {
        let mut setting = Setting::new(driver, &[]).await;
        let mut manager = ServiceManager::new(&setting.node);
        setting.kill_snapshotter();
        setting.start_under(&mut manager).await;
        for round in 0..2 {
            let name = format!("c{round}");
            let root = setting.run(&name).await;
            assert_eq!(manager.kept(), ["fuse"], "round {round}");
            let mounted = setting.node.layers_mounted();
            setting.peer.hold.send_replace(true);
            let asked = *setting.peer.ranges.borrow();
            let mut reader = tokio::process::Command::new("cat");
            let path = root.join(["usr/big", "opt/app"][round]);
            let reader = reader.arg(path).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
            let reader = tokio::spawn(reader.wait_with_output());
            wait_for("a read of missing data", || async {
                (*setting.peer.ranges.borrow() > asked).then_some(())
            })
            .await;
            setting.kill_snapshotter();
            setting.peer.hold.send_replace(false);
            setting.peer_process.take().unwrap().stop().await;
            setting.peer_process = Some(setting.peer.start(&setting.node.peer_socket()));
            assert!(!reader.is_finished(), "the reader did not wait");
            setting.start_under(&mut manager).await;
            let output = reader.await.unwrap().unwrap();
            let expected = [noise(1, BIG_BYTES), noise(5, 200_000)];
            assert!(output.status.success() && output.stdout == expected[round], "the read has other bytes");
            assert_eq!(setting.node.layers_mounted(), mounted, "layers were mounted anew");
        }
        let root = setting.node.path().join("c0");
        blocking(move || check_files(&root)).await;
    }
}

/// What is kept may be of a mount that is no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_descriptor_of_another_mount_is_not_served() {
    let mut setting = Setting::new("erofs", &[]).await;
    let mut manager = ServiceManager::new(&setting.node);
    setting.kill_snapshotter();
    setting.start_under(&mut manager).await;
    assert_eq!(manager.kept(), ["fuse"]);
    setting.kill_snapshotter();
    d7y_fuse::mounts::unmount_lazy(&setting.node.path().join("run/fuse")).unwrap();
    setting.peer_process.take().unwrap().stop().await;
    setting.peer_process = Some(setting.peer.start(&setting.node.peer_socket()));
    setting.start_under(&mut manager).await;
    assert_eq!(manager.kept(), ["fuse"], "the old one is still kept, or the new one is not");
    let root = setting.run("c1").await;
    blocking(move || check_files(&root)).await;
}
