//! Layers over one another against umoci's unpacking of the same image. Needs root and umoci.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod fixture;
mod mount;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use d7y_image::{Tree, layer_tree, write_bootstrap};
use d7y_skip::Extent;
use d7y_types::Compression;
use fixture::{Built, Item, build, compress, sha256, tar};
use mount::{Mounted, is_root, xattrs};

/// Everything that a user can see of one name, but the time, which is compared apart.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    device: u64,
    content: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first name of the same file.
    first_name: PathBuf,
}

type Walk = BTreeMap<PathBuf, (Seen, (i64, i64))>;

fn walk(root: &Path) -> Walk {
    let (mut seen, mut open, mut names) = (Walk::new(), vec![PathBuf::new()], HashMap::new());
    while let Some(path) = open.pop() {
        let full = root.join(&path);
        let found = fs::symlink_metadata(&full).unwrap();
        let kind = found.file_type();
        let content = match () {
            () if kind.is_file() => fs::read(&full).unwrap(),
            () if kind.is_symlink() => fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec(),
            () => Vec::new(),
        };
        let seen_here = Seen {
            kind: format!("{kind:?}"),
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            device: if kind.is_char_device() || kind.is_block_device() { found.rdev() } else { 0 },
            content,
            xattrs: if kind.is_file() || kind.is_dir() { xattrs(&full) } else { Vec::new() },
            first_name: path.clone(),
        };
        if kind.is_dir() {
            open.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else {
            names.entry((found.dev(), found.ino())).or_insert_with(Vec::new).push(path.clone());
        }
        seen.insert(path, (seen_here, (found.mtime(), found.mtime_nsec())));
    }
    for same in names.values_mut() {
        same.sort();
        same.iter().for_each(|path| seen.get_mut(path).unwrap().0.first_name = same[0].clone());
    }
    seen
}

/// An image layout that holds the layers, gzip, tagged `test`.
fn write_image(layers: &[Vec<u8>], directory: &Path) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = sha256(bytes);
        fs::write(blobs.join(digest.to_hex()), bytes).unwrap();
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, bytes.len())
    };
    let quoted: Vec<String> = layers.iter().map(|tar| format!("\"{}\"", sha256(tar))).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        quoted.join(",")
    );
    let config = put("application/vnd.oci.image.config.v1+json", config.as_bytes());
    let gzip =
        |tar: &Vec<u8>| put("application/vnd.oci.image.layer.v1.tar+gzip", &compress(tar, Compression::Gzip));
    let layers: Vec<String> = layers.iter().map(gzip).collect();
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","));
    let manifest = put("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    let tagged = manifest.replacen('{', r#"{"annotations":{"org.opencontainers.image.ref.name":"test"},"#, 1);
    fs::write(directory.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{tagged}]}}"#))
        .unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Mounts the layers as a snapshotter does: implied directories inherit, then each bootstrap is written anew.
fn mount_chain(built: &[Built]) -> Vec<Mounted> {
    let mut trees: Vec<Tree> = built.iter().map(|layer| layer_tree(&layer.index).unwrap()).collect();
    for n in 1..trees.len() {
        let (below, here) = trees.split_at_mut(n);
        here[0].inherit_implied(&below.iter().rev().collect::<Vec<_>>());
    }
    let mounted = trees.iter().zip(built).rev();
    mounted
        .map(|(tree, built)| Mounted::erofs(&write_bootstrap(tree).unwrap().bytes, &built.store.device))
        .collect()
}

/// Compares the merged layers with umoci's root. `untimed` directories have the time of the unpacking there: umoci
/// has no other for those that no layer names, and forgets their parents' when it makes them.
fn compare(layers: &[Vec<Item>], untimed: &[&str]) {
    let tars: Vec<Vec<u8>> = layers.iter().map(|items| tar(items)).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    write_image(&tars, &path("image"));
    let image = format!("{}:test", path("image").display());
    let unpacked =
        Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(path("root")).output();
    let unpacked = match unpacked {
        Ok(output) => output,
        Err(error) => return d7y_skip::test(format_args!("umoci: {error}")),
    };
    assert!(unpacked.status.success(), "{unpacked:?}");
    let built: Vec<Built> = tars.iter().map(|tar| build(tar).unwrap()).collect();
    let mounted = mount_chain(&built);
    fs::create_dir(path("merged")).unwrap();
    // overlayfs wants two layers at least.
    let merged = (mounted.len() > 1).then(|| Mounted::overlay(&mounted, path("merged")));
    let (expected, found) = (walk(&path("root")), walk(merged.as_ref().unwrap_or(&mounted[0]).path()));
    assert!(expected.keys().eq(found.keys()), "umoci: {:?}\nd7y: {:?}", expected.keys(), found.keys());
    for (name, (seen, time)) in &expected {
        assert_eq!(found[name].0, *seen, "{name:?}");
        if !untimed.iter().any(|path| OsStr::new(path) == name) {
            assert_eq!(found[name].1, *time, "time of {name:?}");
        }
    }
}

#[test]
fn merged_layers_are_what_umoci_unpacks() {
    if !is_root(Extent::Whole) {
        return;
    }
    let base = vec![
        Item::dir("./").mode(0o755).mtime("1500000000"),
        Item::dir("etc").mode(0o750).owner(5, 6).mtime("1500000001.25").xattr("user.k", "v"),
        Item::file("etc/passwd", "root\n").mode(0o600),
        Item::file("etc/gone", "gone"),
        Item::dir("opt").mode(0o711).owner(1, 1).mtime("1500000002"),
        Item::dir("opt/app").mode(0o2775).owner(7, 8).mtime("1500000003"),
        Item::file("opt/app/old", "old"),
        Item::file("opt/app/kept", "kept"),
        Item::dir("var/cache").mode(0o1777).mtime("1500000004"),
        Item::file("var/cache/a", "a"),
        Item::dir("becomes-file"),
        Item::file("becomes-file/x", "x"),
        Item::file("becomes-dir", "x"),
        Item::dir("replaced").mode(0o700).owner(9, 9),
        Item::file("replaced/lower", "lower"),
        Item::file("linked/one", "shared").mtime("1500000005.000000001"),
        Item::hardlink("linked/two", "linked/one"),
        Item::new(b'3', "dev/null").device(1, 3).mode(0o666),
        Item::new(b'4', "dev/loop").device(7, 300).mode(0o660),
        Item::new(b'6', "run/fifo").mode(0o4640).owner(2, 3),
        Item::symlink("bin", "usr/bin").owner(3, 4),
    ];
    let middle = vec![
        Item::file("etc/.wh.gone", ""),
        Item::file("etc/group", "group\n").mode(0o640),
        Item::file("opt/app/new", "new").mode(0o6755).owner(100, 100).mtime("-7.5"),
        Item::file("opt/app/.wh.old", ""),
        Item::file("becomes-file", "now a file"),
        Item::dir("becomes-dir").mode(0o711),
        Item::file("becomes-dir/y", "y"),
        Item::file(".wh.replaced", ""),
        Item::file("replaced/upper", "upper"),
        Item::file("var/cache/.wh..wh..opq", ""),
        Item::file("var/cache/b", "b").xattr("security.capability", CAPABILITY),
        Item::file(format!("long/{}/{}", "d".repeat(200), "f".repeat(255)), "long"),
        Item::file(b"latin1-\xe9\xff", "bytes"),
    ];
    let top = vec![
        Item::file("opt/app/deep/er/file", "deep"),
        Item::file(".wh.linked", ""),
        Item::dir("linked").mode(0o500).mtime("1500000009"),
        Item::file("linked/fresh", "fresh"),
        Item::symlink("inside", "opt/app"),
        Item::file("inside/through-link", "through"),
        Item::file("etc/passwd", "changed\n").owner(0, 42),
    ];
    let long = format!("long/{}", "d".repeat(200));
    let implied = ["var", "dev", "run", "replaced", "long", &long, "opt/app/deep", "opt/app/deep/er"];
    compare(&[base, middle, top, vec![]], &[&implied[..], &["", "opt/app"]].concat());
}

/// `cap_net_raw=ep`, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_root_that_no_layer_names_is_what_umoci_makes() {
    if is_root(Extent::Whole) {
        compare(&[vec![Item::file("a", "a")], vec![Item::file("b", "b")]], &[]);
    }
}

#[test]
fn sparse_files_are_what_umoci_unpacks() {
    let sparse = Item::file("f", "abcde")
        .pax("GNU.sparse.size", "10000000")
        .pax("GNU.sparse.numblocks", "1")
        .pax("GNU.sparse.map", "3000000,5");
    if is_root(Extent::Whole) {
        compare(&[vec![Item::dir("."), sparse]], &[]);
    }
}
