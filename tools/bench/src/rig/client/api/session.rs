//! One connection to containerd, and the lease that keeps its garbage collector off.

use std::path::Path;

use anyhow::{Context, Result};
use containerd_client::Client as Containerd;
use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use tonic::Request;

use super::fetch::Registry;
use crate::rig::client::Wanted;
use crate::rig::node::Node;

/// What a pull or a start works with.
pub struct Session {
    pub client: Containerd,
    pub registry: Registry,
    pub image: Wanted,
    pub namespace: String,
    lease: Option<String>,
}

impl Session {
    pub async fn open(node: &Node, image: &Wanted) -> Result<Self> {
        let mut session = Self {
            client: connect(node.socket()).await?,
            registry: Registry::new(&image.reference),
            image: image.clone(),
            namespace: node.namespace.clone(),
            lease: None,
        };
        let id = format!("rig-{}", hex::encode(crate::rig::lab::random_bytes::<8>()?));
        let create = CreateRequest { id: id.clone(), ..Default::default() };
        session.client.leases().create(session.ask(create)).await.context("cannot create a lease")?;
        session.lease = Some(id);
        Ok(session)
    }

    /// Gives what was made to containerd's garbage collector; objects that refer to it keep it.
    pub async fn release(&self) -> Result<()> {
        let Some(id) = self.lease.clone() else { return Ok(()) };
        self.client.leases().delete(self.ask(DeleteRequest { id, sync: false })).await?;
        Ok(())
    }

    pub fn snapshotter(&self) -> String {
        self.image.snapshotter.name().to_owned()
    }

    /// A request in our namespace and under our lease.
    pub fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = in_namespace(message, &self.namespace);
        if let Some(lease) = &self.lease {
            request
                .metadata_mut()
                .insert("containerd-lease", lease.parse().expect("a lease's name is ASCII"));
        }
        request
    }
}

pub async fn connect(socket: &Path) -> Result<Containerd> {
    let connected = Containerd::from_path(socket).await;
    connected.with_context(|| format!("cannot reach containerd at {}", socket.display()))
}

pub fn in_namespace<T>(message: T, namespace: &str) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = namespace.parse().expect("a lab's name is ASCII");
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}
