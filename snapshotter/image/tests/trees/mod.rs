//! Random trees.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use d7y_image::{MODE_MASK, Node, NodeId, NodeKind, Tree};
use proptest::collection::vec;
use proptest::prelude::*;

/// Content lies within the first so many bytes of the device.
pub const DEVICE_BYTES: u64 = 1 << 20;

/// What to add where; the selectors pick among what is there by then.
#[derive(Debug, Clone)]
enum Step {
    Add { parent: usize, name: Vec<u8>, node: Node },
    Link { parent: usize, name: Vec<u8>, target: usize },
}

pub fn any_tree(steps: usize) -> impl Strategy<Value = Tree> {
    vec(step(), 0..steps).prop_map(|steps| {
        let mut tree = empty();
        for step in steps {
            let (mut directories, mut others) = (vec![NodeId::ROOT], Vec::new());
            for id in (1..tree.node_count() as u32).map(NodeId) {
                if tree.node(id).is_directory() { directories.push(id) } else { others.push(id) }
            }
            // A name that exists already is simply not added again.
            let _ = match step {
                Step::Add { parent, name, node } => {
                    tree.add(directories[parent % directories.len()], &name, node).map(drop)
                }
                Step::Link { parent, name, target } if !others.is_empty() => {
                    tree.link(directories[parent % directories.len()], &name, others[target % others.len()])
                }
                Step::Link { .. } => Ok(()),
            };
        }
        tree
    })
}

/// A root directory that is not implied, as a bootstrap gives it back.
pub fn empty() -> Tree {
    d7y_image::read_bootstrap(&d7y_image::write_bootstrap(&Tree::new()).unwrap().bytes).unwrap()
}

fn step() -> impl Strategy<Value = Step> {
    let add =
        (any::<usize>(), name(), node()).prop_map(|(parent, name, node)| Step::Add { parent, name, node });
    let link = (any::<usize>(), name(), any::<usize>()).prop_map(|(parent, name, target)| Step::Link {
        parent,
        name,
        target,
    });
    prop_oneof![6 => add, 1 => link]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/') { b'-' } else { byte });
    let dotted = proptest::sample::select(b"!-. a".to_vec());
    prop_oneof![vec(byte.clone(), 1..20), vec(byte, 200..=255), vec(dotted, 1..5)]
}

fn node() -> impl Strategy<Value = Node> {
    let xattr = (any::<prop::sample::Index>(), vec(any::<u8>(), 0..40));
    let large = (any::<prop::sample::Index>(), vec(any::<u8>(), 3000..4200));
    let xattrs = prop_oneof![4 => vec(xattr, 0..3), 1 => vec(large, 1..3)];
    (kind(), 0..=MODE_MASK, any::<[u32; 2]>(), any::<i32>(), 0..1_000_000_000u32, xattrs).prop_map(
        |(kind, mode, [uid, gid], seconds, nanoseconds, xattrs)| {
            let mut node = Node::new(kind, mode);
            // The kernel shows -1 as the overflow id.
            (node.uid, node.gid) = (uid.min(u32::MAX - 1), gid.min(u32::MAX - 1));
            node.mtime = (seconds.into(), nanoseconds);
            for (name, value) in xattrs {
                node.set_xattr(
                    name.get(&["user.a", "user.bcd", "trusted.x", "security.y"]).as_bytes(),
                    &value,
                );
            }
            node
        },
    )
}

fn kind() -> impl Strategy<Value = NodeKind> {
    let directory = || match Node::directory(0).kind {
        kind @ NodeKind::Directory { .. } => kind,
        _ => unreachable!("a directory is one"),
    };
    let target = || any::<u8>().prop_map(|byte| byte.max(1));
    let regular = (0..DEVICE_BYTES / 4096, 0..300_000u64).prop_map(|(block, size)| {
        let size = size.min(DEVICE_BYTES - block * 4096);
        NodeKind::Regular { device_offset: if size == 0 { 0 } else { block * 4096 }, size }
    });
    prop_oneof![
        4 => Just(()).prop_map(move |()| directory()),
        3 => regular,
        1 => vec(target(), 1..60).prop_map(NodeKind::Symlink),
        1 => vec(target(), 3900..=4095).prop_map(NodeKind::Symlink),
        1 => any::<u32>().prop_map(NodeKind::CharDevice),
        1 => any::<u32>().prop_map(NodeKind::BlockDevice),
        1 => Just(NodeKind::Fifo),
        1 => Just(NodeKind::Socket),
    ]
}
