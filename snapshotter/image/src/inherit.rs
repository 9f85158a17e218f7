//! What a directory that a tar only implies takes from the layers below.

use crate::tree::{Node, NodeId, NodeKind, OVERLAY_XATTR_PREFIX, Tree, components};

const SET_GROUP_ID: u16 = 0o2000;

impl Tree {
    /// Gives each implied directory the attributes of the nearest layer below that names it: mode, owner, time
    /// and extended attributes, as if the layers had been unpacked over one another. Whiteouts and opaque
    /// directories on the way end the search. What is found nowhere keeps 0755, root and time 0, but takes group
    /// and set-group-id bit from a parent that has the bit, as `mkdir` does.
    ///
    /// `lowers` begins with the layer directly below this one (the order of overlayfs's `lowerdir`); the lowest
    /// layer has none.
    pub fn inherit_implied(&mut self, lowers: &[&Tree]) {
        for Implied { id, parent, path } in self.implied_directories() {
            let found = path.and_then(|path| lowers_attributes(lowers, &path));
            let Some(found) = found else {
                let (mode, gid) = (self.node(parent).mode, self.node(parent).gid);
                if mode & SET_GROUP_ID != 0 {
                    let node = self.node_mut(id);
                    (node.mode, node.gid) = (node.mode | SET_GROUP_ID, gid);
                }
                continue;
            };
            let node = self.node_mut(id);
            let own = std::mem::take(&mut node.xattrs);
            let of_overlay = |(name, _): &(Vec<u8>, Vec<u8>)| name.starts_with(OVERLAY_XATTR_PREFIX);
            node.xattrs = found.xattrs.iter().filter(|x| !of_overlay(x)).cloned().collect();
            node.xattrs.extend(own.into_iter().filter(of_overlay));
            (node.mode, node.uid, node.gid, node.mtime) = (found.mode, found.uid, found.gid, found.mtime);
        }
    }

    /// Implied directories, parents first.
    fn implied_directories(&self) -> Vec<Implied> {
        let mut found = Vec::new();
        let mut open = vec![Implied { id: NodeId::ROOT, parent: NodeId::ROOT, path: Some(Vec::new()) }];
        while let Some(here) = open.pop() {
            let NodeKind::Directory { children, implied } = &self.node(here.id).kind else { continue };
            let below = here.path.as_ref().filter(|_| !self.node(here.id).is_opaque());
            for (name, child) in children.iter().filter(|(_, child)| self.node(**child).is_directory()) {
                let path = below.map(|path| [path.as_slice(), name.as_slice()].join(&b'/'));
                open.push(Implied { id: *child, parent: here.id, path });
            }
            if *implied {
                found.push(here);
            }
        }
        found
    }
}

/// A directory that only its content proves.
struct Implied {
    id: NodeId,
    parent: NodeId,
    /// None where an opaque directory cuts it off from the layers below.
    path: Option<Vec<u8>>,
}

fn lowers_attributes<'t>(lowers: &[&'t Tree], path: &[u8]) -> Option<&'t Node> {
    for lower in lowers {
        match below(lower, path) {
            Below::Names(node) => return Some(node),
            Below::Hides => return None,
            Below::Silent => {}
        }
    }
    None
}

/// What a layer says about a directory.
enum Below<'t> {
    /// It has the directory, by name.
    Names(&'t Node),
    /// It deletes or replaces it: layers further below do not count.
    Hides,
    Silent,
}

fn below<'t>(tree: &'t Tree, path: &[u8]) -> Below<'t> {
    let (mut at, mut opaque) = (NodeId::ROOT, false);
    for name in components(path) {
        opaque |= tree.node(at).is_opaque();
        match tree.child(at, name) {
            Some(child) if tree.node(child).is_directory() => at = child,
            Some(_) => return Below::Hides,
            None if opaque => return Below::Hides,
            None => return Below::Silent,
        }
    }
    match &tree.node(at).kind {
        NodeKind::Directory { implied: true, .. } if opaque => Below::Hides,
        NodeKind::Directory { implied: true, .. } => Below::Silent,
        _ => Below::Names(tree.node(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::OPAQUE_XATTR;
    use crate::tree::tests::tree;

    #[test]
    fn implied_directories_inherit_from_the_nearest_layer_that_names_them() {
        let cases: [(&str, &[&str], u16); 17] = [
            ("a/?", &[], 0o755),
            ("a/?", &["a/=700"], 0o700),
            ("a/?", &["b/", "a/=711"], 0o711),
            ("a/?", &["a/?", "a/=700"], 0o700),
            ("a/?", &["a/=711", "a/=700"], 0o711),
            ("a/?", &["-a", "a/=700"], 0o755),
            ("a/?", &["a", "a/=700"], 0o755),
            ("a/?!", &["a/=700"], 0o700),
            ("x/! x/a/?", &["x/ x/a/=700"], 0o755),
            ("x/ x/a/?", &["x/?!", "x/ x/a/=700"], 0o755),
            ("x/ x/a/?", &["x/?! x/a/?", "x/ x/a/=700"], 0o755),
            ("x/ x/a/?", &["x/?! x/a/=711", "x/ x/a/=700"], 0o711),
            ("x/ x/a/?", &["x/? x/a/?!", "x/ x/a/=700"], 0o700),
            ("x/ x/a/?", &["x", "x/ x/a/=700"], 0o755),
            ("x/=2775 x/a/?", &[], 0o2755),
            ("x/=2775 x/a/?", &["x/ x/a/=700"], 0o700),
            ("x/? x/a/?", &["x/=2700"], 0o2755),
        ];
        for (upper, lowers, expected) in cases {
            let mut upper_tree = tree(upper);
            let lower_trees: Vec<Tree> = lowers.iter().map(|lines| tree(lines)).collect();
            upper_tree.inherit_implied(&lower_trees.iter().collect::<Vec<_>>());
            let path = if upper.contains("x/") { "x/a" } else { "a" };
            let found = upper_tree.node(upper_tree.lookup(path.as_bytes()).unwrap());
            assert_eq!(found.mode, expected, "{upper:?} over {lowers:?}");
        }
    }

    #[test]
    fn attributes_come_along_but_overlayfs_marks_do_not() {
        let (mut upper, mut lower) = (tree("a/?!"), tree("a/=1777"));
        let a = lower.lookup(b"a").unwrap();
        lower.node_mut(a).set_xattr(b"user.k", b"v");
        lower.node_mut(a).set_xattr(b"trusted.overlay.redirect", b"/b");
        (lower.node_mut(a).uid, lower.node_mut(a).mtime) = (7, (-3, 5));
        upper.inherit_implied(&[&lower]);
        let found = upper.node(upper.lookup(b"a").unwrap());
        assert_eq!((found.mode, found.uid, found.mtime), (0o1777, 7, (-3, 5)));
        let names: Vec<&[u8]> = found.xattrs.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(names, [b"user.k".as_slice(), OPAQUE_XATTR]);
    }
}
