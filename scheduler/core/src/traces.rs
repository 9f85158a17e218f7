use std::sync::Arc;

use d7y_types::Sha256Digest;
use lru::LruCache;

use crate::{MAX_TRACE_BYTES, MAX_TRACES, MAX_TRACES_BYTES};

/// The access traces of the images that were used last.
///
/// The first trace of an image stays until a longer one comes: a run that ended early recorded too little, and
/// keeping what is there otherwise means that nodes replaying the same image agree on the order.
#[derive(Debug)]
pub(crate) struct Traces {
    bodies: LruCache<Sha256Digest, Arc<[u8]>>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Traces {
    pub fn new() -> Self {
        Self { bodies: LruCache::unbounded(), bytes: 0 }
    }

    pub fn publish(&mut self, image: Sha256Digest, body: Arc<[u8]>) -> Result<(), TooLarge> {
        if body.len() > MAX_TRACE_BYTES {
            return Err(TooLarge);
        }
        let known = self.bodies.get(&image).map_or(0, |known| known.len());
        if body.len() <= known {
            return Ok(());
        }
        self.bytes = self.bytes - known + body.len();
        self.bodies.put(image, body);
        while self.bytes > MAX_TRACES_BYTES || self.bodies.len() > MAX_TRACES {
            let Some((_, evicted)) = self.bodies.pop_lru() else { break };
            self.bytes -= evicted.len();
        }
        Ok(())
    }

    /// Empty when none is known.
    pub fn get(&mut self, image: &Sha256Digest) -> Arc<[u8]> {
        self.bodies.get(image).cloned().unwrap_or_default()
    }

    pub fn count(&self) -> usize {
        self.bodies.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(number: u16) -> Sha256Digest {
        let mut raw = [0; 32];
        raw[..2].copy_from_slice(&number.to_le_bytes());
        Sha256Digest(raw)
    }

    #[test]
    fn the_first_stays_until_a_longer_one_comes() {
        let mut traces = Traces::new();
        for (published, kept) in [("ab", "ab"), ("xy", "ab"), ("x", "ab"), ("xyz", "xyz"), ("", "xyz")] {
            traces.publish(image(1), published.as_bytes().into()).unwrap();
            assert_eq!(&*traces.get(&image(1)), kept.as_bytes(), "after {published:?}");
        }
        assert_eq!((traces.count(), traces.bytes()), (1, 3));
        assert!(traces.get(&image(2)).is_empty());
    }

    #[test]
    fn size_count_and_bytes_are_bounded() {
        let mut traces = Traces::new();
        assert_eq!(traces.publish(image(0), vec![0; MAX_TRACE_BYTES + 1].into()), Err(TooLarge));
        let large: Arc<[u8]> = vec![0; MAX_TRACE_BYTES].into();
        for number in 0..100 {
            traces.publish(image(number), large.clone()).unwrap();
        }
        assert_eq!(traces.bytes(), MAX_TRACES_BYTES);
        assert!(traces.get(&image(0)).is_empty() && !traces.get(&image(99)).is_empty());
        for number in 0..5000 {
            traces.publish(image(number), [1_u8].as_slice().into()).unwrap();
        }
        assert!(traces.count() <= MAX_TRACES && traces.bytes() <= MAX_TRACES_BYTES);
    }
}
