//! What the entries of a tar mean for an overlayfs layer.

mod fixture;

use d7y_image::{LayerError, layer_tree};
use fixture::{Built, Item, build, listing, tar};

/// Items from words: `a/` a directory, `a` a file that contains its number, `a->b` a symbolic link, `a=b` a hard link.
fn items(text: &str) -> Vec<Item> {
    let item = |(n, word): (usize, &str)| match (word.split_once("->"), word.split_once('=')) {
        (Some((path, target)), _) => Item::symlink(path, target),
        (_, Some((path, target))) => Item::hardlink(path, target),
        _ if word.ends_with('/') => Item::dir(word),
        _ => Item::file(word, n.to_string()),
    };
    text.split_whitespace().enumerate().map(item).collect()
}

fn layer(text: &str) -> Built {
    build(&tar(&items(text))).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

#[test]
fn entries_become_layers() {
    let cases: [(&str, &[&str]); 34] = [
        ("", &["/?"]),
        ("./", &["/"]),
        ("/", &["/"]),
        ("/a ./b .//c d/../e", &["/?", "/a \"0\"", "/b \"1\"", "/c \"2\"", "/e \"3\""]),
        ("a/b/c", &["/?", "/a/?", "/a/b/?", "/a/b/c \"0\""]),
        ("a/b a/", &["/?", "/a/", "/a/b \"0\""]),
        ("a/ a/b a/", &["/?", "/a/", "/a/b \"1\""]),
        // Later entries replace earlier ones.
        ("a a", &["/?", "/a \"1\""]),
        ("a/ a/b a", &["/?", "/a \"2\""]),
        ("a a/ a/b", &["/?", "/a/!", "/a/b \"2\""]),
        ("a->x a", &["/?", "/a \"1\""]),
        ("a b=a a", &["/?", "/a \"2\"", "/b \"0\""]),
        // Whiteouts hide what is below, not what is beside them.
        (".wh.a", &["/?", "-/a"]),
        ("d/.wh.a", &["/?", "/d/?", "-/d/a"]),
        (".wh.a a", &["/?", "/a \"1\""]),
        ("a .wh.a", &["/?", "/a \"0\""]),
        (".wh.d d/ d/x", &["/?", "/d/!", "/d/x \"2\""]),
        (".wh.d d/x", &["/?", "/d/!", "/d/x \"1\""]),
        ("d/x .wh.d", &["/?", "/d/!", "/d/x \"0\""]),
        (".wh.a .wh.a", &["/?", "-/a"]),
        (".wh..wh..opq", &["/?!"]),
        ("d/ d/.wh..wh..opq d/x", &["/?", "/d/!", "/d/x \"2\""]),
        ("d/.wh..wh..opq d/", &["/?", "/d/!"]),
        ("d/.wh..wh..opq", &["/?", "/d/?!"]),
        (".wh..wh.plnk/ .wh..wh.plnk/1.2 .wh..wh.aufs", &["/?"]),
        // Links.
        ("a b=a c=./b", &["/?", "/a \"0\"", "/b = /a", "/c = /b"]),
        ("a b=/a a=b", &["/?", "/a \"0\"", "/b = /a"]),
        ("s->t h=s", &["/?", "/h -> t", "/s = /h"]),
        ("t/ s->t s/x", &["/?", "/s -> t", "/t/", "/t/x \"2\""]),
        ("t/ s->/t s/x h=s/x", &["/?", "/h \"2\"", "/s -> /t", "/t/", "/t/x = /h"]),
        ("s->t s/u/x", &["/?", "/s -> t", "/t/?", "/t/u/?", "/t/u/x \"1\""]),
        ("d/s->../../../t d/s/x", &["/?", "/d/?", "/d/s -> ../../../t", "/t/?", "/t/x \"1\""]),
        ("s->/ s/x", &["/?", "/s -> /", "/x \"1\""]),
        ("t/ s->t s/", &["/?", "/s/!", "/t/"]),
    ];
    for (text, expected) in cases {
        assert_eq!(listing(&layer(text)), expected, "{text:?}");
    }
}

#[test]
fn what_no_layer_may_hold_is_refused_with_its_name() {
    let long = "x".repeat(256);
    let deep = format!("s->{0} s/s->{0} s/s/s->{0} s/s/s/s/x", "d/".repeat(1000));
    let cases: [(&str, &str); 16] = [
        ("../a", "leads out of its root"),
        ("a/../../b", "leads out of its root"),
        ("/..", "leads out of its root"),
        ("a/.wh..wh..opq/../../..", "leads out of its root"),
        ("a=../b", "names \"../b\""),
        ("a=b", "names \"b\""),
        ("a/ b=a", "names \"a\""),
        (".wh.a b=a", "names \"a\""),
        ("b=", "names \"\""),
        ("a a/b", "below something that is not a directory"),
        ("a->b b->a a/x", "loop of symbolic links"),
        ("a->", "symbolic link \"a\" whose target is empty"),
        (".wh.", "a whiteout must name something"),
        ("a/.wh...", "a whiteout must name something"),
        (&long, "longer than 255 bytes"),
        (&deep, "deeper than any path"),
    ];
    for (text, expected) in cases {
        let error = build(&tar(&items(text))).err().unwrap_or_else(|| panic!("{text:?} was accepted"));
        assert!(error.to_string().contains(expected), "{text:?}: {error}");
    }
    let root = build(&tar(&[Item::symlink("./", "/etc")])).err().map(|error| error.to_string());
    assert_eq!(root, Some(LayerError::Root.to_string()));
}

#[test]
fn attributes_arrive_and_overlayfs_marks_are_escaped() {
    let items = [
        Item::dir("d").mode(0o1777).owner(1, 70_000).mtime("-1.5").xattr("user.k", "v"),
        Item::file("f", "x").mode(0o106_755).owner(4_000_000_000, 2).mtime("12.000000001"),
        Item::hardlink("g", "f").mode(0).owner(9, 9),
        Item::symlink("l", "f").mode(0).xattr("user.gone", "v").xattr("trusted.kept", "v"),
        Item::dir("o").xattr("trusted.overlay.opaque", "y").xattr("com.apple.quarantine", "z"),
        Item::dir("o").xattr("trusted.overlay.overlay.opaque", "y"),
        Item::file(".wh.w", "").owner(5, 6).mtime("7"),
        Item::new(b'3', "c").device(4095, 1_048_575),
    ];
    let tree = layer_tree(&build(&tar(&items)).unwrap().index).unwrap();
    let node = |path: &str| tree.node(tree.lookup(path.as_bytes()).unwrap());
    let plain = |path| (node(path).mode, node(path).uid, node(path).gid, node(path).mtime, node(path).nlink);
    assert_eq!(plain("d"), (0o1777, 1, 70_000, (-2, 500_000_000), 2));
    assert_eq!(node("d").xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
    assert_eq!(plain("f"), (0o6755, 4_000_000_000, 2, (12, 1), 2));
    assert_eq!(node("g"), node("f"));
    assert_eq!(node("l").mode, 0o777);
    assert_eq!(node("l").xattrs, [(b"trusted.kept".to_vec(), b"v".to_vec())]);
    assert_eq!(node("o").xattrs, [(b"trusted.overlay.overlay.overlay.opaque".to_vec(), b"y".to_vec())]);
    assert!(!node("o").is_opaque());
    assert_eq!(plain("w"), (0, 5, 6, (7, 0), 1));
    assert_eq!(node("c").kind, d7y_image::NodeKind::CharDevice(u32::MAX));
}

#[test]
fn xattrs_that_erofs_cannot_hold_are_refused_with_their_path() {
    for (count, bytes) in [(1, 65_536), (5, 60_000)] {
        let add = |item: Item, n| item.xattr(&format!("user.{n}"), vec![b'x'; bytes]);
        let item = (0..count).fold(Item::file("some/file", ""), add);
        let error = build(&tar(&[item])).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains("some/file")), "{error:?}");
    }
}
