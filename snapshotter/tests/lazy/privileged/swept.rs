//! Sweeps beside starts.

use d7y_proto::snapshots::snapshots_client::SnapshotsClient;
use d7y_proto::snapshots::{CleanupRequest, PrepareSnapshotRequest, RemoveSnapshotRequest};

use super::*;
use crate::containerd::channel;

/// A start lost its files to a sweep in one round of seven, before that was mended.
const ROUNDS: usize = 50;

/// containerd cleans up whenever its collector has run, which no start waits for.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_takes_nothing_from_a_container_that_starts_beside_it() {
    for driver in DRIVERS {
        let setting = Setting::new(driver, &["idleMounts=0s"]).await;
        setting.peer.fill();
        let parent = setting.containerd.pull(&setting.chain_ids).await;
        // Its collector would remove the snapshots that this test makes without it.
        drop(setting.containerd);
        let mut snapshots = SnapshotsClient::new(channel(&setting.node.socket()).await);
        let mut sweeping = snapshots.clone();
        let sweeps = tokio::spawn(async move {
            loop {
                sweeping.cleanup(CleanupRequest::default()).await.unwrap();
            }
        });
        for round in 0..ROUNDS {
            let key = format!("test/{}/c{round}", round + 100);
            let prepare =
                PrepareSnapshotRequest { key: key.clone(), parent: parent.clone(), ..Default::default() };
            let mounts = snapshots.prepare(prepare).await.unwrap().into_inner().mounts;
            let root = setting.node.mount("c", &mounts);
            blocking(move || {
                assert_eq!(read(&root, "etc/passwd").unwrap(), b"root", "{driver}, round {round}");
                assert!(read(&root, "opt/app").unwrap() == noise(5, 200_000), "{driver}, round {round}");
                d7y_fuse::mounts::unmount(&root).unwrap();
            })
            .await;
            let mounted = setting.node.layers_mounted();
            snapshots.remove(RemoveSnapshotRequest { key, ..Default::default() }).await.unwrap();
            // The next start comes in the middle of the sweep.
            while driver == "erofs" && setting.node.layers_mounted() == mounted {
                assert!(!sweeps.is_finished(), "a clean-up failed");
                tokio::task::yield_now().await;
            }
        }
        sweeps.abort();
    }
}
