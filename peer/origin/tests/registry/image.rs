//! From a name to the layers.

use d7y_origin::image::{ImageError, ImageName, Platform};
use d7y_origin::testing::{Access, Ending, FakeRegistry, Login};
use d7y_origin::{Login as Given, Origin, OriginConfig, OriginError, RetryConfig};
use d7y_types::{Compression, LayerRef, Sha256Digest};

fn origin() -> Origin {
    let retry = RetryConfig { attempts: 1.try_into().unwrap(), ..RetryConfig::default() };
    let config =
        OriginConfig { retry, docker_config: Some("/nonexistent".into()), ..OriginConfig::default() };
    Origin::new(config).unwrap()
}

fn name(registry: &FakeRegistry, rest: &str) -> ImageName {
    format!("{}/{rest}", registry.host()).parse().unwrap()
}

fn layers(registry: &FakeRegistry) -> Vec<LayerRef> {
    [&b"one"[..], b"two"]
        .map(|content| LayerRef {
            compression: Compression::Gzip,
            diff_id: Sha256Digest([content[0]; 32]),
            ..registry.add_blob("team/app", content)
        })
        .into()
}

#[tokio::test]
async fn an_index_leads_to_the_layers_of_one_platform() {
    let registry = FakeRegistry::start().await;
    let layers = layers(&registry);
    let manifest = registry.add_image("team/app", "amd64", &layers);
    let index = format!(
        r#"{{"manifests":[{{"digest":"{manifest}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
    );
    let index = registry.add_manifest("team/app", "1", index);
    let platform: Platform = "linux/amd64".parse().unwrap();
    for tag in ["team/app:1".to_owned(), "team/app:amd64".to_owned(), format!("team/app@{index}")] {
        let image = origin().image(&name(&registry, &tag), &platform).await.unwrap();
        assert_eq!((image.manifest, &image.layers), (manifest, &layers), "{tag}");
    }
    let arm = origin().image(&name(&registry, "team/app:1"), &"linux/arm64".parse().unwrap()).await;
    let sentence = arm.unwrap_err().to_string();
    assert!(sentence.ends_with("has no manifest for linux/arm64; it has linux/amd64"), "{sentence}");
}

#[tokio::test]
async fn what_is_wrong_with_an_image_is_said() {
    let registry = FakeRegistry::start().await;
    let own = Platform::own();
    let missing = origin().image(&name(&registry, "team/app:2"), &own).await.unwrap_err();
    assert!(matches!(&missing, ImageError::Origin(OriginError::NoImage { name, .. }) if name == "2"));
    assert!(missing.to_string().contains("has no image 2 in team/app"), "{missing}");
    registry.add_manifest("team/app", "bad", r#"{"schemaVersion":1}"#);
    let bad = origin().image(&name(&registry, "team/app:bad"), &own).await.unwrap_err();
    assert!(matches!(bad, ImageError::Malformed { document: "manifest", .. }), "{bad}");
    let digest = Sha256Digest([7; 32]);
    registry.add_manifest("team/app", &digest.to_string(), "{}");
    let forged = origin().image(&name(&registry, &format!("team/app@{digest}")), &own).await.unwrap_err();
    assert!(matches!(forged, ImageError::Digest { .. }), "{forged}");
}

#[tokio::test]
async fn a_given_login_opens_a_private_image() {
    for (access, login) in [
        (
            Access::Token { login: Login::Password("robot", "secret"), uses: 100 },
            Given::Password { user: "robot".into(), password: "secret".into() },
        ),
        (
            Access::Basic("robot", "secret"),
            Given::Password { user: "robot".into(), password: "secret".into() },
        ),
        (Access::Basic("robot", "secret"), Given::Authorization("Basic cm9ib3Q6c2VjcmV0".into())),
    ] {
        let registry = FakeRegistry::start_with(access, Ending::Orderly).await;
        registry.add_image("team/app", "1", &layers(&registry));
        let (name, own) = (name(&registry, "team/app:1"), Platform::own());
        let anonymous = origin();
        let refused = anonymous.image(&name, &own).await.unwrap_err();
        assert!(matches!(refused, ImageError::Origin(OriginError::Unauthorized { .. })), "{refused}");
        let elsewhere = anonymous.logged_in("other.example", login.clone()).image(&name, &own).await;
        assert!(elsewhere.is_err(), "the login is for another registry");
        let image = anonymous.logged_in(&registry.host(), login).image(&name, &own).await.unwrap();
        assert_eq!(image.layers.len(), 2);
    }
}
