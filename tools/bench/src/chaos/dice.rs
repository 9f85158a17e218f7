//! Random numbers that a seed repeats.

use std::time::Duration;

/// splitmix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`; 0 when that is 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        let scaled = (self.roll() >> 32) * u64::from(limit);
        // Half of the bits times a limit of 32 bits: what is above them is less than the limit.
        (scaled >> 32) as u32
    }

    /// From none to `most`, in milliseconds.
    pub fn pause(&mut self, most: Duration) -> Duration {
        let most = u32::try_from(most.as_millis()).unwrap_or(u32::MAX);
        Duration::from_millis(u64::from(self.below(most)))
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.below(u32::try_from(end).unwrap_or(u32::MAX).saturating_add(1));
            items.swap(end, other as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_the_limit_holds() {
        let rolls = |seed| {
            let mut dice = Dice::new(seed);
            let mut items: Vec<u32> = (0..20).collect();
            dice.shuffle(&mut items);
            let more: Vec<u32> = (0..200).map(|_| dice.below(7)).collect();
            (items, more)
        };
        assert_eq!(rolls(3), rolls(3));
        assert_ne!(rolls(3), rolls(4));
        let (mut items, more) = rolls(5);
        assert!((0..7).all(|number| more.contains(&number)) && more.iter().all(|number| *number < 7));
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
        assert_eq!(Dice::new(1).below(0), 0);
    }
}
