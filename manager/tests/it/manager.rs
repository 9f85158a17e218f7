use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use d7y_chassis::{HumanDuration, Secret, Shutdown, Tasks};
use d7y_manager::{Config, ListenConfig, Running};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::SOON;

pub const PASSWORD: &str = "correct horse battery";
/// Three of them are longer than a loaded machine keeps a task waiting that has to beat.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// A manager that can be killed and started again on the same directory and ports.
pub struct Manager {
    pub running: Running,
    /// For the Authorization header.
    login: String,
    tasks: Tasks,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Manager {
    pub async fn start(directory: &Path) -> Self {
        let any = ListenConfig { listen: (Ipv4Addr::LOCALHOST, 0).into() };
        Self::start_at(directory, [any.clone(), any], |_| {}).await
    }

    pub async fn start_with(directory: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let any = ListenConfig { listen: (Ipv4Addr::LOCALHOST, 0).into() };
        Self::start_at(directory, [any.clone(), any], change).await
    }

    /// On the ports that it had.
    pub async fn again(self, directory: &Path) -> Self {
        let (rest, grpc) = (self.running.rest, self.running.grpc);
        self.kill().await;
        let at = |listen| ListenConfig { listen };
        Self::start_at(directory, [at(rest), at(grpc)], |_| {}).await
    }

    async fn start_at(
        directory: &Path,
        [rest, grpc]: [ListenConfig; 2],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config {
            rest,
            grpc,
            metrics: ListenConfig { listen: (Ipv4Addr::LOCALHOST, 0).into() },
            directory: directory.to_owned(),
            initial_root_password: Secret::new(PASSWORD),
            ..Config::default()
        };
        config.keep_alive.interval = INTERVAL.into();
        config.discovery.refresh = HumanDuration::from_millis(100);
        config.origin.docker_config = Some("/nonexistent".into());
        config.origin.retry.attempts = 2.try_into().unwrap();
        change(&mut config);
        let tasks = Tasks::new(Shutdown::new(config.shutdown.clone()));
        // A runtime of its own: dropping it is as sudden as kill -9.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let starting = tasks.clone();
        let running = runtime.spawn(async move { d7y_manager::start(config, &starting).await });
        let running = running.await.unwrap().expect("the manager starts");
        let password = BASE64_STANDARD.encode(format!("root:{PASSWORD}"));
        let login = format!("Basic {password}");
        let mut manager = Self { running, login, tasks, runtime: Some(runtime) };
        // Passwords are slow on purpose.
        let name = serde_json::json!({ "name": "test" });
        let made = manager.post("/api/v1/personal-access-tokens", &name).await;
        manager.login = format!("Bearer {}", made["token"].as_str().expect("a token"));
        manager
    }

    async fn kill(mut self) {
        let runtime = self.runtime.take().expect("killed once");
        let ended = move || runtime.shutdown_timeout(Duration::from_secs(5));
        tokio::task::spawn_blocking(ended).await.unwrap();
    }

    pub async fn stop(mut self) {
        self.tasks.shutdown().begin("stopped by the test");
        let (runtime, tasks) = (self.runtime.take().expect("stopped once"), self.tasks.clone());
        runtime.spawn(async move { tasks.finish().await }).await.unwrap().expect("an orderly stop");
        runtime.shutdown_background();
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask("POST", path, &body.to_string()).await;
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).unwrap_or_default()
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let login = &self.login;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: d7y\r\nConnection: close\r\nAuthorization: {login}\r\n"
        );
        let length = body.len();
        let request =
            format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        let answer = http(self.running.rest, &request).await;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (status, body)
    }

    /// Asks until the answer is as wanted.
    pub async fn wait(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            let answer = self.get(path).await;
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} is still {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub async fn http(address: SocketAddr, request: &str) -> String {
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}
