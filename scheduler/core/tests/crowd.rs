//! Bounds, shares and stability with many peers.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::collections::BTreeMap;
use std::time::Duration;

use d7y_scheduler_core::{
    Action, Assignment, Event, HoldState, MAX_OPEN_PER_PEER, MAX_PUSHES_PER_TICK, MAX_TASKS_PER_PEER,
    MAX_TRACE_BYTES, PeerId, PeerInfo, Refusal, Role, Scheduler, Settings, choice::MAX_PARENTS,
};
use d7y_types::Sha256Digest;

fn task(number: usize) -> Sha256Digest {
    let mut raw = [0; 32];
    raw[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Sha256Digest(raw)
}

fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

struct Crowd(Scheduler);

impl Crowd {
    fn new() -> Self {
        Self(Scheduler::new(Settings { settle: Duration::ZERO }))
    }

    fn apply(&mut self, event: Event) -> Vec<Action> {
        self.0.apply(event, Duration::ZERO)
    }

    fn join(&mut self, name: &str, role: Role) {
        self.apply(Event::PeerAnnounced(PeerInfo { id: id(name), role, address: "a:1".to_owned() }));
    }

    fn holds(&mut self, name: &str, state: HoldState) {
        self.apply(Event::Inventory { peer: id(name), task: task(0), state });
    }

    fn open(&mut self, name: &str) -> Assignment {
        match self.apply(Event::TaskOpened { peer: id(name), task: task(0) }).pop() {
            Some(Action::Assign { assignment, .. }) => assignment,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn links_are_bounded_spread_and_led_by_complete_nodes() {
    let mut crowd = Crowd::new();
    crowd.join("seed", Role::Seed);
    crowd.holds("seed", HoldState::Complete);
    for number in 0..400 {
        let name = format!("holder-{number}");
        crowd.join(&name, Role::Node);
        let state = if number % 2 == 0 { HoldState::Complete } else { HoldState::Partial };
        crowd.holds(&name, state);
    }
    let mut links = BTreeMap::<String, u32>::new();
    for number in 0..400 {
        let name = format!("asker-{number}");
        crowd.join(&name, Role::Node);
        let parents = crowd.open(&name).parents;
        assert_eq!(parents.len(), MAX_PARENTS);
        let weight = |name: &str| parents.iter().find(|p| p.peer.id.as_str() == name).map(|p| p.weight);
        assert!(weight("seed").unwrap() <= 200, "the seed is there, and kept calm");
        assert!(parents.iter().all(|parent| (1..=1000).contains(&parent.weight)));
        let nodes = parents.iter().filter(|p| p.peer.role == Role::Node);
        for parent in nodes {
            *links.entry(parent.peer.id.to_string()).or_default() += 1;
        }
    }
    // 400 askers × 8 complete links over 200 holders is 16 each; two choices keep the most loaded near that.
    let most = links.values().max().unwrap();
    assert!(*most <= 24, "the most loaded holder has {most} links");
    assert!(links.len() >= 390, "only {} holders are used", links.len());
}

#[test]
fn links_that_serve_are_kept() {
    let mut crowd = Crowd::new();
    for number in 0..100 {
        let name = format!("holder-{number}");
        crowd.join(&name, Role::Node);
        crowd.holds(&name, HoldState::Complete);
    }
    crowd.join("asker", Role::Node);
    let names = |assignment: &Assignment| {
        assignment.parents.iter().map(|parent| parent.peer.id.clone()).collect::<Vec<_>>()
    };
    let before = names(&crowd.open("asker"));
    crowd.apply(Event::PeerGone { peer: before[5].clone() });
    let actions = crowd.apply(Event::Tick);
    let [Action::Assign { assignment, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    let after = names(assignment);
    assert_eq!(after.len(), MAX_PARENTS);
    assert_eq!(before.iter().filter(|name| after.contains(name)).count(), MAX_PARENTS - 1);
}

#[test]
fn a_tick_is_bounded_and_the_rest_follows() {
    let openers = MAX_PUSHES_PER_TICK + 100;
    let mut crowd = Crowd::new();
    crowd.join("seed", Role::Seed);
    for number in 0..openers {
        let name = format!("n-{number}");
        crowd.join(&name, Role::Node);
        crowd.open(&name);
    }
    crowd.apply(Event::Tick);
    crowd.apply(Event::Tick);
    crowd.holds("seed", HoldState::Complete);
    let pushed: Vec<_> = (0..3).map(|_| crowd.apply(Event::Tick).len()).collect();
    assert_eq!(pushed, [MAX_PUSHES_PER_TICK, 100, 0]);
}

#[test]
fn the_same_events_give_the_same_actions() {
    let run = || {
        let mut crowd = Crowd::new();
        let mut actions = Vec::new();
        for number in 0..60 {
            let name = format!("n-{number}");
            let role = if number % 20 == 0 { Role::Seed } else { Role::Node };
            crowd.join(&name, role);
            actions.extend(crowd.apply(Event::TaskOpened { peer: id(&name), task: task(number % 3) }));
            crowd.holds(&name, if number % 4 == 0 { HoldState::Partial } else { HoldState::Complete });
            if number % 7 == 0 {
                crowd.apply(Event::PeerGone { peer: id(&format!("n-{}", number / 2)) });
            }
            actions.extend(crowd.apply(Event::Tick));
        }
        actions
    };
    assert_eq!(run(), run());
}

#[test]
fn what_a_peer_can_make_the_scheduler_remember_is_bounded_and_forgotten() {
    let mut crowd = Crowd::new();
    crowd.join("n1", Role::Node);
    let refusal = |actions: Vec<Action>| match actions.as_slice() {
        [Action::Refuse { reason, .. }] => Some(*reason),
        _ => None,
    };
    let open = |number| Event::TaskOpened { peer: id("n1"), task: task(number) };
    let hold = |number| Event::Inventory { peer: id("n1"), task: task(number), state: HoldState::Failed };
    for number in 0..MAX_OPEN_PER_PEER {
        assert_eq!(refusal(crowd.apply(open(number))), None);
    }
    assert_eq!(refusal(crowd.apply(open(MAX_OPEN_PER_PEER))), Some(Refusal::OpenTasks));
    for number in 0..MAX_TASKS_PER_PEER {
        assert_eq!(refusal(crowd.apply(hold(number))), None);
    }
    assert_eq!(refusal(crowd.apply(hold(MAX_TASKS_PER_PEER))), Some(Refusal::TasksOfPeer));
    let body = vec![0; MAX_TRACE_BYTES + 1].into();
    let trace = Event::TracePublished { peer: id("n1"), image: task(0), body };
    assert_eq!(refusal(crowd.apply(trace)), Some(Refusal::TraceSize));
    crowd.apply(Event::PeerGone { peer: id("n1") });
    assert_eq!(crowd.0.stats().tasks, 0);
    assert_eq!(crowd.0.stats().nodes, 0);
}

#[test]
fn failures_are_forgotten_with_time_and_no_task_is_left() {
    let mut scheduler = Scheduler::new(Settings { settle: Duration::ZERO });
    let peer = id("n1");
    let info = PeerInfo { id: peer.clone(), role: Role::Node, address: "a:1".to_owned() };
    scheduler.apply(Event::PeerAnnounced(info), Duration::ZERO);
    let failed = Event::Inventory { peer, task: task(0), state: HoldState::Failed };
    scheduler.apply(failed, Duration::ZERO);
    assert_eq!(scheduler.stats().tasks, 1);
    scheduler.apply(Event::Tick, Duration::from_secs(60));
    assert_eq!(scheduler.stats().tasks, 0);
}

#[test]
fn traces_travel() {
    let mut crowd = Crowd::new();
    crowd.join("n1", Role::Node);
    let body: std::sync::Arc<[u8]> = b"trace".as_slice().into();
    crowd.apply(Event::TracePublished { peer: id("n1"), image: task(1), body: body.clone() });
    for (image, expected) in [(task(1), body), (task(2), Default::default())] {
        let sent = crowd.apply(Event::TraceWanted { peer: id("n1"), image });
        assert_eq!(sent, [Action::SendTrace { to: id("n1"), image, body: expected }]);
    }
}
