//! The file tree of one layer: what a tar becomes, and what a bootstrap is written from and read into.
//!
//! Nodes live in an arena; a hard link is one more name for the same [`NodeId`]. Node 0 is the root directory.

use std::collections::{BTreeMap, HashMap};

/// The longest name of one directory entry, in bytes (Linux `NAME_MAX`, EROFS `EROFS_NAME_LEN`).
pub const MAX_NAME_BYTES: usize = 255;
/// The overlayfs attribute that hides what the layers below have in a directory, with the value `y`.
pub(crate) const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
/// Where overlayfs keeps its own attributes.
pub(crate) const OVERLAY_XATTR_PREFIX: &[u8] = b"trusted.overlay.";
const IMPLIED_MODE: u16 = 0o755;

/// Permission bits and set-user-id, set-group-id, sticky: what `Node::mode` may hold.
pub const MODE_MASK: u16 = 0o7777;

/// A node of a [`Tree`]: an index into its arena, without meaning in another tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    pub const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: NodeKind,
    /// Permission, set-user-id, set-group-id and sticky bits ([`MODE_MASK`]); the type is in `kind`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, negative before, and nanoseconds below 1,000,000,000.
    pub mtime: (i64, u32),
    /// Names in this layer; of a directory 2 and one for each subdirectory. The tree keeps it.
    pub nlink: u32,
    /// Full names (`security.capability`) and values; names are unique.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The EROFS inode number, in a tree that was read from a bootstrap; otherwise 0.
    pub nid: u64,
}

/// What a node is. Device numbers are as Linux encodes them in 32 bits (`new_encode_dev`): the low 8 bits of the
/// minor, 12 bits of the major, the upper 12 bits of the minor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    Directory {
        children: BTreeMap<Vec<u8>, NodeId>,
        /// The tar names something inside this directory but not the directory: its attributes come from the
        /// layers below ([`Tree::inherit_implied`]).
        implied: bool,
    },
    /// The content lies at `[device_offset, device_offset + size)` of the layer's device; an empty file has
    /// offset 0.
    Regular {
        device_offset: u64,
        size: u64,
    },
    Symlink(Vec<u8>),
    /// Number 0 is an overlayfs whiteout: the name is deleted from the layers below.
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("not a directory")]
    NotDirectory,
    #[error("the name exists already")]
    Exists,
    #[error(
        "the name is not one that Linux allows: 1 to {MAX_NAME_BYTES} bytes, no slash, no zero byte, no . or .."
    )]
    Name,
    #[error("a directory cannot have a second name")]
    LinkToDirectory,
    #[error("the tree holds as many nodes as it can")]
    Full,
}

#[derive(Debug, Clone)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
}

impl Node {
    /// A node owned by root, without time or attributes. `mode` is cut to [`MODE_MASK`].
    pub fn new(kind: NodeKind, mode: u16) -> Self {
        let nlink = if matches!(kind, NodeKind::Directory { .. }) { 2 } else { 0 };
        Self {
            kind,
            mode: mode & MODE_MASK,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            nlink,
            xattrs: Vec::new(),
            nid: 0,
        }
    }

    pub fn directory(mode: u16) -> Self {
        Self::new(NodeKind::Directory { children: BTreeMap::new(), implied: false }, mode)
    }

    /// A directory that only its content proves: 0755, root's, time 0 (what umoci gives a root directory that
    /// no layer names), until [`Tree::inherit_implied`] finds better.
    pub fn implied_directory() -> Self {
        Self::new(NodeKind::Directory { children: BTreeMap::new(), implied: true }, IMPLIED_MODE)
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.kind, NodeKind::Directory { .. })
    }

    /// Whether overlayfs takes this node as "the name is deleted".
    pub fn is_whiteout(&self) -> bool {
        self.kind == NodeKind::CharDevice(0)
    }

    /// Whether overlayfs hides what the layers below have in this directory.
    pub fn is_opaque(&self) -> bool {
        self.is_directory() && self.xattr(OPAQUE_XATTR) == Some(b"y")
    }

    pub fn xattr(&self, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_slice())
    }

    /// Sets or replaces one attribute.
    pub fn set_xattr(&mut self, name: &[u8], value: &[u8]) {
        match self.xattrs.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.xattrs.push((name.to_vec(), value.to_vec())),
        }
    }

    fn same_attributes(&self, other: &Self) -> bool {
        let plain = |n: &Self| (n.mode, n.uid, n.gid, n.mtime, n.nlink);
        plain(self) == plain(other) && self.xattrs == other.xattrs
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A root directory, implied: no tar has named it yet.
    pub fn new() -> Self {
        Self { nodes: vec![Node::implied_directory()] }
    }

    /// A tree that holds nothing but its root, which must be a directory without children.
    pub fn with_root(root: Node) -> Result<Self, TreeError> {
        match &root.kind {
            NodeKind::Directory { children, .. } if children.is_empty() => Ok(Self { nodes: vec![root] }),
            _ => Err(TreeError::NotDirectory),
        }
    }

    /// # Panics
    /// When `id` is not of this tree.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Nodes in the arena, those without a name included.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The names in a directory, in byte order; `None` for anything else.
    pub fn children(&self, directory: NodeId) -> Option<&BTreeMap<Vec<u8>, NodeId>> {
        match &self.node(directory).kind {
            NodeKind::Directory { children, .. } => Some(children),
            _ => None,
        }
    }

    pub fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.children(directory)?.get(name).copied()
    }

    /// The node at a path. Empty components are skipped, links are not followed, `.` and `..` have no meaning.
    pub fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        components(path).try_fold(NodeId::ROOT, |at, name| self.child(at, name))
    }

    /// Adds a node under a new name.
    pub fn add(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId, TreeError> {
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| TreeError::Full)?);
        let is_directory = node.is_directory();
        self.bind(parent, name, id)?;
        self.nodes.push(node);
        let named = if is_directory { parent } else { id };
        self.node_mut(named).nlink += 1;
        Ok(id)
    }

    /// Gives a node that is not a directory one more name.
    pub fn link(&mut self, parent: NodeId, name: &[u8], target: NodeId) -> Result<(), TreeError> {
        if self.node(target).is_directory() {
            return Err(TreeError::LinkToDirectory);
        }
        self.bind(parent, name, target)?;
        self.node_mut(target).nlink += 1;
        Ok(())
    }

    /// Takes a name away, with everything under it.
    pub fn remove(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let NodeKind::Directory { children, .. } = &mut self.node_mut(parent).kind else { return None };
        let removed = children.remove(name)?;
        if self.node(removed).is_directory() {
            self.node_mut(parent).nlink -= 1;
        }
        let mut below = vec![removed];
        while let Some(id) = below.pop() {
            match &mut self.node_mut(id).kind {
                NodeKind::Directory { children, .. } => below.extend(std::mem::take(children).into_values()),
                _ => self.node_mut(id).nlink -= 1,
            }
        }
        Some(removed)
    }

    fn bind(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), TreeError> {
        if !valid_name(name) {
            return Err(TreeError::Name);
        }
        let NodeKind::Directory { children, .. } = &mut self.node_mut(parent).kind else {
            return Err(TreeError::NotDirectory);
        };
        if children.contains_key(name) {
            return Err(TreeError::Exists);
        }
        children.insert(name.to_vec(), id);
        Ok(())
    }
}

/// Two trees are equal when they hold the same names, attributes and hard links. Node ids and nids do not count.
impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        let (mut forth, mut back) = (HashMap::new(), HashMap::new());
        let mut open = vec![(NodeId::ROOT, NodeId::ROOT)];
        while let Some((a, b)) = open.pop() {
            let known = (forth.insert(a, b), back.insert(b, a));
            match known {
                (None, None) => {}
                (Some(old_b), Some(old_a)) if old_b == b && old_a == a => continue,
                _ => return false,
            }
            let (left, right) = (self.node(a), other.node(b));
            if !left.same_attributes(right) {
                return false;
            }
            match (&left.kind, &right.kind) {
                (
                    NodeKind::Directory { children: mine, implied: my },
                    NodeKind::Directory { children: theirs, implied: their },
                ) if my == their && mine.keys().eq(theirs.keys()) => {
                    open.extend(mine.values().copied().zip(theirs.values().copied()));
                }
                (NodeKind::Directory { .. }, _) => return false,
                (mine, theirs) if mine != theirs => return false,
                _ => {}
            }
        }
        true
    }
}

impl Eq for Tree {}

pub(crate) fn valid_name(name: &[u8]) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// The parts of a path between slashes, without empty ones.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One entry a line: a path that ends in `/` is a directory, `?` after it makes it implied, `!` opaque; `-PATH`
    /// is a whiteout; anything else a file. A directory's mode is the number after a space.
    pub(crate) fn tree(lines: &str) -> Tree {
        let mut tree = Tree::new();
        for line in lines.split_whitespace() {
            let (text, mode) = line.split_once('=').unwrap_or((line, "755"));
            let mode = u16::from_str_radix(mode, 8).unwrap();
            let (text, opaque) = text.strip_suffix('!').map_or((text, false), |text| (text, true));
            let (text, implied) = text.strip_suffix('?').map_or((text, false), |text| (text, true));
            let (text, whiteout) = text.strip_prefix('-').map_or((text, false), |text| (text, true));
            let mut node = match (whiteout, text.ends_with('/'), implied) {
                (true, ..) => Node::new(NodeKind::CharDevice(0), 0),
                (_, true, true) => Node::implied_directory(),
                (_, true, false) => Node::directory(mode),
                _ => Node::new(NodeKind::Fifo, mode),
            };
            if opaque {
                node.set_xattr(OPAQUE_XATTR, b"y");
            }
            let path = text.trim_end_matches('/');
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = tree.lookup(parent.as_bytes()).unwrap();
            tree.add(parent, name.as_bytes(), node).unwrap();
        }
        tree
    }

    #[test]
    fn links_are_counted_through_adding_linking_and_removing() {
        let mut tree = tree("a/ a/b/ a/b/f a/c/");
        let (root, a, f) = (NodeId::ROOT, tree.lookup(b"a").unwrap(), tree.lookup(b"a/b/f").unwrap());
        tree.link(root, b"g", f).unwrap();
        assert_eq!([root, a, f].map(|id| tree.node(id).nlink), [3, 4, 2]);
        assert_eq!(tree.link(root, b"h", a), Err(TreeError::LinkToDirectory));
        assert_eq!(tree.link(root, b"g", f), Err(TreeError::Exists));
        assert_eq!(tree.link(f, b"x", f), Err(TreeError::NotDirectory));
        for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert_eq!(tree.link(root, name, f), Err(TreeError::Name), "{name:?}");
        }
        tree.remove(a, b"b").unwrap();
        assert_eq!([root, a, f].map(|id| tree.node(id).nlink), [3, 3, 1]);
        tree.remove(root, b"a").unwrap();
        assert_eq!(tree.node(root).nlink, 2);
        assert_eq!(tree.remove(root, b"a"), None);
    }

    #[test]
    fn equality_is_about_names_attributes_and_hard_links() {
        let (one, mut two) = (tree("a/ a/x b/ b/x"), tree("b/ b/x a/ a/x"));
        assert_eq!(one, two);
        let (b, x) = (two.lookup(b"b").unwrap(), two.lookup(b"a/x").unwrap());
        two.remove(b, b"x");
        two.link(b, b"x", x).unwrap();
        assert_ne!(one, two);
        let mut three = tree("a/ a/x b/ b/x");
        let x = three.lookup(b"b/x").unwrap();
        three.node_mut(x).uid = 1;
        assert_ne!(one, three);
    }
}
