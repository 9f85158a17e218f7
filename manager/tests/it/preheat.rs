//! What a job says when it cannot even begin. With peers: tests/swarm.

use d7y_origin::testing::{Access, Ending, FakeRegistry, Login};
use serde_json::{Value, json};

use crate::manager::Manager;

async fn note_of(manager: &Manager, url: &str, more: Value) -> String {
    let mut args = json!({ "type": "image", "url": url, "scope": "all-peers" });
    args.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let job = manager.post("/api/v1/jobs", &json!({ "type": "preheat", "args": args })).await;
    let path = format!("/api/v1/jobs/{}", job["id"]);
    let ended = manager.wait(&path, |job| job["note"] != "" || job["state"] != "PENDING").await;
    ended["note"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::start(directory.path()).await;
    let registry = FakeRegistry::start().await;
    let layer = registry.add_blob("app", &b"layer"[..]);
    registry.add_image("app", "1", &[layer]);
    let private = FakeRegistry::start_with(
        Access::Token { login: Login::Password("robot", "secret"), uses: 100 },
        Ending::Orderly,
    )
    .await;
    let layer = private.add_blob("app", &b"layer"[..]);
    private.add_image("app", "1", &[layer]);
    let (open, closed) = (registry.host(), private.host());
    let login = json!({ "username": "robot", "password": "secret" });
    let wrong = json!({ "username": "robot", "password": "guess" });
    let table = [
        (format!("{open}/app:2"), json!({}), "has no image 2 in app"),
        (format!("{open}/app:1"), json!({ "platform": "linux/arm64" }), "cluster default has no scheduler"),
        (format!("{closed}/app:1"), json!({}), "refused access to app"),
        (format!("{closed}/app:1"), wrong, "refused access to app"),
        (format!("{closed}/app:1"), login, "cluster default has no scheduler"),
        ("127.0.0.1:1/app:1".into(), json!({}), "127.0.0.1:1 cannot be reached"),
    ];
    for (url, more, expected) in table {
        let note = note_of(&manager, &url, more).await;
        assert!(note.contains(expected), "{url}: {note}");
        assert!(!note.contains("secret") && !note.contains("guess"), "{note}");
    }
    let stored = json!({ "registry": closed, "username": "robot", "password": "secret" });
    manager.post("/api/v1/registry-credentials", &stored).await;
    let note = note_of(&manager, &format!("{closed}/app:1"), json!({})).await;
    assert!(note.contains("no scheduler"), "the stored credential is used: {note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_manager_goes_on_with_its_jobs() {
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::start(directory.path()).await;
    let args = json!({ "type": "image", "url": "127.0.0.1:1/app:1" });
    let job = manager.post("/api/v1/jobs", &json!({ "type": "preheat", "args": args })).await;
    let manager = manager.again(directory.path()).await;
    let path = format!("/api/v1/jobs/{}", job["id"]);
    manager.wait(&path, |job| job["note"].as_str().unwrap().contains("cannot be reached")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_jobs_do_not_pile_up() {
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::start_with(directory.path(), |config| {
        config.jobs.keep_most = 2.try_into().unwrap();
    })
    .await;
    let registry = FakeRegistry::start().await;
    let args = json!({ "type": "image", "url": format!("{}/app:1", registry.host()) });
    for _ in 0..5 {
        manager.post("/api/v1/jobs", &json!({ "type": "preheat", "args": args })).await;
    }
    let ids = |jobs: &Value| {
        jobs.as_array().unwrap().iter().map(|job| job["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    manager.wait("/api/v1/jobs", |jobs| ids(jobs) == [5, 4]).await;
}
