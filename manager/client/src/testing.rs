//! A manager that knows nothing but settings, for the tests of daemons that ask one.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use d7y_proto::manager::manager_server::{self, ManagerServer};
use d7y_proto::manager::{DiscoverRequest, Discovery, Kind, ManagerMessage, MemberMessage};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// How often who asks is told to ask again.
const REFRESH_MS: u32 = 20;

/// What each kind of daemon is told; nothing, unless it was set.
#[derive(Clone, Default)]
pub struct FakeManager(Arc<Mutex<HashMap<Kind, HashMap<String, String>>>>);

impl FakeManager {
    /// Replaces what daemons of this kind are told.
    pub fn set(&self, kind: Kind, settings: &[(&str, &str)]) {
        let settings = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, settings);
    }

    /// Answers until the runtime ends.
    ///
    /// # Errors
    /// No port of this host can be had.
    pub async fn serve(&self) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let serving = Server::builder().add_service(ManagerServer::new(self.clone()));
        tokio::spawn(serving.serve_with_incoming(TcpIncoming::from(listener)));
        Ok(address)
    }
}

#[tonic::async_trait]
impl manager_server::Manager for FakeManager {
    type KeepAliveStream = Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

    async fn keep_alive(
        &self,
        _: Request<Streaming<MemberMessage>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        Err(Status::unimplemented("no members here"))
    }

    async fn discover(&self, request: Request<DiscoverRequest>) -> Result<Response<Discovery>, Status> {
        let settings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let config = settings.get(&request.into_inner().kind()).cloned().unwrap_or_default();
        Ok(Response::new(Discovery { refresh_ms: REFRESH_MS, config, ..Discovery::default() }))
    }
}
