use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use bytes::Bytes;
use d7y_types::{Compression, LayerRef, Sha256Digest};
use http::header::LOCATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{content, kind, origin, read};

/// Debian's docker-registry on a free port, over a directory of its own.
struct DockerRegistry {
    child: Child,
    log: Option<JoinHandle<()>>,
    host: String,
    _dir: TempDir,
}

impl DockerRegistry {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("config.yml");
        let root = dir.path().join("blobs");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed (Debian package docker-registry)");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("listening on")).expect("the registry starts");
        let rest = line.split("listening on ").nth(1).unwrap();
        let host = rest.split(['"', ' ']).next().unwrap().to_owned();
        let log = Some(std::thread::spawn(move || lines.for_each(drop)));
        Self { child, log, host, _dir: dir }
    }

    /// Pushes a blob in one piece (distribution specification, "Pushing a blob monolithically").
    async fn push(&self, repository: &str, content: &Bytes) -> LayerRef {
        let digest = Sha256Digest(Sha256::digest(content).into());
        let start = format!("http://{}/v2/{repository}/blobs/uploads/", self.host);
        let session = send(Method::POST, &start, Bytes::new()).await;
        assert_eq!(session.status(), StatusCode::ACCEPTED);
        let upload = format!("{}&digest={digest}", session.headers()[LOCATION].to_str().unwrap());
        let stored = send(Method::PUT, &upload, content.clone()).await;
        assert_eq!(stored.status(), StatusCode::CREATED);
        LayerRef {
            registry: self.host.clone(),
            repository: repository.to_owned(),
            digest,
            diff_id: digest,
            size: content.len() as u64,
            compression: Compression::None,
        }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

async fn send(method: Method, url: &str, body: Bytes) -> Response<Incoming> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::builder().method(method).uri(url).body(Full::new(body)).unwrap();
    client.request(request).await.unwrap()
}

#[tokio::test]
async fn docker_registry() {
    let registry = DockerRegistry::start();
    let blob = content(3 << 20);
    let layer = registry.push("library/app", &blob).await;
    let (origin, size) = (origin(), layer.size);
    let wrong_digest = LayerRef { digest: Sha256Digest([7; 32]), ..layer.clone() };
    let wrong_repository = LayerRef { repository: "library/other".into(), ..layer.clone() };
    let cases = [
        (layer.clone(), 0, "ok"),
        (layer.clone(), 1, "ok"),
        (layer.clone(), size / 2, "ok"),
        (layer.clone(), size - 1, "ok"),
        (wrong_digest, 0, "not-found"),
        (wrong_repository, 5, "not-found"),
        (LayerRef { size: size - 1, ..layer.clone() }, 0, "too-long"),
        (LayerRef { size: size - 1, ..layer.clone() }, 9, "too-long"),
        (LayerRef { size: size + 1, ..layer.clone() }, 0, "truncated"),
    ];
    for (layer, offset, expected) in cases {
        let (received, outcome) = read(&origin, &layer, offset).await;
        assert_eq!(kind(&outcome), expected, "{layer:?} from {offset}: {outcome:?}");
        let bytes = if expected == "ok" { &blob[offset as usize..] } else { &[] };
        assert!(received == bytes, "{layer:?} from {offset}");
    }
    origin.probe(&layer).await.unwrap();
}
