//! `d7y doctor` on a machine without d7y.

use crate::program::d7y;

#[test]
fn faults_are_named_with_what_mends_them_and_the_exit_code_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let peer = directory.path().join("peer.yaml");
    std::fs::write(&peer, "store:\n  limits: 5GiB\n").unwrap();
    let nowhere = directory.path().join("none.yaml");
    let ended = d7y([
        "doctor",
        "--peer",
        peer.to_str().unwrap(),
        "--snapshotter",
        nowhere.to_str().unwrap(),
        "--containerd",
        "/no/such/containerd",
    ]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in [
        "failed   config.peer",
        "line 2",
        "limits",
        "--check-config",
        "failed   containerd.version",
        "ok       config.snapshotter",
    ] {
        assert!(ended.stdout.contains(part), "{part:?} is not in\n{}", ended.stdout);
    }
}

#[test]
fn json_counts_what_it_lists() {
    let ended = d7y(["doctor", "-o", "json", "--containerd", "/no/such/containerd"]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let failed = checks.iter().filter(|check| check["state"] == "failed");
    assert_eq!(report["failed"], failed.clone().count());
    assert!(failed.clone().count() > 0 && failed.clone().all(|check| check["mend"].is_string()), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_asked_where_the_cluster_is() {
    let any: std::net::SocketAddr = (std::net::Ipv4Addr::LOCALHOST, 0).into();
    let listen = d7y_manager::ListenConfig { listen: any };
    let directory = tempfile::tempdir().unwrap();
    let config = d7y_manager::Config {
        rest: listen.clone(),
        grpc: listen.clone(),
        metrics: listen,
        directory: directory.path().join("manager"),
        ..d7y_manager::Config::default()
    };
    let tasks = d7y_chassis::Tasks::new(d7y_chassis::Shutdown::default());
    let manager = d7y_manager::start(config, &tasks).await.unwrap();
    let store = directory.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::write(store.join("discovered.json"), r#"{"schedulers":["127.0.0.1:1"],"seeds":[]}"#).unwrap();
    let table = [
        (manager.grpc.to_string(), "", "cluster default with 0 scheduler(s)", "the peer is told of none"),
        (manager.grpc.to_string(), "prod", "there is no cluster \"prod\"", "127.0.0.1:1: "),
        ("127.0.0.1:1".to_owned(), "", "127.0.0.1:1: ", "127.0.0.1:1: "),
    ];
    for (address, cluster, of_manager, of_scheduler) in table {
        let peer = directory.path().join("peer.yaml");
        let text = format!(
            "store:\n  directory: {}\nmanager:\n  address: {address}\n  cluster: \"{cluster}\"\n",
            store.display()
        );
        std::fs::write(&peer, text).unwrap();
        let args = ["doctor", "--peer", peer.to_str().unwrap(), "--containerd", "/no/such/containerd"];
        let args = args.map(str::to_owned);
        let ended = tokio::task::spawn_blocking(move || d7y(args)).await.unwrap();
        let line = |name: &str| ended.stdout.lines().find(|line| line.contains(name)).unwrap_or_default();
        let (manager, scheduler) = (line("warning  manager "), line("warning  scheduler "));
        assert!(manager.contains(of_manager), "{address} {cluster}: {}", ended.stdout);
        assert!(scheduler.contains(of_scheduler), "{address} {cluster}: {}", ended.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_running_peer_was_told_counts() {
    let table = [
        (Some("schedulerConnected"), "ok ", "the running peer is connected"),
        (Some("standalone"), "ok ", "the running peer is standalone"),
        (None, "warning ", "the peer is told of none"),
    ];
    for (told, state, said) in table {
        let address = answering_peer(told).await;
        let directory = tempfile::tempdir().unwrap();
        let peer = directory.path().join("peer.yaml");
        std::fs::write(&peer, format!("observability:\n  listen: [\"{address}\"]\n")).unwrap();
        let args = ["doctor", "--peer", peer.to_str().unwrap(), "--containerd", "/no/such/containerd"];
        let args = args.map(str::to_owned);
        let ended = tokio::task::spawn_blocking(move || d7y(args)).await.unwrap();
        let found = ended.stdout.lines().any(|line| line.starts_with(state) && line.contains(said));
        assert!(found, "{said:?} is not in\n{}", ended.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_is_asked_for_nothing_that_only_nodes_have() {
    let address = answering_peer(Some("schedulerConnected")).await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("peer.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let peer = directory.path().join("peer.yaml");
    let text = format!(
        "role: seed\nstore:\n  directory: {at}/store\nlocal:\n  socket: {socket}\n\
         observability:\n  listen: [\"{address}\"]\norigin:\n  registries: [{{host: \"{address}\"}}]\n",
        at = directory.path().display(),
        socket = socket.display(),
    );
    std::fs::write(&peer, text).unwrap();
    let registry = address.to_string();
    let args = ["doctor", "--peer", peer.to_str().unwrap(), "--containerd", "/no/such/containerd"];
    let args = args.into_iter().chain(["--registry", &registry]).map(str::to_owned).collect::<Vec<_>>();
    let ended = tokio::task::spawn_blocking(move || d7y(args)).await.unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in ["containerd", "kernel", "snapshotter", "disk.snapshots"] {
        assert!(!ended.stdout.contains(part), "{part:?} is in\n{}", ended.stdout);
    }
    let asked = ended.stdout.lines().filter(|line| line.starts_with("ok       registry "));
    assert_eq!(asked.count(), 1, "the registry was asked twice:\n{}", ended.stdout);
}

/// Says the same to whatever it is asked, until the test ends.
async fn answering_peer(told: Option<&str>) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let store = serde_json::json!({"directory": "/s", "keptBytes": 0, "limitBytes": 1, "evictedLayers": 0});
    let status = serde_json::json!({
        "peerId": "a", "role": "node", "schedulerConnected": told == Some("schedulerConnected"),
        "standalone": told == Some("standalone"),
        "store": store, "parents": [], "layers": [],
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{status}").as_bytes()).await;
        }
    });
    address
}
