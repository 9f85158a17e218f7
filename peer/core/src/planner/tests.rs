use d7y_types::Sha256Digest;

use super::*;

const LAYER: LayerKey = Sha256Digest([7; 32]);
const SEED: ParentId = ParentId(1);
const NODE: ParentId = ParentId(2);

struct Rig {
    planner: Planner,
    now: Instant,
}

impl Rig {
    fn new(chunks: u32) -> Self {
        let limits = Limits { window_bytes: [400, 200, 100, 100], ..Limits::default() };
        let mut planner = Planner::new(limits, 0);
        planner.add_layer(LAYER, vec![100; chunks as usize], &Bits::new(chunks));
        planner.add_parent(SEED, ParentRole::Seed);
        planner.set_holding(LAYER, SEED, Bits::all(chunks));
        Self { planner, now: Instant::now() }
    }

    fn asked(&mut self) -> Vec<(ParentId, Lane, Vec<u32>)> {
        let requests = self.planner.next_requests(self.now);
        requests.into_iter().map(|r| (r.parent, r.lane, r.chunks)).collect()
    }

    fn want(&mut self, chunks: &[u32], lane: Lane) {
        self.planner.want(LAYER, chunks.iter().copied(), lane, self.now);
    }
}

#[test]
fn a_chunk_is_asked_for_once_however_many_want_it() {
    let mut rig = Rig::new(20);
    rig.want(&[10], Lane::Demand);
    rig.want(&[10], Lane::Demand);
    rig.want(&[10], Lane::Prefetch);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![10])]);
    rig.want(&[10], Lane::Demand);
    assert_eq!(rig.asked(), []);
    rig.planner.arrived(LAYER, 10, rig.now);
    rig.want(&[10], Lane::Demand);
    assert_eq!(rig.asked(), []);
    assert!(rig.planner.is_present(LAYER, 10));
}

#[test]
fn a_preheat_ends_however_often_readers_want_something() {
    let mut rig = Rig::new(40);
    rig.want(&[0, 1, 2], Lane::Preheat);
    assert_eq!(rig.asked(), [(SEED, Lane::Preheat, vec![0])]);
    rig.planner.arrived(LAYER, 0, rig.now);
    rig.want(&[10], Lane::Demand);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![10])], "a reader waits");
    rig.planner.arrived(LAYER, 10, rig.now);
    assert_eq!(rig.asked(), [(SEED, Lane::Preheat, vec![1])], "no reader waits any more");
    rig.planner.arrived(LAYER, 1, rig.now);
    rig.want(&[20], Lane::Demand);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![20])]);
    rig.now += Limits::default().preheat_patience;
    assert_eq!(rig.asked(), [(SEED, Lane::Preheat, vec![2])], "however long one waits");
}

#[test]
fn a_preheat_passes_readers_whose_window_is_full_once_in_a_while() {
    let mut rig = Rig::new(40);
    rig.want(&[0, 1], Lane::Preheat);
    assert_eq!(rig.asked(), [(SEED, Lane::Preheat, vec![0])]);
    rig.planner.arrived(LAYER, 0, rig.now);
    rig.want(&[10, 11, 12, 13, 14, 15], Lane::Demand);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![10, 11, 12, 13])], "the window is full");
    assert!(rig.planner.next_wake(rig.now) <= Limits::default().preheat_patience);
    rig.now += Limits::default().preheat_patience;
    assert_eq!(rig.asked(), [(SEED, Lane::Preheat, vec![1])]);
}

#[test]
fn demand_overtakes_prefetch_and_background() {
    let mut rig = Rig::new(20);
    rig.planner.want_rest(LAYER, rig.now);
    assert_eq!(rig.asked(), [(SEED, Lane::Background, vec![0])]);
    rig.want(&[15, 16], Lane::Prefetch);
    rig.want(&[16], Lane::Demand);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![16]), (SEED, Lane::Prefetch, vec![15])]);
    rig.planner.arrived(LAYER, 0, rig.now);
    assert_eq!(rig.asked(), [], "background waits until it is quiet");
    rig.now += Limits::default().quiet;
    assert_eq!(rig.asked(), [(SEED, Lane::Background, vec![1])]);
}

#[test]
fn a_node_that_holds_the_chunk_is_asked_before_the_seed() {
    let mut rig = Rig::new(20);
    rig.planner.add_parent(NODE, ParentRole::Node);
    rig.planner.set_holding(LAYER, NODE, Bits::new(20));
    rig.planner.add_holding(LAYER, NODE, [12]);
    rig.want(&[12, 19], Lane::Demand);
    let mut asked = rig.asked();
    asked.sort();
    assert_eq!(asked, [(SEED, Lane::Demand, vec![19]), (NODE, Lane::Demand, vec![12])]);
}

#[test]
fn what_a_lost_parent_owed_is_asked_of_another() {
    let mut rig = Rig::new(20);
    rig.planner.add_parent(NODE, ParentRole::Node);
    rig.planner.set_holding(LAYER, NODE, Bits::all(20));
    rig.want(&[12], Lane::Demand);
    assert_eq!(rig.asked(), [(NODE, Lane::Demand, vec![12])]);
    rig.planner.remove_parent(NODE);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![12])]);
    rig.now += Limits::default().overdue;
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![12])], "overdue: asked again");
}

#[test]
fn a_refused_chunk_is_an_orphan_until_somebody_holds_it() {
    let mut rig = Rig::new(20);
    rig.want(&[12], Lane::Demand);
    rig.asked();
    rig.planner.refused(LAYER, 12, SEED);
    assert_eq!(rig.asked(), []);
    assert!(rig.planner.has_orphans(LAYER, Lane::Demand));
    rig.planner.add_holding(LAYER, SEED, [12]);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![12])]);
    assert!(!rig.planner.has_orphans(LAYER, Lane::Demand));
}

#[test]
fn what_nobody_holds_is_an_orphan_for_the_lane_in_which_it_is_wanted() {
    let mut rig = Rig::new(20);
    rig.planner.remove_parent(SEED);
    rig.want(&[12], Lane::Preheat);
    assert_eq!(rig.asked(), []);
    assert!(rig.planner.has_orphans(LAYER, Lane::Preheat));
    assert!(!rig.planner.has_orphans(LAYER, Lane::Demand), "no reader waits");
}

#[test]
fn a_sequential_reader_gets_growing_read_ahead() {
    let mut rig = Rig::new(200);
    rig.want(&[50], Lane::Demand);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![50])], "the first read says nothing");
    rig.want(&[51], Lane::Demand);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![51]), (SEED, Lane::Prefetch, vec![52, 53])]);
    for chunk in 50..54 {
        rig.planner.arrived(LAYER, chunk, rig.now);
    }
    assert_eq!(rig.asked(), [(SEED, Lane::Prefetch, vec![54, 55])]);
}

#[test]
fn a_chunk_that_the_disk_refused_can_be_asked_for_again() {
    let mut rig = Rig::new(20);
    rig.want(&[12], Lane::Demand);
    rig.asked();
    rig.planner.dropped(LAYER, 12, rig.now);
    assert!(!rig.planner.is_present(LAYER, 12));
    rig.want(&[12], Lane::Demand);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![12])]);
}

#[test]
fn read_ahead_goes_on_where_it_was_right() {
    let mut rig = Rig::new(200);
    rig.want(&[10, 11, 12], Lane::Demand);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![10, 11, 12])], "one read, however long");
    let mut next = 13;
    for ahead in [4, 8, 16, 32] {
        (0..next).for_each(|chunk| rig.planner.arrived(LAYER, chunk, rig.now));
        rig.want(&[next], Lane::Demand);
        for chunk in next..next + 1 + ahead {
            rig.asked();
            assert!(!rig.planner.is_present(LAYER, chunk));
            rig.planner.arrived(LAYER, chunk, rig.now);
        }
        assert_eq!(rig.asked(), [], "no more than {ahead} ahead");
        // What was read ahead is here: the reader asks again only behind it.
        next += 1 + ahead;
    }
    rig.want(&[5, 190], Lane::Demand);
    rig.want(&[100], Lane::Demand);
    rig.planner.arrived(LAYER, 190, rig.now);
    assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![100])], "a reader that jumps is not read ahead for");
}

#[test]
fn a_demand_for_what_is_under_way_in_the_background_is_not_forgotten() {
    let mut rig = Rig::new(20);
    rig.planner.want_rest(LAYER, rig.now);
    assert_eq!(rig.asked(), [(SEED, Lane::Background, vec![0])]);
    rig.want(&[0], Lane::Demand);
    assert_eq!(rig.asked(), []);
    rig.planner.remove_parent(SEED);
    assert_eq!(rig.asked(), []);
    assert!(rig.planner.has_orphans(LAYER, Lane::Demand));
    rig.planner.add_parent(NODE, ParentRole::Node);
    rig.planner.set_holding(LAYER, NODE, Bits::all(20));
    assert_eq!(rig.asked(), [(NODE, Lane::Demand, vec![0])]);
}

#[test]
fn a_parent_that_is_late_gives_way_to_another() {
    let mut rig = Rig::new(20);
    rig.planner.add_parent(NODE, ParentRole::Node);
    rig.planner.set_holding(LAYER, NODE, Bits::all(20));
    rig.want(&[12], Lane::Demand);
    let mut parents = Vec::new();
    for _ in 0..4 {
        parents.extend(rig.asked().into_iter().map(|(parent, _, _)| parent));
        rig.now += Limits::default().overdue;
    }
    assert_eq!(parents, [NODE, NODE, SEED, NODE]);
}

#[test]
fn what_waits_for_one_parent_does_not_keep_what_another_holds() {
    let mut rig = Rig::new(20);
    rig.planner.add_parent(NODE, ParentRole::Node);
    rig.planner.set_holding(LAYER, NODE, Bits::new(20));
    rig.planner.add_holding(LAYER, NODE, 0..8);
    rig.want(&[0, 1, 2, 3, 4, 5, 6, 7, 8], Lane::Prefetch);
    let mut asked = rig.asked();
    asked.sort();
    assert_eq!(asked, [(SEED, Lane::Prefetch, vec![8]), (NODE, Lane::Prefetch, vec![0, 1])]);
}

#[test]
fn a_parent_that_has_shown_nothing_is_thought_as_fast_as_the_fastest() {
    let mut rig = Rig::new(20);
    let limits = Limits { window_bytes: [1 << 30; Lane::COUNT], ..Limits::default() };
    rig.planner = Planner::new(limits, 0);
    rig.planner.add_layer(LAYER, vec![1 << 20; 20], &Bits::new(20));
    rig.planner.add_parent(SEED, ParentRole::Seed);
    rig.planner.set_holding(LAYER, SEED, Bits::all(20));
    for chunk in (3..10).rev() {
        rig.want(&[chunk], Lane::Demand);
        assert_eq!(rig.asked()[0].0, SEED);
        rig.now += Duration::from_millis(1);
        rig.planner.arrived(LAYER, chunk, rig.now);
    }
    rig.planner.add_parent(NODE, ParentRole::Node);
    rig.planner.set_holding(LAYER, NODE, Bits::all(20));
    rig.want(&[19], Lane::Demand);
    assert_eq!(rig.asked(), [(NODE, Lane::Demand, vec![19])]);
}

#[test]
fn a_parent_that_does_not_answer_is_found_out_and_one_that_is_slow_is_not() {
    let overdue = Limits::default().overdue;
    for answers in [false, true] {
        let mut rig = Rig::new(20);
        rig.want(&[3], Lane::Demand);
        let mut found = Vec::new();
        for _ in 0..3 {
            assert_eq!(rig.asked(), [(SEED, Lane::Demand, vec![3])]);
            found.push(rig.planner.take_hanging().contains(&SEED));
            if answers {
                rig.planner.refused(LAYER, 7, SEED);
            }
            rig.now += overdue;
        }
        assert_eq!(found, [false, false, !answers], "late once, late again");
    }
}

#[test]
fn what_nobody_waits_for_any_more_is_no_orphan() {
    let mut rig = Rig::new(20);
    rig.planner.remove_parent(SEED);
    rig.want(&[3, 4], Lane::Demand);
    assert_eq!(rig.asked(), []);
    assert!(rig.planner.has_orphans(LAYER, Lane::Demand));
    rig.planner.demote(LAYER, 3);
    assert!(rig.planner.has_orphans(LAYER, Lane::Demand));
    rig.planner.demote(LAYER, 4);
    assert!(!rig.planner.has_orphans(LAYER, Lane::Demand));
    rig.planner.add_parent(NODE, ParentRole::Node);
    rig.planner.set_holding(LAYER, NODE, Bits::all(20));
    rig.now += Limits::default().quiet;
    assert_eq!(rig.asked(), [(NODE, Lane::Background, vec![3])], "it comes when it is had for nothing");
}
