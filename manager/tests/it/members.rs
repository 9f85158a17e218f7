//! Who keeps alive, who is silent, who asks.

use std::net::SocketAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use d7y_proto::manager::manager_client::ManagerClient;
use d7y_proto::manager::member_message::Message;
use d7y_proto::manager::{
    Beat, DiscoverRequest, Discovery, Kind, ManagerMessage, MemberMessage, Peer, Peers, Register, Role,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::manager::{INTERVAL, Manager};

/// Says that it lives until it is told to hang, or dies by being dropped.
struct Member {
    say: mpsc::Sender<MemberMessage>,
    heard: Streaming<ManagerMessage>,
    beats: JoinHandle<()>,
}

impl Member {
    async fn join(grpc: SocketAddr, kind: Kind, name: &str, cluster: &str) -> Result<Self, Status> {
        let mut client = connect(grpc).await;
        let (say, said) = mpsc::channel(8);
        let register = Register {
            kind: kind.into(),
            name: name.into(),
            cluster: cluster.into(),
            address: "0.0.0.0:4000".into(),
            version: "1".into(),
        };
        say.send(MemberMessage { message: Some(Message::Register(register)) }).await.unwrap();
        let mut heard = client.keep_alive(ReceiverStream::new(said)).await?.into_inner();
        heard.message().await?;
        let beats = tokio::spawn(beat(say.clone()));
        Ok(Self { say, heard, beats })
    }

    /// Its stream stays, and nothing comes any more.
    fn hang(&self) {
        self.beats.abort();
    }

    async fn say(&self, message: Message) {
        self.say.send(MemberMessage { message: Some(message) }).await.unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

async fn beat(say: mpsc::Sender<MemberMessage>) {
    // Each is a write to the manager's disk: more of them than a loaded disk takes would be heard long after they were said.
    let mut interval = tokio::time::interval(INTERVAL / 2);
    let beat = || MemberMessage { message: Some(Message::Beat(Beat {})) };
    while say.send(beat()).await.is_ok() {
        interval.tick().await;
    }
}

async fn connect(grpc: SocketAddr) -> ManagerClient<Channel> {
    ManagerClient::new(Endpoint::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap())
}

async fn discover(grpc: SocketAddr, cluster: &str) -> Result<Discovery, Status> {
    let mut client = connect(grpc).await;
    let request = DiscoverRequest { cluster: cluster.into(), ..DiscoverRequest::default() };
    client.discover(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_silent_or_gone_leaves_every_view() {
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::start(directory.path()).await;
    let grpc = manager.running.grpc;
    let scheduler = Member::join(grpc, Kind::Scheduler, "s1", "").await.unwrap();
    let seed = Member::join(grpc, Kind::Seed, "seed", "").await.unwrap();
    let peer =
        |name: &str| Peer { name: name.into(), role: Role::Node.into(), address: "10.0.0.1:4000".into() };
    scheduler.say(Message::Peers(Peers { peers: vec![peer("n1"), peer("n2")] })).await;
    let peers = manager.wait("/api/v1/peers", |peers| peers[1]["host_name"] == "n2").await;
    assert_eq!(peers[0]["ip"], "10.0.0.1");
    let found = discover(grpc, "default").await.unwrap();
    assert_eq!(
        (found.schedulers, found.seeds),
        (vec!["127.0.0.1:4000".into()], vec!["127.0.0.1:4000".into()])
    );

    // The seed's process dies: its stream ends. The scheduler hangs: its stream stays and nothing comes.
    drop(seed);
    let none = |list: &serde_json::Value| *list == serde_json::json!([]);
    manager.wait("/api/v1/seed-peers", none).await;
    let schedulers = manager.get("/api/v1/schedulers").await;
    assert_eq!(schedulers.as_array().map(Vec::len), Some(1), "who goes on to beat stays");
    scheduler.hang();
    three_intervals_after_its_last_beat(&manager).await;
    let found = discover(grpc, "").await.unwrap();
    assert!(found.schedulers.is_empty() && found.seeds.is_empty());
    drop(scheduler);
}

/// Looks until the silent scheduler is in no view, and holds each answer against the clock: the manager notes each
/// beat by it, so that the bound is exact on either side, however slow the machine is.
async fn three_intervals_after_its_last_beat(manager: &Manager) {
    let bound_ms = 3 * i64::try_from(INTERVAL.as_millis()).unwrap();
    let deadline = Instant::now() + crate::SOON;
    let (mut last_ms, mut listed_ms, mut left_ms) = (0, [0; 3], [None; 3]);
    while left_ms.contains(&None) {
        assert!(Instant::now() < deadline, "it is still there: {left_ms:?}");
        for (view, path) in ["/api/v1/peers", "discovery", "/api/v1/schedulers"].into_iter().enumerate() {
            let asked_ms = now_ms();
            let is_there = match path {
                "discovery" => !discover(manager.running.grpc, "").await.unwrap().schedulers.is_empty(),
                path => {
                    let answer = manager.get(path).await;
                    last_ms = answer[0]["last_keep_alive_at"].as_str().map_or(last_ms, millis);
                    answer != serde_json::json!([])
                }
            };
            match is_there {
                true => (listed_ms[view], left_ms[view]) = (asked_ms, None),
                false => left_ms[view] = left_ms[view].or(Some(now_ms())),
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (listed_ms, left_ms) in listed_ms.into_iter().zip(left_ms.into_iter().flatten()) {
        let silent = |at: i64| at - last_ms;
        assert!(silent(listed_ms) <= bound_ms, "listed {} ms after the last beat", silent(listed_ms));
        assert!(silent(left_ms) > bound_ms, "gone {} ms after the last beat", silent(left_ms));
    }
}

fn now_ms() -> i64 {
    d7y_manager_db::Timestamp::now().0
}

fn millis(time: &str) -> i64 {
    let since = humantime::parse_rfc3339(time).unwrap().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_do_not_mix_and_unknown_ones_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::start(directory.path()).await;
    let grpc = manager.running.grpc;
    manager.post("/api/v1/clusters", &serde_json::json!({ "name": "prod" })).await;
    let refused = Member::join(grpc, Kind::Seed, "seed", "test").await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let known = "there is no cluster \"test\", there are \"default\", \"prod\"; make it with";
    assert!(refused.message().contains(known), "{refused}");
    assert_eq!(discover(grpc, "test").await.unwrap_err().code(), Code::NotFound);
    let _prod = Member::join(grpc, Kind::Seed, "seed", "prod").await.unwrap();
    assert_eq!(discover(grpc, "prod").await.unwrap().seeds.len(), 1);
    assert!(discover(grpc, "").await.unwrap().seeds.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_stream_of_the_same_member_is_not_silenced_by_the_older() {
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::start(directory.path()).await;
    let older = Member::join(manager.running.grpc, Kind::Seed, "seed", "").await.unwrap();
    let mut newer = Member::join(manager.running.grpc, Kind::Seed, "seed", "").await.unwrap();
    drop(older);
    for _ in 0..10 {
        assert_eq!(manager.get("/api/v1/seed-peers").await.as_array().unwrap().len(), 1);
        tokio::time::sleep(INTERVAL / 4).await;
    }
    manager.stop().await;
    assert!(newer.heard.message().await.is_err(), "the manager says that it stops");
}
