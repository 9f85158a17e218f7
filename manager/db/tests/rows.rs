#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
//! The database as the manager uses it: a file, opened again and again.

use std::time::Duration;

use d7y_manager_db::{
    AnyJob, Database, DbError, JobState, Kind, Lease, NewJob, NewMember, NewToken, PeerRole, Placement,
    PlacementState, RegistryLogin, SeenPeer, Timestamp, UserRole, Vault,
};
use d7y_types::{Compression, LayerRef, Sha256Digest};

const T: Timestamp = Timestamp(1_000_000);

struct Fixture {
    directory: tempfile::TempDir,
    db: Database,
    vault: Vault,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(&directory.path().join("manager.db")).await.unwrap();
        Self { directory, db, vault: Vault::new(&"ab".repeat(32)).unwrap() }
    }

    /// As after a kill: the file is opened by somebody who knows nothing.
    async fn again(&self) -> Database {
        Database::open(&self.directory.path().join("manager.db")).await.unwrap()
    }

    async fn job(&self, login: Option<(String, RegistryLogin)>) -> i64 {
        let new = NewJob {
            kind: "preheat".into(),
            bio: String::new(),
            args: "{}".into(),
            clusters: vec![1],
            deadline: T.plus(Duration::from_secs(3600)),
            user_id: 1,
            login,
        };
        self.db.add_job(&self.vault, new, T).await.unwrap().id
    }
}

fn member(kind: Kind, name: &str, address: &str) -> NewMember {
    NewMember { kind, cluster_id: 1, name: name.into(), address: address.into(), version: "1".into() }
}

fn lease(holder: &str) -> Lease {
    Lease { holder: holder.into(), duration: Duration::from_secs(10) }
}

#[tokio::test]
async fn the_default_cluster_is_made_once_and_names_are_unique() {
    let fixture = Fixture::new().await;
    let first = fixture.db.default_cluster(T).await.unwrap();
    assert_eq!(fixture.again().await.default_cluster(T).await.unwrap(), first);
    assert_eq!(fixture.db.add_cluster("prod", "", T).await.unwrap().name, "prod");
    assert!(matches!(fixture.db.add_cluster("prod", "", T).await, Err(DbError::Taken)));
    assert_eq!(fixture.db.clusters().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_newer_database_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("manager.db");
    Database::open(&path).await.unwrap().close().await.unwrap();
    let raw = sea_orm::Database::connect(format!("sqlite:{}", path.display())).await.unwrap();
    let later = "INSERT INTO seaql_migrations VALUES ('0900_later', 0), ('0901_last', 0)";
    sea_orm::ConnectionTrait::execute_unprepared(&raw, later).await.unwrap();
    raw.close().await.unwrap();
    let before = std::fs::read(&path).unwrap();
    match Database::open(&path).await {
        Err(error @ DbError::Newer { .. }) => {
            let said = error.to_string();
            assert!(said.contains("0901_last") && said.contains("manager.db"), "{said}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn members_leave_the_view_when_they_are_silent_and_keep_their_id() {
    let Fixture { db, directory: _directory, .. } = Fixture::new().await;
    db.default_cluster(T).await.unwrap();
    let one = db.register(member(Kind::Scheduler, "one", "a:1"), T).await.unwrap();
    let seed = db.register(member(Kind::Seed, "one", "a:2"), T).await.unwrap();
    let later = T.plus(Duration::from_secs(10));
    db.keep_alive(seed.id, later).await.unwrap();
    let names = async |kind, since| {
        let alive = db.alive(kind, since).await.unwrap();
        alive.into_iter().map(|row| row.address).collect::<Vec<_>>()
    };
    assert_eq!(names(Kind::Scheduler, T).await, ["a:1"]);
    assert!(names(Kind::Scheduler, later).await.is_empty());
    assert_eq!(names(Kind::Seed, later).await, ["a:2"]);
    let again = db.register(member(Kind::Scheduler, "one", "b:1"), later).await.unwrap();
    assert_eq!((again.id, again.address.as_str()), (one.id, "b:1"));
    db.silence(again.id).await.unwrap();
    assert!(names(Kind::Scheduler, T).await.is_empty());
}

#[tokio::test]
async fn peers_are_what_a_living_scheduler_says() {
    let Fixture { db, directory: _directory, .. } = Fixture::new().await;
    db.default_cluster(T).await.unwrap();
    let scheduler = db.register(member(Kind::Scheduler, "s", "a:1"), T).await.unwrap();
    let seen = |name: &str, role| SeenPeer { name: name.into(), role, address: format!("{name}:4000") };
    let ids = async || {
        let peers = db.peers(T).await.unwrap();
        peers.into_iter().map(|row| (row.name, row.id)).collect::<Vec<_>>()
    };
    let crowd: Vec<_> = (0..2500).map(|n| seen(&format!("n{n}"), PeerRole::Node)).collect();
    db.replace_peers(&scheduler, crowd, T).await.unwrap();
    let before = ids().await;
    assert_eq!(before.len(), 2500);
    let some = vec![seen("n7", PeerRole::Node), seen("n8", PeerRole::Seed), seen("new", PeerRole::Node)];
    db.replace_peers(&scheduler, some, T).await.unwrap();
    let after = ids().await;
    assert_eq!(after.len(), 3);
    assert!(after.contains(&before[7]), "a peer that stays keeps its id");
    db.silence(scheduler.id).await.unwrap();
    assert!(ids().await.is_empty());
}

#[tokio::test]
async fn tokens_expire_and_can_be_taken_back() {
    let Fixture { db, directory: _directory, .. } = Fixture::new().await;
    assert!(!db.has_users().await.unwrap());
    let root = db.add_user("root", "$argon2id$x", UserRole::Root, T).await.unwrap();
    assert!(db.has_users().await.unwrap());
    assert!(!format!("{root:?}").contains("argon2"));
    let token = |hash: &str, expires_at| NewToken {
        user_id: root.id,
        name: "cli".into(),
        hash: hash.into(),
        scopes: vec!["jobs".into()],
        expires_at,
    };
    let kept = db.add_token(token("aa", None), T).await.unwrap();
    db.add_token(token("bb", Some(T)), T).await.unwrap();
    let found = db.token("aa", T).await.unwrap().unwrap();
    assert_eq!((found.0.scopes.as_str(), found.1.name.as_str()), (r#"["jobs"]"#, "root"));
    assert!(db.token("bb", T).await.unwrap().is_none(), "expired");
    assert!(!db.remove_token(kept.id, Some(root.id + 1)).await.unwrap(), "somebody else's");
    assert!(db.remove_token(kept.id, None).await.unwrap());
    assert!(!db.remove_token(kept.id, None).await.unwrap());
    assert!(db.token("aa", T).await.unwrap().is_none());
}

#[tokio::test]
async fn somebody_may_always_do_everything() {
    let Fixture { db, directory: _directory, .. } = Fixture::new().await;
    let root = db.add_user("root", "one", UserRole::Root, T).await.unwrap();
    let guest = db.add_user("guest", "one", UserRole::Guest, T).await.unwrap();
    for (role, disabled) in [(Some(UserRole::Guest), None), (None, Some(true))] {
        let refused = db.change_user(root.id, role, disabled).await;
        assert!(matches!(refused, Err(DbError::LastRoot)), "{refused:?}");
    }
    assert_eq!(db.user(root.id).await.unwrap().unwrap(), root, "a refused change is none");
    let promoted = db.change_user(guest.id, Some(UserRole::Root), None).await.unwrap().unwrap();
    assert_eq!(promoted.role, UserRole::Root);
    assert!(db.change_user(root.id, Some(UserRole::Guest), Some(true)).await.unwrap().unwrap().disabled);
    assert!(db.change_user(99, None, None).await.unwrap().is_none());
    db.restore_root("root", "two", T).await.unwrap();
    let restored = db.user_named("root").await.unwrap().unwrap();
    assert_eq!((restored.id, restored.role, restored.disabled), (root.id, UserRole::Root, false));
    assert_eq!(restored.password_hash, "two");
}

#[tokio::test]
async fn ended_jobs_go_when_they_are_old_or_too_many() {
    let fixture = Fixture::new().await;
    let db = &fixture.db;
    let at = |seconds| T.plus(Duration::from_secs(seconds));
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(fixture.job(None).await);
    }
    // The second is pending, whatever its age.
    for (job, ended) in [(0, 10), (2, 20), (3, 30), (4, 40), (5, 50)] {
        db.end_job(jobs[job], JobState::Success, "", at(ended)).await.unwrap();
    }
    let placement = Placement {
        job_id: jobs[0],
        cluster_id: 1,
        peer: "node".into(),
        layer: 0,
        state: PlacementState::Done,
        bytes_done: 1,
        bytes_total: 1,
        error: String::new(),
        updated_at: T.0,
    };
    db.keep_placements(vec![placement]).await.unwrap();
    let left = async || {
        let (rows, _) = db.jobs(1, 100).await.unwrap();
        rows.into_iter().rev().map(|row| row.id - jobs[0]).collect::<Vec<_>>()
    };
    assert_eq!(db.prune_jobs(T, 100).await.unwrap(), 0);
    assert_eq!(db.prune_jobs(at(15), 100).await.unwrap(), 1);
    assert_eq!(left().await, [1, 2, 3, 4, 5]);
    assert!(db.placements(jobs[0]).await.unwrap().is_empty(), "its rows go with it");
    assert_eq!(db.prune_jobs(T, 2).await.unwrap(), 2);
    assert_eq!(left().await, [1, 4, 5], "the newest stay, and what is pending");
}

#[tokio::test]
async fn a_lease_is_held_by_one_and_taken_over_when_it_runs_out() {
    let fixture = Fixture::new().await;
    let job = fixture.job(None).await;
    let db = &fixture.db;
    let other = fixture.again().await;
    let ids = async |db: &Database, holder: &str, now| {
        let claimed = db.claim(&lease(holder), 10, now).await.unwrap();
        claimed.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(db, "one", T).await, [job]);
    assert!(ids(&other, "two", T.plus(Duration::from_secs(9))).await.is_empty());
    assert_eq!(ids(db, "one", T.plus(Duration::from_secs(9))).await, [job], "renewed");
    assert!(ids(&other, "two", T.plus(Duration::from_secs(18))).await.is_empty());
    assert_eq!(ids(&other, "two", T.plus(Duration::from_secs(20))).await, [job], "taken over");
    assert!(ids(db, "one", T.plus(Duration::from_secs(20))).await.is_empty());
    other.end_job(job, JobState::Success, "", T).await.unwrap();
    assert!(ids(&other, "two", T.plus(Duration::from_secs(99))).await.is_empty(), "it has ended");
    assert_eq!(db.count_jobs().await.unwrap()["success"], 1);
}

#[tokio::test]
async fn layers_and_placements_survive() {
    let fixture = Fixture::new().await;
    let job = fixture.job(None).await;
    let layer = |n: u8| LayerRef {
        registry: "registry.example".into(),
        repository: "app".into(),
        digest: Sha256Digest([n; 32]),
        diff_id: Sha256Digest([n; 32]),
        size: 5,
        compression: Compression::Gzip,
    };
    let layers = [layer(1), layer(2)];
    fixture.db.keep_layers(job, "sha256:x", &layers, T).await.unwrap();
    let placement = |number, state, bytes_done| Placement {
        job_id: job,
        cluster_id: 1,
        peer: "node".into(),
        layer: number,
        state,
        bytes_done,
        bytes_total: 9,
        error: String::new(),
        updated_at: T.0,
    };
    let first = vec![placement(0, PlacementState::Waiting, 0), placement(1, PlacementState::Waiting, 0)];
    fixture.db.keep_placements(first).await.unwrap();
    fixture.db.keep_placements(vec![placement(1, PlacementState::Done, 9)]).await.unwrap();
    let again = fixture.again().await;
    assert_eq!(again.layers(job).await.unwrap(), layers);
    let states: Vec<_> = again.placements(job).await.unwrap().iter().map(|row| row.state).collect();
    assert_eq!(states, [PlacementState::Waiting, PlacementState::Done]);
    assert_eq!(again.job(job).await.unwrap().unwrap().manifest.as_deref(), Some("sha256:x"));
}

#[tokio::test]
async fn credentials_lie_sealed_and_go_with_their_job() {
    let fixture = Fixture::new().await;
    let Fixture { db, vault, directory } = &fixture;
    let all = RegistryLogin::password("robot", "correct horse");
    let own = RegistryLogin::authorization("Bearer short-lived");
    let registry = "registry.example:5000";
    let job = fixture.job(Some((registry.into(), own.clone()))).await;
    db.keep_credential(vault, (registry, AnyJob::Yes), &all, T).await.unwrap();
    db.keep_credential(vault, (registry, AnyJob::Yes), &all, T).await.unwrap();
    assert_eq!(db.credential(vault, registry, job).await.unwrap(), Some(own));
    assert_eq!(db.credential(vault, registry, job + 1).await.unwrap(), Some(all.clone()));
    assert_eq!(db.credential(vault, "other.example", job).await.unwrap(), None);
    assert_eq!(db.credentials().await.unwrap().len(), 1, "a job's own is not listed, a newer replaces");
    for file in ["manager.db", "manager.db-wal"] {
        let bytes = std::fs::read(directory.path().join(file)).unwrap_or_default();
        for secret in [&b"correct horse"[..], b"short-lived"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "in clear in {file}");
        }
    }
    db.end_job(job, JobState::Failure, "no such image", T).await.unwrap();
    assert_eq!(db.credential(vault, registry, job).await.unwrap(), Some(all), "the job's own is gone");
}
