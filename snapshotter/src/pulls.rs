use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use d7y_types::Sha256Digest;
use lru::LruCache;
use parking_lot::Mutex;

use crate::metrics::PrepareOutcome;

/// Pulls remembered; the one whose last layer was asked for longest ago goes first.
const MAX_REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// For this long after the begin of a pull for which nobody had a layer, the next one is not waited for again: containerd
/// holds a lock meanwhile, and kubelet tries again and again.
const UNSUPPLIED_STANDS: Duration = Duration::from_secs(60);

/// What is known of the pulls of images: clients ask for the layers of one from the bottom to the top.
pub struct Pulls(Mutex<LruCache<Sha256Digest, Pull>>);

#[derive(Debug, Clone, Copy)]
struct Pull {
    began: Instant,
    /// The layer that was asked for last.
    position: usize,
    left: Option<PrepareOutcome>,
    hopeless: bool,
}

/// How far the pull is that a layer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulling {
    pub began: Instant,
    /// Why a layer below was left to containerd, which then downloads all above it too, whatever it is answered.
    pub left: Option<PrepareOutcome>,
    /// A moment ago nobody could give this image.
    pub hopeless: bool,
}

impl Default for Pulls {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_REMEMBERED)))
    }
}

impl Pulls {
    /// The layer at `position`, 0 at the bottom, is asked for. A layer that is not above the one before begins a new pull.
    pub fn asked(&self, manifest: Sha256Digest, position: usize, now: Instant) -> Pulling {
        let mut pulls = self.0.lock();
        let last = pulls.get(&manifest).copied();
        let hopeless = last.is_some_and(|last| {
            let fresh = now.saturating_duration_since(last.began) < UNSUPPLIED_STANDS;
            last.left == Some(PrepareOutcome::Unsupplied) && fresh
        });
        let before = last.filter(|pull| pull.position < position);
        let pull = Pull { position, ..before.unwrap_or(Pull { began: now, position, left: None, hopeless }) };
        pulls.put(manifest, pull);
        Pulling { began: pull.began, left: pull.left, hopeless: pull.hopeless }
    }

    /// The layer that was asked for last is left to containerd.
    pub fn left(&self, manifest: Sha256Digest, outcome: PrepareOutcome) {
        if let Some(pull) = self.0.lock().get_mut(&manifest) {
            pull.left = Some(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_lies_above_a_layer_that_was_left_is_left_too_until_the_next_pull() {
        let (pulls, image, other) = (Pulls::default(), Sha256Digest([1; 32]), Sha256Digest([2; 32]));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let pulling = |began, left| Pulling { began: at(began), left, hopeless: false };
        assert_eq!(pulls.asked(image, 0, at(0)), pulling(0, None));
        assert_eq!(pulls.asked(image, 1, at(5)), pulling(0, None), "one clock for all layers");
        pulls.left(image, PrepareOutcome::Unsupplied);
        assert_eq!(pulls.asked(image, 2, at(20)), pulling(0, Some(PrepareOutcome::Unsupplied)));
        assert_eq!(pulls.asked(other, 2, at(20)), pulling(20, None));
        assert_eq!(pulls.asked(image, 5, at(900)), pulling(0, Some(PrepareOutcome::Unsupplied)));
        assert_eq!(pulls.asked(image, 1, at(901)), pulling(901, None), "a second attempt");
        assert_eq!(pulls.asked(image, 2, at(902)), pulling(901, None));
    }

    #[test]
    fn an_image_that_nobody_could_give_is_not_waited_for_again_for_a_minute() {
        let (pulls, image, start) = (Pulls::default(), Sha256Digest([1; 32]), Instant::now());
        let asked = |position, seconds| pulls.asked(image, position, start + Duration::from_secs(seconds));
        assert!(!asked(0, 0).hopeless);
        pulls.left(image, PrepareOutcome::Unsupplied);
        assert!(asked(0, 20).hopeless && asked(1, 21).hopeless);
        pulls.left(image, PrepareOutcome::Unsupplied);
        assert!(!asked(0, 80).hopeless, "the last attempt began a minute ago");
        pulls.left(image, PrepareOutcome::MediaType);
        assert!(!asked(0, 81).hopeless, "it is not for want of somebody who has it");
    }
}
