//! The built `d7y-scheduler` with a manager that sets its log level.

use std::io::{BufRead, BufReader};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};

use d7y_proto::manager::manager_server::{self, ManagerServer};
use d7y_proto::manager::{DiscoverRequest, Discovery, Kind, ManagerMessage, MemberMessage};
use futures_util::Stream;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Sets the log level of schedulers, and of nobody else.
struct Manager;

#[tonic::async_trait]
impl manager_server::Manager for Manager {
    type KeepAliveStream = Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

    async fn keep_alive(
        &self,
        _: Request<Streaming<MemberMessage>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        Err(Status::unimplemented("no members here"))
    }

    async fn discover(&self, request: Request<DiscoverRequest>) -> Result<Response<Discovery>, Status> {
        let config = match request.into_inner().kind() {
            Kind::Scheduler => [("log.level".to_owned(), "debug".to_owned())].into(),
            _ => Default::default(),
        };
        Ok(Response::new(Discovery { refresh_ms: 20, config, ..Discovery::default() }))
    }
}

/// Killed with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_sets_the_log_level_of_a_running_scheduler() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let manager = format!("manager.address={}", listener.local_addr().unwrap());
    let serving = Server::builder().add_service(ManagerServer::new(Manager));
    tokio::spawn(serving.serve_with_incoming(TcpIncoming::from(listener)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_d7y-scheduler"));
    for setting in [&manager, "server.listen=127.0.0.1:0", "metrics.listen=127.0.0.1:0", "name=test"] {
        command.args(["--set", setting]);
    }
    let mut child = command.env_clear().stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let _running = Running(child);
    let taken =
        |line: &String| line.contains("the configuration was read again") && line.contains("log.level");
    assert!(log.lines().map(Result::unwrap).any(|line| taken(&line)));
}
