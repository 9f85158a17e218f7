//! containerd's CRI plugin, asked as the kubelet asks it: a pod of one container in the node's own network.
//!
//! The pod's pause image ([`PAUSE`]) has to be in the lab's registry, and the node one that was started with d7y.

mod wire;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::api::{block_on, connect};
use super::{Client, Started, Wanted, lines_of};
use crate::rig::daemon::LOOK_AGAIN;
use crate::rig::node::Node;
use wire::{
    Call, ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PullImageRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopPodSandboxRequest,
};

pub use crate::rig::config::PAUSE;

/// In which the CRI plugin keeps all that it makes.
pub const NAMESPACE: &str = "k8s.io";

/// How long the plugin may take to come up.
const READY: Duration = Duration::from_secs(30);

/// The driver that stands where the kubelet does. What snapshotter is used is containerd's configuration alone.
pub struct Cri;

impl Client for Cri {
    fn name(&self) -> &'static str {
        "CRI"
    }

    fn pull(&self, node: &Node, image: &Wanted) -> Result<()> {
        block_on(async { Runtime::connect(node.socket()).await?.pull(image).await })
    }

    fn start(&self, node: &Node, image: &Wanted, container: &str) -> Result<Started> {
        let began = Instant::now();
        let name = format!("{container}.stdout");
        let path = node.host.dir.join(&name);
        // No fifo: a restarted containerd opens it once more, and would wait for a reader.
        File::create(&path)?;
        let pod = pod(node, container);
        let (pod_id, id) = block_on(async {
            let mut runtime = Runtime::connect(node.socket()).await?;
            runtime.pull(image).await?;
            runtime.start(&pod, image, name).await
        })?;
        let log = Log { file: File::open(&path)?, ended: Arc::default() };
        let ended = log.ended.clone();
        let lines = lines_of(log, message);
        let socket = node.socket().to_path_buf();
        let end = move || {
            // Whatever refuses to go is ended with the lab.
            let _ = block_on(end(socket, pod_id));
            ended.store(true, Ordering::SeqCst);
        };
        let (rootfs, log) = (node.rootfs_in(NAMESPACE, &id), node.containerd.log().to_path_buf());
        Ok(Started { id, rootfs, began, lines, log, end: Some(Box::new(end)) })
    }
}

/// A container's log, which has an end only when the container does.
struct Log {
    file: File,
    ended: Arc<AtomicBool>,
}

impl Read for Log {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let ended = self.ended.load(Ordering::SeqCst);
            let read = self.file.read(buffer)?;
            if read > 0 || ended {
                return Ok(read);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Kills and removes a pod with all that is in it.
async fn end(socket: PathBuf, pod: String) -> Result<()> {
    let mut runtime = Runtime::connect(&socket).await?;
    runtime.call(StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await?;
    runtime.call(RemovePodSandboxRequest { pod_sandbox_id: pod }).await?;
    Ok(())
}

struct Runtime(Grpc<Channel>);

impl Runtime {
    /// containerd listens before its CRI plugin has found what an earlier one left: asked in vain until then, as by
    /// the kubelet.
    async fn connect(socket: &Path) -> Result<Self> {
        let mut runtime = Self(Grpc::new(connect(socket).await?.channel()));
        let deadline = Instant::now() + READY;
        loop {
            match runtime.ask(StatusRequest {}).await {
                Ok(_) => return Ok(runtime),
                Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(status) => return Err(status).context("the CRI plugin is not ready"),
            }
        }
    }

    async fn pull(&mut self, image: &Wanted) -> Result<()> {
        self.call(PullImageRequest { image: Some(spec(image)) }).await.map(drop)
    }

    /// The ids of the pod and of its container.
    async fn start(
        &mut self,
        pod: &PodSandboxConfig,
        image: &Wanted,
        log_path: String,
    ) -> Result<(String, String)> {
        let pod_id = self.call(RunPodSandboxRequest { config: Some(pod.clone()) }).await?.pod_sandbox_id;
        let security = LinuxContainerSecurityContext { namespace_options: Some(namespaces()) };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "app".into() }),
            image: Some(spec(image)),
            log_path,
            linux: Some(LinuxContainerConfig { security_context: Some(security) }),
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: pod_id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.clone()),
        };
        let container_id = self.call(create).await?.container_id;
        self.call(StartContainerRequest { container_id: container_id.clone() }).await?;
        Ok((pod_id, container_id))
    }

    async fn call<C: Call>(&mut self, message: C) -> Result<C::Answer> {
        self.ask(message).await.context(C::METHOD)
    }

    async fn ask<C: Call>(&mut self, message: C) -> Result<C::Answer, Status> {
        self.0.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let codec = ProstCodec::<C, C::Answer>::default();
        let answer = self.0.unary(Request::new(message), PathAndQuery::from_static(C::METHOD), codec).await;
        answer.map(tonic::Response::into_inner)
    }
}

fn spec(image: &Wanted) -> ImageSpec {
    ImageSpec { image: image.reference.to_string() }
}

/// Its control group is below the lab's, so that it goes with the lab.
fn pod(node: &Node, name: &str) -> PodSandboxConfig {
    let security = LinuxSandboxSecurityContext { namespace_options: Some(namespaces()) };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: "default".into(),
        }),
        log_directory: node.host.dir.display().to_string(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", node.namespace),
            security_context: Some(security),
        }),
    }
}

/// As of a pod with `hostNetwork: true`: no CNI plugin is needed.
fn namespaces() -> NamespaceOption {
    NamespaceOption { network: NamespaceMode::Node.into(), pid: NamespaceMode::Container.into() }
}

/// What the application said, of a line of a CRI log: `TIME STREAM TAG MESSAGE`.
fn message(line: &str) -> &str {
    line.splitn(4, ' ').nth(3).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_ends_with_what_was_said() {
        for (line, said) in [
            ("2026-01-02T03:04:05.000000006Z stdout F two words", "two words"),
            ("2026-01-02T03:04:05.000000006Z stdout F ", ""),
            ("", ""),
        ] {
            assert_eq!(message(line), said, "{line:?}");
        }
    }
}
