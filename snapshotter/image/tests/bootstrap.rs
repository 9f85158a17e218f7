//! Trees survive the bootstrap, and foreign bootstraps never bring the reader down.

mod trees;

use d7y_image::{Node, NodeId, NodeKind, ReadError, Tree, WriteError, read_bootstrap, write_bootstrap};
use proptest::prelude::*;

fn written(tree: &Tree) -> Vec<u8> {
    write_bootstrap(tree).expect("the tree can be written").bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back_equal(tree in trees::any_tree(60)) {
        let bootstrap = write_bootstrap(&tree).unwrap();
        let found = read_bootstrap(&bootstrap.bytes).unwrap();
        prop_assert_eq!(&found, &tree);
        prop_assert_eq!(written(&found), bootstrap.bytes, "writing is a function of the tree");
    }

    #[test]
    fn flipped_bytes_never_bring_the_reader_down(
        tree in trees::any_tree(20),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        skip_checksum in any::<bool>(),
    ) {
        let mut bytes = written(&tree);
        if skip_checksum {
            bytes[1024 + 8] = 0;
        }
        // Metadata begins at block 1; a flip in zero padding would tell nothing.
        let used: Vec<usize> = (4096..bytes.len()).filter(|at| bytes[*at] != 0).chain(1024..1300).collect();
        for (at, value) in flips {
            bytes[used[at.index(used.len())]] ^= value;
        }
        if let Ok(tree) = read_bootstrap(&bytes) {
            prop_assert!(read_bootstrap(&written(&tree)).unwrap() == tree);
        }
    }

    #[test]
    fn cut_or_random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
        prop_assert!(read_bootstrap(&bytes).is_err());
    }
}

#[test]
fn large_directories_and_all_hard_cases_of_names() {
    let mut tree = trees::empty();
    let big = tree.add(NodeId::ROOT, b"big", Node::directory(0o755)).unwrap();
    for n in 0..65_536 {
        tree.add(big, format!("file-{n}").as_bytes(), Node::new(NodeKind::Fifo, 0o644)).unwrap();
    }
    // A directory whose blocks are exactly full: 12 bytes an entry and names of 244, 16 to a block, the dots too.
    let full = tree.add(NodeId::ROOT, b"full", Node::directory(0o755)).unwrap();
    for n in 0..64 {
        tree.add(full, format!("{n:0>244}").as_bytes(), Node::new(NodeKind::Fifo, 0)).unwrap();
    }
    let found = read_bootstrap(&written(&tree)).unwrap();
    assert!(found == tree);
    assert_eq!(found.children(found.lookup(b"big").unwrap()).unwrap().len(), 65_536);
}

#[test]
fn attributes_reach_the_limits_of_erofs_and_not_beyond() {
    let with = |count: usize, bytes: usize| {
        let mut node = Node::new(NodeKind::Fifo, 0);
        (0..count).for_each(|n| node.set_xattr(format!("user.{n:03}").as_bytes(), &vec![n as u8; bytes]));
        let mut tree = trees::empty();
        tree.add(NodeId::ROOT, b"f", node).unwrap();
        tree
    };
    for (count, bytes) in [(1, 65_535), (4, 65_525), (250, 1000)] {
        let tree = with(count, bytes);
        assert!(read_bootstrap(&written(&tree)).unwrap() == tree, "{count} attributes of {bytes} bytes");
    }
    for (count, bytes) in [(1, 65_536), (5, 65_000)] {
        let found = write_bootstrap(&with(count, bytes));
        assert!(matches!(found, Err(WriteError::Xattrs { node: 1, .. })), "{count} of {bytes}: {found:?}");
    }
    let mut foreign = trees::empty();
    let mut node = Node::new(NodeKind::Fifo, 0);
    node.set_xattr(b"com.apple.quarantine", b"x");
    foreign.add(NodeId::ROOT, b"f", node).unwrap();
    assert!(matches!(write_bootstrap(&foreign), Err(WriteError::Xattrs { .. })));
}

#[test]
fn files_reach_as_far_as_the_device() {
    let file = |device_offset, size| {
        let mut tree = trees::empty();
        let node = Node::new(NodeKind::Regular { device_offset, size }, 0o644);
        tree.add(NodeId::ROOT, b"f", node).unwrap();
        tree
    };
    let (tib, end) = (1u64 << 40, u64::from(u32::MAX) * 4096);
    for (offset, size) in [(0, 1), (4096, 4097), (0, 8 * tib), (0, 8 * tib + 1), (0, end), (end - 4096, 4096)]
    {
        let tree = file(offset, size);
        assert!(read_bootstrap(&written(&tree)).unwrap() == tree, "{size} bytes at {offset}");
    }
    for (offset, size) in [(1, 1), (end, 1), (0, end + 1), (4096, u64::MAX), (u64::MAX - 4095, 4096)] {
        let found = write_bootstrap(&file(offset, size));
        assert_eq!(found, Err(WriteError::Device { node: 1 }), "{size} bytes at {offset}");
    }
}

/// Each case breaks one rule in an image whose checksum is switched off.
#[test]
fn broken_rules_are_named() {
    let mut tree = trees::empty();
    let dir = tree.add(NodeId::ROOT, b"dir", Node::directory(0o755)).unwrap();
    let file = Node::new(NodeKind::Regular { device_offset: 0, size: 5 }, 0o644);
    let file = tree.add(dir, b"file", file).unwrap();
    let other = tree.add(dir, b"other", Node::new(NodeKind::Symlink(b"x".to_vec()), 0o777)).unwrap();
    let pipe = tree.add(dir, b"pipe", Node::new(NodeKind::Fifo, 0)).unwrap();
    let bootstrap = write_bootstrap(&tree).unwrap();
    let at = |id: NodeId| bootstrap.nids[id.0 as usize] as usize * 32;
    let nid = |id: NodeId| bootstrap.nids[id.0 as usize].to_le_bytes();
    // Entries of `dir`: ".", "..", "file", "other", "pipe"; its inline tail follows the inode.
    let entry = |n: usize| at(dir) + 64 + n * 12;
    let cases: Vec<(&str, usize, Vec<u8>)> = vec![
        ("EROFS magic", 1024, vec![0]),
        ("4 KiB blocks", 1024 + 12, vec![9]),
        ("4 KiB blocks", 1024 + 80, vec![0xff]),
        ("lie elsewhere", 1024 + 86, vec![2]),
        ("outside the image", 1024 + 14, vec![0xff, 0xff]),
        ("extended inode", at(file), vec![0]),
        ("no file type", at(pipe) + 4, vec![0, 0]),
        ("nanoseconds", at(file) + 40, vec![0xff; 4]),
        ("more than it holds", at(file) + 2, vec![0xff, 0xff]),
        ("indexed chunks", at(file) + 16, vec![0]),
        ("one after another", at(file) + 64 + 2, vec![2]),
        ("largest device", at(file) + 64 + 4, vec![0xff; 4]),
        ("link target", at(other) + 8, vec![0xff, 0xff]),
        ("second name", at(NodeId::ROOT) + 64 + 2 * 12, nid(NodeId::ROOT).to_vec()),
        ("type is not", entry(2) + 10, vec![2]),
        ("dots lead elsewhere", entry(1), nid(dir).to_vec()),
        ("byte order", entry(5) + 3, b"!".to_vec()),
        ("do not fit", entry(0) + 8, vec![11]),
    ];
    for (expected, position, value) in cases {
        let mut bytes = bootstrap.bytes.clone();
        bytes[1024 + 8] = 0;
        bytes[position..position + value.len()].copy_from_slice(&value);
        let error = read_bootstrap(&bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, found {error:?}");
    }
    let mut bytes = bootstrap.bytes.clone();
    bytes[1024 + 20] ^= 1;
    let found = read_bootstrap(&bytes);
    assert_eq!(found, Err(ReadError::Superblock("its checksum is wrong")));
}

/// Many directories over one directory block would describe far more names than the image has bytes.
#[test]
fn overlapping_parts_are_refused_before_they_multiply() {
    let mut tree = trees::empty();
    let full = tree.add(NodeId::ROOT, b"full", Node::directory(0o755)).unwrap();
    let mut empty = Vec::new();
    for n in 0..2000 {
        tree.add(full, format!("{n:05}").as_bytes(), Node::new(NodeKind::Fifo, 0)).unwrap();
        empty.push(tree.add(NodeId::ROOT, format!("e{n:05}").as_bytes(), Node::directory(0)).unwrap());
    }
    let bootstrap = write_bootstrap(&tree).unwrap();
    let mut bytes = bootstrap.bytes.clone();
    bytes[1024 + 8] = 0;
    let at = |id: NodeId| bootstrap.nids[id.0 as usize] as usize * 32;
    let inode = bytes[at(full)..at(full) + 20].to_vec();
    empty.iter().for_each(|id| bytes[at(*id)..at(*id) + 20].copy_from_slice(&inode));
    assert!(read_bootstrap(&bytes).is_err());
}

#[test]
fn deep_trees_are_read_up_to_the_depth_that_paths_reach() {
    for (depth, fits) in [(2000, true), (2100, false)] {
        let (mut tree, mut at) = (trees::empty(), NodeId::ROOT);
        for _ in 0..depth {
            at = tree.add(at, b"d", Node::directory(0o755)).unwrap();
        }
        assert_eq!(read_bootstrap(&written(&tree)).is_ok(), fits, "{depth}");
    }
}
