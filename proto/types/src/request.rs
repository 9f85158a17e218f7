use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// One read that had to wait for data, in the logs and traces of every process that takes part in it. Printed as 16
/// hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(NonZeroU64);

/// A span within the trace of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

/// For whom something is asked: what travels beside a request from process to process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller {
    pub request: RequestId,
    /// The caller's span; nothing when the request is not traced.
    pub span: Option<SpanId>,
}

impl RequestId {
    /// Nothing for 0, which on the wire says that there is none.
    pub fn from_raw(raw: u64) -> Option<Self> {
        NonZeroU64::new(raw).map(Self)
    }

    pub fn raw(self) -> u64 {
        self.0.get()
    }
}

impl SpanId {
    /// Nothing for 0, which on the wire says that there is none.
    pub fn from_raw(raw: u64) -> Option<Self> {
        NonZeroU64::new(raw).map(Self)
    }

    pub fn raw(self) -> u64 {
        self.0.get()
    }
}

impl Caller {
    pub fn new(request: RequestId) -> Self {
        Self { request, span: None }
    }

    /// Request id and span, 0 for none.
    pub fn from_raw(request: u64, span: u64) -> Option<Self> {
        Some(Self { request: RequestId::from_raw(request)?, span: SpanId::from_raw(span) })
    }

    /// What [`Caller::from_raw`] takes.
    pub fn to_raw(caller: Option<Self>) -> (u64, u64) {
        caller.map_or((0, 0), |caller| (caller.request.raw(), caller.span.map_or(0, SpanId::raw)))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.fmt(f)
    }
}

/// Makes ids that differ from each other, and from those of another seed as far as chance goes. Not for secrets.
#[derive(Debug)]
pub struct Ids(AtomicU64);

impl Ids {
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub fn request(&self) -> RequestId {
        RequestId(self.next())
    }

    pub fn span(&self) -> SpanId {
        SpanId(self.next())
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): a bijection of a counter, so that nothing comes twice.
    fn next(&self) -> NonZeroU64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        NonZeroU64::new(z ^ (z >> 31)).unwrap_or(NonZeroU64::MIN)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_differ_and_have_sixteen_digits() {
        let (one, two) = (Ids::new(0), Ids::new(1));
        let ids: HashSet<_> = (0..1000).flat_map(|_| [one.request(), two.request()]).collect();
        assert_eq!(ids.len(), 2000);
        assert!(ids.iter().all(|id| id.to_string().len() == 16));
        assert_eq!(RequestId::from_raw(0xab).unwrap().to_string(), "00000000000000ab");
    }

    #[test]
    fn callers_survive_the_wire_and_no_caller_too() {
        let request = RequestId::from_raw(7).unwrap();
        let table = [None, Some(Caller::new(request)), Some(Caller { request, span: SpanId::from_raw(9) })];
        for caller in table {
            let (request, span) = Caller::to_raw(caller);
            assert_eq!(Caller::from_raw(request, span), caller);
        }
        assert_eq!(Caller::from_raw(0, 9), None, "a span of no request");
    }
}
