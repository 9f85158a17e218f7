//! A file tree in memory, whose reads a test can take into its own hands.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use d7y_fuse::{
    Attributes, DirectoryEntry, DirectorySink, Entry, Errno, FileKind, Filesystem, NodeId, ReadReply,
    Timestamp, XattrNames,
};
use d7y_types::ByteRange;

type ReadHook = Box<dyn Fn(ByteRange, ReadReply) + Send + Sync>;

pub struct Tree {
    nodes: HashMap<NodeId, Node>,
}

pub struct Node {
    pub attributes: Attributes,
    pub body: Body,
    pub xattrs: Vec<(&'static str, Vec<u8>)>,
}

pub enum Body {
    Directory(Vec<(OsString, NodeId)>),
    File(Vec<u8>),
    Hooked(ReadHook),
    Link(&'static [u8]),
    Special,
}

impl Node {
    pub fn new(kind: FileKind, size: u64, body: Body) -> Self {
        let modified = Timestamp { seconds: 1_700_000_000, nanoseconds: 7 };
        let attributes =
            Attributes { kind, permissions: 0o755, links: 1, uid: 0, gid: 0, rdev: 0, size, modified };
        Self { attributes, body, xattrs: Vec::new() }
    }

    pub fn file(content: &[u8]) -> Self {
        Self::new(FileKind::Regular, content.len() as u64, Body::File(content.to_vec()))
    }

    /// A file of `size` bytes whose reads go to `hook`.
    pub fn hooked(size: u64, hook: impl Fn(ByteRange, ReadReply) + Send + Sync + 'static) -> Self {
        Self::new(FileKind::Regular, size, Body::Hooked(Box::new(hook)))
    }
}

impl Tree {
    pub fn new() -> Self {
        let root = Node::new(FileKind::Directory, 0, Body::Directory(Vec::new()));
        Self { nodes: HashMap::from([(NodeId::ROOT, root)]) }
    }

    /// A tree of one file, `name`.
    pub fn with(name: &str, node: Node) -> Self {
        let mut tree = Self::new();
        tree.add(NodeId::ROOT, name, node);
        tree
    }

    pub fn add(&mut self, parent: NodeId, name: impl Into<OsString>, node: Node) -> NodeId {
        let id = NodeId(self.nodes.len() as u64 + 100);
        self.nodes.insert(id, node);
        self.link(parent, name, id);
        id
    }

    pub fn link(&mut self, parent: NodeId, name: impl Into<OsString>, node: NodeId) {
        let Body::Directory(children) = &mut self.nodes.get_mut(&parent).unwrap().body else { panic!() };
        children.push((name.into(), node));
    }

    fn node(&self, node: NodeId) -> Result<&Node, Errno> {
        self.nodes.get(&node).ok_or(Errno::STALE)
    }

    fn children(&self, node: NodeId) -> Result<&[(OsString, NodeId)], Errno> {
        match &self.node(node)?.body {
            Body::Directory(children) => Ok(children),
            _ => Err(Errno::NOT_A_DIRECTORY),
        }
    }
}

impl Filesystem for Tree {
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>, Errno> {
        let found = self.children(parent)?.iter().find(|(child, _)| child == name);
        found.map(|(_, node)| Ok(Entry { node: *node, attributes: self.node(*node)?.attributes })).transpose()
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        Ok(self.node(node)?.attributes)
    }

    fn read(&self, node: NodeId, range: ByteRange, reply: ReadReply) {
        match self.node(node).map(|node| &node.body) {
            Ok(Body::File(content)) => {
                let start = content.len().min(range.offset as usize);
                let end = content.len().min(range.end() as usize);
                reply.data(&content[start..end]);
            }
            Ok(Body::Hooked(hook)) => hook(range, reply),
            Ok(_) => reply.error(Errno::INVALID),
            Err(errno) => reply.error(errno),
        }
    }

    fn read_directory(&self, node: NodeId, offset: u64, sink: &mut DirectorySink<'_>) -> Result<(), Errno> {
        let dots = [(OsString::from("."), node), (OsString::from(".."), NodeId::ROOT)];
        let entries = dots.iter().chain(self.children(node)?).enumerate().skip(offset as usize);
        for (number, (name, node)) in entries {
            let kind = self.node(*node)?.attributes.kind;
            let entry = DirectoryEntry { name, node: *node, kind, next: number as u64 + 1 };
            if sink.add(&entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, node: NodeId) -> Result<Cow<'_, [u8]>, Errno> {
        match self.node(node)?.body {
            Body::Link(target) => Ok(Cow::Borrowed(target)),
            _ => Err(Errno::INVALID),
        }
    }

    fn get_xattr(&self, node: NodeId, name: &OsStr) -> Result<Cow<'_, [u8]>, Errno> {
        let found = self.node(node)?.xattrs.iter().find(|(key, _)| key.as_bytes() == name.as_bytes());
        found.map(|(_, value)| Cow::Borrowed(&value[..])).ok_or(Errno::NO_DATA)
    }

    fn list_xattr(&self, node: NodeId, names: &mut XattrNames) -> Result<(), Errno> {
        self.node(node)?.xattrs.iter().for_each(|(name, _)| names.push(OsStr::new(name)));
        Ok(())
    }
}
