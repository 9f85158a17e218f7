use std::collections::HashMap;
use std::path::PathBuf;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{Info, InfoRequest, ListContentRequest, ReadContentRequest};
use d7y_types::Sha256Digest;
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::meta::Timestamp;

/// How many blobs of one listing are looked at; a node's content store has hundreds.
const MAX_LISTED: usize = 100_000;
/// containerd's own limit of a message (`defaults.DefaultMaxRecvMsgSize`), in bytes.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
const NAMESPACE_HEADER: &str = "containerd-namespace";

#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("containerd's content store cannot be reached; check containerd.socket")]
    Unreachable(#[source] Box<Status>),
    #[error("containerd's content store gave bytes of blob {0} that do not match its digest")]
    Corrupt(Sha256Digest),
    #[error("{0:?} cannot be a containerd namespace")]
    Namespace(String),
}

/// A blob in the content store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    pub digest: Sha256Digest,
    pub size: u64,
    pub labels: HashMap<String, String>,
    pub updated: Timestamp,
}

/// The part of a content store that resolving an image needs.
pub trait Content: Send + Sync {
    fn info<'a>(
        &'a self,
        namespace: &'a str,
        digest: Sha256Digest,
    ) -> BoxFuture<'a, Result<Option<BlobInfo>, ContentError>>;

    /// Blobs of at most `max_bytes` that have the label (all, without one), in no order.
    fn list<'a>(
        &'a self,
        namespace: &'a str,
        label: Option<&'a str>,
        max_bytes: u64,
    ) -> BoxFuture<'a, Result<Vec<BlobInfo>, ContentError>>;

    /// The blob's bytes, unverified, at most `max_bytes`; nothing when it is not there.
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        digest: Sha256Digest,
        max_bytes: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>, ContentError>>;
}

/// containerd's content service; connects when first used and again when it must.
pub struct ContainerdContent(ContentClient<Channel>);

impl ContainerdContent {
    /// Must be called inside a tokio runtime.
    pub fn new(socket: PathBuf) -> Self {
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is never used: the connector knows the socket.
        let channel =
            Endpoint::from_static("http://containerd.invalid").connect_with_connector_lazy(connector);
        Self(ContentClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }
}

fn in_namespace<T>(namespace: &str, message: T) -> Result<Request<T>, ContentError> {
    let value: MetadataValue<Ascii> =
        namespace.parse().map_err(|_| ContentError::Namespace(namespace.into()))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, value);
    Ok(request)
}

/// Not there, for whatever reason that is not the connection's.
fn found<T>(result: Result<T, Status>) -> Result<Option<T>, ContentError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(unreachable(status)),
    }
}

fn unreachable(status: Status) -> ContentError {
    ContentError::Unreachable(Box::new(status))
}

impl Content for ContainerdContent {
    fn info<'a>(
        &'a self,
        namespace: &'a str,
        digest: Sha256Digest,
    ) -> BoxFuture<'a, Result<Option<BlobInfo>, ContentError>> {
        Box::pin(async move {
            let request = in_namespace(namespace, InfoRequest { digest: digest.to_string() })?;
            let response = found(self.0.clone().info(request).await)?;
            Ok(response.and_then(|response| blob_info(response.into_inner().info?)))
        })
    }

    fn list<'a>(
        &'a self,
        namespace: &'a str,
        label: Option<&'a str>,
        max_bytes: u64,
    ) -> BoxFuture<'a, Result<Vec<BlobInfo>, ContentError>> {
        Box::pin(async move {
            let filters = label.map(|label| format!("labels.\"{label}\"")).into_iter().collect();
            let request = in_namespace(namespace, ListContentRequest { filters })?;
            let mut stream = self.0.clone().list(request).await.map_err(unreachable)?.into_inner();
            let mut blobs = Vec::new();
            while let Some(page) = stream.message().await.map_err(unreachable)? {
                let small = page.info.into_iter().filter_map(blob_info).filter(|blob| blob.size <= max_bytes);
                blobs.extend(small);
                if blobs.len() > MAX_LISTED {
                    break;
                }
            }
            Ok(blobs)
        })
    }

    fn read<'a>(
        &'a self,
        namespace: &'a str,
        digest: Sha256Digest,
        max_bytes: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>, ContentError>> {
        Box::pin(async move {
            let read = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
            let request = in_namespace(namespace, read)?;
            let Some(stream) = found(self.0.clone().read(request).await)? else { return Ok(None) };
            let (mut stream, mut out) = (stream.into_inner(), Vec::new());
            while let Some(Some(part)) = found(stream.message().await)? {
                out.extend_from_slice(&part.data);
                if out.len() as u64 > max_bytes {
                    return Ok(None);
                }
            }
            Ok(if out.is_empty() { None } else { Some(out) })
        })
    }
}

fn blob_info(info: Info) -> Option<BlobInfo> {
    let updated = info.updated_at.or(info.created_at).unwrap_or_default();
    Some(BlobInfo {
        digest: info.digest.parse().ok()?,
        size: u64::try_from(info.size).ok()?,
        labels: info.labels,
        updated: Timestamp(updated.seconds, u32::try_from(updated.nanos).unwrap_or(0)),
    })
}
