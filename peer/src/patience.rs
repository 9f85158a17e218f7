//! How long a node goes on waiting for its cluster to give it a layer before it reads the origin itself.
//!
//! Whoever reads the origin, and whoever follows that, shows signs of life; the patience counts from the last one. So a
//! registry that is slow for one peer is not asked by all of them, and a peer that died after an hour of work gets the
//! same time to come back, or to be replaced, as one that died at once.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::fetch::Parent;

/// With a scheduler that hands out origin leases, this many times the patience pass before a node goes without one:
/// the scheduler needs the time to notice a holder that hangs.
const LEASED: u32 = 4;

/// A seed that cannot be reached for this part of the patience is taken for dead by the seed that comes after it.
const GONE: u32 = 4;

/// What a parent shows while a layer is opened at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It sent a part of the layer.
    Chunk,
    /// It has nothing to send, but is at work, or waits for somebody who is.
    Working,
}

#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    last_sign: Instant,
    working: HashSet<SocketAddr>,
    /// Parents that worked and then gave up: that they are at work again says nothing.
    gave_up: HashSet<SocketAddr>,
    /// Parents that cannot be reached, and since when.
    unreachable: HashMap<SocketAddr, Instant>,
}

impl Patience {
    pub fn new(limit: Duration, now: Instant) -> Self {
        let (working, gave_up, unreachable) = Default::default();
        Self { limit, last_sign: now, working, gave_up, unreachable }
    }

    pub fn reached(&mut self, parent: SocketAddr) {
        self.unreachable.remove(&parent);
    }

    pub fn not_reached(&mut self, parent: SocketAddr, now: Instant) {
        self.unreachable.entry(parent).or_insert(now);
    }

    /// Whether none of these has been reached for so long that they will not be back soon.
    pub fn are_gone(&self, parents: &[Parent], now: Instant) -> bool {
        let is_gone = |parent: &Parent| {
            let since = self.unreachable.get(&parent.address);
            since.is_some_and(|since| now.saturating_duration_since(*since) >= self.limit / GONE)
        };
        !parents.is_empty() && parents.iter().all(is_gone)
    }

    pub fn sign(&mut self, from: SocketAddr, sign: Sign, now: Instant) {
        match sign {
            Sign::Chunk => self.last_sign = now,
            Sign::Working if self.gave_up.contains(&from) => {}
            Sign::Working => {
                self.working.insert(from);
                self.last_sign = now;
            }
        }
    }

    /// Whether the parent has shown that it reads the layer, or waits for somebody who does.
    pub fn has_worked(&self, parent: SocketAddr) -> bool {
        self.working.contains(&parent) || self.gave_up.contains(&parent)
    }

    /// The parent said that it cannot give the layer.
    pub fn failed(&mut self, from: SocketAddr) {
        if self.working.remove(&from) {
            self.gave_up.insert(from);
        }
    }

    /// `leased` says that a scheduler decides who reads the origin.
    pub fn is_over(&self, leased: bool, now: Instant) -> bool {
        let limit = if leased { self.limit * LEASED } else { self.limit };
        now.saturating_duration_since(self.last_sign) >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn the_patience_counts_from_the_last_sign_of_life() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let [one, two] = ["192.0.2.1:4000", "192.0.2.2:4000"].map(|address| address.parse().unwrap());
        let mut patience = Patience::new(LIMIT, start);
        assert!(!patience.is_over(false, at(9)) && patience.is_over(false, at(10)));
        patience.sign(one, Sign::Working, at(30));
        assert!(!patience.is_over(false, at(39)) && patience.is_over(false, at(40)));
        assert!(!patience.is_over(true, at(69)) && patience.is_over(true, at(70)), "the lease's time");

        patience.failed(one);
        patience.sign(one, Sign::Working, at(35));
        assert!(patience.is_over(false, at(40)), "a second attempt of the same parent counts for nothing");
        patience.sign(one, Sign::Chunk, at(41));
        assert!(!patience.is_over(false, at(50)), "unless it brings something");
        patience.failed(two);
        patience.sign(two, Sign::Working, at(60));
        assert!(!patience.is_over(false, at(69)), "who failed before it worked may still be of help");
    }

    #[test]
    fn who_cannot_be_reached_is_gone_before_the_patience_is_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let [one, two] = ["192.0.2.1:4000", "192.0.2.2:4000"]
            .map(|address| Parent { address: address.parse().unwrap(), seed: true });
        let mut patience = Patience::new(LIMIT, start);
        assert!(!patience.are_gone(&[], at(9)));
        patience.not_reached(one.address, at(1));
        patience.not_reached(one.address, at(3));
        assert!(!patience.are_gone(&[one], at(3)) && patience.are_gone(&[one], at(4)));
        assert!(!patience.are_gone(&[one, two], at(9)), "the other was never asked");
        patience.not_reached(two.address, at(4));
        assert!(patience.are_gone(&[one, two], at(7)));
        patience.reached(two.address);
        assert!(!patience.are_gone(&[one, two], at(9)), "a restart");
    }
}
