//! The kernel and `fsck.erofs` judge what the builder writes. Mounting needs root.

mod fixture;
mod mount;
mod trees;

use std::fs::File;
use std::os::unix::fs::FileExt;

use d7y_image::{BuildOptions, layer_tree, write_bootstrap};
use d7y_skip::Extent;
use d7y_types::Compression;
use fixture::{Built, Item, build, build_with, tar};
use mount::{Mounted, compare_with_tree, fsck, is_root};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// `cap_net_raw=ep`, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn every_kind() -> Vec<Item> {
    let mut items = vec![
        Item::dir(".").mode(0o755).mtime("1600000000.5"),
        Item::dir("etc/").mode(0o750).owner(3, 70_000),
        Item::file("etc/passwd", "root:x:0:0\n").mode(0o4755).mtime("-5.25"),
        Item::hardlink("etc/again", "etc/passwd"),
        Item::file("./etc/empty", ""),
        Item::symlink("etc/link", "../../outside"),
        Item::symlink("etc/long", "x".repeat(4000)),
        Item::new(b'3', "dev/null").device(1, 3).mode(0o666),
        Item::new(b'4', "dev/sda").device(259, 70_000),
        Item::new(b'6', "run/fifo").mode(0o1777),
        Item::file("implied/deep/er/file", "content").xattr("security.capability", CAPABILITY),
        Item::file(b"latin1-\xe9\xff", "not UTF-8").owner(4_000_000_000, 4_000_000_001),
        Item::dir("etc/acl").xattr("system.posix_acl_access", acl()).xattr("user.big", "v".repeat(3500)),
        Item::file("large", noise(9 << 20)),
        Item::file("medium", noise(200_000)),
        Item::new(b'0', ".wh.gone"),
        Item::new(b'0', "etc/.wh..wh..opq"),
    ];
    for name in ["!bang", "#hash", "(group)", "+page", ",comma", "-dash", ".hidden", " space", "~tilde"] {
        items.push(Item::file(format!("order/{name}"), name));
    }
    items.extend((0..700).map(|n| Item::file(format!("small/{n:0>30}"), format!("file {n}").repeat(n % 90))));
    items
}

/// `u::rw-,u:1:r--,g::r--,m::r--,o::---` as Linux stores it.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 1), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, permission, id) in entries {
        out.extend(tag.to_le_bytes().into_iter().chain(permission.to_le_bytes()).chain(id.to_le_bytes()));
    }
    out
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(bytes)
    .collect()
}

fn judge(built: &Built) {
    let (bootstrap, device) = (&built.index.bootstrap, &built.store.device);
    fsck(bootstrap, device);
    if is_root(Extent::Part) {
        let mounted = Mounted::erofs(bootstrap, device);
        let tree = layer_tree(&built.index).expect("what is built can be read");
        compare_with_tree(&tree, device, mounted.path());
    }
}

#[test]
fn the_kernel_shows_what_the_tar_holds() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        judge(&build_with(&tar(&every_kind()), compression, &BuildOptions::default()).unwrap());
    }
}

#[test]
fn the_kernel_shows_what_is_large() {
    let mut items: Vec<Item> = (0..65_536).map(|n| Item::file(format!("many/{n}"), "")).collect();
    items.push(
        Item::file("capable", "x").xattr("user.a", vec![b'a'; 60_000]).xattr("trusted.b", vec![b'b'; 60_000]),
    );
    let map = format!("0,2,{},3", (3u64 << 40) - 3);
    items.push(
        Item::file("sparse", "abcde")
            .pax("GNU.sparse.size", (3u64 << 40).to_string())
            .pax("GNU.sparse.map", map),
    );
    items.push(Item::file("after the sparse one", "content"));
    let built = build(&tar(&items)).unwrap();
    judge(&built);
    if is_root(Extent::Part) {
        let mounted = Mounted::erofs(&built.index.bootstrap, &built.store.device);
        let sparse = File::open(mounted.path().join("sparse")).unwrap();
        let mut end = [1; 8];
        sparse.read_exact_at(&mut end, (3 << 40) - 8).unwrap();
        assert_eq!(&end, b"\0\0\0\0\0cde");
    }
}

#[test]
fn the_kernel_shows_a_layer_without_entries() {
    judge(&build(&tar(&[])).unwrap());
}

#[test]
fn the_kernel_shows_random_trees() {
    let device = tempfile::tempfile().unwrap();
    device.write_all_at(&noise(trees::DEVICE_BYTES as usize), 0).unwrap();
    let mut runner = TestRunner::deterministic();
    for steps in [5, 20, 60, 150, 300].repeat(4) {
        let tree = trees::any_tree(steps).new_tree(&mut runner).unwrap().current();
        let bootstrap = write_bootstrap(&tree).unwrap().bytes;
        fsck(&bootstrap, &device);
        if is_root(Extent::Part) {
            compare_with_tree(&tree, &device, Mounted::erofs(&bootstrap, &device).path());
        }
    }
}
