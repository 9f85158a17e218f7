//! Layers of which somebody wants chunks that no peer holds: they are read from their origin again, by one peer.
//!
//! A case begins when readers (or a preheat) wait here, or when another peer asks. Who reads is decided in `layers`: with
//! a scheduler, the holder of the origin lease; without one, the seed that wins the rendezvous. That peer is asked early:
//! it would be the one to read in any case, and is asked by all. Who holds the lease itself waits for a part of its
//! patience, because a parent that was killed or restarted mostly comes back with what it held. Only after all of the
//! patience does a node without a lease read, and only where nobody else would.
//!
//! After every read that did not fill the layer the next one waits twice as long, and so does the next question after one
//! that was answered: a full disk, a registry that refuses, or a seed too small for what the cluster reads must not cost
//! the registry a layer for every read of a container. Pure: time comes in as an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use d7y_transfer::FailureCode;
use d7y_types::Sha256Digest;

use crate::failure::OpenFailure;

/// The longest that a layer waits for its next attempt.
const MOST_DELAY: Duration = Duration::from_secs(600);
/// Readers that come back after this long count as new ones.
const FORGET: Duration = Duration::from_secs(300);
/// Readers that wait are reported at least this often.
const REPORTED: Duration = Duration::from_secs(2);
/// Readers wait for this long before another peer is asked: who was killed is mostly back by then.
const EARLY: Duration = Duration::from_secs(1);
/// The lease's holder waits for this part of the patience before it reads.
const TURN: u32 = 4;
/// This many times the patience pass before a node reads what another one should.
const ALONE: u32 = 4;
/// When nobody could be asked, this long passes before it is tried again: it cost nobody anything.
const UNANSWERED: Duration = Duration::from_millis(500);
/// And each further time twice as long, up to this: many nodes ask for many layers.
const MOST_SILENCE: Duration = Duration::from_secs(4);

/// Why something is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Another peer asks for it.
    Asked,
    /// Readers here wait: time to ask the peer that is to read the origin.
    Early,
    /// They have waited so long that this peer reads, if it holds the lease.
    Turn,
    /// They have waited so long that this peer reads, if nobody else is to.
    Readers,
    /// They have waited so long that nobody else will help.
    Alone,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing is missing any more.
    Whole,
    /// Another peer was asked and has answered.
    Elsewhere,
    /// Nobody could be asked, or nobody may read yet.
    Unanswered,
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
    /// Since when they have waited for something that no peer holds, whatever else has come meanwhile.
    orphan_since: Instant,
    asked: bool,
    running: Option<Reason>,
    /// When the origin may be read again, and how long after the read that follows.
    not_before: Instant,
    delay: Duration,
    /// When another peer may be asked again, and how long after the answer that follows.
    ask_again: Instant,
    ask_delay: Duration,
    /// How long after a question that reaches nobody the next one follows.
    silence: Duration,
    hopeless: bool,
    failure: Option<(OpenFailure, Instant)>,
}

impl Cases {
    pub fn new(patience: Duration) -> Self {
        Self { patience, cases: HashMap::new() }
    }

    /// Somebody waits for chunks of a layer of which `have` are here.
    pub fn somebody_waits(&mut self, layer: Sha256Digest, have: u32, now: Instant) {
        let case = self.case(layer, now);
        if !case.is_waiting(now) {
            case.orphan_since = now;
        }
        let since = case.waits.filter(|(_, seen)| now.saturating_duration_since(*seen) < FORGET);
        let since = since.filter(|_| case.have == have).map_or(now, |(since, _)| since);
        (case.waits, case.have) = (Some((since, now)), have);
        if now.saturating_duration_since(case.ask_again) >= FORGET {
            case.ask_delay = EARLY;
        }
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
            case.running = Some(reason);
            Some((*layer, reason))
        });
        due.collect()
    }

    pub fn end(&mut self, layer: Sha256Digest, ended: Result<End, OpenFailure>, now: Instant) {
        let patience = self.patience;
        let Some(case) = self.cases.get_mut(&layer) else { return };
        let end = match ended {
            Ok(end) => end,
            Err(failure) => {
                let hopeless = failure.code == FailureCode::Internal;
                case.failure = Some((failure, now));
                if hopeless { End::Hopeless } else { End::Partly }
            }
        };
        let only_asks = matches!(case.running.take(), Some(Reason::Early | Reason::Turn));
        case.asked = false;
        match end {
            End::Whole => drop(self.cases.remove(&layer)),
            End::Elsewhere => {
                case.asked_another(patience, now);
                if !only_asks {
                    case.not_before = now + patience;
                }
            }
            End::Unanswered => {
                case.ask_again = now + case.silence;
                if !only_asks {
                    case.not_before = now + case.silence;
                }
                case.silence = (case.silence * 2).min(MOST_SILENCE);
            }
            End::Partly => {
                case.asked_another(patience, now);
                case.not_before = now + case.delay;
                case.delay = (case.delay * 2).min(MOST_DELAY);
            }
            End::Hopeless => case.hopeless = true,
        }
    }

    /// Why the origin did not help, at that time or later. What is hopeless stays so.
    pub fn failure(&self, layer: Sha256Digest, since: Instant) -> Option<OpenFailure> {
        let case = self.cases.get(&layer)?;
        let (failure, at) = case.failure.as_ref()?;
        (*at >= since || case.hopeless).then(|| failure.clone())
    }

    /// Why the layer will not be read soon: it never will be, or the last read did not fill it.
    pub fn refusal(&self, layer: Sha256Digest, now: Instant) -> Option<OpenFailure> {
        let case = self.cases.get(&layer)?;
        let did_not_help = case.delay > first_delay(self.patience) && now < case.not_before;
        let unknown = || OpenFailure::new(FailureCode::Unavailable, "the origin did not help a moment ago");
        let failure = || case.failure.as_ref().map_or_else(unknown, |(failure, _)| failure.clone());
        (case.hopeless || did_not_help).then(failure)
    }

    /// What was tried before is no reason to wait any more.
    pub fn begin_anew(&mut self, layer: Sha256Digest, now: Instant) {
        let patience = self.patience;
        let Some(case) = self.cases.get_mut(&layer).filter(|case| !case.hopeless) else { return };
        (case.not_before, case.delay) = (now, first_delay(patience));
        (case.ask_again, case.ask_delay) = (now, EARLY);
    }

    pub fn remove(&mut self, layer: Sha256Digest) {
        self.cases.remove(&layer);
    }

    fn case(&mut self, layer: Sha256Digest, now: Instant) -> &mut Case {
        let delay = first_delay(self.patience);
        self.cases.entry(layer).or_insert(Case {
            have: 0,
            waits: None,
            orphan_since: now,
            asked: false,
            running: None,
            not_before: now,
            delay,
            ask_again: now,
            ask_delay: EARLY,
            silence: UNANSWERED,
            hopeless: false,
            failure: None,
        })
    }
}

/// After the first read that did not fill a layer.
fn first_delay(patience: Duration) -> Duration {
    patience.max(EARLY)
}

fn early(patience: Duration) -> Duration {
    EARLY.min(patience)
}

/// How long who holds the lease waits for parents to come back.
pub fn turn_after(patience: Duration) -> Duration {
    early(patience).max(patience / TURN)
}

impl Case {
    fn is_waiting(&self, now: Instant) -> bool {
        self.waits.is_some_and(|(_, seen)| now.saturating_duration_since(seen) < REPORTED)
    }

    fn reason(&self, patience: Duration, now: Instant) -> Option<Reason> {
        if self.running.is_some() || self.hopeless {
            return None;
        }
        let waits = self.waits.filter(|_| self.is_waiting(now));
        let waited = waits.map(|(since, _)| now.saturating_duration_since(since));
        let has_waited = |least: Duration| waited.is_some_and(|waited| waited >= least);
        let (may_read, may_ask) = (now >= self.not_before, now >= self.ask_again);
        let reasons = [
            (Reason::Alone, may_read && has_waited(patience * ALONE)),
            (Reason::Asked, may_read && self.asked),
            (Reason::Readers, may_read && has_waited(patience)),
            (Reason::Turn, may_read && may_ask && has_waited(turn_after(patience))),
            // Costs the origin nothing that would not be read: chunks that come meanwhile are no reason to wait longer.
            (Reason::Early, may_ask && waits.is_some() && self.has_been_orphan(early(patience), now)),
        ];
        reasons.into_iter().find_map(|(reason, due)| due.then_some(reason))
    }

    fn has_been_orphan(&self, least: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.orphan_since) >= least
    }

    fn asked_another(&mut self, patience: Duration, now: Instant) {
        self.silence = UNANSWERED;
        self.ask_again = now + self.ask_delay;
        self.ask_delay = (self.ask_delay * 2).min(patience.max(EARLY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Reason::{Alone, Asked, Early, Readers, Turn};

    const LAYER: Sha256Digest = Sha256Digest([7; 32]);
    const PATIENCE: Duration = Duration::from_secs(10);

    struct Rig {
        cases: Cases,
        now: Instant,
        began: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let now = Instant::now();
            Self { cases: Cases::new(PATIENCE), now, began: now }
        }

        /// Lets readers wait until something is due.
        fn wait(&mut self, most: Duration) -> Option<Reason> {
            let until = self.now + most;
            while self.now <= until {
                self.cases.somebody_waits(LAYER, 3, self.now);
                if let Some((_, reason)) = self.cases.due(self.now).pop() {
                    assert_eq!(self.cases.due(self.now), [], "under way");
                    return Some(reason);
                }
                self.now += Duration::from_millis(500);
            }
            None
        }

        /// What is done while readers wait, and after how many seconds; each attempt ends as `end` says.
        fn attempts<const N: usize>(&mut self, end: impl Fn(Reason) -> End) -> [(f32, Reason); N] {
            std::array::from_fn(|_| {
                let reason = self.wait(MOST_DELAY).expect("something is due");
                self.cases.end(LAYER, Ok(end(reason)), self.now);
                (self.now.duration_since(self.began).as_secs_f32(), reason)
            })
        }
    }

    /// A peer that may not read: nobody is to be asked, either.
    fn lease_holder(reason: Reason) -> End {
        if reason == Early { End::Unanswered } else { End::Partly }
    }

    #[test]
    fn each_attempt_that_does_not_fill_the_layer_makes_the_next_one_rarer() {
        let mut rig = Rig::new();
        let attempts: [_; 40] = rig.attempts(|reason| match reason {
            Early => End::Elsewhere,
            _ => End::Partly,
        });
        let reads = attempts.into_iter().filter(|(_, reason)| *reason != Early);
        let reads: Vec<_> = reads.map(|(at, _)| at as u32).collect();
        let between: Vec<_> = reads.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(between[..3], [10, 20, 40]);
        assert!(reads.len() < 8, "{reads:?}");
    }

    #[test]
    fn what_is_hopeless_is_never_tried_again_and_a_filled_layer_is_a_new_case() {
        let mut rig = Rig::new();
        rig.attempts::<3>(|_| End::Elsewhere);
        assert!(rig.wait(MOST_DELAY).is_some());
        rig.cases.end(LAYER, Ok(End::Whole), rig.now);
        rig.began = rig.now;
        assert_eq!(rig.attempts(|_| End::Elsewhere), [(1.0, Early), (2.0, Early)]);
        assert!(rig.wait(MOST_DELAY).is_some());
        let never = OpenFailure::new(FailureCode::Internal, "other chunks");
        rig.cases.end(LAYER, Err(never), rig.now);
        assert_eq!(rig.wait(MOST_DELAY * 10), None);
        rig.cases.begin_anew(LAYER, rig.now);
        assert_eq!(rig.wait(MOST_DELAY), None);
        assert!(rig.cases.failure(LAYER, rig.now).is_some(), "and everybody who waits hears why");
    }

    #[test]
    fn nothing_is_done_for_readers_that_left() {
        let mut rig = Rig::new();
        assert_eq!(rig.wait(Duration::from_millis(500)), None);
        rig.now += PATIENCE;
        assert_eq!(rig.cases.due(rig.now), []);
        assert_eq!(rig.wait(Duration::ZERO), Some(Readers), "they wait as long as they waited before");
    }

    #[test]
    fn who_is_to_read_is_asked_soon_and_again_less_and_less_often() {
        let mut rig = Rig::new();
        let expected = [
            (1.0, Early),
            (2.0, Early),
            (4.0, Turn),
            (8.0, Turn),
            (10.0, Readers),
            (20.0, Readers),
            (30.0, Readers),
            (40.0, Alone),
        ];
        assert_eq!(rig.attempts(|_| End::Elsewhere), expected);
    }

    #[test]
    fn who_does_not_answer_is_asked_again_soon_and_for_as_long_as_it_takes() {
        let mut rig = Rig::new();
        let expected = [
            (1.0, Early),
            (1.5, Early),
            (2.5, Turn),
            (4.5, Turn),
            (8.5, Turn),
            (10.0, Readers),
            (14.0, Readers),
        ];
        assert_eq!(rig.attempts(|_| End::Unanswered), expected);
        rig.cases.end(LAYER, Ok(End::Elsewhere), rig.now);
        let again =
            |rig: &mut Rig| rig.wait(MOST_DELAY).map(|_| rig.cases.end(LAYER, Ok(End::Unanswered), rig.now));
        let began = rig.now;
        assert!(again(&mut rig).is_some() && again(&mut rig).is_some());
        assert!(rig.now - began <= PATIENCE + UNANSWERED, "an answer makes it soon again");
    }

    #[test]
    fn what_comes_meanwhile_does_not_keep_another_peer_from_being_asked() {
        let mut rig = Rig::new();
        for have in 0..2 {
            rig.cases.somebody_waits(LAYER, have, rig.now);
            assert_eq!(rig.cases.due(rig.now), []);
            rig.now += EARLY / 2;
        }
        rig.cases.somebody_waits(LAYER, 2, rig.now);
        assert_eq!(rig.cases.due(rig.now), [(LAYER, Early)]);
    }

    #[test]
    fn who_could_not_read_says_so_until_it_tries_again() {
        let mut rig = Rig::new();
        assert!(rig.cases.refusal(LAYER, rig.now).is_none());
        rig.cases.asked(LAYER, rig.now);
        assert_eq!(rig.cases.due(rig.now), [(LAYER, Asked)]);
        rig.cases.end(LAYER, Err(OpenFailure::new(FailureCode::Unauthorized, "no credentials")), rig.now);
        assert_eq!(rig.cases.refusal(LAYER, rig.now).unwrap().message, "no credentials");
        assert!(rig.cases.refusal(LAYER, rig.now + PATIENCE).is_none());
        rig.cases.begin_anew(LAYER, rig.now);
        assert!(rig.cases.refusal(LAYER, rig.now).is_none());
    }

    #[test]
    fn the_leases_holder_waits_for_a_part_of_its_patience() {
        let mut rig = Rig::new();
        let attempts: [_; 4] = rig.attempts(lease_holder);
        assert_eq!(attempts[..3], [(1.0, Early), (1.5, Early), (2.5, Turn)]);
        let mut short = Rig { cases: Cases::new(Duration::from_secs(2)), ..Rig::new() };
        assert_eq!(short.attempts(lease_holder), [(1.0, Turn)], "never sooner than others are asked");
    }

    #[test]
    fn a_layer_that_is_wanted_and_lost_again_and_again_is_asked_for_no_more_often_than_ever() {
        let mut rig = Rig::new();
        let mut waits = Vec::new();
        for have in 0..6 {
            rig.cases.somebody_waits(LAYER, have, rig.now);
            rig.began = rig.now;
            rig.cases.somebody_waits(LAYER, 3, rig.now);
            let [(after, _)] = rig.attempts(|_| End::Elsewhere);
            waits.push(after);
        }
        assert_eq!(waits, [1.0, 1.0, 2.0, 4.0, 8.0, 10.0]);
        rig.now += FORGET + PATIENCE;
        rig.began = rig.now;
        assert_eq!(rig.attempts(|_| End::Elsewhere), [(1.0, Early), (2.0, Early)], "it was long ago");
    }

    #[test]
    fn arrivals_begin_the_wait_anew() {
        let mut rig = Rig::new();
        rig.attempts::<8>(|_| End::Elsewhere);
        rig.cases.somebody_waits(LAYER, 4, rig.now);
        rig.cases.somebody_waits(LAYER, 3, rig.now);
        rig.now += PATIENCE;
        assert_eq!(rig.wait(Duration::ZERO), Some(Readers));
    }

    #[test]
    fn what_another_peer_asks_for_is_done_at_once_and_once() {
        let mut rig = Rig::new();
        rig.cases.asked(LAYER, rig.now);
        assert_eq!(rig.cases.due(rig.now), [(LAYER, Asked)]);
        rig.cases.asked(LAYER, rig.now);
        rig.cases.end(LAYER, Ok(End::Partly), rig.now);
        assert_eq!(rig.cases.due(rig.now + PATIENCE), []);
        rig.cases.asked(LAYER, rig.now);
        assert_eq!(rig.cases.due(rig.now), [], "not so soon");
        assert_eq!(rig.cases.due(rig.now + PATIENCE), [(LAYER, Asked)]);
    }

    #[test]
    fn why_the_origin_did_not_help_is_told_to_who_waits_since_before() {
        let mut rig = Rig::new();
        rig.wait(PATIENCE).unwrap();
        let refused = OpenFailure::new(FailureCode::Unauthorized, "no");
        rig.cases.end(LAYER, Err(refused), rig.now);
        assert_eq!(rig.cases.failure(LAYER, rig.now).unwrap().code, FailureCode::Unauthorized);
        assert!(rig.cases.failure(LAYER, rig.now + PATIENCE).is_none());
        rig.cases.begin_anew(LAYER, rig.now);
        assert_eq!(rig.wait(Duration::ZERO), Some(Early), "an order does not wait for what failed before it");
    }
}
