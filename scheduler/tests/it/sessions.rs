use std::collections::BTreeSet;
use std::time::Duration;

use d7y_chassis::HumanDuration;
use d7y_proto::scheduler::inventory::State;
use d7y_proto::scheduler::peer_message::Message;
use d7y_proto::scheduler::scheduler_message::Message as Heard;
use d7y_proto::scheduler::{Announce, CloseTask, GetTrace, Inventory, PublishTrace, Role};
use d7y_scheduler_core::MAX_OPEN_PER_PEER;
use tonic::Code;

use crate::cluster::{Cluster, PATIENCE, Peer, TASK, announce, inventory, open, parents};

#[tokio::test]
async fn an_opener_hears_of_the_lease_at_once_and_of_parents_as_they_come() {
    let cluster = Cluster::start().await;
    let seed = cluster.join("seed", Role::Seed).await;
    let mut node = cluster.join("node", Role::Node).await;
    node.say(open(&TASK)).await;
    let first = node.assigned().await;
    let ingester = first.ingester.unwrap();
    assert_eq!((ingester.peer_id.as_str(), ingester.address.as_str()), ("seed", "127.0.0.1:4000"));
    assert!(!first.ingest_yourself && first.parents.is_empty() && first.fallback.is_none());

    seed.say(inventory(State::Complete)).await;
    let second = node.assigned().await;
    assert_eq!(parents(&second), ["seed"]);
    assert_eq!(second.task, TASK);
    assert!(second.ingester.is_none() && !second.ingest_yourself);
    assert!((1..=1000).contains(&second.parents[0].weight));
    assert_eq!(second.parents[0].role(), Role::Seed);
}

#[tokio::test]
async fn who_disconnects_is_recommended_no_more_and_its_lease_moves() {
    let cluster = Cluster::start().await;
    let mut first = cluster.join("first", Role::Node).await;
    let mut second = cluster.join("second", Role::Node).await;
    first.say(open(&TASK)).await;
    let own = first.assigned().await;
    assert!(own.ingest_yourself && own.ingester.unwrap().peer_id == "first");
    second.say(open(&TASK)).await;
    assert_eq!(second.assigned().await.ingester.unwrap().peer_id, "first");

    first.say(inventory(State::Partial)).await;
    let told = second.parents_become(&["first"]).await;
    assert_eq!(told.fallback.unwrap().peer_id, "first", "nobody holds the layer whole");
    drop(first);
    let told = second.parents_become(&[]).await;
    assert!(told.ingest_yourself && told.fallback.is_none());
}

#[tokio::test]
async fn a_newer_session_of_a_peer_replaces_the_older_one() {
    let cluster = Cluster::start().await;
    let mut older = cluster.join("node", Role::Node).await;
    let mut newer = cluster.join("node", Role::Node).await;
    assert_eq!(older.ends().await.unwrap().code(), Code::Aborted);
    newer.say(open(&TASK)).await;
    assert!(newer.assigned().await.ingest_yourself, "the end of the older one did not remove the newer one");
}

#[tokio::test]
async fn a_second_peer_of_the_same_id_is_refused_while_the_first_is_there() {
    let cluster = Cluster::start().await;
    let process = |incarnation: &str, address: &str| {
        let Message::Announce(announce) = announce("node", Role::Node) else { unreachable!() };
        let (incarnation, address) = (incarnation.to_owned(), address.to_owned());
        Message::Announce(Announce { incarnation, address, ..announce })
    };
    let mut first = cluster.join_as(process("a", "192.0.2.1:4000")).await;
    let mut second = Peer::open(cluster.addresses.server).await;
    second.say(process("b", "192.0.2.2:4000")).await;
    let status = second.ends().await.unwrap();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("192.0.2.1:4000 has the id node already"), "{}", status.message());
    first.say(open(&TASK)).await;
    assert!(first.assigned().await.ingest_yourself, "the first one did not notice");

    let again = cluster.join_as(process("a", "192.0.2.3:4000")).await;
    assert_eq!(first.ends().await.unwrap().code(), Code::Aborted, "the same process from another address");
    let restarted = cluster.join_as(process("c", "192.0.2.3:4000")).await;
    drop((again, restarted));
    let next = async {
        loop {
            let mut second = Peer::open(cluster.addresses.server).await;
            second.say(process("b", "192.0.2.2:4000")).await;
            if second.hear().await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.expect("once the first is gone, the second may have the id");
}

#[tokio::test]
async fn one_task_too_many_is_refused_and_nothing_else() {
    let cluster = Cluster::start().await;
    let mut node = cluster.join("node", Role::Node).await;
    let task = |number: usize| {
        let mut task = [0; 32];
        task[..8].copy_from_slice(&number.to_le_bytes());
        task
    };
    let all: BTreeSet<_> = (0..MAX_OPEN_PER_PEER).map(|number| task(number).to_vec()).collect();
    let opening = node.say_all(all.iter().map(|task| open(task)).collect());
    let hearing = async {
        // A lease that is not claimed in time is told of again: on a slow machine while others are still opened.
        let mut heard = BTreeSet::new();
        while heard.len() < all.len() {
            heard.insert(node.assigned().await.task);
        }
        heard
    };
    let ((), heard) = tokio::join!(opening, hearing);
    assert!(heard == all, "other tasks are assigned than were opened");
    node.say(open(&task(MAX_OPEN_PER_PEER))).await;
    node.say(Message::Close(CloseTask { task: task(0).to_vec() })).await;
    let next = task(MAX_OPEN_PER_PEER + 1);
    node.say(open(&next)).await;
    loop {
        let told = node.assigned().await.task;
        if told == next {
            break;
        }
        assert!(all.contains(&told), "the one too many is assigned");
    }
}

#[tokio::test]
async fn what_breaks_the_contract_ends_the_session_with_a_clear_status() {
    let cluster = Cluster::start().await;
    let node = || announce("node", Role::Node);
    let announced = |change: fn(&mut Announce)| match node() {
        Message::Announce(mut announce) => {
            change(&mut announce);
            Message::Announce(announce)
        }
        _ => unreachable!(),
    };
    let table = [
        (vec![open(&TASK)], "first message is not Announce"),
        (vec![announced(|a| a.peer_id = String::new())], "peer id has 1 to 253"),
        (vec![announced(|a| a.peer_id = "a b".into())], "peer id has 1 to 253"),
        (vec![announced(|a| a.role = 9)], "neither node nor seed"),
        (vec![announced(|a| a.address = "nowhere".into())], "\"nowhere\" is not host:port"),
        (vec![node(), node()], "second time"),
        (vec![node(), open(&[1, 2, 3])], "OpenTask.task has 3 bytes; a SHA-256 digest has 32"),
        (vec![node(), Message::Close(CloseTask { task: vec![0; 33] })], "CloseTask.task has 33 bytes"),
        (vec![node(), Message::GetTrace(GetTrace::default())], "GetTrace.image has 0 bytes"),
        (vec![node(), Message::PublishTrace(PublishTrace::default())], "PublishTrace.image has 0 bytes"),
        (
            vec![node(), Message::Inventory(Inventory { task: TASK.to_vec(), state: 77 })],
            "state 77 is unknown",
        ),
    ];
    for (messages, expected) in table {
        let mut peer = Peer::open(cluster.addresses.server).await;
        for message in messages {
            peer.say(message).await;
        }
        let status = peer.ends().await.unwrap_or_else(|| panic!("no error for {expected:?}"));
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{:?} lacks {expected:?}", status.message());
    }
    let mut newer = cluster.join("newer", Role::Node).await;
    newer.say_nothing_known().await;
    newer.say(open(&TASK)).await;
    assert!(newer.assigned().await.ingest_yourself, "messages of a newer contract are passed over");
}

#[tokio::test]
async fn a_silent_peer_is_gone_after_three_heartbeats_and_a_talking_one_stays() {
    let cluster =
        Cluster::start_with(|config| config.heartbeat.interval = HumanDuration::from_millis(1500)).await;
    let mut silent = cluster.join("silent", Role::Node).await;
    let mut talking = cluster.join("talking", Role::Node).await;
    let status = tokio::select! {
        status = silent.ends() => status.unwrap(),
        () = talking.heartbeats() => panic!("the talking one is gone"),
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    talking.say(open(&TASK)).await;
    assert!(talking.assigned().await.ingest_yourself);
}

#[tokio::test]
async fn a_peer_that_never_reads_is_dropped() {
    let cluster =
        Cluster::start_with(|config| config.heartbeat.interval = HumanDuration::from_millis(1500)).await;
    let mut lazy = cluster.join("lazy", Role::Node).await;
    let mut observer = cluster.join("observer", Role::Node).await;
    let images = [[1; 32], [2; 32], [3; 32]];
    for image in images {
        let body = vec![5; 3 << 20];
        lazy.say(Message::PublishTrace(PublishTrace { image: image.to_vec(), body })).await;
    }
    lazy.say(inventory(State::Complete)).await;
    observer.say(open(&TASK)).await;
    let nag = async {
        let mut interval = tokio::time::interval(Duration::from_millis(20));
        for image in images.iter().cycle() {
            interval.tick().await;
            // Fails once the session has ended, and then nothing more can be said.
            let _ = lazy.try_say(Message::GetTrace(GetTrace { image: image.to_vec() })).await;
        }
    };
    let alive = observer.heartbeats();
    let watch = async {
        observer.parents_become(&["lazy"]).await;
        observer.parents_become(&[]).await;
    };
    tokio::select! {
        () = watch => {}
        () = alive => panic!("the observer is gone"),
        () = nag => unreachable!(),
        () = tokio::time::sleep(PATIENCE) => panic!("the peer that does not read is still there"),
    }
    assert_eq!(lazy.ends().await.unwrap().code(), Code::ResourceExhausted);
    assert_eq!(cluster.metric("sessions_ended_total{reason=\"not_reading\"}").await, Some(1));
}

#[tokio::test]
async fn traces_are_kept_and_sent() {
    let cluster = Cluster::start().await;
    let mut node = cluster.join("node", Role::Node).await;
    let image = vec![3; 32];
    node.say(Message::PublishTrace(PublishTrace { image: image.clone(), body: b"order".to_vec() })).await;
    for (wanted, expected) in [(image, b"order".as_slice()), (vec![4; 32], b"")] {
        node.say(Message::GetTrace(GetTrace { image: wanted.clone() })).await;
        let Ok(Some(Heard::Trace(trace))) = node.hear().await else { panic!("no trace") };
        assert_eq!((trace.image, trace.body.as_slice()), (wanted, expected));
    }
}

#[tokio::test]
async fn a_drain_tells_everyone_and_decides_nothing_more() {
    let cluster = Cluster::start().await;
    let seed = cluster.join("seed", Role::Seed).await;
    let mut node = cluster.join("node", Role::Node).await;
    node.say(open(&TASK)).await;
    assert_eq!(node.assigned().await.ingester.unwrap().peer_id, "seed");
    let mut unannounced = Peer::open(cluster.addresses.server).await;
    let (stopped, ()) = tokio::join!(cluster.stop(), async {
        let Err(status) = node.hear().await else { panic!("the seed's departure is not a decision") };
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(unannounced.ends().await.unwrap().code(), Code::Unavailable);
        drop((seed, node, unannounced));
    });
    stopped.unwrap();
    assert!(tokio::net::TcpStream::connect(cluster.addresses.server).await.is_err());
}

#[tokio::test]
async fn after_a_restart_peers_say_again_what_they_hold() {
    let first = Cluster::start().await;
    let node = first.join("node", Role::Node).await;
    node.say(inventory(State::Complete)).await;
    drop(node);
    first.stop().await.unwrap();

    let second = Cluster::start_with(|config| config.settle = HumanDuration::from_millis(500)).await;
    let mut asker = second.join("asker", Role::Node).await;
    asker.say(open(&TASK)).await;
    let told = asker.assigned().await;
    assert!(told.ingester.is_none() && told.parents.is_empty(), "the cluster is still gathering");
    let node = second.join("node", Role::Node).await;
    node.say(inventory(State::Complete)).await;
    let told = asker.parents_become(&["node"]).await;
    assert!(told.ingester.is_none() && told.fallback.is_none());
}

#[tokio::test]
async fn metrics_show_who_is_there() {
    let cluster = Cluster::start().await;
    let _seed = cluster.join("seed", Role::Seed).await;
    let mut node = cluster.join("node", Role::Node).await;
    node.say(open(&TASK)).await;
    node.assigned().await;
    let shown = async {
        let mut interval = tokio::time::interval(Duration::from_millis(10));
        loop {
            interval.tick().await;
            if cluster.metric("open_tasks").await == Some(1) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, shown).await.expect("the gauges follow the ticks");
    let expected = [
        ("peers{role=\"seed\"}", 1),
        ("peers{role=\"node\"}", 1),
        ("assignments_sent_total", 1),
        ("decisions_total", 1),
        ("traces", 0),
    ];
    for (name, value) in expected {
        let shown = cluster.metric(name).await;
        assert!(shown.is_some_and(|shown| shown >= value), "{name} is {shown:?}");
    }
}
