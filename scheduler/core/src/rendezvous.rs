//! Rendezvous hashing: every party that knows the same members picks the same owner of a task, and a member
//! that comes or goes moves only the tasks it wins or had won.

use d7y_types::Sha256Digest;

/// A well-mixed hash of a member's name (FNV-1a, 64 bits, then [`mix`]); keep it, it never changes.
pub fn name_hash(name: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    mix(name.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME)))
}

/// The member with the highest score owns the task; equal scores go to the smaller name.
pub fn score(name_hash: u64, task: &Sha256Digest) -> u64 {
    task.0.as_chunks::<8>().0.iter().fold(name_hash, |hash, word| mix(hash ^ u64::from_le_bytes(*word)))
}

/// The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u64) -> Sha256Digest {
        let mut raw = [0; 32];
        raw[..8].copy_from_slice(&mix(number).to_le_bytes());
        Sha256Digest(raw)
    }

    fn owner<'a>(members: &[&'a str], task: &Sha256Digest) -> &'a str {
        members.iter().max_by_key(|name| score(name_hash(name), task)).unwrap()
    }

    #[test]
    fn published_vectors_hold() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf, "first output of SplitMix64 seeded with 0");
        assert_eq!(name_hash(""), mix(0xcbf2_9ce4_8422_2325));
        assert_eq!(score(name_hash("seed-1"), &Sha256Digest([0; 32])), 0xd213_25aa_4de1_e0a9);
    }

    #[test]
    fn shares_are_even_and_only_the_tasks_of_a_lost_member_move() {
        let members = ["seed-1", "seed-2", "seed-3", "seed-4"];
        let mut shares = [0_u32; 4];
        for task in (0..4000).map(task) {
            let before = owner(&members, &task);
            shares[members.iter().position(|name| *name == before).unwrap()] += 1;
            let after = owner(&members[1..], &task);
            assert!(before == "seed-1" || before == after);
        }
        assert!(shares.iter().all(|share| (850..1150).contains(share)), "{shares:?}");
    }
}
