//! Access traces: the order in which an image's containers first touched its chunks. Advisory; never trusted for
//! more than an order of fetching.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use d7y_proto::local::RecordTrace;
use d7y_types::Sha256Digest;
use prost::Message;

use crate::directory::Directory;

/// A trace of a million chunk runs is not a start-up any more.
const MAX_TRACE_BYTES: usize = 4 << 20;
/// Chunks prefetched for one image at most: about 4 GiB of device.
const MAX_TRACE_CHUNKS: usize = 65_536;
/// How long starting an image waits for the scheduler to say whether it knows a trace.
const LOOK_UP: Duration = Duration::from_millis(300);

pub struct Traces {
    directory: PathBuf,
    cluster: Arc<Directory>,
}

impl Traces {
    pub fn new(directory: PathBuf, cluster: Arc<Directory>) -> std::io::Result<Self> {
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        Ok(Self { directory, cluster })
    }

    /// From this node's disk, else from the cluster.
    pub async fn find(&self, image: Sha256Digest) -> Option<RecordTrace> {
        let path = self.directory.join(image.to_hex());
        let body = match tokio::fs::read(path).await {
            Ok(body) => body,
            Err(_) => self.cluster.trace(image, LOOK_UP).await?,
        };
        RecordTrace::decode(&body[..]).ok()
    }

    /// Keeps a trace and tells the cluster. The first one stays: later runs see a warm cache and record less.
    pub async fn record(&self, image: Sha256Digest, trace: &RecordTrace) -> std::io::Result<()> {
        let body = trace.encode_to_vec();
        if body.len() > MAX_TRACE_BYTES || trace.runs.is_empty() {
            return Ok(());
        }
        let path = self.directory.join(image.to_hex());
        let fresh = self.directory.join(format!("{}.new", image.to_hex()));
        tokio::fs::write(&fresh, &body).await?;
        tokio::fs::rename(&fresh, &path).await?;
        self.cluster.publish_trace(image, body);
        Ok(())
    }
}

/// The chunks of a trace in order, of layers that the image really has. `chunks_of` gives a layer's length.
pub fn chunks(trace: &RecordTrace, chunks_of: &HashMap<Sha256Digest, u32>) -> Vec<(Sha256Digest, u32)> {
    let mut out = Vec::new();
    for run in &trace.runs {
        let Some(layer) = <[u8; 32]>::try_from(&run.layer[..]).ok().map(Sha256Digest) else { continue };
        let Some(&len) = chunks_of.get(&layer) else { continue };
        let end = run.first_chunk.saturating_add(run.chunks).min(len);
        out.extend((run.first_chunk.min(end)..end).map(|number| (layer, number)));
        if out.len() >= MAX_TRACE_CHUNKS {
            out.truncate(MAX_TRACE_CHUNKS);
            break;
        }
    }
    out
}
