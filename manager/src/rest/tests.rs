use std::time::Duration;

use axum::body::{Body, to_bytes};
use d7y_chassis::{Secret, Spans};
use d7y_manager_db::{Database, NewToken, Timestamp, UserRole, Vault};
use d7y_origin::{Origin, OriginConfig};
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::ServiceExt;

use super::*;
use crate::identity;
use crate::manager::Settings;
use crate::metrics::Metrics;

const PASSWORD: &str = "correct horse battery";

struct Api {
    manager: Arc<Manager>,
    _directory: tempfile::TempDir,
}

impl Api {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(&directory.path().join("manager.db")).await.unwrap();
        let hash = identity::hash_password(Secret::new(PASSWORD)).await.unwrap();
        db.add_user("root", &hash, UserRole::Root, Timestamp::now()).await.unwrap();
        db.add_user("guest", "none", UserRole::Guest, Timestamp::now()).await.unwrap();
        db.default_cluster(Timestamp::now()).await.unwrap();
        let (interval, refresh) = (Duration::from_secs(5), Duration::from_secs(30));
        let settings = Settings { interval, refresh, keep_for: Duration::from_secs(3600), keep_most: 100 };
        let manager = Manager {
            db,
            vault: Vault::new(&"ab".repeat(32)).unwrap(),
            origin: Origin::new(OriginConfig::default()).unwrap(),
            settings,
            metrics: Metrics::default(),
            spans: Spans::default(),
            new_job: Notify::new(),
            _lock: d7y_chassis::obstacle::lock(directory.path(), "directory").unwrap(),
        };
        Self { manager: Arc::new(manager), _directory: directory }
    }

    /// A token of a user: 1 is root, 2 is guest.
    async fn token(&self, user_id: i64, scopes: &[&str]) -> String {
        let token = identity::new_token();
        let new = NewToken {
            user_id,
            name: "test".into(),
            hash: identity::token_hash(token.expose()),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            expires_at: None,
        };
        self.manager.db.add_token(new, Timestamp::now()).await.unwrap();
        format!("Bearer {}", token.expose())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        login: Option<&str>,
        body: &Value,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(login) = login {
            request = request.header(header::AUTHORIZATION, login);
        }
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = router(self.manager.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn get(&self, path: &str, login: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, Some(login), &Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }
}

/// The whole list: a new route stands here with its permission, or this test fails.
const ROUTES: &[&str] = &[
    "GET /healthy: open",
    "GET /api/v1/clusters: read clusters",
    "POST /api/v1/clusters: write clusters",
    "GET /api/v1/clusters/{id}: read clusters",
    "PATCH /api/v1/clusters/{id}: write clusters",
    "GET /api/v1/schedulers: read schedulers",
    "GET /api/v1/seed-peers: read seed-peers",
    "GET /api/v1/peers: read peers",
    "GET /api/v1/jobs: read jobs",
    "POST /api/v1/jobs: write jobs",
    "GET /api/v1/jobs/{id}: read jobs",
    "GET /api/v1/users: read users",
    "POST /api/v1/users: write users",
    "GET /api/v1/users/{id}: read users",
    "PATCH /api/v1/users/{id}: write users",
    "POST /api/v1/users/{id}/reset_password: keep own users",
    "GET /api/v1/personal-access-tokens: read personal-access-tokens",
    "POST /api/v1/personal-access-tokens: keep own personal-access-tokens",
    "DELETE /api/v1/personal-access-tokens/{id}: keep own personal-access-tokens",
    "GET /api/v1/registry-credentials: read registry-credentials",
    "POST /api/v1/registry-credentials: write registry-credentials",
    "DELETE /api/v1/registry-credentials/{id}: write registry-credentials",
    "GET /oapi/v1/clusters: read clusters",
    "GET /oapi/v1/clusters/{id}: read clusters",
    "GET /oapi/v1/jobs: read jobs",
    "POST /oapi/v1/jobs: write jobs",
    "GET /oapi/v1/jobs/{id}: read jobs",
];

#[tokio::test]
async fn every_route_has_its_permission_and_refuses_all_others() {
    let api = Api::new().await;
    let routes = routes(api.manager.clone());
    let listed: Vec<_> =
        routes.table().iter().map(|(method, path, need)| format!("{method} {path}: {need}")).collect();
    assert_eq!(listed, ROUTES);
    let root = api.token(1, &[]).await;
    let guest = api.token(2, &[]).await;
    let elsewhere = api.token(1, &["schedulers"]).await;
    let forged = format!("Bearer d7y_{}", "0".repeat(64));
    for (method, path, need) in routes.table() {
        let path = path.replace("{id}", "999");
        let status = async |login: Option<&str>| api.ask(method.clone(), &path, login, &json!({})).await.0;
        let let_in = |status: StatusCode| !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if *need == Open {
            assert!(let_in(status(None).await), "{path}");
            continue;
        }
        for nobody in [None, Some(forged.as_str()), Some("Bearer"), Some("Digest x"), Some("Basic cm9vdDp4")]
        {
            assert_eq!(status(nobody).await, StatusCode::UNAUTHORIZED, "{method} {path} as {nobody:?}");
        }
        let may_guest = matches!(need, Read(Clusters | Schedulers | SeedPeers | Peers | Jobs) | Own(_));
        // 422: the route's own checks come after the door.
        assert_eq!(let_in(status(Some(&guest)).await), may_guest, "{method} {path} as guest");
        let in_scope = matches!(need, Read(Schedulers));
        assert_eq!(let_in(status(Some(&elsewhere)).await), in_scope, "{method} {path} out of scope");
        assert!(let_in(status(Some(&root)).await), "{method} {path} as root");
    }
    let unknown = api.ask(Method::GET, "/api/v1/secrets", Some(&root), &Value::Null).await;
    assert_eq!(unknown.0, StatusCode::NOT_FOUND);
    let method = api.ask(Method::DELETE, "/api/v1/jobs", None, &Value::Null).await;
    assert_eq!(method.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_token_is_shown_once_and_gives_no_more_than_its_maker_has() {
    let api = Api::new().await;
    let path = "/api/v1/personal-access-tokens";
    let root = format!("Basic {}", base64_of(&format!("root:{PASSWORD}")));
    let (status, made) = api
        .ask(
            Method::POST,
            path,
            Some(&root),
            &json!({ "name": "cli", "scopes": ["job", "personal-access-token"] }),
        )
        .await;
    assert_eq!(status, StatusCode::OK, "{made}");
    let token = format!("Bearer {}", made["token"].as_str().unwrap());
    assert_eq!(made["scopes"], json!(["jobs", "personal-access-tokens"]));
    api.get("/api/v1/jobs", &token).await;
    let listed = api.get(path, &token).await;
    assert!(listed[0].get("token").is_none() && listed[0].get("hash").is_none(), "{listed}");
    for (scopes, expected) in [
        (json!([]), StatusCode::FORBIDDEN),
        (json!(["clusters"]), StatusCode::FORBIDDEN),
        (json!(["jobs"]), StatusCode::OK),
    ] {
        let (status, _) =
            api.ask(Method::POST, path, Some(&token), &json!({ "name": "x", "scopes": scopes })).await;
        assert_eq!(status, expected, "{scopes}");
    }
    let bad = [
        json!({ "name": "" }),
        json!({ "name": "x", "scopes": ["everything"] }),
        json!({ "name": "x", "expired_at": "soon" }),
    ];
    for request in bad {
        assert_eq!(
            api.ask(Method::POST, path, Some(&root), &request).await.0,
            StatusCode::BAD_REQUEST,
            "{request}"
        );
    }
    let gone = format!("{path}/{}", made["id"]);
    assert_eq!(api.ask(Method::DELETE, &gone, Some(&root), &Value::Null).await.0, StatusCode::OK);
    assert_eq!(api.ask(Method::GET, path, Some(&token), &Value::Null).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_harbor_sends_becomes_a_job_without_its_token() {
    let api = Api::new().await;
    let token = api.token(1, &["jobs"]).await;
    let request = json!({
        "type": "preheat",
        "args": {
            "type": "image",
            "url": "https://harbor.example/v2/team/app/manifests/1.2",
            "tag": "",
            "filtered_query_params": "",
            "headers": { "Authorization": "Bearer short-lived" },
            "scope": "",
            "concurrent_count": 0,
            "timeout": 0,
        },
        "scheduler_cluster_ids": null,
    });
    let (status, made) = api.ask(Method::POST, "/oapi/v1/jobs", Some(&token), &request).await;
    assert_eq!(status, StatusCode::OK, "{made}");
    assert_eq!(made["state"], "PENDING");
    assert!(made["id"].is_i64() && made["created_at"].as_str().unwrap().ends_with('Z'), "{made}");
    let job = api.get(&format!("/oapi/v1/jobs/{}", made["id"]), &token).await;
    assert_eq!(job["args"]["url"], "harbor.example/team/app:1.2");
    assert_eq!(job["result"]["job_states"][0]["results"][0]["scheduler_cluster_id"], 1);
    let row = api.manager.db.job(1).await.unwrap().unwrap();
    assert!(!format!("{row:?}{job}").contains("short-lived"));
    let login = api.manager.db.credential(&api.manager.vault, "harbor.example", 1).await.unwrap();
    assert_eq!(login.unwrap().expose_authorization(), Some("Bearer short-lived"));
}

#[tokio::test]
async fn jobs_that_cannot_be_are_refused_with_a_sentence() {
    let api = Api::new().await;
    let token = api.token(1, &[]).await;
    let job = |kind: &str, args: Value, rest: Value| {
        let mut request = json!({ "type": kind, "args": args });
        request.as_object_mut().unwrap().extend(rest.as_object().cloned().unwrap_or_default());
        request
    };
    let table = [
        (job("gc", json!({ "url": "app" }), json!({})), "type preheat"),
        (job("preheat", json!({ "url": "APP" }), json!({})), "not the name of an image"),
        (job("preheat", json!({ "url": "app", "platform": "linux" }), json!({})), "not a platform"),
        (job("preheat", json!({ "url": "app", "scope": "moon" }), json!({})), "no scope"),
        (
            job("preheat", json!({ "url": "app", "scope": "all_peers", "percentage": 101 }), json!({})),
            "1% to 100%",
        ),
        (job("preheat", json!({ "url": "app", "username": "me" }), json!({})), "go together"),
        (job("preheat", json!({ "url": "app" }), json!({ "scheduler_cluster_ids": [9] })), "no cluster 9"),
        (job("preheat", json!({ "url": "app" }), json!({ "clusters": ["prod"] })), "no cluster \"prod\""),
    ];
    for (request, expected) in table {
        let (status, answer) = api.ask(Method::POST, "/api/v1/jobs", Some(&token), &request).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{request}");
        assert!(answer["message"].as_str().unwrap().contains(expected), "{answer}");
    }
}

#[tokio::test]
async fn credentials_go_in_and_never_come_out() {
    let api = Api::new().await;
    let (root, path) = (api.token(1, &[]).await, "/api/v1/registry-credentials");
    let new = json!({ "registry": "Registry.example:5000", "username": "robot", "password": "hunter2" });
    assert_eq!(api.ask(Method::POST, path, Some(&root), &new).await.0, StatusCode::OK);
    let listed = api.get(path, &root).await;
    assert_eq!(listed[0]["registry"], "registry.example:5000");
    assert!(!listed.to_string().contains("robot") && !listed.to_string().contains("hunter2"));
    for registry in ["", "https://registry.example", "registry.example/app"] {
        let bad = json!({ "registry": registry, "username": "robot", "password": "x" });
        assert_eq!(
            api.ask(Method::POST, path, Some(&root), &bad).await.0,
            StatusCode::BAD_REQUEST,
            "{registry}"
        );
    }
    let one = format!("{path}/{}", listed[0]["id"]);
    assert_eq!(api.ask(Method::DELETE, &one, Some(&root), &Value::Null).await.0, StatusCode::OK);
    assert_eq!(api.ask(Method::DELETE, &one, Some(&root), &Value::Null).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn users_are_made_changed_and_shut_out() {
    let api = Api::new().await;
    let (root, path) = (api.token(1, &[]).await, "/api/v1/users");
    let ask = async |method: Method, path: &str, login: &str, body: Value| {
        api.ask(method, path, Some(login), &body).await
    };
    let (status, made) = ask(Method::POST, path, &root, json!({ "name": "ann", "role": "guest" })).await;
    assert_eq!(status, StatusCode::OK, "{made}");
    let (id, first) = (made["id"].as_i64().unwrap(), made["password"].as_str().unwrap().to_owned());
    let ann = |password: &str| format!("Basic {}", base64_of(&format!("ann:{password}")));
    assert!(!api.get(path, &root).await.to_string().contains(&first), "shown once");
    for (body, expected) in [
        (json!({ "name": "ann", "role": "guest", "password": "long enough" }), StatusCode::CONFLICT),
        (json!({ "name": "a b", "role": "guest" }), StatusCode::BAD_REQUEST),
        (json!({ "name": "bob", "role": "guest", "password": "short" }), StatusCode::BAD_REQUEST),
        (json!({ "name": "bob", "role": "king" }), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        assert_eq!(ask(Method::POST, path, &root, body.clone()).await.0, expected, "{body}");
    }

    let (own, others) = (format!("{path}/{id}/reset_password"), format!("{path}/1/reset_password"));
    let reset = |old: &str, new: &str| json!({ "old_password": old, "new_password": new });
    for (path, body, expected) in [
        (&others, reset(PASSWORD, "another one"), StatusCode::FORBIDDEN),
        (&own, reset("guessed it", "another one"), StatusCode::FORBIDDEN),
        (&own, reset(&first, "short"), StatusCode::BAD_REQUEST),
        (&own, reset(&first, "another one"), StatusCode::OK),
    ] {
        assert_eq!(ask(Method::POST, path, &ann(&first), body.clone()).await.0, expected, "{path} {body}");
    }
    let jobs = async |login: &str| ask(Method::GET, "/api/v1/jobs", login, Value::Null).await.0;
    assert_eq!(jobs(&ann(&first)).await, StatusCode::UNAUTHORIZED);
    assert_eq!(jobs(&ann("another one")).await, StatusCode::OK);

    let tokens = "/api/v1/personal-access-tokens";
    let (status, token) = ask(Method::POST, tokens, &ann("another one"), json!({ "name": "cli" })).await;
    assert_eq!(status, StatusCode::OK, "everybody has tokens of the own: {token}");
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let roots = ask(Method::POST, tokens, &root, json!({ "name": "x" })).await.1;
    let foreign = format!("{tokens}/{}", roots["id"]);
    assert_eq!(ask(Method::DELETE, &foreign, &bearer, Value::Null).await.0, StatusCode::NOT_FOUND);
    let one = format!("{path}/{id}");
    assert_eq!(ask(Method::PATCH, &one, &root, json!({ "state": "disable" })).await.1["state"], "disable");
    for login in [&bearer, &ann("another one")] {
        assert_eq!(jobs(login).await, StatusCode::UNAUTHORIZED);
    }
    ask(Method::PATCH, &one, &root, json!({ "state": "enable", "role": "root" })).await;
    assert_eq!(ask(Method::GET, path, &bearer, Value::Null).await.0, StatusCode::OK, "root now");
    ask(Method::PATCH, &one, &root, json!({ "role": "guest" })).await;
    let (status, last) = ask(Method::PATCH, "/api/v1/users/1", &root, json!({ "state": "disable" })).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(last["message"].as_str().unwrap().contains("make another root user first"), "{last}");
}

#[tokio::test]
async fn a_cluster_is_set_key_by_key_and_faulty_values_change_nothing() {
    let api = Api::new().await;
    let (root, path) = (api.token(1, &[]).await, "/api/v1/clusters/1");
    let patch = async |body: Value| api.ask(Method::PATCH, path, Some(&root), &body).await;
    let peers = |config: Value| json!({ "peer_cluster_config": config });
    let (status, set) = patch(peers(json!({ "log.level": "debug", "store.limit": "50GiB" }))).await;
    assert_eq!(status, StatusCode::OK, "{set}");
    for (body, part) in [
        (peers(json!({ "log.level": "warn", "store.limit": "50KiB" })), "at least 1MiB"),
        (peers(json!({ "store.directory": "/tmp" })), "cannot be set from here"),
        (json!({ "scheduler_cluster_config": { "store.limit": "1GiB" } }), "what can is log.level"),
    ] {
        let (status, answer) = patch(body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer["message"].as_str().unwrap().contains(part), "{answer}");
    }
    let kept = json!({ "log.level": "debug", "store.limit": "50GiB" });
    assert_eq!(api.get(path, &root).await["peer_cluster_config"], kept);
    patch(peers(json!({ "store.limit": null }))).await;
    patch(json!({ "bio": "ours", "scheduler_cluster_config": { "log.level": "warn" } })).await;
    let now = api.get(path, &root).await;
    assert_eq!(now["peer_cluster_config"], json!({ "log.level": "debug" }));
    assert_eq!(
        (&now["scheduler_cluster_config"]["log.level"], &now["bio"]),
        (&json!("warn"), &json!("ours"))
    );
    let missing = api.ask(Method::PATCH, "/api/v1/clusters/9", Some(&root), &json!({})).await;
    assert_eq!(missing.0, StatusCode::NOT_FOUND);
}

fn base64_of(text: &str) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(text)
}
