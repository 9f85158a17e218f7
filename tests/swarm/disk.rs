//! What a peer's disk and its host give or refuse.

use d7y_peer::Role;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::rig::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_takes_all_the_descriptors_that_it_may_have() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard).unwrap();
    let _node = Cluster::new().start("node", Role::Node, &[]).await;
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
}
