//! `d7y preheat` against a manager, a scheduler and a node in this process.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use d7y_chassis::{HumanDuration, Secret, Shutdown, Tasks};
use d7y_manager_client::ManagerConfig;
use d7y_origin::testing::{FakeRegistry, Turn};
use d7y_types::{Compression, LayerRef, Sha256Digest};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PASSWORD: &str = "correct horse battery";

struct Site {
    rest: SocketAddr,
    grpc: SocketAddr,
    token: String,
    directory: tempfile::TempDir,
}

fn tasks() -> Tasks {
    Tasks::new(Shutdown::default())
}

impl Site {
    /// One cluster, the default one, with one node.
    async fn start() -> Self {
        let site = Self::alone().await;
        site.populate("").await;
        site
    }

    /// Nobody but the manager.
    async fn alone() -> Self {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let listen = d7y_manager::ListenConfig { listen: any };
        let directory = tempfile::tempdir().unwrap();
        let config = d7y_manager::Config {
            rest: listen.clone(),
            grpc: listen.clone(),
            metrics: listen,
            directory: directory.path().join("manager"),
            initial_root_password: Secret::new(PASSWORD),
            ..d7y_manager::Config::default()
        };
        let manager = d7y_manager::start(config, &tasks()).await.unwrap();
        let made = post(manager.rest, "personal-access-tokens", r#"{"name":"cli","scopes":["jobs"]}"#).await;
        let token = made["token"].as_str().expect("a token").to_owned();
        Self { rest: manager.rest, grpc: manager.grpc, token, directory }
    }

    /// A scheduler and a node, which is called after its cluster.
    async fn populate(&self, cluster: &str) {
        if !cluster.is_empty() {
            post(self.rest, "clusters", &format!(r#"{{"name":"{cluster}"}}"#)).await;
        }
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let at = ManagerConfig { address: self.grpc.to_string(), cluster: cluster.into() };
        let mut config = d7y_scheduler::Config { manager: at.clone(), ..d7y_scheduler::Config::default() };
        (config.server.listen, config.metrics.listen) = (any, any);
        config.settle = HumanDuration::from_millis(0);
        d7y_scheduler::run(config, &tasks()).await.unwrap();

        let mut config = d7y_peer::Config {
            peer_id: format!("node-{cluster}"),
            manager: at,
            ..d7y_peer::Config::default()
        };
        config.store.directory = self.store(cluster);
        config.local.socket = self.directory.path().join(format!("{cluster}.sock"));
        config.transfer.listen = any;
        config.observability.listen = vec![any];
        d7y_peer::start(config, tasks()).await.unwrap();
    }

    /// Of the node of a cluster.
    fn store(&self, cluster: &str) -> PathBuf {
        self.directory.path().join(format!("store-{cluster}"))
    }

    /// Whether the node of a cluster has anything of a layer on its disk.
    fn has(&self, cluster: &str, layer: &LayerRef) -> bool {
        let name = layer.digest.to_string();
        let name = name.rsplit(':').next().unwrap();
        let held = std::fs::read_dir(self.store(cluster).join("layers")).unwrap();
        held.into_iter().any(|entry| entry.unwrap().file_name().to_string_lossy().contains(name))
    }

    async fn d7y(&self, token: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_d7y"));
        command.env_remove("D7Y_MANAGER").env("D7Y_TOKEN", token).env("XDG_CONFIG_HOME", "/nonexistent");
        command.args(["preheat", "--manager", &self.rest.to_string()]).args(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Preheats, and looks at how that ended and what was said.
    async fn check(&self, args: &[&str], code: i32, parts: &[&str]) {
        let output = self.d7y(&self.token, args).await;
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        for part in parts {
            assert!(told.contains(part), "{args:?}: {told:?} lacks {part:?}");
        }
    }
}

/// As root.
async fn post(rest: SocketAddr, what: &str, body: &str) -> serde_json::Value {
    // "root:correct horse battery"
    let login = "cm9vdDpjb3JyZWN0IGhvcnNlIGJhdHRlcnk=";
    let request = format!(
        "POST /api/v1/{what} HTTP/1.0\r\nAuthorization: Basic {login}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = tokio::net::TcpStream::connect(rest).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{answer}");
    serde_json::from_str(body).unwrap()
}

fn push_layer(registry: &FakeRegistry) -> LayerRef {
    push_layer_of(registry, 0)
}

/// A layer with one file, whose bytes begin with this one.
fn push_layer_of(registry: &FakeRegistry, first: u8) -> LayerRef {
    let mut tar = vec![0u8; 512];
    tar[..4].copy_from_slice(b"file");
    tar[100..107].copy_from_slice(b"0000644");
    tar[108..115].copy_from_slice(b"0000000");
    tar[116..123].copy_from_slice(b"0000000");
    tar[124..135].copy_from_slice(b"00000001000");
    tar[136..147].copy_from_slice(b"00000000000");
    tar[148..156].copy_from_slice(b"        ");
    tar[156] = b'0';
    tar[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
    tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend((0..512u32).map(|n| (n as u8).wrapping_add(first)));
    tar.resize(tar.len() + 1024, 0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let diff_id = Sha256Digest(Sha256::digest(&tar).into());
    LayerRef { diff_id, compression: Compression::Gzip, ..registry.add_blob("app", gzip.finish().unwrap()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_0_only_when_every_image_is_where_it_should_be() {
    let registry = FakeRegistry::start().await;
    let layer = push_layer(&registry);
    registry.add_image("app", "1", &[layer]);
    let site = Site::start().await;
    let (good, bad) = (format!("{}/app:1", registry.host()), format!("{}/app:2", registry.host()));
    let all = ["--scope", "all-peers"];
    let table: [(&str, &[&str], i32, &[&str]); 6] = [
        (&site.token, &[&good, all[0], all[1], "--wait"], 0, &["done", "1/1", &good]),
        (&site.token, &[&good, all[0], all[1], "--wait=false"], 0, &[&good]),
        (&site.token, &[&good, &bad, all[0], all[1]], 1, &["done", "failed", "has no image 2 in app"]),
        (&site.token, &[&good, "--scope", "moon"], 1, &["no scope", "single-seed"]),
        ("", &[&good], 1, &["a personal access token is needed", "d7y login 127.0.0.1"]),
        ("d7y_wrong", &[&good], 1, &["unknown, taken back or expired"]),
    ];
    for (token, args, code, parts) in table {
        let output = site.d7y(token, args).await;
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        for part in parts {
            assert!(told.contains(part), "{args:?}: {told:?} lacks {part:?}");
        }
    }
    let nobody = Command::new(env!("CARGO_BIN_EXE_d7y"))
        .args(["preheat", "--manager", "127.0.0.1:1", &good])
        .env("D7Y_TOKEN", "x")
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("the manager at 127.0.0.1:1 does not answer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_kept_for_its_own_manager_and_gives_way_to_what_is_said() {
    let registry = FakeRegistry::start().await;
    let layer = push_layer(&registry);
    registry.add_image("app", "1", &[layer]);
    let site = Site::start().await;
    let (rest, image) = (site.rest.to_string(), format!("{}/app:1", registry.host()));
    let home = tempfile::tempdir().unwrap();
    let d7y = async |password: Option<&str>, token: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_d7y"));
        command.args(args).env_remove("D7Y_MANAGER").env_remove("XDG_CONFIG_HOME");
        command.env("HOME", home.path()).env("D7Y_TOKEN", token);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let password = password.unwrap_or_default().to_owned();
        let output = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let output = output.await.unwrap();
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), told)
    };
    let login: &[&str] = &["login", &rest, "--password-stdin"];
    let preheat: &[&str] = &["preheat", &image, "--scope", "all-peers"];
    let (code, told) = d7y(Some("a guess"), "", login).await;
    assert!(code == Some(1) && told.contains("password is wrong"), "{told}");
    let (code, told) = d7y(None, "", &login[..2]).await;
    assert!(code == Some(1) && told.contains("--password-stdin"), "{told}");
    let (code, told) = d7y(Some(&format!("{PASSWORD}\n")), "", login).await;
    assert!(code == Some(0) && told.contains("root is logged in"), "{told}");
    let file = home.path().join(".config/d7y/login.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.contains("d7y_") && !kept.contains(PASSWORD) && !told.contains("d7y_"), "{told}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // Neither the address nor the token has to be said.
    let (code, told) = d7y(None, "", preheat).await;
    assert!(code == Some(0) && told.contains("done"), "{told}");
    let (code, told) = d7y(None, "d7y_wrong", preheat).await;
    assert!(code == Some(1) && told.contains("unknown, taken back or expired"), "what is said wins: {told}");
    let elsewhere = [preheat, &["--manager", "127.0.0.1:1"]].concat();
    let (code, told) = d7y(None, "", &elsewhere).await;
    assert!(code == Some(1) && told.contains("d7y login 127.0.0.1:1"), "of another manager: {told}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, told) = d7y(None, "", preheat).await;
    assert!(code == Some(1) && told.contains("can be read by others"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_done_in_its_time_ends_with_a_code_of_its_own() {
    let registry = FakeRegistry::start().await;
    let layer = push_layer(&registry);
    registry.add_image("app", "1", &[layer]);
    let site = Site::start().await;
    let (good, bad) = (format!("{}/app:1", registry.host()), format!("{}/app:2", registry.host()));
    for timeout in ["0s", "8days", "soon"] {
        site.check(&[&good, "--timeout", timeout], 2, &["--timeout"]).await;
    }
    // Silent from the image's config on: the job must not wait for as long as the registry is given to answer.
    registry.always(Turn::StallHead);
    let in_time = ["--scope", "all-peers", "--timeout", "6s"];
    let began = Instant::now();
    let late = ["overdue", "not done within its time: the registry has not answered yet", "preheat again"];
    site.check(&[&[good.as_str()], &in_time[..]].concat(), 3, &late).await;
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    // What failed for another reason is worse than what is late.
    let both = ["overdue", "failed", "has no image 2 in app"];
    site.check(&[&[good.as_str(), &bad], &in_time[..]].concat(), 1, &both).await;

    // The layers are what is missing: the config is served, the blob behind it is not.
    registry.then([Turn::Serve]);
    let late = ["overdue", "not done within its time: peer node- is still fetching, or away"];
    site.check(&[&[good.as_str()], &in_time[..]].concat(), 3, &late).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_clusters_that_are_named_get_the_image() {
    let registry = FakeRegistry::start().await;
    let layers = [1, 2, 3].map(|first| push_layer_of(&registry, first));
    for (tag, layer) in ["1", "2", "3"].into_iter().zip(&layers) {
        registry.add_image("app", tag, std::slice::from_ref(layer));
    }
    let site = Site::alone().await;
    site.populate("east").await;
    site.populate("west").await;
    let image = |tag: u8| format!("{}/app:{tag}", registry.host());
    let unknown = ["there is no cluster \"moon\"", "\"east\", \"west\""];
    site.check(&[&image(1), "--cluster", "east", "--cluster", "moon"], 1, &unknown).await;
    let table: [(u8, &[&str], [bool; 2]); 3] = [
        (1, &["--cluster", "west"], [false, true]),
        (2, &["--cluster", "east", "--cluster", "west"], [true, true]),
        (3, &[], [true, true]),
    ];
    for (tag, clusters, expected) in table {
        let count = expected.iter().filter(|got| **got).count();
        let peers = format!(" {count}/{count} ");
        let image = image(tag);
        let args = [&[image.as_str(), "--scope", "all-peers"], clusters].concat();
        site.check(&args, 0, &["done", &peers]).await;
        let layer = &layers[usize::from(tag) - 1];
        assert_eq!([site.has("east", layer), site.has("west", layer)], expected, "{clusters:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_is_one_manifest_of_the_index() {
    let registry = FakeRegistry::start().await;
    let platforms = ["linux/amd64", "linux/arm64/v8"];
    let layers = [1, 2].map(|first| push_layer_of(&registry, first));
    let entries = platforms.into_iter().zip(&layers).map(|(platform, layer)| {
        let parts: Vec<_> = platform.split('/').collect();
        let digest = registry.add_image("app", parts[1], std::slice::from_ref(layer));
        let of = serde_json::json!({"os": parts[0], "architecture": parts[1], "variant": parts.get(2)});
        serde_json::json!({"digest": digest, "size": 1, "platform": of})
    });
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries.collect::<Vec<_>>()});
    registry.add_manifest("app", "1", index.to_string());
    let site = Site::start().await;
    let image = format!("{}/app:1", registry.host());
    let preheat = |platform| [image.as_str(), "--scope", "all-peers", "--platform", platform];
    let has = ["no manifest for linux/s390x; it has linux/amd64, linux/arm64/v8"];
    site.check(&preheat("linux/s390x"), 1, &has).await;
    site.check(&preheat("s390x"), 1, &["\"s390x\" is not a platform such as linux/amd64"]).await;
    let held = || [site.has("", &layers[0]), site.has("", &layers[1])];
    site.check(&preheat("linux/arm64"), 0, &["done"]).await;
    assert_eq!(held(), [false, true], "of another platform nothing is fetched");
    site.check(&preheat("linux/amd64"), 0, &["done"]).await;
    assert_eq!(held(), [true, true]);
}
