//! Ways into the parsers of what the other side of a connection sends.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use d7y_types::{PackId, Sha256Digest, TableHash};

use crate::answers::{Opening, Questions};
use crate::codec::{Header, MAX_PAYLOAD_BYTES, MAX_REQUEST_BYTES, read_frame};
use crate::request::Request;

/// Reads frames as a server does.
pub fn requests(mut input: &[u8]) {
    while let Some((header, payload)) = next(&mut input, MAX_REQUEST_BYTES)
        && Request::parse(header, &payload).is_ok()
    {}
}

/// Reads frames as a client that asked for chunks 0 to 7 of the layers on streams 0 to 3.
pub fn answers(mut input: &[u8]) {
    let mut questions = Questions::default();
    for n in 0..4 {
        let pack = PackId { layer: Sha256Digest([n; 32]), table: TableHash([n; 32]) };
        questions.bind(pack);
        questions.ask(pack, &[0, 1, 2, 3, 4, 5, 6, 7]);
    }
    while let Some((header, payload)) = next(&mut input, MAX_PAYLOAD_BYTES)
        && questions.answer(header, payload).is_ok()
    {}
}

/// Reads frames as a client that opened a layer.
pub fn opening(mut input: &[u8]) {
    let mut opening = Opening::default();
    while let Some((header, payload)) = next(&mut input, MAX_PAYLOAD_BYTES)
        && opening.answer(header, payload).is_ok()
    {}
}

fn next(input: &mut &[u8], most_bytes: u32) -> Option<(Header, Bytes)> {
    match pin!(read_frame(input, most_bytes)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(frame) => frame.ok(),
        Poll::Pending => unreachable!("a slice is always ready"),
    }
}
