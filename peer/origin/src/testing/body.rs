use std::io;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

pub(super) type Answer = UnsyncBoxBody<Bytes, io::Error>;

/// Some requests bring a body: forms of a few hundred bytes.
pub(super) async fn collect(body: Incoming) -> String {
    let bytes = body.collect().await.expect("a form arrives").to_bytes();
    String::from_utf8(bytes.into()).expect("a form is ASCII")
}

pub(super) fn whole(content: impl Into<Bytes>) -> Answer {
    http_body_util::Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

/// `content`, then the end of the connection. The pause in between lets the server send what it has.
pub(super) fn cut(content: Bytes) -> Answer {
    let end = stream::once(async {
        tokio::task::yield_now().await;
        Err(io::Error::other("cut by the test"))
    });
    from_stream(stream::iter([Ok(content)]).chain(end))
}

pub(super) fn stall(content: Bytes) -> Answer {
    from_stream(stream::iter([Ok(content)]).chain(stream::pending()))
}

pub(super) fn endless(content: Bytes) -> Answer {
    from_stream(stream::repeat_with(move || Ok(content.clone())))
}

fn from_stream(bytes: impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Answer {
    StreamBody::new(bytes.map(|bytes| bytes.map(Frame::data))).boxed_unsync()
}
