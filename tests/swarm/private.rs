//! Preheats of images that only the manager can open.

use d7y_origin::testing::{Access, Ending, FakeRegistry, Login, Turn};
use d7y_peer::Role;
use serde_json::{Value, json};

use crate::managed::{Site, image, layer_requests};

const PASSWORD: &str = "hunter2";

fn login() -> Value {
    json!({ "username": "robot", "password": PASSWORD })
}

async fn with_tokens() -> FakeRegistry {
    let access = Access::Token { login: Login::Password("robot", PASSWORD), uses: 1000 };
    FakeRegistry::start_with(access, Ending::Orderly).await
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_open_a_private_image_with_a_token_and_read_it_once() {
    let registry = with_tokens().await;
    let (name, layers) = image(&registry);
    let site = Site::new().await;
    let seed = site.join("seed", Role::Seed).await;
    let one = site.join("one", Role::Node).await;
    // The seed is not chosen, and reads the layers for those who are.
    for (scope, more) in [("100%", login()), ("all-peers", json!({}))] {
        let stored = json!({ "registry": registry.host(), "username": "robot", "password": PASSWORD });
        if more == json!({}) {
            site.ask("POST", "/api/v1/registry-credentials", &stored).await;
        }
        let job = site.preheat_with(&name, scope, more).await;
        let ended = site.wait_for_job(job).await;
        assert_eq!(ended["state"], "SUCCESS", "{scope}: {ended}");
        let shown = ended.to_string();
        assert!(!shown.contains(PASSWORD) && !shown.contains("token-"), "{shown}");
    }
    for seen in registry.seen() {
        let password = seen.authorization.as_deref().is_some_and(|header| header.starts_with("Basic "));
        assert!(!password || seen.target.starts_with("/token"), "only the token service sees it: {seen:?}");
    }
    let served = registry.seen().into_iter().filter(|seen| seen.authorization.is_some()).count();
    assert!(served > 0);
    let refused_or_served = layer_requests(&registry, &layers);
    assert!(
        refused_or_served <= 4,
        "one reader: a challenge and an answer for each layer, {refused_or_served}"
    );
    for (reference, layer) in &layers {
        one.assert_reads(reference, layer).await;
    }
    drop(seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_in_the_middle_of_a_job_is_renewed() {
    let registry = with_tokens().await;
    registry.set_token_life(2);
    let (name, _) = image(&registry);
    let mut site = Site::new().await;
    let _seed = site.join("seed", Role::Seed).await;
    // No layer comes to its end yet. The config is read first, so it must come.
    registry.then([Turn::Serve]);
    registry.always(Turn::Stall(5000));
    let job = site.preheat_with(&name, "all-seeds", login()).await;
    let under_way = |job: &Value| {
        let placements = job["progress"]["placements"].as_array().cloned().unwrap_or_default();
        placements.len() == 2 && placements.iter().all(|placement| placement["state"] == "fetching")
    };
    site.wait(&format!("/api/v1/jobs/{job}"), under_way).await;
    registry.end_tokens();
    // Nobody remembers the old one either.
    site.restart_scheduler().await;
    registry.end_tokens();
    registry.always(Turn::Serve);
    let ended = site.wait_for_job(job).await;
    assert_eq!(ended["state"], "SUCCESS", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_no_tokens_the_job_says_what_the_seed_lacks() {
    let registry = FakeRegistry::start_with(Access::Basic("robot", PASSWORD), Ending::Orderly).await;
    let (name, _) = image(&registry);
    let site = Site::new().await;
    let _seed = site.join("seed", Role::Seed).await;
    let job = site.preheat_with(&name, "single-seed", login()).await;
    let ended = site.wait_for_job(job).await;
    assert_eq!(ended["state"], "FAILURE", "{ended}");
    let note = ended["note"].as_str().unwrap();
    for part in ["passwords do not leave the manager", "on each seed peer", "origin.dockerConfig"] {
        assert!(note.contains(part), "{note:?} lacks {part:?}");
    }
    assert!(!note.contains(PASSWORD));
}
