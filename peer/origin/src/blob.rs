use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use d7y_types::LayerRef;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, StatusCode};

use crate::error::{OriginError, ProtocolFault};
use crate::fetch::{Fetcher, Object, ObjectAsk, Want};
use crate::route::Route;
use crate::token::Target;
use crate::transport::{Body, BodyFault, Reply};

/// How long to wait for a server to say that the body is over, once all of the blob is there.
const END_WAIT: Duration = Duration::from_secs(1);

/// The bytes of a blob in order, over as many connections as it takes. What was given out is exactly what lies between
/// the offset asked for and [`Self::position`]; whether it matches the digest is for the reader to check.
pub struct BlobStream {
    fetcher: Arc<Fetcher>,
    layer: LayerRef,
    route: Route,
    position: u64,
    /// How many more bytes may be read only to be thrown away.
    skippable: u64,
    state: State,
}

enum State {
    Disconnected,
    Connected {
        body: Body,
        /// What the body still has before [`BlobStream::position`], from a server that ignores ranges.
        skip: u64,
        /// Where in the blob the body ends, as its head says; a server may send less than was asked for.
        end: u64,
    },
    /// The end or an error was given out.
    Finished,
}

impl BlobStream {
    /// Connected, or at its end where there is nothing to fetch.
    pub(crate) async fn open(
        fetcher: Arc<Fetcher>,
        layer: LayerRef,
        route: Route,
        offset: u64,
    ) -> Result<Self, OriginError> {
        let size = layer.size;
        let state = match offset.cmp(&size) {
            Ordering::Less => State::Disconnected,
            Ordering::Equal => State::Finished,
            Ordering::Greater => return Err(OriginError::BeyondEnd { offset, size }),
        };
        let mut stream = Self { fetcher, layer, route, position: offset, skippable: size, state };
        stream.connect().await?;
        Ok(stream)
    }

    /// Where in the blob the next bytes lie.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, never empty; none after the last one or after an error. May be dropped while it waits and called
    /// again: nothing is lost, and the limits go on counting.
    ///
    /// # Errors
    /// Only what retrying did not or could not mend.
    pub async fn next(&mut self) -> Option<Result<Bytes, OriginError>> {
        if matches!(self.state, State::Finished) {
            return None;
        }
        let outcome = self.advance().await.transpose();
        if !matches!(outcome, Some(Ok(_))) {
            self.state = State::Finished;
        }
        outcome
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            self.connect().await?;
            match self.read().await {
                Ok(bytes) => return Ok(bytes),
                Err(error @ OriginError::TooLong { .. }) => return Err(error),
                Err(_) if self.position == self.layer.size => return Ok(None),
                Err(error) => {
                    self.state = State::Disconnected;
                    self.route.after(error)?;
                }
            }
        }
    }

    /// Asks for the rest of the blob until a body is there to be read.
    async fn connect(&mut self) -> Result<(), OriginError> {
        while matches!(self.state, State::Disconnected) {
            let (endpoint, patience) = self.route.next().await?;
            let target = Target { endpoint, repository: &self.layer.repository };
            let blob = ObjectAsk { object: Object::Blob(self.layer.digest), want: Want::From(self.position) };
            let outcome = self.fetcher.get(target, blob, patience).await;
            match outcome.and_then(|reply| self.begin_body(reply)) {
                Ok(state) => self.state = state,
                Err(error) => self.route.after(error)?,
            }
        }
        Ok(())
    }

    fn begin_body(&mut self, reply: Reply) -> Result<State, OriginError> {
        let Range { start, end } = self.check_head(&reply)?;
        let skip = self.position - start;
        self.skippable = self.skippable.checked_sub(skip).ok_or_else(|| OriginError::Protocol {
            host: reply.host.clone(),
            fault: ProtocolFault::IgnoresRange,
        })?;
        Ok(State::Connected { body: reply.body, skip, end })
    }

    /// The part of the blob that the body holds. It begins at the position, or at 0 when the range was ignored.
    fn check_head(&self, reply: &Reply) -> Result<Range<u64>, OriginError> {
        let fault = |fault| OriginError::Protocol { host: reply.host.clone(), fault };
        let encoding = reply.headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
        if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
            return Err(fault(ProtocolFault::ContentEncoding));
        }
        if reply.status == StatusCode::PARTIAL_CONTENT {
            let range = content_range(&reply.headers).ok_or_else(|| fault(ProtocolFault::ContentRange))?;
            self.check_size(reply, range.total)?;
            let fits = range.first == self.position && range.last < self.layer.size;
            return if fits {
                Ok(range.first..range.last + 1)
            } else {
                Err(fault(ProtocolFault::ContentRange))
            };
        }
        self.check_size(reply, content_length(&reply.headers))?;
        Ok(0..self.layer.size)
    }

    fn check_size(&self, reply: &Reply, claimed: Option<u64>) -> Result<(), OriginError> {
        let expected = self.layer.size;
        let host = || reply.host.clone();
        match claimed {
            Some(received) if received < expected => {
                Err(OriginError::Truncated { host: host(), received, expected, source: None })
            }
            Some(received) if received > expected => Err(OriginError::TooLong { host: host(), expected }),
            _ => Ok(()),
        }
    }

    /// The next new bytes of the present body; none at the end of the blob.
    async fn read(&mut self) -> Result<Option<Bytes>, OriginError> {
        let State::Connected { body, skip, end } = &mut self.state else { return Ok(None) };
        let patience = &mut self.route.patience;
        let (expected, received) = (self.layer.size, self.position);
        let host = body.host.name.clone();
        loop {
            let mut bytes = match body.chunk(patience).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) if received == expected && *skip == 0 => return Ok(None),
                Ok(None) => return Err(OriginError::Truncated { host, received, expected, source: None }),
                Err(BodyFault::Stalled(error)) => return Err(error),
                Err(BodyFault::Lost(source)) => {
                    return Err(OriginError::Truncated { host, received, expected, source: Some(source) });
                }
            };
            patience.arrived(bytes.len() as u64);
            let skipped = (*skip).min(bytes.len() as u64);
            *skip -= skipped;
            bytes.advance(usize::try_from(skipped).expect("not more than the length of a buffer"));
            if bytes.is_empty() {
                continue;
            }
            if bytes.len() as u64 > *end - received {
                let fault = ProtocolFault::ContentRange;
                return Err(if *end == expected {
                    OriginError::TooLong { host, expected }
                } else {
                    OriginError::Protocol { host, fault }
                });
            }
            self.position += bytes.len() as u64;
            patience.advanced(bytes.len() as u64);
            if self.position == expected {
                body.shorten_idle(END_WAIT);
            }
            return Ok(Some(bytes));
        }
    }
}

struct ContentRange {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// `bytes first-last/total`, where the total may be `*` (RFC 9110, section 14.4).
fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(digits(total)?) };
    let (first, last) = (digits(first)?, digits(last)?);
    (first <= last).then_some(ContentRange { first, last, total })
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    digits(headers.get(CONTENT_LENGTH)?.to_str().ok()?)
}

/// Without the sign that `parse` would take.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn content_ranges() {
        let cases = [
            ("bytes 5-9/10", Some((5, 9, Some(10)))),
            ("bytes 0-0/*", Some((0, 0, None))),
            ("bytes 9-5/10", None),
            ("bytes +5-9/10", None),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("bytes 5-9", None),
            ("bytes=5-9/10", None),
            ("items 5-9/10", None),
            ("bytes 5-99999999999999999999/*", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]);
            let parsed = content_range(&headers).map(|range| (range.first, range.last, range.total));
            assert_eq!(parsed, expected, "{text:?}");
        }
    }
}
