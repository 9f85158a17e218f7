//! `d7y doctor` on a machine without d7y.

use crate::program::d7y;

#[test]
fn faults_are_named_with_what_mends_them_and_the_exit_code_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let peer = directory.path().join("peer.yaml");
    std::fs::write(&peer, "store:\n  limits: 5GiB\n").unwrap();
    let nowhere = directory.path().join("none.yaml");
    let ended = d7y([
        "doctor",
        "--peer",
        peer.to_str().unwrap(),
        "--snapshotter",
        nowhere.to_str().unwrap(),
        "--containerd",
        "/no/such/containerd",
    ]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in [
        "failed   config.peer",
        "line 2",
        "limits",
        "--check-config",
        "failed   containerd.version",
        "ok       config.snapshotter",
    ] {
        assert!(ended.stdout.contains(part), "{part:?} is not in\n{}", ended.stdout);
    }
}

#[test]
fn json_counts_what_it_lists() {
    let ended = d7y(["doctor", "-o", "json", "--containerd", "/no/such/containerd"]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let failed = checks.iter().filter(|check| check["state"] == "failed");
    assert_eq!(report["failed"], failed.clone().count());
    assert!(failed.clone().count() > 0 && failed.clone().all(|check| check["mend"].is_string()), "{report}");
}
