//! `d7y containerd config`: what it makes of users' files, and that real containerds take the result.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::program::{Ended, d7y};

/// A directory with a configuration file in it, and the version of the containerd that reads it.
struct Node {
    directory: tempfile::TempDir,
    version: &'static str,
}

impl Node {
    fn new(version: &'static str, text: &str) -> Self {
        let node = Self { directory: tempfile::tempdir().unwrap(), version };
        // containerd 1.x measures its images' file system below its root.
        let root = node.directory.path().join("root");
        fs::write(node.config(), text.replace("ROOT", root.to_str().unwrap())).unwrap();
        node
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.config()).unwrap()
    }

    fn d7y(&self, flag: &str) -> Ended {
        let config = self.config();
        d7y([
            "containerd",
            "config",
            flag,
            "--config",
            config.to_str().unwrap(),
            "--containerd-version",
            self.version,
        ])
    }

    fn backups(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(".before-d7y"))
            .collect();
        found.sort();
        found
    }
}

const DEBIAN_12: &str = r#"version = 2
root = "ROOT"

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni" # Debian's
      conf_dir = "/etc/cni/net.d"
"#;
/// As Docker's package writes it: no version, and the CRI plugin switched off by its old name.
const DOCKER: &str =
    "#   Copyright\ndisabled_plugins = [\"cri\"]\n#root = \"/var/lib/containerd\"\nroot = \"ROOT\"\n";
const OURS_ALREADY: &str = r#"version = 2
root = "ROOT"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs" # fast enough
  default_runtime_name = "runc"
[proxy_plugins.other]
  type = "snapshot"
  address = "/run/other.sock"
"#;
const INLINE: &str = r#"version = 3
plugins = { "io.containerd.cri.v1.images" = { snapshotter = "overlayfs" }, "io.containerd.transfer.v1.local" = { unpack_config = [{ platform = "linux/amd64", snapshotter = "erofs", differ = "erofs" }] } }
"#;

#[test]
fn the_rest_of_a_file_stays_as_it_is() {
    let table: [(&str, &str, &[&str]); 6] = [
        ("1.6", DEBIAN_12, &["bin_dir = \"/usr/lib/cni\" # Debian's", "containerd]\nsnapshotter = \"d7y\""]),
        ("1.7", DOCKER, &["#   Copyright", "version = 2", "[\"io.containerd.grpc.v1.cri\"]"]),
        ("2.2", DOCKER, &["#   Copyright", "version = 3", "[\"io.containerd.grpc.v1.cri\"]"]),
        ("1.7", OURS_ALREADY, &["snapshotter = \"d7y\" # fast enough", "runc", "[proxy_plugins.other]"]),
        (
            "2.2",
            OURS_ALREADY,
            &["version = 2", "snapshotter = \"d7y\" # fast", "enable_remote_snapshot", "unpack_config"],
        ),
        ("2.4", INLINE, &["differ = \"erofs\" }, { platform", "snapshotter = \"d7y\""]),
    ];
    for (version, before, parts) in table {
        let node = Node::new(version, before);
        let ended = node.d7y("--write");
        assert_eq!(ended.code, Some(0), "{version}: {ended:?}");
        let after = node.text();
        for part in parts {
            assert!(after.contains(part), "{version}: {part:?} is not in\n{after}");
        }
        assert!(after.contains("/run/d7y/snapshotter.sock"), "{after}");
    }
}

#[test]
fn a_second_time_changes_nothing() {
    for (version, text) in
        [("1.6", DEBIAN_12), ("2.2", DOCKER), ("2.2", DEBIAN_12), ("2.4", INLINE), ("1.7", "")]
    {
        // The empty file of 1.x would have us make a directory below /var/lib.
        let text = if text.is_empty() { "root = \"ROOT\"" } else { text };
        let node = Node::new(version, text);
        node.d7y("--write");
        let once = node.text();
        let again = node.d7y("--write");
        assert!(again.stdout.contains("already has all"), "{again:?}");
        assert_eq!(node.text(), once);
        assert_eq!(node.backups().len(), 1);
    }
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let node = Node::new("1.7", OURS_ALREADY);
    let before = node.text();
    let ended = node.d7y("--dry-run");
    assert_eq!(node.text(), before);
    assert!(node.backups().is_empty());
    for part in ["snapshotter = \"d7y\" (was \"overlayfs\")", "+ proxy_plugins.d7y.address"] {
        assert!(ended.stdout.contains(part), "{part:?} is not in {}", ended.stdout);
    }
}

#[test]
fn the_old_file_is_kept_with_its_mode() {
    let node = Node::new("1.6", DEBIAN_12);
    fs::set_permissions(node.config(), fs::Permissions::from_mode(0o640)).unwrap();
    let before = node.text();
    node.d7y("--write");
    fs::write(node.config(), &before).unwrap();
    node.d7y("--write");
    let backups = node.backups();
    assert_eq!(backups.len(), 2, "no backup is overwritten: {backups:?}");
    for backup in backups {
        assert_eq!(fs::read_to_string(&backup).unwrap(), before);
        assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o640);
    }
    assert_eq!(fs::metadata(node.config()).unwrap().permissions().mode() & 0o777, 0o640);
    let image_fs = node.directory.path().join("root/io.containerd.snapshotter.v1.d7y");
    assert!(image_fs.is_dir(), "containerd 1.x reports this directory to the kubelet");
}

#[test]
fn what_cannot_be_edited_is_refused_with_the_way_out_and_left_alone() {
    let table = [
        ("1.6", "version = \n", "TOML"),
        ("1.6", "[plugins.cri.containerd]\nsnapshotter = \"overlayfs\"\n", "config migrate"),
        ("2.2", "version = 7\n", "1 to 4"),
        ("2.2", "disabled_plugins = [\"restart\"]\n", "restart"),
        ("2.2", "version = 3\nproxy_plugins = 1\n", "proxy_plugins should be a table"),
        ("1.5", "version = 2\n", "too old"),
    ];
    for (version, text, part) in table {
        let node = Node::new(version, text);
        let ended = node.d7y("--write");
        assert_eq!(ended.code, Some(1), "{text:?}: {ended:?}");
        assert!(ended.stderr.contains(part), "{text:?}: {}", ended.stderr);
        assert_eq!(node.text(), text);
        assert!(node.backups().is_empty());
    }
}

#[test]
fn a_link_to_the_file_stays_a_link() {
    let node = Node::new("2.2", "version = 3\n");
    let link = node.directory.path().join("link.toml");
    std::os::unix::fs::symlink("config.toml", &link).unwrap();
    let ended = d7y([
        "containerd",
        "config",
        "--write",
        "--containerd-version",
        "2.2",
        "--config",
        link.to_str().unwrap(),
    ]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(link.is_symlink() && node.text().contains("d7y"));
}

#[test]
fn the_readme_shows_what_is_printed() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    for version in ["1.7", "2.2"] {
        let stanza = d7y(["containerd", "config", "--containerd-version", version])
            .stdout
            .replace("linux/arm64", "linux/amd64");
        assert!(readme.contains(&stanza), "the README's stanza for {version} is not\n{stanza}");
    }
}
