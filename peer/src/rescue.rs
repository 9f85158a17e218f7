//! Layers of which readers want chunks that no peer holds: they are read from their origin again, by one peer.
//!
//! A case begins when readers have waited for the patience of the node, or when another peer asks. Who reads is decided
//! in `layers`: with a scheduler, the holder of the origin lease; without one, the seed that wins the rendezvous. The
//! others ask that peer and take from it what arrives there; one that still gets nothing reads itself. After every read
//! that did not fill the layer the next one waits twice as long: a full disk, or a registry that refuses, must not cost
//! the registry a layer for every read of a container. Pure: time comes in as an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use d7y_types::Sha256Digest;

/// The longest that a layer waits for its next attempt.
const MOST_DELAY: Duration = Duration::from_secs(600);
/// Readers that come back after this long count as new ones.
const FORGET: Duration = Duration::from_secs(300);
/// Readers that wait are reported at least this often.
const REPORTED: Duration = Duration::from_secs(2);
/// This many times the patience pass before a node reads what another one should.
const ALONE: u32 = 4;

/// Why something is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Another peer asks for it.
    Asked,
    /// Readers here wait.
    Readers,
    /// They have waited so long that nobody else will help.
    Alone,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing is missing any more.
    Whole,
    /// Another peer sees to it, or nobody may yet.
    Elsewhere,
    /// The origin was read, or refused, and something is still missing.
    Partly,
    /// The layer no longer yields the chunks of its index: it never will.
    Hopeless,
}

#[derive(Debug)]
pub struct Cases {
    patience: Duration,
    cases: HashMap<Sha256Digest, Case>,
}

#[derive(Debug)]
struct Case {
    /// Chunks that were here when the wait began: when there are more, it begins anew.
    have: u32,
    /// Since when readers have waited, and when they were last seen.
    waits: Option<(Instant, Instant)>,
    asked: bool,
    running: bool,
    not_before: Instant,
    delay: Duration,
    hopeless: bool,
}

impl Cases {
    pub fn new(patience: Duration) -> Self {
        Self { patience, cases: HashMap::new() }
    }

    /// Readers wait for chunks of a layer of which `have` are here.
    pub fn readers_wait(&mut self, layer: Sha256Digest, have: u32, now: Instant) {
        let case = self.case(layer, now);
        let since = case.waits.filter(|(_, seen)| now.saturating_duration_since(*seen) < FORGET);
        let since = since.filter(|_| case.have == have).map_or(now, |(since, _)| since);
        (case.waits, case.have) = (Some((since, now)), have);
    }

    pub fn is_waiting(&self, layer: Sha256Digest, now: Instant) -> bool {
        self.cases.get(&layer).is_some_and(|case| case.is_waiting(now))
    }

    pub fn asked(&mut self, layer: Sha256Digest, now: Instant) {
        self.case(layer, now).asked = true;
    }

    /// What is to be done now; each until its [`Self::end`].
    pub fn due(&mut self, now: Instant) -> Vec<(Sha256Digest, Reason)> {
        let patience = self.patience;
        let due = self.cases.iter_mut().filter_map(|(layer, case)| {
            let reason = case.reason(patience, now)?;
            case.running = true;
            Some((*layer, reason))
        });
        due.collect()
    }

    pub fn end(&mut self, layer: Sha256Digest, end: End, now: Instant) {
        let patience = self.patience;
        let Some(case) = self.cases.get_mut(&layer) else { return };
        (case.running, case.asked) = (false, false);
        match end {
            End::Whole => drop(self.cases.remove(&layer)),
            End::Elsewhere => case.not_before = now + patience,
            End::Partly => {
                case.not_before = now + case.delay;
                case.delay = (case.delay * 2).min(MOST_DELAY);
            }
            End::Hopeless => case.hopeless = true,
        }
    }

    pub fn remove(&mut self, layer: Sha256Digest) {
        self.cases.remove(&layer);
    }

    fn case(&mut self, layer: Sha256Digest, now: Instant) -> &mut Case {
        let delay = self.patience;
        self.cases.entry(layer).or_insert(Case {
            have: 0,
            waits: None,
            asked: false,
            running: false,
            not_before: now,
            delay,
            hopeless: false,
        })
    }
}

impl Case {
    fn is_waiting(&self, now: Instant) -> bool {
        self.waits.is_some_and(|(_, seen)| now.saturating_duration_since(seen) < REPORTED)
    }

    fn reason(&self, patience: Duration, now: Instant) -> Option<Reason> {
        if self.running || self.hopeless || now < self.not_before {
            return None;
        }
        let waits = self.waits.filter(|_| self.is_waiting(now));
        let waited = waits.map(|(since, _)| now.saturating_duration_since(since));
        match waited {
            Some(waited) if waited >= patience * ALONE => Some(Reason::Alone),
            _ if self.asked => Some(Reason::Asked),
            Some(waited) if waited >= patience => Some(Reason::Readers),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: Sha256Digest = Sha256Digest([7; 32]);
    const PATIENCE: Duration = Duration::from_secs(10);

    struct Rig {
        cases: Cases,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            Self { cases: Cases::new(PATIENCE), now: Instant::now() }
        }

        /// Lets readers wait; the seconds until something is due, and what.
        fn wait(&mut self, most: u64) -> Option<(u64, Reason)> {
            for second in 0..=most {
                self.cases.readers_wait(LAYER, 3, self.now);
                if let Some((_, reason)) = self.cases.due(self.now).pop() {
                    assert_eq!(self.cases.due(self.now), [], "under way");
                    return Some((second, reason));
                }
                self.now += Duration::from_secs(1);
            }
            None
        }
    }

    #[test]
    fn each_attempt_that_does_not_fill_the_layer_makes_the_next_one_rarer() {
        let mut rig = Rig::new();
        let mut waits = Vec::new();
        for _ in 0..8 {
            waits.push(rig.wait(1000).unwrap().0);
            rig.cases.end(LAYER, End::Partly, rig.now);
        }
        assert_eq!(waits, [10, 10, 20, 40, 80, 160, 320, 600]);
        rig.now += MOST_DELAY;
        rig.wait(1000).unwrap();
        rig.cases.end(LAYER, End::Whole, rig.now);
        assert_eq!(rig.wait(1000), Some((10, Reason::Readers)), "a filled layer is a new case");
        rig.cases.end(LAYER, End::Hopeless, rig.now);
        assert_eq!(rig.wait(5000), None, "what can never match is never tried again");
    }

    #[test]
    fn nothing_is_done_for_readers_that_left() {
        let mut rig = Rig::new();
        assert_eq!(rig.wait(5), None);
        rig.now += PATIENCE;
        assert_eq!(rig.cases.due(rig.now), []);
        assert_eq!(rig.wait(0), Some((0, Reason::Readers)), "they wait as long as they waited before");
    }

    #[test]
    fn who_waits_for_another_waits_longer_and_arrivals_begin_the_wait_anew() {
        let mut rig = Rig::new();
        let mut waits = Vec::new();
        for _ in 0..4 {
            waits.push(rig.wait(1000).unwrap());
            rig.cases.end(LAYER, End::Elsewhere, rig.now);
        }
        let [r, a] = [Reason::Readers, Reason::Alone];
        assert_eq!(waits, [(10, r), (10, r), (10, r), (10, a)]);
        rig.cases.readers_wait(LAYER, 4, rig.now);
        rig.cases.readers_wait(LAYER, 3, rig.now);
        assert_eq!(rig.wait(1000), Some((10, r)));
    }

    #[test]
    fn what_another_peer_asks_for_is_done_at_once_and_once() {
        let mut rig = Rig::new();
        rig.cases.asked(LAYER, rig.now);
        assert_eq!(rig.cases.due(rig.now), [(LAYER, Reason::Asked)]);
        rig.cases.asked(LAYER, rig.now);
        rig.cases.end(LAYER, End::Partly, rig.now);
        assert_eq!(rig.cases.due(rig.now + PATIENCE), []);
        rig.cases.asked(LAYER, rig.now);
        assert_eq!(rig.cases.due(rig.now), [], "not so soon");
        assert_eq!(rig.cases.due(rig.now + PATIENCE), [(LAYER, Reason::Asked)]);
    }
}
