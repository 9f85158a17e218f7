//! `d7y preheat` against a manager, a scheduler and a node in this process.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use d7y_chassis::{HumanDuration, Secret, Shutdown, Tasks};
use d7y_manager_client::ManagerConfig;
use d7y_origin::testing::FakeRegistry;
use d7y_types::{Compression, LayerRef, Sha256Digest};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PASSWORD: &str = "correct horse battery";

struct Site {
    rest: SocketAddr,
    token: String,
    _directory: tempfile::TempDir,
}

fn tasks() -> Tasks {
    Tasks::new(Shutdown::default())
}

impl Site {
    async fn start() -> Self {
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
        let at = ManagerConfig { address: manager.grpc.to_string(), cluster: String::new() };

        let mut config = d7y_scheduler::Config { manager: at.clone(), ..d7y_scheduler::Config::default() };
        (config.server.listen, config.metrics.listen) = (any, any);
        config.settle = HumanDuration::from_millis(0);
        d7y_scheduler::run(config, &tasks()).await.unwrap();

        let mut config =
            d7y_peer::Config { peer_id: "node".into(), manager: at, ..d7y_peer::Config::default() };
        config.store.directory = directory.path().join("store");
        config.local.socket = directory.path().join("peer.sock");
        config.transfer.listen = any;
        config.observability.listen = vec![any];
        d7y_peer::start(config, tasks()).await.unwrap();
        let token = token(manager.rest).await;
        Self { rest: manager.rest, token, _directory: directory }
    }

    async fn d7y(&self, token: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_d7y"));
        command.env_remove("D7Y_MANAGER").env("D7Y_TOKEN", token).env("XDG_CONFIG_HOME", "/nonexistent");
        command.args(["preheat", "--manager", &self.rest.to_string()]).args(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}

async fn token(rest: SocketAddr) -> String {
    // "root:correct horse battery"
    let login = "cm9vdDpjb3JyZWN0IGhvcnNlIGJhdHRlcnk=";
    let body = r#"{"name":"cli","scopes":["jobs"]}"#;
    let request = format!(
        "POST /api/v1/personal-access-tokens HTTP/1.0\r\nAuthorization: Basic {login}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = tokio::net::TcpStream::connect(rest).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let made: serde_json::Value = serde_json::from_str(body).unwrap();
    made["token"].as_str().expect("a token").to_owned()
}

/// A layer with one file.
fn push_layer(registry: &FakeRegistry) -> LayerRef {
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
    tar.extend((0..512u32).map(|n| n as u8));
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
