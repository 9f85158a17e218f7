//! Ways into the parsers of what comes over the local socket.

use d7y_proto::local::{Request, Response, request};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::socket::FrameReader;
use d7y_proto::{digest_from_wire, layer_from_wire};

/// Reads frames as either side does, and what is in them. `input` has to fit in a socket's buffer.
pub async fn frames(input: &[u8]) -> std::io::Result<()> {
    let (mut here, there) = UnixStream::pair()?;
    here.write_all(input).await?;
    drop(here);
    let mut reader = FrameReader::new(&there);
    while let Ok(Some(frame)) = reader.next().await {
        if let Ok(Request { kind: Some(kind) }) = Request::decode(frame.message.clone()) {
            asked(kind);
        }
        let _ = Response::decode(frame.message);
    }
    Ok(())
}

fn asked(kind: request::Kind) {
    match kind {
        request::Kind::OpenImage(open) => {
            open.layers.into_iter().for_each(|layer| drop(layer_from_wire(layer)))
        }
        request::Kind::OpenLayer(open) => drop(open.layer.map(layer_from_wire)),
        request::Kind::EnsureRange(range) => drop(digest_from_wire(&range.digest)),
        _ => {}
    }
}
